"""Mixers over positions, before an attention or inside a branch."""
