"""Sparse-linear attention (arXiv 2509.24006): softmax over critical blocks, linear attention over marginal ones."""

# Nothing else is imported here: this package has a module called torch, which would shadow the library's name.
from everyformer.ops.sparse_linear_attention.dispatch import FEATURE_MAPS, projected, sparse_linear_attention

__all__ = ["FEATURE_MAPS", "projected", "sparse_linear_attention"]
