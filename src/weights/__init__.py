"""Weights of other frameworks and of other classes: reading, naming, fitting to the detector."""
