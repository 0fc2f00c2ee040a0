"""Speed of a packed BERT-base beside Hugging Face's, eager and compiled, at a maximum of 256 and mean 0.6."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from everyformer.lab.bench import Case
from everyformer.lab.measure import forward_pass, gradient_pass
from everyformer.papers.bytetransformer.claim import bert, uniform_lengths
from everyformer.papers.bytetransformer.method import convert


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Forward, and forward with backward; ``quick`` takes two layers instead of twelve."""
    padded = bert(2 if quick else 12).to(device)
    packed = convert(copy.deepcopy(padded))
    generator = torch.Generator().manual_seed(0)
    lengths = uniform_lengths(16, 256, 0.6, generator)
    mask = (torch.arange(256) < lengths[:, None]).long().to(device)
    tokens = torch.randint(30_000, (16, 256), generator=generator).to(device)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    note = "BERT-base, batch 16, maximum 256, lengths averaging 0.6 of it"
    peers = {"Hugging Face, SDPA": forward_pass(padded, **inputs)}
    if not quick:
        peers["Hugging Face, compiled"] = forward_pass(torch.compile(padded), **inputs)
    yield Case("forward", forward_pass(packed, **inputs), peers, 1.6, note)
    yield Case(
        "forward and backward",
        training(packed, tokens, mask),
        {"Hugging Face, SDPA": training(padded, tokens, mask)},
        None,
        note,
    )


def training(model: Any, tokens: Tensor, mask: Tensor) -> Callable[[], None]:
    """The model and the gradients of a loss on its valid tokens."""

    def loss() -> Tensor:
        out = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return (out * mask.unsqueeze(-1)).square().mean()  # type: ignore[no-any-return]

    return gradient_pass(model, loss)
