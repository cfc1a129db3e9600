"""Before and after: two models side by side on every backend."""
