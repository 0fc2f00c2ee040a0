"""The papers' backbones in timm's registry, by ``import everyformer`` alone and without the cost of importing timm.

Whoever has imported timm has the names at once; for the others they are added when timm's models are imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

from everyformer import catalog

TIMM = "timm.models"


def fill_timm() -> None:
    """Register every backbone with timm, now or as soon as timm is there."""
    if TIMM in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    """Import the rooms that register backbones: those of built papers whose package says ``TIMM = True``."""
    for paper in catalog.papers():
        if paper.built and getattr(sys.modules[f"everyformer.papers.{paper.slug}"], "TIMM", False):
            paper.room("model")


class _Finder(importlib.abc.MetaPathFinder):
    """Stands aside for every module but timm's models, and for those after it has found them once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """timm's own way to load them, with ours after it."""
        if name != TIMM:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader) -> None:
        self.inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        _register()
