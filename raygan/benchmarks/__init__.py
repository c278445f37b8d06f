"""Claims of speed, measured side by side in one run by `jobs/benchmark.py`."""
