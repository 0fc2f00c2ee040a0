"""Small networks of token mixers at equal parameters, trained and scored on the tasks of :mod:`mixing_samples`."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer import mixers
from everyformer.catalog import Scale, lookup
from everyformer.lab import data, mixing_samples, text, train
from everyformer.lab.measure import count_parameters
from everyformer.lab.mixing_samples import NAMES, NOTHING, Batch, Name, Task, chars, listops, pixels, recall
from everyformer.lab.pretrained import load_or_train
from everyformer.parts import mixers as parts

TEST_SEED = 20_000_000  # of the samples that are tested on; no training draws from it


@dataclasses.dataclass(frozen=True)
class Size:
    """The network that all mixers get, its training, and the lengths of the tasks."""

    dim: int
    layers: int
    heads: int
    batch: int
    tested: int
    steps: dict[Name, int]
    lengths: dict[Name, int]


SIZES: dict[Scale, Size] = {
    "smoke": Size(
        16, 2, 2, 16, 64, dict.fromkeys(NAMES, 10), {"recall": 32, "listops": 32, "chars": 32, "pixels": 49}
    ),
    "cpu": Size(
        64, 2, 4, 16, 1024, {"recall": 1000, "listops": 500, "chars": 600, "pixels": 500},
        {"recall": 64, "listops": 128, "chars": 128, "pixels": 196},
    ),
    "paper": Size(
        256, 4, 8, 64, 4096, dict.fromkeys(NAMES, 20_000),
        {"recall": 1024, "listops": 2048, "chars": 1024, "pixels": 784},
    ),
}  # fmt: skip


# Windows, blocks and landmarks that are small beside the tasks' lengths: as wide as a text, they would be full attention.
NARROW: dict[str, dict[str, Any]] = {
    "window": {"window": 16},
    "longformer": {"window": 16},
    "bigbird": {"block": 8},
    "reformer": {"chunk": 8, "buckets": 8},
    "linformer": {"features": 32},
    "nystrom": {"landmarks": 16},
}


def task(name: str, scale: Scale) -> Task:
    """One of the four at a scale.

    Raises:
        ValueError: no such task (the nearest names are given).
        DataMissing: plays or digits are not here and cannot be downloaded.
    """
    make: Callable[[Scale, int], Task] = lookup(name, _MAKERS, "task")
    return make(scale, SIZES[scale].lengths[name])  # type: ignore[index]


@functools.cache
def _plays(scale: Scale) -> text.Text:
    return text.corpus("made_up" if scale == "smoke" else "tiny_shakespeare")


@functools.cache
def _digits(scale: Scale, side: int) -> Task:
    if scale == "smoke":
        images, labels = data.digits("mnist_500")
        return pixels((images[:400], labels[:400]), (images[400:], labels[400:]), side)
    images, labels = data.digits("mnist_test")
    if scale == "cpu":
        return pixels((images[:8000], labels[:8000]), (images[8000:], labels[8000:]), side)
    return pixels(data.digits("mnist_train"), (images, labels), side)


_MAKERS: dict[str, Callable[[Scale, int], Task]] = {
    "recall": lambda scale, length: recall(length, pairs=length // 8),
    "listops": lambda scale, length: listops(length),
    "chars": lambda scale, length: chars(_plays(scale), length),
    "pixels": lambda scale, length: _digits(scale, round(length**0.5)),
}


# The network.


class Block(nn.Module):
    """A mixer, then a feed-forward network; both read what is normalised and add to it."""

    def __init__(self, mixer: nn.Module, dim: int, hidden: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The tokens after both."""
        x = x + self.mixer(self.first(x))
        return x + self.feed(self.second(x))  # type: ignore[no-any-return]


class Network(nn.Module):
    """Tokens and their places in, logits at every token out."""

    def __init__(self, blocks: list[Block], dim: int, *, vocabulary: int, classes: int, length: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)
        # Places begin as sines and cosines: attention finds the token before itself far sooner than from random ones.
        angles = torch.arange(length)[:, None] * 1000 ** -torch.linspace(0, 1, dim // 2)
        with torch.no_grad():
            self.places.weight.copy_(torch.cat([angles.sin(), angles.cos()], 1))

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens classes"]:
        """Logits of what is asked at each token."""
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def fits(mixer: str, given: Task) -> bool:
    """Whether a mixer can do a task at all: what follows is hidden only from one that can be causal."""
    return bool(mixers.cards()[mixer].causal) or not given.left_to_right


def network(mixer: str, given: Task, size: Size, **options: Any) -> Network:
    """The network of a task with a mixer of this name in each block, from the current random state.

    The feed-forward networks are as wide as makes the parameters those of full attention with four times ``dim``, and
    at least a quarter of ``dim`` wide; a mixer with larger weights than that gets more parameters. Recall is read from
    left to right by all that can; the other tasks only where they ask for it, or the mixer knows no other way.

    Args:
        options: of the mixer's class, in place of those of :data:`NARROW`.

    Raises:
        ValueError: no such mixer, or one that cannot do the task.
    """
    card = lookup(mixer, mixers.cards(), "mixer")
    if not fits(mixer, given):
        raise ValueError(f"mixer must be able to be causal for task {given.name}, got {mixer!r}")
    options = {**NARROW.get(mixer, {}), **options}
    causal = bool(card.causal) and (card.causal == "only" or given.left_to_right or given.name == "recall")

    def build(name: str, hidden: int, causal: bool, options: dict[str, Any]) -> Network:
        blocks = [
            Block(
                mixers.create(name, size.dim, heads=size.heads, causal=causal, length=given.length, **options),
                size.dim, hidden,
            )
            for _ in range(size.layers)
        ]  # fmt: skip
        return Network(blocks, size.dim, vocabulary=given.vocabulary, classes=given.classes, length=given.length)

    with torch.random.fork_rng(devices=[]):  # what is only counted takes no random numbers from what is built
        aim = count_parameters(build("full", 4 * size.dim, causal, {}))
        none, one = (count_parameters(build(mixer, hidden, causal, options)) for hidden in (1, 2))
    hidden = max(size.dim // 4, 1 + round((aim - none) / (one - none)))
    return build(mixer, hidden, causal, options)


def loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Cross entropy, in nats, of what is asked."""
    tokens, targets = batch
    asked = targets != NOTHING
    return F.cross_entropy(model(tokens)[asked].float(), targets[asked])


@torch.no_grad()
def score(model: nn.Module, given: Task, samples: int, *, seed: int = TEST_SEED) -> dict[str, float]:
    """``accuracy`` (%) and ``loss`` (nats) on samples that are not trained on, the same for every model and ``seed``."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    tokens, targets = given.draw(torch.Generator().manual_seed(seed), samples, True)
    right = total = 0
    nats = 0.0
    for part, wanted in zip(torch.split(tokens, 64), torch.split(targets, 64), strict=True):
        wanted = wanted.to(device)
        asked = wanted != NOTHING
        logits, answers = model(part.to(device))[asked].float(), wanted[asked]
        right += int((logits.argmax(-1) == answers).sum())
        nats += float(F.cross_entropy(logits, answers, reduction="sum"))
        total += len(answers)
    model.train(training)
    return {"accuracy": 100 * right / total, "loss": nats / total}


def trained(
    mixer: str, name: str, scale: Scale, *, seed: int, rate: float = 3e-3, device: str = "cpu", **options: Any
) -> Network:
    """A mixer's network after training on a task, from the cache where it is there; see :func:`network`.

    Batches come from the seed alone, so that every mixer reads the same ones. A killed training goes on where it was.
    """
    size, given = SIZES[scale], task(name, scale)
    steps = size.steps[given.name]
    torch.manual_seed(seed)
    model = network(mixer, given, size, **options)
    recipe = {
        "mixer": mixer, "options": options, "task": given.name, **dataclasses.asdict(size), "seed": seed, "rate": rate,
    }  # fmt: skip
    load_or_train(
        model,
        lambda folder: train.fit_drawn(
            model, loss, lambda generator: given.draw(generator, size.batch, False), steps=steps, rate=rate,
            warm=steps // 10, folder=folder, seed=seed, device=device, label=f"{mixer}: {given.title}",
        ),
        recipe=recipe, samples=given.samples, code=_code(mixer),
    )  # fmt: skip
    return model


def _code(mixer: str) -> list[ModuleType]:
    """What settles a training: this file, the samples, all of the mixers, and what a paper's own mixer is made of."""
    own = sys.modules[mixers.cards()[mixer].kind.__module__]
    names = {str(getattr(used, "__module__", "")) for used in vars(own).values()}
    names = {name for name in (*names, own.__name__) if name.startswith("everyformer.")}
    names |= {f"{parts.__name__}.{found.name}" for found in pkgutil.iter_modules(parts.__path__)}
    return [sys.modules[__name__], mixing_samples, *map(importlib.import_module, sorted(names))]
