"""Measure what `tools/benchmark.py` reports."""
