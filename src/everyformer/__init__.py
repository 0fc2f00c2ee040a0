"""everyformer: transformer papers that work, as parts, as models, and as claims you can check."""

from everyformer.catalog import paper, papers

__version__ = "0.1.0"

__all__ = ["paper", "papers"]
