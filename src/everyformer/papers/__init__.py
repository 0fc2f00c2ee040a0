"""One folder per paper. The package is also a function: ``everyformer.papers()`` gives the cards of all of them."""

from __future__ import annotations

import sys
import types

from everyformer import catalog


class _Papers(types.ModuleType):
    """A package that can be called: its name serves both ``everyformer.papers.sla`` and ``everyformer.papers()``."""

    def __call__(self) -> tuple[catalog.Paper, ...]:
        return catalog.papers()


sys.modules[__name__].__class__ = _Papers
