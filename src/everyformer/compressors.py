"""Compressors by name: prune, factorise, share, quantise or merge tokens of any model, alone or one after the other.

    model = everyformer.compressors.apply(model, "heads", ratio=0.25)
    model = everyformer.compressors.compose(model, [("magnitude", {"sparsity": 0.5}), ("int8", {})])

They act in place on models of this library, of transformers and of timm. A :class:`Card` says what each does and where in
a composition it may stand. Losses of distillation are in :mod:`everyformer.parts.compress.distillation`.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from everyformer import catalog

STAGES = ("structure", "sharing", "factors", "zeros", "bits", "tokens")
"""The order of a composition: what removes modules before what treats their weights, and those before fewer bits."""


@dataclasses.dataclass(frozen=True)
class Card:
    """What a compressor does.

    Attributes:
        where: module and function; its first argument is the model, which it changes in place and returns.
        stage: one of :data:`STAGES`.
        dial: the option that sets how much, if there is one.
        file, memory, time: whether the file, the weights in memory and the time of a pass become less on any device.
        needs: what the model must have or what should follow.
    """

    name: str
    title: str
    arxiv: str
    where: str
    stage: str
    dial: str | None
    file: bool
    memory: bool
    time: bool
    needs: str = ""

    @property
    def function(self) -> Any:
        """The compressor itself."""
        module, name = self.where.split(":")
        return getattr(importlib.import_module(module), name)


_PARTS = "everyformer.parts.compress."
_CARDS = (
    Card(
        "blocks", "whole blocks taken out", "1909.11556", _PARTS + "pruning:drop_blocks", "structure", "ratio",
        file=True, memory=True, time=True, needs="a list of equal blocks; some training after",
    ),
    Card(
        "heads", "whole attention heads taken out", "1905.10650", _PARTS + "pruning:prune_heads", "structure", "ratio",
        file=True, memory=True, time=True, needs="attention with heads of its own",
    ),
    Card(
        "sharing", "blocks that share weights", "1909.11942", _PARTS + "factors:share_blocks", "sharing", "every",
        file=True, memory=True, time=False, needs="a list of equal blocks; training after",
    ),
    Card(
        "low_rank", "matrices as products of two thin ones", "2307.07982", _PARTS + "factors:low_rank", "factors", "ratio",
        file=True, memory=True, time=True, needs="some training after",
    ),
    Card(
        "magnitude", "the smallest weights set to zero", "1506.02626", _PARTS + "pruning:magnitude", "zeros", "sparsity",
        file=True, memory=False, time=False, needs="some training after, with permanent=False",
    ),
    Card(
        "n_of_m", "n of every m weights kept", "2104.08378", _PARTS + "pruning:n_of_m", "zeros", "n",
        file=True, memory=False, time=False, needs="inputs that m divides",
    ),
    Card(
        "semi_structured", "2:4 weights for sparse tensor cores", "2104.08378", _PARTS + "pruning:semi_structured",
        "bits", None, file=True, memory=True, time=True, needs="n_of_m before; a CUDA device",
    ),
    Card(
        "int8", "weights in eight bits", "2307.07982", _PARTS + "quantise:int8_weights", "bits", None,
        file=True, memory=True, time=False,
    ),
    Card(
        "int8_dynamic", "weights and inputs in eight bits", "2307.07982", _PARTS + "quantise:int8_dynamic", "bits", None,
        file=True, memory=True, time=False,
    ),
    Card(
        "int4", "weights in four bits", "2307.07982", _PARTS + "quantise:int4_weights", "bits", "group",
        file=True, memory=True, time=False, needs="inputs that the group divides",
    ),
    Card(
        "nvfp4", "weights in four-bit floating point", "2509.25149", _PARTS + "quantise:nvfp4_weights", "bits", None,
        file=True, memory=True, time=False, needs="inputs that 16 divides",
    ),
    Card(
        "merging", "alike tokens made one", "2210.09461", _PARTS + "merging:merge_tokens", "tokens", "per_block",
        file=False, memory=False, time=True, needs="a vision transformer of timm or transformers",
    ),
)  # fmt: skip

Step = str | tuple[str, Mapping[str, Any]]


def cards() -> dict[str, Card]:
    """Every compressor's card by its name, in the order in which they can follow each other."""
    return {card.name: card for card in _CARDS}


def apply(model: Any, name: str, **options: Any) -> Any:
    """Compress a model by one method, in place; returns it.

    Raises:
        ValueError: no such compressor (the nearest names are given), or its own complaint.
    """
    return catalog.lookup(name, cards(), "compressor").function(model, **options)


def compose(model: Any, steps: Iterable[Step], *, heal: Callable[[Any], object] | None = None) -> Any:
    """Compress a model by several methods, one after the other in the order given; returns it.

    The order is checked before anything is changed: stages must be in the order of :data:`STAGES`, because a later one
    would undo an earlier one (factors have no zeros, four-bit weights cannot be pruned); and bits are set once.

    Args:
        steps: names, or names with options.
        heal: trains the model on, in place, once all that precedes fewer bits is done; zeros stay zeros.

    Raises:
        ValueError: an unknown name, an order that cannot be, two steps that set bits, or a compressor's own complaint.
    """
    wanted = [(step, {}) if isinstance(step, str) else (step[0], dict(step[1])) for step in steps]
    plan = [(catalog.lookup(name, cards(), "compressor"), options) for name, options in wanted]
    for (before, _), (after, _) in itertools.pairwise(plan):
        if STAGES.index(after.stage) < STAGES.index(before.stage):
            raise ValueError(f"steps must have {after.name} ({after.stage}) before {before.name} ({before.stage})")
    for stage in ("bits", "tokens"):
        same = [card.name for card, _ in plan if card.stage == stage]
        if len(same) > 1:
            raise ValueError(f"steps must have one method for {stage} at most, got {', '.join(same)}")
    weights = [step for step in plan if step[0].stage not in ("bits", "tokens")]
    for card, options in weights:
        if heal is not None and card.stage == "zeros":
            options["permanent"] = False
        model = card.function(model, **options)
    if heal is not None and weights:
        heal(model)
        model = importlib.import_module(_PARTS + "pruning").make_permanent(model)
    for card, options in plan[len(weights) :]:
        model = card.function(model, **options)
    return model
