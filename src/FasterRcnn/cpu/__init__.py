"""The detector's kernels for CPUs."""
