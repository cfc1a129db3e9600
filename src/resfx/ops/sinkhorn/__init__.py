"""Sinkhorn-Knopp."""
