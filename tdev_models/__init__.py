"""The memory of the T-Developer pipeline."""

__version__ = "0.1.0"
