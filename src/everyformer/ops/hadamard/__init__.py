"""The orthogonal Hadamard transform in O(n log n), for powers of two and many other sizes."""

# Nothing else is imported here: this package has a module called torch, which would shadow the library's name.
from everyformer.ops.hadamard.dispatch import hadamard
from everyformer.ops.hadamard.matrices import hadamard_matrix, has_hadamard

__all__ = ["hadamard", "hadamard_matrix", "has_hadamard"]
