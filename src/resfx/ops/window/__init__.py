"""Attention over a short window, for tokens and for layers."""
