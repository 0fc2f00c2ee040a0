"""The survey's map as data: what stands beside attention, what it keeps of it, and what it costs (arXiv 2408.00386).

:mod:`~everyformer.papers.after_transformers.links` says how the entries are related, and checks it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Alternative:
    """A way to let tokens see each other.

    Attributes:
        keeps, drops: of full attention: pairs weighed by content, any distance alike, a softmax that picks out.
        gate: what the state is multiplied by before a token is added to it.
        training: time of a text of n tokens of width d in training; N is the rows of a state, p the width of a head.
        token: time of one more token.
        state: how many numbers are kept of ``tokens`` tokens, by ``state(dim, heads, tokens)``; ``None`` where a token
            cannot be written without reading the others again.
        mixer: its name in ``everyformer.mixers``.
    """

    name: str
    title: str
    arxiv: str
    keeps: str
    drops: str
    gate: str
    training: str
    token: str
    state: Callable[[int, int, int], int] | None
    mixer: str


_MAP = (
    Alternative(
        "attention", "full attention", "1706.03762",
        keeps="all", drops="nothing", gate="none: keys and values are kept", training="n² d", token="n d",
        state=lambda dim, heads, tokens: 2 * tokens * dim, mixer="full",
    ),
    Alternative(
        "linear", "linear attention", "2006.16236",
        keeps="weights by content, any distance", drops="the softmax", gate="one", training="n d p", token="d p",
        state=lambda dim, heads, tokens: dim * (dim // heads) + dim, mixer="linear",
    ),
    Alternative(
        "retention", "RetNet", "2307.08621",
        keeps="weights by content", drops="the softmax; far tokens fade at a fixed rate", gate="a constant of the head",
        training="n d p", token="d p", state=lambda dim, heads, tokens: dim * (dim // heads), mixer="retention",
    ),
    Alternative(
        "rwkv", "RWKV-6", "2404.05892",
        keeps="weights by content", drops="the softmax; tokens say what fades", gate="a vector of the token",
        training="n d p", token="d p", state=lambda dim, heads, tokens: dim * (dim // heads) + dim, mixer="rwkv",
    ),
    Alternative(
        "ssd", "Mamba-2", "2405.21060",
        keeps="weights by content, the same in all heads", drops="the softmax; tokens say what fades",
        gate="a number of the token and head", training="n d N", token="d N",
        state=lambda dim, heads, tokens: 2 * dim * 64 + 3 * (2 * dim + 2 * 64), mixer="ssd",
    ),
    Alternative(
        "hyena", "Hyena", "2302.10866",
        keeps="any distance", drops="weights by content: a token gates what distance alone lets through",
        gate="none: a filter as long as the text", training="n log n d", token="n d",
        state=lambda dim, heads, tokens: 2 * tokens * dim + 2 * 3 * dim, mixer="hyena",
    ),
    Alternative(
        "gmlp", "gMLP", "2105.08050",
        keeps="any distance", drops="weights by content, and other lengths", gate="none: a matrix over places",
        training="n² d", token="all again", state=None, mixer="gmlp",
    ),
    Alternative(
        "mlp_mixer", "MLP-Mixer", "2105.01601",
        keeps="any distance", drops="weights by content, other lengths, and reading from left to right",
        gate="none: two matrices over places", training="n² d", token="all again", state=None, mixer="mlp_mixer",
    ),
    Alternative(
        "fnet", "FNet", "2105.03824",
        keeps="any distance", drops="all that is learned, and reading from left to right", gate="none: waves",
        training="n log n d", token="all again", state=None, mixer="fnet",
    ),
)  # fmt: skip


def table() -> tuple[Alternative, ...]:
    """Every entry of the map, attention first."""
    return _MAP


def markdown() -> str:
    """The map as a table, as the README shows it."""
    rows = [("", "keeps", "drops", "gate", "training", "a token", "kept of 8,192 tokens"), ("---",) * 7]
    for entry in _MAP:
        kept = "–" if entry.state is None else f"{entry.state(256, 4, 8192):,}"
        title = f"{entry.title} ({entry.arxiv})"
        rows.append((title, entry.keeps, entry.drops, entry.gate, entry.training, entry.token, kept))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
