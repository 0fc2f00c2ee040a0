"""What the claims about text share: plays as tokens, passages of them, and the models, trained once."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.catalog import Scale
from everyformer.lab import text, tokens
from everyformer.lab.pretrained import load_or_train
from everyformer.papers.ftp import model as method
from everyformer.papers.ftp.model import FutureTokenPredictor, future_loss, sampled_positions
from everyformer.parts import language
from everyformer.parts.language import LanguageModel

Name = Literal["ftp", "gpt", "gpt, equal loss"]


@dataclasses.dataclass(frozen=True)
class Size:
    """Of both models and their training; ``gpt_depth`` gives the GPT as many parameters as the whole of the other.

    ``equal_loss`` are the steps after which a GPT's next-token loss is where the other's ends: fewer, because each of
    its steps asks for the next token at every place. They were settled on seeds that no claim is run with.
    """

    vocabulary: int
    dim: int
    depth: int
    decoder_depth: int
    gpt_depth: int
    steps: int
    equal_loss: int
    positions: int
    passages: int  # that topics are told from
    topics: int
    batch: int = 8
    rate: float = 2e-3


SIZES: dict[Scale, Size] = {
    "smoke": Size(280, 32, 1, 1, 3, 20, 15, 32, passages=60, topics=3),
    "cpu": Size(512, 64, 3, 1, 5, 900, 390, 32, passages=4000, topics=10),
    "paper": Size(8192, 768, 12, 3, 17, 100_000, 80_000, 32, passages=4000, topics=10, batch=64, rate=3e-4),
}
SPEAKERS = ("First", "Second", "Third")  # of what is made up


@functools.cache
def plays(scale: Scale) -> text.Text:
    """tiny_shakespeare (its last tenth is the test) in byte pairs; ``smoke``: made-up speeches, which need no file."""
    if scale == "smoke":
        whole = _made_up()
        parts = whole[: len(whole) * 9 // 10], whole[len(whole) * 9 // 10 :]
    else:
        read = text.corpus("tiny_shakespeare")
        parts = _decoded(read.train), _decoded(read.test)
    tokenizer = tokens.byte_pairs(parts[:1], SIZES[scale].vocabulary)
    return text.Text(*(torch.tensor(tokenizer.encode(part).ids) for part in parts))


def _decoded(characters: Int[Tensor, " time"]) -> str:
    return bytes(characters.tolist()).decode("utf-8")


def _made_up() -> str:
    """An act of each of three speakers who have a few words of their own."""
    words = ("sun moon star", "salt oar wave", "root leaf seed")
    generator = torch.Generator().manual_seed(0)
    speeches = []
    for turn in range(300):
        act = turn // 100
        known = f"{words[act]} the and of".split()
        chosen = torch.randint(len(known), (24,), generator=generator).tolist()
        speeches.append(f"{SPEAKERS[act]}:\n{' '.join(known[index] for index in chosen)}\n\n")
    return "".join(speeches)


def passages(scale: Scale, seed: int) -> tuple[Int[Tensor, "passages tokens"], Int[Tensor, " passages"]]:
    """Passages from all over the plays, none of which overlap, and which of ``topics`` equal parts each is from.

    A part is about as long as a play, so that its passages are of the same people, places and events.
    """
    size = SIZES[scale]
    every = plays(scale).train.unfold(0, text.LENGTH, text.LENGTH)
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[: size.passages]
    return every[chosen], chosen * size.topics // len(every)


def build(name: Name, scale: Scale) -> nn.Module:
    """One of the two kinds of model, from the current random state."""
    size = SIZES[scale]
    heads = size.dim // (64 if scale == "paper" else 16)
    shape: dict[str, Any] = {"vocabulary": size.vocabulary, "dim": size.dim, "heads": heads, "longest": 2 * text.LENGTH}
    if name == "ftp":
        return FutureTokenPredictor(depth=size.depth, decoder_depth=size.decoder_depth, **shape)
    return LanguageModel(depth=size.gpt_depth, **shape)


def trained(name: Name, scale: Scale, *, seed: int, device: str = "cpu", precision: str = "32-true") -> nn.Module:
    """A model trained on the plays, from the cache where it is there: the same pieces in the same order for all."""
    size, source = SIZES[scale], plays(scale).train
    steps = size.equal_loss if name == "gpt, equal loss" else size.steps
    torch.manual_seed(seed)
    model = build(name, scale)

    def fit(folder: Path) -> None:
        text.fit(
            Training(model, size.positions), source, steps=steps, folder=folder, seed=seed, batch=size.batch,
            learning_rate=size.rate, step=lambda module, pieces: module(pieces), label=f"{name} on plays",
            device=device, precision=precision,
        )  # fmt: skip
        model.cpu()

    recipe = {"name": name, **dataclasses.asdict(size), "steps": steps, "seed": seed, "precision": precision}
    code = (sys.modules[__name__], method, language, text)
    load_or_train(model, fit, recipe=recipe, samples=[source], code=code)
    return model.to(device).eval()


class Training(nn.Module):
    """A model's loss as a module, so that what wraps a module in training wraps all of it."""

    def __init__(self, model: nn.Module, positions: int) -> None:
        super().__init__()
        self.model, self.positions = model, positions

    def forward(self, pieces: Int[Tensor, "batch length+1"]) -> Float[Tensor, ""]:
        if not isinstance(self.model, FutureTokenPredictor):
            return text.loss(self.model, pieces)
        places = sampled_positions(len(pieces), pieces.shape[1] - 1, self.positions, pieces.device)
        return future_loss(self.model, pieces, places)


@torch.no_grad()
def states(model: nn.Module, pieces: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
    """Top-layer vectors of either model: what the decoder's expansion, or the GPT's head, reads."""
    encoder = model.encoder if isinstance(model, FutureTokenPredictor) else model
    assert isinstance(encoder, LanguageModel)
    device = encoder.norm.weight.device
    return torch.cat([encoder.hidden(part.to(device)).cpu() for part in pieces.split(32)])
