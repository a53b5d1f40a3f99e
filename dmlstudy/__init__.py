"""Deep metric learning, method by method, under one protocol."""

__version__ = "0.1.0"
