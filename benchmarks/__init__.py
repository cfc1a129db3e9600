"""Scripts that measure; each writes a page to ``results/`` and its figures to ``results/data/``."""
