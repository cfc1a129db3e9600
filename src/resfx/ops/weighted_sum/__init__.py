"""A weighted sum over a list of sources."""
