"""The calls of modules in a trace: seen when they are made, found again in the graph."""
