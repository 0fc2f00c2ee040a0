"""State dicts of ML-GSAI/MesaOpt-AR-Transformer to ours and back: ``WKQ`` (2 dim, 2 dim) and ``WPV`` (dim, 2 dim).

Complex tensors, or real ones with a last axis (re, im), as formats without complex numbers store them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from everyformer.papers.mesa.model import CausalLinearAttention, loss

KEYS = {"WKQ": "w_kq", "WPV": "w_pv"}


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> CausalLinearAttention:
    """The authors' layer with the authors' weights; ``config`` gives ``dim``.

    Raises:
        ValueError: ``dim`` is not given, or a key is missing, unexpected or misshapen (it is named).
    """
    if "dim" not in config:
        raise ValueError("config must give dim")
    dim = int(config["dim"])
    for name in sorted(set(state) - set(KEYS)):
        raise ValueError(f"state has the unexpected key {name}")
    weights = {}
    for name, rows in (("WKQ", 2 * dim), ("WPV", dim)):
        if name not in state:
            raise ValueError(f"state lacks the key {name}")
        weights[name] = _complex(name, state[name], (rows, 2 * dim))
    model = CausalLinearAttention(dim, weights["WKQ"].dtype)
    model.load_state_dict({KEYS[name]: weight for name, weight in weights.items()}, strict=True)
    model.checkpoint_pairs = not state["WKQ"].is_complex()  # type: ignore[assignment]
    return model


def export(model: CausalLinearAttention, pairs: bool | None = None) -> dict[str, Tensor]:
    """The weights under the authors' names; ``pairs``: with a last axis (re, im), by default as they were loaded."""
    if pairs is None:
        pairs = bool(getattr(model, "checkpoint_pairs", False))
    ours = model.state_dict()
    return {name: (torch.view_as_real(ours[key]) if pairs else ours[key]).clone() for name, key in KEYS.items()}


def replay(model: CausalLinearAttention, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' ``prediction``, ``loss`` and gradients from ``sequence`` (batch, dim, time, re and im)."""
    x = torch.view_as_complex(inputs["sequence"].contiguous()).mT
    forecasts = model(x)
    value = loss(forecasts, x)
    grads = torch.autograd.grad(value, [model.w_kq, model.w_pv])
    return {
        "prediction": torch.view_as_real(forecasts[:, :-1].mT),
        "loss": value.reshape(1),
        "grad_WKQ": torch.view_as_real(grads[0]),
        "grad_WPV": torch.view_as_real(grads[1]),
    }


def _complex(name: str, tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    wanted = shape if tensor.is_complex() else (*shape, 2)
    if tuple(tensor.shape) != wanted:
        raise ValueError(f"state key {name} must have shape {wanted}, got {tuple(tensor.shape)}")
    return tensor if tensor.is_complex() else torch.view_as_complex(tensor.contiguous())
