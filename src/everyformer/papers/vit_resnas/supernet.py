"""The super-network that holds all candidates and is trained once (arXiv 2109.00642, section 4).

A candidate keeps the leading channels, heads and hidden units of the largest network, and may leave blocks out.
In training every example passes through one of several candidates at a time (*multi-architectural sampling*), by masks.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.papers.vit_resnas.model import (
    BLOCK,
    HEAD,
    MIDDLE,
    REDUCTION,
    Attention,
    Block,
    BlockMasks,
    Definition,
    FeedForward,
    Stage,
    ViTResNAS,
    checked,
    define,
    macs,
)

# A removable block is kept and dropped with equal odds, but its two ways of being kept come first in the warm-up.
EXISTS = (1, 1, 0, 0)
Genes = tuple[int, ...]  # what is chosen at each choice point


class StageSpace(NamedTuple):
    """Choices in one stage, each largest first: widths, numbers of heads, hidden units; blocks, and the removable ones."""

    dims: tuple[int, ...]
    heads: tuple[int, ...]
    head_dim: int
    hidden: tuple[int, ...]
    blocks: int
    removable: tuple[int, ...] = ()


class Point(NamedTuple):
    """A choice point: the width of a stage, or the heads, the hidden units or the existence of one of its blocks."""

    stage: int
    block: int | None
    kind: Literal["dim", "heads", "hidden", "exists"]
    options: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Space:
    """All networks that a search may choose from.

    Args:
        stages: the choices.
        num_classes, img_size, patch, in_chans: as in :class:`ViTResNAS`.
        middle: channels of the convolutional patches, ``None`` for linear ones.

    Raises:
        ValueError: choices that are not positive and descending (the first is the super-network's size), a stage that
            could be narrower than the one before, a removable block that does not exist.
    """

    stages: tuple[StageSpace, ...]
    num_classes: int = 1000
    img_size: int = 224
    patch: int = 14
    in_chans: int = 3
    middle: int | None = MIDDLE

    def __post_init__(self) -> None:
        for index, stage in enumerate(self.stages):
            for name in ("dims", "heads", "hidden"):
                options = getattr(stage, name)
                if not options or min(options) < 1 or list(options) != sorted(set(options), reverse=True):
                    raise ValueError(
                        f"stages[{index}].{name} must be positive and descending from the super-network's size, "
                        f"got {options}"
                    )
            if index and min(stage.dims) < max(self.stages[index - 1].dims):
                raise ValueError(
                    f"stages[{index}].dims must not go below {max(self.stages[index - 1].dims)}, the widest of the "
                    f"stage before, got {stage.dims}"
                )
            if any(not 0 <= block < stage.blocks for block in stage.removable):
                raise ValueError(f"stages[{index}].removable must be below {stage.blocks}, got {stage.removable}")

    @property
    def points(self) -> tuple[Point, ...]:
        """Choice points in the order of the network."""
        points: list[Point] = []
        for index, stage in enumerate(self.stages):
            points.append(Point(index, None, "dim", stage.dims))
            for block in range(stage.blocks):
                points += [Point(index, block, "heads", stage.heads), Point(index, block, "hidden", stage.hidden)]
                if block in stage.removable:
                    points.append(Point(index, block, "exists", EXISTS))
        return tuple(points)

    def definition(self, genes: Sequence[int]) -> Definition:
        """The network of one choice per point. A removable block after a removed removable one is removed too."""
        chosen = {point[:3]: gene for point, gene in zip(self.points, genes, strict=True)}
        stages, exists = [], []
        for index, stage in enumerate(self.stages):
            blocks = [(chosen[index, block, "heads"], chosen[index, block, "hidden"]) for block in range(stage.blocks)]
            stages.append(Stage(chosen[index, None, "dim"], stage.head_dim, blocks))
            before = 1
            for block in range(stage.blocks):
                before = before and chosen[index, block, "exists"] if block in stage.removable else 1
                exists.append(before)
        present = iter(exists)
        whole = define(stages, self.num_classes, self.middle)
        return tuple((*part[:3], next(present)) if part[0] == BLOCK else part for part in whole)

    def genes(self, architecture: Sequence[Any]) -> Genes:
        """The choices that make ``architecture``.

        Raises:
            ValueError: a network that is not in the space; the first position that differs is named.
        """
        given = checked(architecture)
        blocks = [part for part in given if part[0] == BLOCK]
        widths = [given[0][1]] + [part[2] for part in given if part[0] == REDUCTION]
        genes: list[int] = []
        starts = list(itertools.accumulate([stage.blocks for stage in self.stages], initial=0))
        if len(widths) != len(self.stages) or len(blocks) != starts[-1]:
            raise ValueError(
                f"architecture must have {len(self.stages)} stages and {starts[-1]} blocks, removed ones included, "
                f"got {len(widths)} and {len(blocks)}"
            )
        for point in self.points:
            if point.block is None:
                genes.append(widths[point.stage])
                continue
            _, (_, heads, _), (_, hidden), exists = blocks[starts[point.stage] + point.block]
            genes.append({"heads": heads, "hidden": hidden, "exists": exists}[point.kind])
        again = self.definition(genes)
        for position, (found, made) in enumerate(zip(given, again, strict=True)):
            # The number of classes is not searched.
            if found != made and found[0] != HEAD:
                raise ValueError(f"architecture[{position}] is {found}, where the space has {made}")
        for point, gene in zip(self.points, genes, strict=True):
            if gene not in point.options:
                where = f"stage {point.stage}" + ("" if point.block is None else f", block {point.block}")
                raise ValueError(f"architecture has {point.kind}={gene} in {where}, options are {point.options}")
        return tuple(genes)

    @property
    def largest(self) -> Definition:
        """The super-network itself."""
        return self.definition([point.options[0] for point in self.points])

    @property
    def smallest(self) -> Definition:
        """The network with the least multiply-adds."""
        return self.definition([point.options[-1] for point in self.points])


def _down(first: int, last: int, step: int) -> tuple[int, ...]:
    return tuple(range(first, last - 1, -step))


# The published spaces; ``small`` is also the one of ViT-ResNAS-Medium.
SPACES: dict[str, Space] = {
    "tiny": Space(
        (
            StageSpace((256, 224, 192, 176, 160), (6, 5, 4, 3), 32, _down(768, 384, 64), 6, (1, 3, 5)),
            StageSpace((512, 448, 384, 352, 320), (12, 10, 8, 6), 48, _down(1536, 768, 128), 6, (1, 3, 5)),
            StageSpace((1024, 896, 768, 704, 640), (12, 10, 8, 6), 64, _down(3072, 1536, 256), 6, (1, 3, 5)),
        )
    ),
    "small": Space(
        (
            StageSpace((320, 280, 240, 220, 200), (8, 7, 6, 5), 32, _down(960, 480, 80), 7, (1, 3, 5)),
            StageSpace((640, 560, 480, 440, 400), (16, 14, 12, 10), 48, _down(1920, 960, 160), 7, (1, 3, 5)),
            StageSpace((1280, 1120, 960, 880, 800), (16, 14, 12, 10), 64, _down(3840, 1920, 320), 7, (1, 3, 5)),
        )
    ),
}


class SuperNet(nn.Module):
    """The largest network of a space, trained so that its sub-networks are good too (arXiv 2109.00642, section 4.2).

    A training step needs no more than ``supernet(pictures)``; call :meth:`start_epoch` before each epoch for the
    warm-up. In evaluation it is the largest network.

    Args:
        space: the networks to choose from.
        examples: examples of a batch that share an architecture.
        warm_up: epochs over which more and smaller choices are let in, and importance is sorted; 0 for all at once.
        options: further arguments of :class:`ViTResNAS` (``drop_path_rate``, ``distilled``, ``patch_output``).
    """

    epoch: Tensor  # of the warm-up, -1 before it: part of the state, so that an interrupted training goes on as it was

    def __init__(self, space: Space, examples: int = 64, warm_up: int = 30, **options: Any) -> None:
        super().__init__()
        if examples < 1 or warm_up < 0:
            raise ValueError(f"examples must be at least 1 and warm_up at least 0, got {examples} and {warm_up}")
        self.space = space
        self.examples = examples
        self.warm_up = warm_up
        self.options = {"img_size": space.img_size, "patch": space.patch, "in_chans": space.in_chans, **options}
        self.register_buffer("epoch", torch.tensor(-1))
        self.network = ViTResNAS(space.largest, **self.options)

    def start_epoch(self, epoch: int) -> None:
        """Let in as many choices as epoch ``epoch`` (from 0) of the warm-up has; sort by importance during it."""
        self.epoch.fill_(epoch)
        if epoch <= self.warm_up:
            self.sort_by_importance()

    def draw(self, count: int) -> list[Definition]:
        """``count`` architectures: at each choice point the options come equally often, in random order."""
        epoch = int(self.epoch)
        columns = []
        for point in self.space.points:
            allowed = point.options
            if 0 <= epoch < self.warm_up:
                allowed = allowed[: 1 + epoch * (len(allowed) - 1) // self.warm_up]
            cycles = -(-count // len(allowed))
            order = torch.randperm(cycles * len(allowed))[:count].tolist()
            columns.append([allowed[index % len(allowed)] for index in order])
        return [self.space.definition(genes) for genes in zip(*columns, strict=True)]

    def sample(self) -> Definition:
        """One random architecture."""
        return self.draw(1)[0]

    def forward(
        self, x: Float[Tensor, "batch channels height width"], architectures: Sequence[Definition] | None = None
    ) -> Any:
        """Pictures to logits, example i through architecture i mod their number.

        Args:
            architectures: networks of the space; drawn at random by default in training, the largest in evaluation.

        Raises:
            ValueError: a batch that is not divisible by ``examples``, or by the number of architectures.
        """
        if architectures is None:
            if not self.training:
                return self.network(x)
            if len(x) % self.examples:
                raise ValueError(f"x must hold a multiple of {self.examples} examples to share them out, got {len(x)}")
            architectures = self.draw(len(x) // self.examples)
        else:
            if not architectures or len(x) % len(architectures):
                raise ValueError(f"x must divide into {len(architectures)} architectures, got a batch of {len(x)}")
            architectures = [self.space.definition(self.space.genes(network)) for network in architectures]
        network: Any = self.network
        masks = _masks(architectures, self.space, x)
        x, grid = network.embed(x)
        width = None
        for stage in network.stages:
            if stage.reduction is not None:
                x = stage.reduction(x, grid, width)
                grid = (grid[0] // 2, grid[1] // 2)
            width = next(masks)
            x = x * width
            for block in stage.blocks:
                attention, hidden, exists = next(masks), next(masks), next(masks)
                x = block(x, BlockMasks(width, attention, hidden, width * exists))
        return network.forward_head(network.norm(x, width))

    def extract(self, architecture: Sequence[Any]) -> ViTResNAS:
        """The sub-network with the super-network's weights, as views: nothing is copied, both share their memory.

        Train a ``copy.deepcopy`` of it if the super-network is to stay as it is.

        Raises:
            ValueError: a network that is not in the space.
        """
        definition = self.space.definition(self.space.genes(architecture))
        with torch.device("meta"):
            network = ViTResNAS(definition, **self.options)
        source = self.network.state_dict()
        views = {
            name: source[name][tuple(slice(size) for size in tensor.shape)]
            for name, tensor in network.state_dict().items()
        }
        network.load_state_dict(views, assign=True)
        return network.train(self.training)

    @torch.no_grad()
    def sort_by_importance(self) -> None:
        """Order heads and hidden units by the sum of the absolute values of their weights; the function stays the same."""
        for block in self.network.modules():
            if isinstance(block, Block):
                _sort_heads(block.attention)
                _sort_hidden(block.mlp)

    def macs(self, architecture: Sequence[Any]) -> int:
        """Multiply-adds of one picture, see :func:`everyformer.papers.vit_resnas.model.macs`."""
        tokens = self.network.tokens_in_front
        return macs(architecture, self.space.img_size, self.space.patch, tokens, self.space.in_chans)


def _masks(networks: Sequence[Definition], space: Space, x: Tensor) -> Iterator[Tensor]:
    """Ones for what each example keeps: per stage its width, then per block heads, hidden units and existence."""
    repeats = len(x) // len(networks)

    def mask(sizes: Sequence[int], full: int) -> Tensor:
        kept = torch.tensor(sizes, device=x.device)[:, None] > torch.arange(full, device=x.device)
        return kept.to(x.dtype).repeat(repeats, 1)[:, None]

    for parts, largest in zip(zip(*networks, strict=True), space.largest, strict=True):
        if largest[0] == BLOCK:
            _, (_, heads, head_dim), (_, hidden), _ = largest
            yield mask([part[1][1] * head_dim for part in parts], heads * head_dim)
            yield mask([part[2][1] for part in parts], hidden)
            yield mask([part[3] for part in parts], 1)
        elif largest[0] == REDUCTION:
            yield mask([part[2] for part in parts], largest[2])
        elif largest[0] != HEAD:
            yield mask([part[1] for part in parts], largest[1])


def _sort_heads(attention: Attention) -> None:
    qkv = attention.qkv.weight.unflatten(0, (attention.heads, -1))
    bias = attention.qkv.bias.unflatten(0, (attention.heads, -1))
    proj = attention.proj.weight.unflatten(1, (attention.heads, -1))
    order = (qkv.abs().sum((1, 2)) + bias.abs().sum(1) + proj.abs().sum((0, 2))).argsort(descending=True)
    qkv.copy_(qkv[order])
    bias.copy_(bias[order])
    proj.copy_(proj[:, order])


def _sort_hidden(mlp: FeedForward) -> None:
    first, bias, second = mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight
    order = (first.abs().sum(1) + bias.abs() + second.abs().sum(0)).argsort(descending=True)
    first.copy_(first[order])
    bias.copy_(bias[order])
    second.copy_(second[:, order])
