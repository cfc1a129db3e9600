"""One command for a GPU: ``make gpu``. See :mod:`benchmarks.gpu.__main__`."""
