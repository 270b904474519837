"""Benchmarks: check first, then time.  `python -m benchmarks.run`; conditions and results are in benchmarks/README.md."""
