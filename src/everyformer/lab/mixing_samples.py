"""What four small tasks draw: associative recall, ListOps, plays byte by byte, digits pixel by pixel.

A task is tokens with a target at each place that counts, so that one loss and one score do for all. The first two are
made up without end, with answers that are known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from everyformer.lab import text

Name = Literal["recall", "listops", "chars", "pixels"]
NAMES: tuple[Name, ...] = get_args(Name)
Batch = tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]
NOTHING = -100  # the target where nothing is asked; losses leave it out


@dataclasses.dataclass(frozen=True)
class Task:
    """Tokens to read, and what is to be said at some of them.

    Attributes:
        left_to_right: whether a mixer must not look ahead, because what follows is the answer.
        chance: accuracy without reading, %.
        draw: ``(generator, samples, test) -> (tokens, targets)``; ``test`` draws from what is not trained on.
        samples: what it draws from, where that is data.
    """

    name: Name
    title: str
    length: int
    vocabulary: int
    classes: int
    left_to_right: bool
    chance: float
    draw: Callable[[torch.Generator, int, bool], Batch]
    samples: tuple[Tensor, ...] = ()


# Associative recall: names with values, then names again whose values are asked for (arXiv 2312.04927).


def recall(length: int, pairs: int, values: int = 16) -> Task:
    """``pairs`` names with their values come first, and every second token after them is one of the names.

    Raises:
        ValueError: fewer tokens than four for each pair.
    """
    if pairs < 2 or length < 4 * pairs:
        raise ValueError(
            f"length must be at least 4 times pairs, of which there are 2 or more; got {length} and {pairs}"
        )
    names = 2 * pairs

    def draw(generator: torch.Generator, samples: int, test: bool) -> Batch:
        chosen = torch.rand(samples, names, generator=generator).argsort(1)[:, :pairs]
        known = torch.randint(values, (samples, pairs), generator=generator)
        asked = torch.randint(pairs, (samples, (length - 2 * pairs) // 2), generator=generator)
        tokens = torch.full((samples, length), names + values)  # the token that says nothing
        targets = torch.full((samples, length), NOTHING)
        tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = chosen, names + known
        places = slice(length - 2 * asked.shape[1], length, 2)
        tokens[:, places], targets[:, places] = chosen.gather(1, asked), known.gather(1, asked)
        return tokens, targets

    return Task(
        "recall", f"associative recall, {pairs} pairs", length, names + values + 1, values, False, 100 / values, draw
    )


# ListOps (arXiv 1804.06028): nested lists with operators, whose value is a digit.

OPERATORS = ("MAX", "MIN", "MED", "SUM")  # of tokens 10 to 13; the sum counts modulo ten, the median is the lower one
CLOSE, PADDING = 14, 15
WIDEST = 4  # arguments of an operator, two at least


def expressions(
    depth: int, count: int, generator: torch.Generator, *, whole: bool = False
) -> tuple[Int[Tensor, "count tokens"], Int[Tensor, " count"]]:
    """Random expressions of at most ``depth`` operators one in the other, and their values.

    Every one takes the room of the largest; what it does not need is padding, anywhere among its tokens.
    With ``whole`` none is a digit alone.
    """
    digit = torch.randint(10, (count,), generator=generator)
    if depth == 0:
        return digit[:, None], digit
    inner, arguments = expressions(depth - 1, count * WIDEST, generator)
    inner, arguments = inner.view(count, WIDEST, -1), arguments.view(count, WIDEST)
    used = torch.arange(WIDEST) < torch.randint(2, WIDEST + 1, (count, 1), generator=generator)
    operator = torch.randint(len(OPERATORS), (count,), generator=generator)
    middle = (used.sum(1, keepdim=True) - 1) // 2
    results = torch.stack(
        [
            arguments.masked_fill(~used, -1).amax(1),
            arguments.masked_fill(~used, 10).amin(1),
            arguments.masked_fill(~used, 10).sort(1).values.gather(1, middle)[:, 0],
            arguments.masked_fill(~used, 0).sum(1) % 10,
        ]
    )
    value = results.gather(0, operator[None])[0]
    listed = inner.masked_fill(~used[..., None], PADDING).flatten(1)
    tokens = torch.cat([10 + operator[:, None], listed, torch.full_like(digit, CLOSE)[:, None]], 1)
    if whole:
        return tokens, value
    alone = torch.rand(count, generator=generator) < 0.5
    leaf = torch.full_like(tokens, PADDING)
    leaf[:, 0] = digit
    return torch.where(alone[:, None], leaf, tokens), torch.where(alone, digit, value)


def listops(length: int) -> Task:
    """Expressions as deep as ``length`` has room for, padded in front; the last bracket is where their value is asked.

    Raises:
        ValueError: less room than the six tokens of one operator.
    """
    room, depth = 1, 0
    while 2 + WIDEST * room <= length:
        room, depth = 2 + WIDEST * room, depth + 1
    if depth == 0:
        raise ValueError(f"length must be at least {2 + WIDEST}, got {length}")

    def draw(generator: torch.Generator, samples: int, test: bool) -> Batch:
        found, value = expressions(depth, samples, generator, whole=True)
        tokens = F.pad(found, (length - room, 0), value=PADDING)
        tokens = tokens.gather(1, (tokens != PADDING).int().argsort(dim=1, stable=True))
        targets = torch.full_like(tokens, NOTHING)
        targets[:, -1] = value
        return tokens, targets

    return Task("listops", f"ListOps, {depth} deep", length, 16, 10, False, 10.0, draw)


def chars(plays: text.Text, length: int) -> Task:
    """The next byte of plays, at every byte."""

    def draw(generator: torch.Generator, samples: int, test: bool) -> Batch:
        source = plays.test if test else plays.train
        start = torch.randint(len(source) - length, (samples, 1), generator=generator)
        pieces = source[start + torch.arange(length + 1)]
        return pieces[:, :-1], pieces[:, 1:]

    common = 100 * float(plays.test.bincount().max()) / len(plays.test)
    return Task("chars", "bytes of plays", length, 256, 256, True, common, draw, (plays.train,))


GREYS = 16


def pixels(trained_on: tuple[Tensor, Tensor], tested_on: tuple[Tensor, Tensor], side: int) -> Task:
    """Which digit a picture of ``side`` x ``side`` pixels shows, read row by row in sixteen greys.

    Raises:
        ValueError: a side that does not divide that of the pictures.
    """
    whole = trained_on[0].shape[-1]
    if side < 1 or whole % side:
        raise ValueError(f"side must divide {whole}, got {side}")

    def greys(images: Tensor) -> Tensor:
        return (F.avg_pool2d(images[:, None].float(), whole // side) * GREYS / 256).long().flatten(1)

    parts = [(greys(images), labels) for images, labels in (trained_on, tested_on)]

    def draw(generator: torch.Generator, samples: int, test: bool) -> Batch:
        images, labels = parts[test]
        chosen = torch.randint(len(images), (samples,), generator=generator)
        targets = torch.full((samples, side * side), NOTHING)
        targets[:, -1] = labels[chosen]
        return images[chosen], targets

    return Task("pixels", "digits by pixels", side * side, GREYS, 10, False, 10.0, draw, (parts[0][0],))
