"""A step of training under both objectives, and answers by both ways of decoding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from everyformer.lab.bench import Case
from everyformer.lab.measure import gradient_pass
from everyformer.papers.maze_mlmu.method import fill, joined, mlm_u_loss, next_token_loss, write
from everyformer.papers.maze_mlmu.model import PAST
from everyformer.papers.maze_mlmu.tokens import END, MASK, PADDING, SPECIAL
from everyformer.parts.language import LanguageModel


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Equal parameters; a path as long as a maze of that size can have."""
    side, dim, depth, batch = (4, 32, 1, 8) if quick else (10, 128, 4, 32)
    vocabulary, length = len(SPECIAL) + side**2 + 2 * side * (side - 1), side**2 + 1
    prompt = torch.randint(len(SPECIAL), vocabulary, (batch, side**2 + 2), device=device)
    path = torch.randint(len(SPECIAL), len(SPECIAL) + side**2, (batch, length), device=device)
    sizes: Any = {"vocabulary": vocabulary, "dim": dim, "heads": 4}
    past = PAST(**sizes, depth=depth, hidden=(MASK, PADDING)).to(device)
    causal = LanguageModel(**sizes, depth=2 * depth).to(device)
    both_sides = LanguageModel(**sizes, depth=2 * depth, causal=False).to(device)
    yield Case(
        f"a step of training, {batch} mazes of {side} x {side}: MLM-U with PAST",
        gradient_pass(past, lambda: mlm_u_loss(past, prompt, path, mask_token=MASK)),
        {
            "next-token": gradient_pass(causal, lambda: next_token_loss(causal, prompt, path)),
            "MLM-U with one stack": gradient_pass(
                both_sides, lambda: mlm_u_loss(joined(both_sides), prompt, path, mask_token=MASK)
            ),
        },
        1.0,
        "the decoder asks only at the places of the path",
    )
    yield Case(
        f"answers to {batch} mazes of {side} x {side}: MLM-U with PAST from left to right",
        lambda: fill(past, prompt, length, mask_token=MASK, end=END),
        {"next-token with a cache": lambda: write(causal, prompt, length)},
        None,
        "a filler reads everything again for every token",
    )
