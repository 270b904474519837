"""Benchmarks: check first, then time.

`python -m benchmarks.run` measures; conditions and results are in benchmarks/README.md.
"""
