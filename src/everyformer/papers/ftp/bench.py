"""Future Token Prediction beside a GPT of as many parameters: writing with and without checked drafts, and training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from everyformer.catalog import Scale
from everyformer.lab import text
from everyformer.lab.bench import Case
from everyformer.papers.ftp import plays
from everyformer.papers.ftp.model import FutureTokenPredictor, future_loss, sampled_positions


def cases(quick: bool, device: str) -> Iterator[Case]:
    """64 tokens after a prompt of 64, and a training step; models trained on plays (``quick``: hardly trained)."""
    scale: Scale = "smoke" if quick else "cpu"
    model, gpt = (plays.trained(name, scale, seed=0, device=device) for name in ("ftp", "gpt"))
    assert isinstance(model, FutureTokenPredictor)
    prompt, count = plays.plays(scale).test[None, :64].to(device), 16 if quick else 64
    for temperature in (1.0, 0.0):
        torch.manual_seed(0)
        passes = sum(model.speculate(prompt, count, temperature=temperature).passes for _ in range(4))
        yield Case(
            f"writing, temperature {temperature:g}",
            lambda: model.speculate(prompt, count, temperature=temperature),  # noqa: B023
            {
                "one token at a time": lambda: model.generate(prompt, count, temperature=temperature),  # noqa: B023
                "GPT": lambda: gpt.generate(prompt, count, temperature=temperature),  # type: ignore[operator] # noqa: B023
                "drafts unchecked": lambda: model.generate(prompt, count, draft=model.ahead, temperature=temperature),  # noqa: B023
            },
            1.0,
            f"{count} tokens, {4 * count / passes:.2f} per pass of the encoder in the checked drafts",
        )
    size = plays.SIZES[scale]
    pieces = torch.randint(size.vocabulary, (size.batch, text.LENGTH + 1), device=device)

    def step(loss: Callable[[], torch.Tensor], of: nn.Module) -> Callable[[], None]:
        def run() -> None:
            of.zero_grad()
            loss().backward()

        return run

    def future(positions: int) -> torch.Tensor:
        return future_loss(model, pieces, sampled_positions(size.batch, text.LENGTH, positions, device))

    yield Case(
        "training step",
        step(lambda: future(size.positions), model),
        {"every position": step(lambda: future(text.LENGTH), model), "GPT": step(lambda: text.loss(gpt, pieces), gpt)},
        None,
        f"{size.batch} pieces of {text.LENGTH} tokens, {size.positions} positions of each, forward and backward",
    )
