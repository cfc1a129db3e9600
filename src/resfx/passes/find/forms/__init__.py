"""The ways in which a shortcut and a branch are written."""
