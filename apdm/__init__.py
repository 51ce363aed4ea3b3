"""Protect people from being learned by text-to-image models, in the weights and in the photos."""

__version__ = "0.1.0"
