"""A model in stages for pipeline parallelism."""
