"""Configuration, and adapters to the environment in which the suite runs."""
