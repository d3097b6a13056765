"""Run the tools after their command line is parsed."""
