"""What a TaH model costs: a text read once, twice, and twice at 6% of its tokens; generation with and without a cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor

from everyformer.lab.bench import Case
from everyformer.papers.tah.model import TaHForCausalLM, wrap

SHARE = 0.06  # of tokens with a second pass, the paper's


def cases(quick: bool, device: str) -> Iterator[Case]:
    """A Qwen3 of random weights; ``quick`` takes a narrow one and short texts."""
    width, layers, length, written = (64, 2, 64, 16) if quick else (256, 6, 256, 32)
    torch.manual_seed(0)
    base: Any = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=1024, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, head_dim=width // 4, max_position_embeddings=1024,
            use_cache=False,
        )
    )  # fmt: skip
    # A decider as narrow beside the model as the paper's beside Qwen3-0.6B.
    model = wrap(base.to(device).eval(), decider_widths=(width // 4,) * 6)
    tokens = torch.randint(1024, (4, length), device=device)
    depths = 1 + (torch.rand(tokens.shape, device=device) < SHARE).long()
    note = f"width {width}, {layers} layers, 4 texts of {length} tokens"
    yield Case(
        f"reading, {SHARE:.0%} of tokens twice, no decider",
        reading(model, tokens, depths),
        {"every token once": reading(model, tokens, 1), "every token twice": reading(model, tokens, 2)},
        None,
        note,
    )
    model.threshold = threshold_for(model, tokens)
    yield Case(
        f"reading, the decider takes {SHARE:.0%} twice",
        reading(model, tokens, None),
        {"every token once": reading(model, tokens, 1), "every token twice": reading(model, tokens, 2)},
        None,
        note,
    )
    prompt = tokens[:, : length // 2]
    yield Case(
        "generation with a cache for each depth",
        functools.partial(model.generate, prompt, max_new_tokens=written),
        {"all recomputed for each token": functools.partial(recomputed, model, prompt, written)},
        None,
        f"{note}, half of them given, {written} written",
    )


@torch.no_grad()
def threshold_for(model: TaHForCausalLM, tokens: Tensor) -> float:
    """The threshold above which the decider's probabilities are for a share of the tokens."""
    scores = model(tokens, depths=1, return_scores=True).scores
    return float(scores.sigmoid().flatten().quantile(1 - SHARE))


def reading(model: TaHForCausalLM, tokens: Tensor, depths: Tensor | int | None) -> Callable[[], None]:
    """A forward pass."""

    @torch.no_grad()
    def run() -> None:
        model(tokens, depths=depths)

    return run


@torch.no_grad()
def recomputed(model: TaHForCausalLM, prompt: Tensor, count: int) -> Tensor:
    """The likeliest tokens, each by a pass over all before it."""
    tokens = prompt
    for _ in range(count):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens
