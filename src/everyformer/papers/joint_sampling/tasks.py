"""What the claims sample from: a chain and pairs whose joint is known, and letters of plays; the models of each."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from everyformer.lab import text, train
from everyformer.lab.pretrained import load_or_train
from everyformer.papers.joint_sampling import generation, model, training
from everyformer.papers.joint_sampling.model import JointSampler, MaskedDiffusionLM, masked_loss
from everyformer.papers.joint_sampling.training import examples, sampler_loss, trajectories
from everyformer.parts import language

SYMBOLS, SHARPNESS = 8, 3.0  # of the chain: transitions are softmax(3 N(0, 1))
LEADERS, NOISE = 8, 0.1  # of the pairs: how many a first token may be, and how often its second is the rarer one
# Share of the chain's dependence that a base must have learnt before anything is claimed of it.
LEARNT = {"smoke": 0.3, "cpu": 0.8, "paper": 0.8}
UNLEARNT = {"smoke": 100.0, "cpu": 10.0, "paper": 10.0}  # per cent of impossible neighbours a base may write at most
LETTERS = " abcdefghijklmnopqrstuvwxyz"


@dataclasses.dataclass(frozen=True)
class Size:
    """Sequences, the base, its training, the sampler's training on pairs of moments of ``pool`` trajectories."""

    length: int
    dim: int
    depth: int
    heads: int
    steps: int
    sampler_steps: int
    pool: int
    samples: int
    batch: int = 64
    rate: float = 2e-3
    tokens_per_pass: int = 8


@dataclasses.dataclass(frozen=True)
class Task:
    """Sequences to learn, over ``symbols`` tokens; ``source`` is what they are made of.

    The first ``prompt`` tokens are visible when the models write.
    """

    name: str
    sequences: Int[Tensor, "count length"]
    source: Tensor
    symbols: int
    prompt: int = 0

    def prompts(self, count: int, device: str) -> Int[Tensor, "count prompt"] | None:
        """Beginnings of sequences, if the models are given any."""
        return self.sequences[:count, : self.prompt].to(device) if self.prompt else None


@dataclasses.dataclass(frozen=True)
class Chain:
    """A first-order Markov chain: the first symbol is any with equal chance."""

    transitions: Float[Tensor, "symbols symbols"]

    def draw(self, count: int, length: int, generator: torch.Generator) -> Int[Tensor, "count length"]:
        """Sequences of the chain."""
        tokens = [torch.randint(len(self.transitions), (count,), generator=generator)]
        for _ in range(length - 1):
            tokens.append(torch.multinomial(self.transitions[tokens[-1]], 1, generator=generator)[:, 0])
        return torch.stack(tokens, dim=1)

    def nll(self, sequences: Int[Tensor, "count length"]) -> float:
        """Mean negative log-likelihood, in nats a token."""
        sequences = sequences.cpu()
        steps = self.transitions.log()[sequences[:, :-1], sequences[:, 1:]].sum(1)
        first = torch.tensor(1 / len(self.transitions)).log()
        return float(-(steps + first).mean() / sequences.shape[1])

    def learnt(self, nll: float, truth: Int[Tensor, "count length"]) -> float:
        """How far a likelihood is from that of independent tokens (0) to that of the chain's own sequences (1)."""
        shuffled = truth.flatten()[torch.randperm(truth.numel(), generator=torch.Generator().manual_seed(0))]
        worst = self.nll(shuffled.view_as(truth))
        return (worst - nll) / (worst - self.nll(truth))


def chain(size: Size, seed: int) -> tuple[Chain, Task]:
    """A chain of its own for each seed."""
    generator = torch.Generator().manual_seed(seed)
    law = Chain((SHARPNESS * torch.randn(SYMBOLS, SYMBOLS, generator=generator)).softmax(-1))
    sequences = law.draw(100_000, size.length, generator)
    return law, Task("chain", sequences, sequences, SYMBOLS)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs in a row: a first token, then one of two that go with it; firsts and seconds are different tokens.

    A sequence may begin within a pair: a base without absolute positions could not know where pairs begin otherwise. Its
    first two tokens are given: where all is masked, no layer could know which of two far tokens are firsts.
    """

    seconds: Int[Tensor, "leaders 2"]

    def impossible(self, sequences: Int[Tensor, "count length"]) -> float:
        """Per cent of the neighbours that are neither a first with its second nor a second with the next first."""
        left, right = sequences[:, :-1].cpu(), sequences[:, 1:].cpu()
        leads = left < LEADERS
        own = (self.seconds[left.clamp(max=LEADERS - 1)] == right[..., None]).any(-1)
        fits = torch.where(leads, own, right < LEADERS)
        return 100 * float((~fits).float().mean())


def pairs(size: Size, seed: int) -> tuple[Pairs, Task]:
    """Which seconds go with a first token differs from seed to seed."""
    generator = torch.Generator().manual_seed(seed)
    usual = torch.randperm(LEADERS, generator=generator)
    law = Pairs(LEADERS + torch.stack([usual, (usual + 1) % LEADERS], dim=1))
    first = torch.randint(LEADERS, (100_000, size.length // 2 + 1), generator=generator)
    rarer = (torch.rand(first.shape, generator=generator) < NOISE).long()
    whole = torch.stack([first, law.seconds[first, rarer]], dim=-1).flatten(1)
    begins = torch.randint(2, (len(whole), 1), generator=generator)
    sequences = whole.gather(1, begins + torch.arange(size.length))
    return law, Task("pairs", sequences, sequences, 2 * LEADERS, prompt=2)


def letters(size: Size, smoke: bool) -> Task:
    """Pieces of plays (``smoke``: of made-up sentences) in small letters, all else a space."""
    corpus = text.corpus("made_up" if smoke else "tiny_shakespeare").train
    plain = re.sub("[^a-z]+", " ", bytes(corpus.tolist()).decode(errors="ignore").lower())
    source = torch.tensor([LETTERS.index(letter) for letter in plain])
    return Task("letters", source.unfold(0, size.length, 1), source, len(LETTERS))


def trained_base(task: Task, size: Size, seed: int, device: str) -> MaskedDiffusionLM:
    """A masked diffusion language model of the task, frozen; from the cache where it is there."""
    torch.manual_seed(seed)
    base = MaskedDiffusionLM(
        vocabulary=task.symbols + 1, dim=size.dim, depth=size.depth, heads=size.heads, mask_token=task.symbols,
        longest=size.length,
    ).to(device)  # fmt: skip

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(task.sequences), (size.batch,), generator=generator)
        return task.sequences[chosen], torch.rand(size.batch, 1 + size.length, generator=generator)

    def fit(folder: Path) -> None:
        train.fit_drawn(
            base, lambda network, batch: masked_loss(cast(Any, network), *batch), draw, steps=size.steps, rate=size.rate,
            folder=folder, seed=seed, device=device, label=f"masked language model of {task.name}",
        )  # fmt: skip

    shape = {key: getattr(size, key) for key in ("length", "dim", "depth", "heads", "steps", "batch", "rate")}
    load_or_train(
        base, fit, recipe={**shape, "seed": seed}, samples=[task.source],
        code=(language, model, sys.modules[__name__]),
    )  # fmt: skip
    return base.to(device).eval().requires_grad_(False)


def trained_sampler(base: MaskedDiffusionLM, task: Task, size: Size, seed: int, device: str) -> JointSampler:
    """The sampler of a base, trained on the base's own trajectories; from the cache where it is there."""
    sampler = JointSampler.from_base(base)

    def fit(folder: Path) -> None:
        pool = trajectories(
            base,
            length=size.length,
            count=size.pool,
            prompts=task.prompts(size.pool, device),
            generator=torch.Generator().manual_seed(7 * seed + 1),
        )
        pool = dataclasses.replace(pool, tokens=pool.tokens.cpu(), rank=pool.rank.cpu())
        train.fit_drawn(
            sampler, lambda network, batch: sampler_loss(base, cast(Any, network), *batch),
            lambda generator: examples(pool, base.mask_token, size.tokens_per_pass, size.batch, generator),
            steps=size.sampler_steps, rate=size.rate, folder=folder, seed=seed, device=device,
            label=f"sampler of {task.name}",
        )  # fmt: skip

    load_or_train(
        sampler, fit, recipe={**dataclasses.asdict(size), "samples": 0, "seed": seed}, samples=[task.source],
        code=(language, model, generation, training, sys.modules[__name__]),
    )  # fmt: skip
    return sampler.to(device).eval()


class Scorer:
    """An autoregressive model of the letters, trained apart: it scores texts and gives their features."""

    def __init__(self, task: Task, size: Size, seed: int, device: str, steps: int) -> None:
        torch.manual_seed(seed + 500)
        self.network = language.LanguageModel(
            vocabulary=task.symbols, dim=size.dim, depth=2, heads=size.heads, longest=size.length
        ).to(device)

        def draw(generator: torch.Generator) -> Tensor:
            return task.sequences[torch.randint(len(task.sequences), (size.batch,), generator=generator)]

        def fit(folder: Path) -> None:
            train.fit_drawn(
                self.network, text.loss, draw, steps=steps, rate=size.rate, folder=folder, seed=seed, device=device,
                label=f"scorer of {task.name}",
            )  # fmt: skip

        load_or_train(
            self.network, fit,
            recipe={"dim": size.dim, "length": size.length, "steps": steps, "seed": seed, "batch": size.batch},
            samples=[task.source], code=(language, text, sys.modules[__name__]),
        )  # fmt: skip
        self.network.to(device).eval()

    @torch.no_grad()
    def read(self, texts: Int[Tensor, "count length"]) -> tuple[float, Float[Tensor, "count dim"]]:
        """Mean negative log-likelihood of all letters but the first (nats), and each text's mean state, of length 1."""
        losses, features = [], []
        for part in texts.split(256):
            losses.append(float(text.loss(self.network, part)) * len(part))
            mean = self.network.hidden(part).mean(1)
            features.append(mean / mean.norm(dim=-1, keepdim=True))
        return sum(losses) / len(texts), torch.cat(features)
