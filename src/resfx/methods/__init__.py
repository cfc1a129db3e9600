"""One published method a file: a frozen config and the module it builds."""
