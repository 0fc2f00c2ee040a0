"""Token mixers by name: attention, its cheaper forms, and what stands beside it, with one signature.

    mixer = everyformer.mixers.create("retention", dim=256, heads=4, causal=True)
    y = mixer(x)  # or mixer(x, mask=real), or token by token: mixer(x[:, t : t + 1], cache=cache)

A :class:`Card` says what each costs and can. Papers of the library that are token mixers give a card's facts in their
package, by ``MIXERS``. Nothing of torch is imported before a mixer is made.
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
    Card(
        "window", "local window attention", "2004.05150", _PARTS + "window:LocalAttention", "n w d", "n d", 1.0,
        causal=True, mask=True, cache=True, any_length=True, pretrained=True,
    ),
    Card(
        "strided", "strided attention (Sparse Transformer)", "1904.10509",
        _PARTS + "window:StridedAttention", "n √n d", "n d", 1.5,
        causal=True, mask=True, cache=False, any_length=True, pretrained=True,
    ),
    Card(
        "longformer", "window and global tokens (Longformer)", "2004.05150",
        _PARTS + "window:LongformerAttention", "n w d", "n d", 1.0,
        causal=True, mask=True, cache=False, any_length=True, pretrained=True,
    ),
    Card(
        "bigbird", "window, global and random blocks (BigBird)", "2007.14062",
        _PARTS + "bigbird:BigBirdAttention", "n w d", "n d", 1.0,
        causal=True, mask=True, cache=False, any_length=True, pretrained=True,
    ),
    Card(
        "reformer", "attention by locality-sensitive hashing (Reformer)", "2001.04451",
        _PARTS + "hashing:ReformerAttention", "n (w d + log n)", "n d", 1.0,
        causal=True, mask=True, cache=False, any_length=True, pretrained=False,
    ),
    Card(
        "linformer", "attention to sums of tokens (Linformer)", "2006.04768",
        _PARTS + "lowrank:LinformerAttention", "n m d", "n d", 1.0,
        causal=False, mask=True, cache=False, any_length=False, pretrained=False,
    ),
    Card(
        "nystrom", "attention through landmarks (Nyströmformer)", "2102.03902",
        _PARTS + "lowrank:NystromAttention", "n m d", "n d", 1.0,
        causal=False, mask=True, cache=False, any_length=True, pretrained=True,
    ),
    Card(
        "synthesizer_dense", "dense Synthesizer", "2005.00743", _PARTS + "lowrank:DenseSynthesizer", "n² d", "n d", 2.0,
        causal=True, mask=True, cache=False, any_length=False, pretrained=False,
    ),
    Card(
        "synthesizer_random", "random Synthesizer", "2005.00743",
        _PARTS + "lowrank:RandomSynthesizer", "n² d", "n d", 2.0,
        causal=True, mask=True, cache=False, any_length=False, pretrained=False,
    ),
    Card(
        "performer", "positive random features (Performer)", "2009.14794",
        _PARTS + "kernel:PerformerAttention", "n m d", "n d", 1.0,
        causal=True, mask=True, cache=True, any_length=True, pretrained=True,
    ),
    Card(
        "linear", "linear attention", "2006.16236", _PARTS + "kernel:LinearAttention", "n d²", "n d", 1.0,
        causal=True, mask=True, cache=True, any_length=True, pretrained=False,
    ),
    Card(
        "retention", "retention (RetNet)", "2307.08621", _PARTS + "retention:Retention", "n d²/heads", "n d", 1.0,
        causal="only", mask=True, cache=True, any_length=True, pretrained=False,
    ),
    Card(
        "rwkv", "RWKV-6", "2404.05892", _PARTS + "rwkv:RWKV", "n d²/heads", "n d", 1.0,
        causal="only", mask=True, cache=True, any_length=True, pretrained=False,
    ),
    Card(
        "ssd", "Mamba-2", "2405.21060", _PARTS + "ssd:SSD", "n d m", "n d", 1.0,
        causal="only", mask=True, cache=True, any_length=True, pretrained=False,
    ),
    Card(
        "hyena", "Hyena", "2302.10866", _PARTS + "hyena:Hyena", "n log n d", "n d", 1.0,
        causal="only", mask=True, cache=True, any_length=True, pretrained=False,
    ),
    Card(
        "gmlp", "gMLP", "2105.08050", _PARTS + "gmlp:GMLP", "n² d", "n² + n d", 2.0,
        causal=True, mask=True, cache=False, any_length=False, pretrained=False,
    ),
    Card(
        "mlp_mixer", "MLP-Mixer", "2105.01601", _PARTS + "mlp_mixer:MLPMixer", "n² d", "n² + n d", 2.0,
        causal=False, mask=True, cache=False, any_length=False, pretrained=False,
    ),
    Card(
        "fnet", "FNet", "2105.03824", _PARTS + "fnet:FNet", "n log n d", "n d", 1.0,
        causal=False, mask=False, cache=False, any_length=True, pretrained=False,
    ),
)  # fmt: skip


def cards() -> dict[str, Card]:
    """Every mixer's card by its name, those of the library's own papers last."""
    found = {card.name: card for card in _CARDS}
    for paper in catalog.papers():
        for facts in getattr(importlib.import_module(f"everyformer.papers.{paper.slug}"), "MIXERS", ()):
            found[facts["name"]] = Card(**facts, paper=paper.slug)
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
    if not isinstance(name, str):
        raise ValueError(f"name must be that of a mixer, got {name!r}")
    card = catalog.lookup(name, cards(), "mixer")
    return card.kind(dim, heads=heads, causal=causal, length=length, **options)
