"""Symmetric rounding to eight bits or six, and products of what was rounded."""

# Nothing else is imported here: this package has a module called torch, which would shadow the library's name.
from everyformer.ops.scaled_matmul.dispatch import scaled_matmul
from everyformer.ops.scaled_matmul.formats import FORMATS, check_format, largest, quantise

__all__ = ["FORMATS", "check_format", "largest", "quantise", "scaled_matmul"]
