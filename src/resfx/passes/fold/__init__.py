"""A rewritten graph cut into its repeated blocks."""
