"""Operators on a state of n channels."""
