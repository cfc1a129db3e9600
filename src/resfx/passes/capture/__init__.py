"""A model and a call of it become one flat graph."""
