"""Tools that spread a model over processes."""
