"""Configuration and the adapters between the suite and where it runs."""
