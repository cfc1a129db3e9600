"""A softmax read over a list of sources."""
