"""Methods that replace an add."""
