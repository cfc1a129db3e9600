"""What acts on a model somebody has, tried on rewritten ones: ``python -m tests.ecosystem``."""
