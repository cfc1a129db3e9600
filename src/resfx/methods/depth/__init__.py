"""Methods that read over depth."""
