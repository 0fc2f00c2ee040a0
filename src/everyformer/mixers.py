"""Token mixers by name: attention, its cheaper forms, and what stands beside it, with one signature.

    mixer = everyformer.mixers.create("retention", dim=256, heads=4, causal=True)
    y = mixer(x)  # or mixer(x, mask=real), or token by token: mixer(x[:, t : t + 1], cache=cache)

A :class:`Card` says what each costs and can. Papers of the library that are token mixers say so in their package, by
``MIXERS``. Nothing of torch is imported before a mixer is made.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from everyformer import catalog


@dataclasses.dataclass(frozen=True)
class Card:
    """What a token mixer is, costs and can.

    Attributes:
        where: module and class.
        time, memory: how they grow with n tokens of width d; w is a window or block, m features or landmarks.
        growth: the exponent of n in the time, where n is large.
        causal: whether it can read from left to right; ``"only"`` where it cannot do otherwise.
        mask: whether it can leave padding out.
        cache: whether it writes token by token, with what it keeps of earlier ones.
        any_length: whether the same weights take any number of tokens.
        pretrained: whether query, key, value and output of a trained full attention fit it as they are.
        paper: the library's own paper that it comes from.
    """

    name: str
    title: str
    arxiv: str
    where: str
    time: str
    memory: str
    growth: float
    causal: bool | str
    mask: bool
    cache: bool
    any_length: bool
    pretrained: bool
    paper: str | None = None

    @property
    def kind(self) -> Any:
        """The mixer's class."""
        module, name = self.where.split(":")
        return getattr(importlib.import_module(module), name)


_PARTS = "everyformer.parts.mixers."
_CARDS = (
    Card(
        "full", "full attention", "1706.03762", _PARTS + "full:FullAttention", "n² d", "n d", 2.0,
        causal=True, mask=True, cache=True, any_length=True, pretrained=True,
    ),
)  # fmt: skip


def cards() -> dict[str, Card]:
    """Every mixer's card by its name, those of the library's own papers last."""
    found = {card.name: card for card in _CARDS}
    for paper in catalog.papers():
        for card in getattr(importlib.import_module(f"everyformer.papers.{paper.slug}"), "MIXERS", ()):
            found[card.name] = card
    return found


def create(
    name: str, dim: int, *, heads: int = 4, causal: bool = False, length: int | None = None, **options: Any
) -> Any:
    """A mixer by name.

    Args:
        dim: width of a token, a multiple of ``heads``.
        length: most tokens; needed where the card says that weights depend on it.
        options: of the mixer's class.

    Raises:
        ValueError: no such mixer (the nearest names are given), or the class's own complaint.
    """
    card = catalog.lookup(name, cards(), "mixer")
    return card.kind(dim, heads=heads, causal=causal, length=length, **options)
