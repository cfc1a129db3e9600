"""Methods whose stream has several channels."""
