"""The delta shortcut."""
