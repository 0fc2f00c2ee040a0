"""Speed of a packed BERT-base beside Hugging Face's, eager and compiled, at a maximum of 256 and mean 0.6."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from everyformer.lab.bench import Case
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
    note = "BERT-base, batch 16, maximum 256, lengths averaging 0.6 of it"
    peers = {"Hugging Face, SDPA": forward(padded, tokens, mask)}
    if not quick:
        peers["Hugging Face, compiled"] = forward(torch.compile(padded), tokens, mask)
    yield Case("forward", forward(packed, tokens, mask), peers, 1.6, note)
    yield Case(
        "forward and backward",
        training(packed, tokens, mask),
        {"Hugging Face, SDPA": training(padded, tokens, mask)},
        None,
        note,
    )


def forward(model: Any, tokens: Tensor, mask: Tensor) -> Callable[[], None]:
    """The model without gradients."""

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=tokens, attention_mask=mask)

    return run


def training(model: Any, tokens: Tensor, mask: Tensor) -> Callable[[], None]:
    """The model and the gradients of a loss on its valid tokens."""

    def run() -> None:
        model.zero_grad()
        out = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        (out * mask.unsqueeze(-1)).square().mean().backward()

    return run
