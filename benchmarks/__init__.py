"""Scripts that measure; each writes JSON and Markdown under ``results/``."""
