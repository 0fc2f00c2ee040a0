"""everyformer: transformer papers that work, as parts, as models, and as claims you can check.

This front door imports no torch: ``import everyformer`` is quick, a paper's parts load when they are used.
"""

from __future__ import annotations

import importlib
from typing import Any

from everyformer import catalog, papers, registry
from everyformer.catalog import paper

__version__ = "0.1.0"

__all__ = ["create_model", "list_models", "paper", "papers"]


def list_models() -> list[str]:
    """Names that :func:`create_model` takes, from every paper that is built."""
    return sorted(_models())


def create_model(name: str, **options: Any) -> Any:
    """A model by name, ``options`` going to its constructor: ``create_model("itransformer", lookback=96, horizon=96)``.

    Raises:
        ValueError: no such model (the nearest names are given), or the constructor's own complaint.
    """
    slug, public = catalog.lookup(name, _models(), "model")
    return getattr(importlib.import_module(f"everyformer.papers.{slug}"), public)(**options)


def _models() -> dict[str, tuple[str, str]]:
    """Model name to (paper, public name), as the papers' ``MODELS`` declare."""
    found = {}
    for card in catalog.papers():
        package = importlib.import_module(f"everyformer.papers.{card.slug}")
        for name, public in getattr(package, "MODELS", {}).items():
            found[name] = (card.slug, public)
    return found


registry.fill_timm()
