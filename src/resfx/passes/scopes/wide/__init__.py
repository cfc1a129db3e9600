"""A stream of several channels between two adds."""
