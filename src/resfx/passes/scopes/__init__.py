"""Graph surgery, once per scope."""
