"""Reads over depth at the inputs of sublayers or blocks."""
