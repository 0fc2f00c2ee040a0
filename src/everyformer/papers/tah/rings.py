"""Walks on rings: text whose answers are mostly one look-up or none, and sometimes several in a row; models trained on it.

A text lists the steps of a ring of places in any order ("3>0", "5>2", ...), then a place, then over and over how many
steps to go and where that leads. No step is a copy, one step a look-up; several must be made between two tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from everyformer.catalog import Job, Scale
from everyformer.lab import train
from everyformer.lab.pretrained import load_or_train
from everyformer.papers.tah import attention, config, modules, training
from everyformer.papers.tah import model as model_code
from everyformer.papers.tah.model import TaHForCausalLM, wrap

PLACES, ANSWERS = 6, 10
SHARES = (0.25, 0.45, 0.2, 0.1)  # of answers that are 0, 1, 2, 3 steps away
VOCABULARY = PLACES + len(SHARES) + PLACES * PLACES
FIRST = PLACES + 1  # the first question's place in a text
RATE, TUNING_RATE = 2e-3, 1e-3


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the model, and how much it is trained (in steps of ``batch`` texts) and tested."""

    width: int
    layers: int
    pretraining: int
    labelling: int
    tuning: int
    deciding: int
    batch: int
    tests: int


SIZES: dict[Scale, Size] = {
    "smoke": Size(32, 3, 6, 4, 4, 4, 8, 16),
    "cpu": Size(64, 4, 900, 350, 350, 100, 64, 1024),
    "paper": Size(256, 6, 20_000, 5_000, 10_000, 2_000, 256, 8192),
}


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts and what is asked of them.

    Attributes:
        tokens: (batch, time).
        labels: the answers, -100 elsewhere.
        steps: (batch, answers), how far each answer is.
    """

    tokens: Int[Tensor, "batch time"]
    labels: Int[Tensor, "batch time"]
    steps: Int[Tensor, "batch answers"]


def draw(count: int, generator: torch.Generator) -> Texts:
    """``count`` texts with their own rings."""
    ring = torch.rand(count, PLACES, generator=generator).argsort(1)
    shuffled = torch.rand(count, PLACES, generator=generator).argsort(1)
    listed = PLACES + len(SHARES) + ring * PLACES + ring.roll(-1, dims=1)
    steps = torch.multinomial(torch.tensor(SHARES).expand(count, -1), ANSWERS, True, generator=generator)
    start = torch.randint(PLACES, (count, 1), generator=generator)
    answers = ring.gather(1, (start + steps.cumsum(1)) % PLACES)
    walk = torch.stack([PLACES + steps, answers], dim=2).flatten(1)
    tokens = torch.cat([listed.gather(1, shuffled), ring.gather(1, start), walk], dim=1)
    labels = tokens.clone()
    labels[:, :FIRST] = -100
    labels[:, FIRST::2] = -100
    return Texts(tokens, labels, steps)


def right(logits: Tensor, texts: Texts) -> Bool[Tensor, "batch answers"]:
    """Which answers are the likeliest; a text of right answers is what greedy generation writes, asked the same."""
    return logits[:, FIRST:-1:2].argmax(-1) == texts.tokens[:, FIRST + 1 :: 2]


def language_model(size: Size) -> Any:
    """A small Qwen3, from the current random state."""
    import transformers

    return transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=size.width, intermediate_size=2 * size.width,
            num_hidden_layers=size.layers, num_attention_heads=4, num_key_value_heads=4, head_dim=size.width // 4,
            max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=False, use_cache=False, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def with_passes(base: Any, size: Size) -> TaHForCausalLM:
    """A TaH model of no more parameters than the language model with all its layers: one layer makes room."""
    narrow = 3 * size.width // 8
    return wrap(base, top_tokens=10, rank=size.width // 16, alpha=size.width / 8, decider_widths=(narrow, narrow))


@dataclasses.dataclass(frozen=True)
class Models:
    """Models tuned from one pretrained model on the same texts; all but the reference for the same number of steps.

    Attributes:
        once: with every layer; ``twice`` and ``tah`` have one less.
        reference: with one layer less, tuned to pass once: it says which tokens are hard.
    """

    once: Any
    twice: TaHForCausalLM
    tah: TaHForCausalLM
    reference: Any


def trained(job: Job) -> Models:
    """The models of a scale and seed, from the cache where they are there."""
    size = SIZES[job.scale]
    total = size.tuning + size.deciding
    torch.manual_seed(job.seed)
    base = language_model(size)
    _fit(job, base, "pretraining", size.pretraining, RATE, _plain)
    calibration = draw(64, torch.Generator().manual_seed(job.seed))
    once = copy.deepcopy(base)
    _fit(job, once, "one pass", total, TUNING_RATE, _plain)

    device = torch.device(job.device)
    at = calibration.tokens.to(device), calibration.labels.to(device)
    pruned = training.prune(base, training.least_needed(base.eval(), *at))
    reference = copy.deepcopy(pruned)
    _fit(job, reference, "reference", size.labelling, TUNING_RATE, _plain)
    reference.eval()
    twice = with_passes(copy.deepcopy(pruned), size)
    _fit(job, twice, "two passes", total, TUNING_RATE, lambda model, batch: model(*_three(batch), depths=2).loss)
    tah = with_passes(pruned, size)

    def by_oracle(model: nn.Module, batch: Tensor) -> Tensor:
        tokens, mask, labels = _three(batch)
        depths = training.hard_tokens(reference, tokens, labels=labels)
        return model(tokens, mask, labels, depths=depths).loss  # type: ignore[no-any-return]

    def deciding(model: nn.Module, batch: Tensor) -> Tensor:
        tokens, _, labels = _three(batch)
        return training.decider_loss(model, tokens, training.hard_tokens(reference, tokens, labels=labels))

    _fit(job, tah, "two passes by the oracle", size.tuning, TUNING_RATE, by_oracle)
    _fit(job, training.freeze(tah), "decider", size.deciding, RATE, deciding)
    return Models(*(model.eval().requires_grad_(False) for model in (once, twice, tah, reference)))


def _three(batch: Tensor) -> tuple[Tensor, None, Tensor]:
    """Tokens, no mask, labels."""
    return batch[:, 0], None, batch[:, 1]


def _plain(model: nn.Module, batch: Tensor) -> Tensor:
    tokens, _, labels = _three(batch)
    return model(tokens, labels=labels).loss  # type: ignore[no-any-return]


def _fit(
    job: Job, model: nn.Module, name: str, steps: int, rate: float, step: Callable[[nn.Module, Any], Tensor]
) -> None:
    size = SIZES[job.scale]
    model.train().to(job.device)

    def batch(generator: torch.Generator) -> Tensor:
        texts = draw(size.batch, generator)
        return torch.stack([texts.tokens, texts.labels], dim=1)

    def fit(folder: Path) -> None:
        train.fit_drawn(
            model, step, batch, steps=steps, rate=rate, folder=folder, seed=job.seed, device=job.device, label=name
        )

    load_or_train(
        model, fit, recipe={"name": name, "steps": steps, "rate": rate, "seed": job.seed, **dataclasses.asdict(size)},
        samples=[], code=[model_code, config, modules, attention, training, sys.modules[__name__]],
    )  # fmt: skip
