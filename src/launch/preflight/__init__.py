"""Check a machine and a job before the start."""
