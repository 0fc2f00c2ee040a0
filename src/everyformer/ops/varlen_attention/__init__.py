"""Attention among packed sequences of different lengths: no token attends to another sequence, none is padding."""

# Nothing else is imported here: this package has a module called torch, which would shadow the library's name.
from everyformer.ops.varlen_attention.dispatch import varlen_attention

__all__ = ["varlen_attention"]
