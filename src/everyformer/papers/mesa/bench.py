"""Speed of the layer beside the definition, a loop over t that forms E_t E_t^H anew, and of a full-batch step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from everyformer.lab.bench import Case
from everyformer.lab.measure import forward_pass
from everyformer.papers.mesa.data import ar_sequences
from everyformer.papers.mesa.model import CausalLinearAttention, loss, tokens
from everyformer.papers.mesa.training import LossForm


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Forward and training step at the authors' width and length; a step on the whole sample from its summed form."""
    dim, length, batch = 5, 100, 50 if quick else 250
    x = ar_sequences("gaussian", dim, length, batch, 0).to(device)
    layer = CausalLinearAttention(dim).to(device)
    note = f"width {dim}, length {length}, {batch} sequences"
    looped = _loop(layer)
    yield Case("forward", forward_pass(layer, x), {"loop over t": forward_pass(looped, x)}, 10.0, note)
    yield Case("forward and backward", _step(layer, layer, x), {"loop over t": _step(layer, looped, x)}, 10.0, note)
    form = LossForm.of(x)
    weights = [layer.w_kq.detach()[None].requires_grad_(), layer.w_pv.detach()[None].requires_grad_()]
    yield Case(
        "gradient on the whole sample",
        lambda: torch.autograd.grad(form(*weights).sum(), weights),
        {"loop over t": _step(layer, looped, x)},
        None,
        f"{note}; ours does not grow with their number, once the form is summed",
    )


def _loop(layer: CausalLinearAttention) -> Callable[[Tensor], Tensor]:
    """The layer as the formula reads: for each t the products of all tokens so far."""

    def forward(x: Tensor) -> Tensor:
        columns = tokens(x).mT
        out = []
        for t in range(2, x.shape[1] + 1):
            context = columns[:, :, :t]
            out.append(layer.w_pv @ (context @ context.mH) @ (layer.w_kq @ context[:, :, -1:]) / (t - 1))
        return torch.cat(out, dim=-1).mT

    return forward


def _step(layer: CausalLinearAttention, forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(loss(forward(x), x), list(layer.parameters()))
