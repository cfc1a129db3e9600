"""What is handed back, and how it runs."""
