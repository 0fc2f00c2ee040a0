"""Means that make any model's training lighter (arXiv 2103.14636, section 3): recompute, invert, share, split."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

State = Float[Tensor, "*batch dim"]


# Gradient checkpointing: keep a layer's input, compute the rest once more in the backward pass.


class _Checkpointed(nn.Module):
    """Mixed into a layer's class, so that the layer stays of its kind and its state dict as it was."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*inputs, **options)
        return checkpoint(super().forward, *inputs, use_reentrant=False, **options)


def checkpoint_layers(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> int:
    """Have every layer of ``kind`` in ``model`` recomputed in the backward pass; how many there are.

    Values, gradients and state dict stay the same; a training step takes about a forward pass longer.

    Raises:
        ValueError: no layer of that kind.
    """
    found = [layer for layer in model.modules() if isinstance(layer, kind)]
    if not found:
        raise ValueError(f"kind must be that of a layer of the model, got {kind}")
    for layer in found:
        if not isinstance(layer, _Checkpointed):
            layer.__class__ = type(f"Checkpointed{type(layer).__name__}", (_Checkpointed, type(layer)), {})
    return len(found)


# Reversible blocks: what went in is computed from what came out, so that nothing is kept.


class Reversible(nn.Module):
    """Two halves of the state, each changed by a function of the other (arXiv 1707.04585, equation 6).

    ``first`` and ``second`` may be any modules that keep the shape: attention and a feed-forward network, say.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, left: State, right: State) -> tuple[State, State]:
        """The next halves."""
        left = left + self.first(right)
        return left, right + self.second(left)


class ReversibleSequence(nn.Module):
    """Reversible blocks one after the other, whose activations are recomputed from the last output.

    Memory of the backward pass is that of one block, however many there are. Gradients are those of autograd up to
    rounding: each block subtracts what it added. Random numbers, as of dropout, are the same both times.

    Raises:
        ValueError: no blocks, or one that is not :class:`Reversible`.
    """

    def __init__(self, blocks: Sequence[Reversible]) -> None:
        super().__init__()
        if not blocks or not all(isinstance(block, Reversible) for block in blocks):
            raise ValueError(f"blocks must be one or more Reversible, got {[type(block).__name__ for block in blocks]}")
        self.blocks = nn.ModuleList(blocks)

    def forward(self, left: State, right: State) -> tuple[State, State]:
        """The halves after all blocks.

        Raises:
            ValueError: halves of different shapes.
        """
        if left.shape != right.shape:
            raise ValueError(f"left and right must have one shape, got {tuple(left.shape)} and {tuple(right.shape)}")
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        left, right = _Recomputed.apply(list(self.blocks), left, right, *weights)
        return left, right


class _Recomputed(torch.autograd.Function):
    """All blocks as one step of autograd that saves the two outputs, and where the random numbers were."""

    @staticmethod
    def forward(ctx: Any, blocks: list[Reversible], left: Tensor, right: Tensor, *weights: Tensor) -> Any:
        ctx.blocks, ctx.random, ctx.autocast = blocks, [], _autocast_of(left)
        for block in blocks:
            before_first = _random_of(left)
            left = left + block.first(right)
            ctx.random.append((before_first, _random_of(left)))
            right = right + block.second(left)
        ctx.save_for_backward(left, right, *weights)
        return left, right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        left, right, *weights = ctx.saved_tensors
        of_left, of_right = gradients
        of_weights: dict[int, Tensor] = {}

        def again(function: nn.Module, x: Tensor, gradient: Tensor, random: Random) -> tuple[Tensor, Tensor]:
            """What ``function`` added, and the gradient of ``x``; those of its weights are added up."""
            own = [weight for weight in function.parameters() if weight.requires_grad]
            x = x.detach().requires_grad_()
            with torch.enable_grad(), _with_random(random, x), torch.autocast(**ctx.autocast):
                added = function(x)
            of_x, *of_own = torch.autograd.grad(added, (x, *own), gradient.to(added.dtype), allow_unused=True)
            for weight, one in zip(own, of_own, strict=True):
                if one is not None:
                    of_weights[id(weight)] = of_weights[id(weight)] + one if id(weight) in of_weights else one
            return added.detach(), torch.zeros_like(x) if of_x is None else of_x

        for block, (before_first, before_second) in zip(reversed(ctx.blocks), reversed(ctx.random), strict=True):
            added, through = again(block.second, left, of_right, before_second)
            right, of_left = right - added, of_left + through
            added, through = again(block.first, right, of_left, before_first)
            left, of_right = left - added, of_right + through
        return None, of_left, of_right, *(of_weights.get(id(weight)) for weight in weights)


Random = tuple[Tensor, Tensor | None]  # of the CPU, and of the GPU that is used


def _random_of(x: Tensor) -> Random:
    return torch.get_rng_state(), torch.cuda.get_rng_state(x.device) if x.is_cuda else None


@contextlib.contextmanager
def _with_random(state: Random, x: Tensor) -> Iterator[None]:
    """Random numbers from ``state`` on, and afterwards from where they were."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], x.device)
        yield


def _autocast_of(x: Tensor) -> dict[str, Any]:
    kind = x.device.type
    return {
        "device_type": kind, "enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind),
    }  # fmt: skip


# Parameter sharing, and batches in parts.


def share(layers: Sequence[nn.Module], distinct: int) -> nn.ModuleList:
    """As many layers as before, of which only the first ``distinct`` have weights of their own (arXiv 1807.03819).

    The others are those again, in turn: 1, 2, 1, 2, ...

    Raises:
        ValueError: ``distinct`` is not 1 to the number of layers, or layers differ in the shapes of their weights.
    """
    if not 1 <= distinct <= len(layers):
        raise ValueError(f"distinct must be 1 to {len(layers)}, got {distinct}")
    shapes = [{name: tuple(value.shape) for name, value in layer.state_dict().items()} for layer in layers]
    for index, shape in enumerate(shapes):
        if shape != shapes[index % distinct]:
            raise ValueError(f"layers must have weights of the same shapes; {index} and {index % distinct} differ")
    return nn.ModuleList(layers[index % distinct] for index in range(len(layers)))


def backward_in_parts(loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor, size: int) -> Tensor:
    """Add the gradients of ``loss(inputs, targets)``, a mean over the batch, part by part; the loss of the whole.

    Memory is that of ``size`` samples. What depends on the batch as a whole, such as batch norm, sees the parts.

    Raises:
        ValueError: ``size`` below 1, or inputs and targets of different lengths.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if len(inputs) != len(targets) or not len(inputs):
        raise ValueError(f"inputs and targets must be as many and not none, got {len(inputs)} and {len(targets)}")
    total = inputs.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(inputs.split(size), targets.split(size), strict=True):
        value = loss(part, wanted) * (len(part) / len(inputs))
        value.backward()
        total += value.detach()
    return total
