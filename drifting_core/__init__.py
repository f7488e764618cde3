"""Generative modelling by drifting, from image archives to a verified claim bundle."""

__version__ = "0.1.0"
