"""Methods that mix positions before or inside a branch."""
