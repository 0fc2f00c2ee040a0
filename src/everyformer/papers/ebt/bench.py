"""What energy costs: a training step, one step of thinking, and generation, beside a transformer of equal size."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from everyformer.lab import text
from everyformer.lab.bench import Case
from everyformer.lab.measure import gradient_pass, peak_extra_bytes
from everyformer.papers.ebt.descent import S2
from everyformer.papers.ebt.model import EBT
from everyformer.parts.language import LanguageModel


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Peak memory of each side stands in the note; ``quick`` takes a smaller model."""
    width, depth, length, vocabulary = (32, 2, 32, 64) if quick else (128, 4, 128, 256)
    options = {"vocabulary": vocabulary, "dim": width, "depth": depth, "heads": 2, "longest": length, "hidden": width}
    transformer = LanguageModel(**options, tied=False).to(device)  # type: ignore[arg-type]
    pieces = torch.randint(vocabulary, (8, length + 1), device=device)
    plain = gradient_pass(transformer, lambda: text.loss(transformer, pieces))
    for name, model in (
        ("S1", EBT(**options, alpha=1.0)),  # type: ignore[arg-type]
        ("S2", EBT(**options, alpha=1.0, landscapes=1, recipe=S2)),  # type: ignore[arg-type]
    ):
        ours = gradient_pass(model, functools.partial(model.to(device).loss, pieces))
        megabytes = [peak_extra_bytes(step, device) / 2**20 for step in (ours, plain)]
        note = f"8 x {length} tokens, width {width}; peak {megabytes[0]:.1f} MiB beside {megabytes[1]:.1f} MiB"
        yield Case(f"training step, {name}", ours, {"Transformer++": plain}, None, note)

    model = EBT(**options, alpha=1.0).to(device).eval()  # type: ignore[arg-type]
    tokens = pieces[:, :-1]
    whole = torch.no_grad()(transformer.eval())
    yield Case(
        "one step of thinking",
        lambda: model.think(tokens, steps=1),
        {"Transformer++ forward": lambda: whole(tokens)},
        None,
        "all positions at once",
    )
    context, positions = model.read(tokens), torch.arange(1, tokens.shape[1] + 1, device=device)
    states = torch.rand(len(tokens), length, vocabulary, device=device).softmax(-1)
    doubled = torch.no_grad()(lambda: model.energy(model.read(tokens), states, positions, 1))
    once = torch.no_grad()(lambda: model.energy(context, states, positions, 1))
    yield Case("energy, text read once", once, {"text read again": doubled}, 1.5, "what each further step saves")

    prompt = tokens[:1, :4]
    few = 8 if quick else 32
    yield Case(
        f"{few} tokens, two steps each",
        lambda: model.generate(prompt, few),
        {"without a cache": lambda: _without_cache(model, prompt, few)},
        None if quick else 1.5,
        "keys and values kept",
    )


def _without_cache(model: EBT, tokens: Tensor, count: int) -> Tensor:
    for _ in range(count):
        tokens = torch.cat([tokens, model.think(tokens).logits[:, -1:].argmax(-1)], 1)
    return tokens
