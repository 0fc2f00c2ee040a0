"""The authors' SLA layers (thu-ml/SLA): a state dict with the projection of the linear branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from everyformer.papers.sla.layer import SparseLinearAttention

_NAMES = {"proj_l.weight": "proj.weight", "proj_l.bias": "proj.bias"}


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> SparseLinearAttention:
    """A layer with the authors' weights.

    ``config`` has the authors' names ``topk``, ``feature_map`` and ``BLKK``; ``branch`` ``"main"`` (linear branch over all
    keys) or ``"SLA-1"`` (over the keys that are not critical; the default).

    Raises:
        ValueError: a key that is missing, unexpected or misshapen, or different block sizes for queries and keys.
    """
    for key in sorted(set(_NAMES) - set(state)):
        raise ValueError(f"state lacks the key {key!r}")
    for key in sorted(set(state) - set(_NAMES)):
        raise ValueError(f"state has the unexpected key {key!r}")
    dim = state["proj_l.bias"].shape[-1]
    for key, shape in (("proj_l.bias", (dim,)), ("proj_l.weight", (dim, dim))):
        if tuple(state[key].shape) != shape:
            raise ValueError(f"state key {key!r} must have shape {shape}, got {tuple(state[key].shape)}")
    block = config.get("BLKK", 64)
    if config.get("BLKQ", 64) != block:
        raise ValueError(f"config must have BLKQ equal to BLKK, got {config.get('BLKQ', 64)} and {block}")
    layer = SparseLinearAttention(
        dim,
        critical=config["topk"],
        negligible=0.0,
        block=block,
        feature_map=config.get("feature_map", "softmax"),
        linear_over="all" if config.get("branch", "SLA-1") == "main" else "marginal",
    )
    layer.load_state_dict({ours: state[theirs] for theirs, ours in _NAMES.items()})
    return layer


def export(layer: SparseLinearAttention) -> dict[str, Tensor]:
    """The weights under the authors' names."""
    ours = layer.state_dict()
    return {theirs: ours[name] for theirs, name in _NAMES.items()}


def replay(layer: SparseLinearAttention, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' inputs ``q``, ``k``, ``v`` to their output ``o``."""
    return {"o": layer(inputs["q"], inputs["k"], inputs["v"])}
