"""What of a rewritten model is kept in a folder, and how it comes back."""
