"""Pipelines: what crosses from stage to stage by method, counted, measured and simulated.

``python -m benchmarks.systems`` writes ``docs/systems.md`` and what it is made of. Residual Stream Duality (arXiv
2603.16039) argues that reads over depth carry states across pipeline stages, and that the shortcut and mixers over
positions do not.
"""
