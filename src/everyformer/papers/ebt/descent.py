"""Prediction as descent: a candidate walks down its energy, and training goes through the walk (arXiv 2507.02092).

The slope of the energy is itself part of what is differentiated, so a step of training differentiates twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

SMALLEST_ALPHA = 1e-4  # a learnt step size stops here


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How candidates walk in training (arXiv 2507.02092, section 3.3); the defaults are the paper's S1.

    Args:
        detach: cut the graph between steps, so that each learns to lead down from wherever it starts.
        last_only: the loss sees the last step alone, and only its slope is differentiated twice.
        noise: standard deviation of what is added before each step (Langevin dynamics).
        alpha_scale: in training mode each position's step size is drawn between alpha / scale and alpha * scale.
        repeats: fewest and most steps on each landscape; drawn anew for each in training mode, and in evaluation mode
            one step on each but the last, which takes the most.

    Raises:
        ValueError: a value outside its range.
    """

    detach: bool = True
    last_only: bool = False
    noise: float = 0.0
    alpha_scale: float = 1.0
    repeats: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")
        if self.alpha_scale < 1:
            raise ValueError(f"alpha_scale must be at least 1, got {self.alpha_scale}")
        if not 1 <= self.repeats[0] <= self.repeats[1]:
            raise ValueError(f"repeats must be two numbers from 1 on, the fewest first, got {self.repeats}")

    def step_sizes(self, alpha: Float[Tensor, ""], shape: Sequence[int], *, random: bool) -> Tensor:
        """``alpha``, not below the smallest; drawn anew for each place of ``shape`` where it is random and scaled."""
        alpha = alpha.clamp(min=SMALLEST_ALPHA)
        if not random or self.alpha_scale == 1:
            return alpha
        low, high = alpha / self.alpha_scale, alpha * self.alpha_scale
        return low + torch.rand(*shape, device=alpha.device) * (high - low)

    def schedule(self, landscapes: int, *, random: bool) -> list[int]:
        """The number of the landscape of each step."""
        fewest, most = self.repeats
        if not random:
            return [*range(landscapes - 1), *[landscapes - 1] * most]
        drawn = fewest < most
        counts = torch.randint(fewest, most + 1, (landscapes,)).tolist() if drawn else [most] * landscapes
        return [landscape for landscape, count in enumerate(counts) for _ in range(count)]


S1 = Recipe()
S2 = Recipe(detach=False, last_only=True, noise=3.0, alpha_scale=2.0, repeats=(2, 3))


def thinking_schedule(landscapes: int, steps: int | None) -> list[int]:
    """Each landscape once and the last one for all further steps; ``None`` is as many steps as landscapes.

    Raises:
        ValueError: ``steps`` below 1.
    """
    steps = landscapes if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return [min(step, landscapes - 1) for step in range(steps)]


@dataclasses.dataclass
class Walk:
    """What a descent passed through.

    Attributes:
        states: the candidates after each step; for language the logits of the next token.
        energies: of the candidates before each step.
    """

    states: list[Float[Tensor, "*batch features"]]
    energies: list[Float[Tensor, "*batch"]]


def descend(
    energy: Callable[[Tensor, int], Tensor],
    start: Float[Tensor, "*batch features"],
    schedule: Iterable[int],
    *,
    alpha: Tensor,
    prepare: Callable[[Tensor, int], Tensor] = lambda candidates, landscape: candidates,
    detach: bool = True,
    last_only: bool = False,
    noise: float = 0.0,
    learn: bool = True,
) -> Walk:
    """Walk candidates down their energy: ``y <- y - alpha dE/dy``, one step for each landscape of the schedule.

    Args:
        energy: ``(candidates, landscape) -> energies``; the energy of one candidate must depend on no other one's.
        prepare: what candidates go through before each step; the slope is taken, and the step made, after it.
        learn: keep the graph of the slopes, so that a loss on the states trains the energy.
        detach, last_only, noise: as in :class:`Recipe`.
    """
    walk = Walk([], [])
    numbers = list(schedule)
    state = start.detach()
    with torch.enable_grad():
        for place, landscape in enumerate(numbers):
            state = state.detach() if detach else state
            if noise:
                state = state + noise * torch.randn_like(state)
            state = prepare(state, landscape)
            twice = learn and (place == len(numbers) - 1 or not last_only)
            slope, energies = _slope(energy, state, landscape, twice)
            state = state - alpha * slope
            walk.states.append(state)
            walk.energies.append(energies)
            state = state if learn else state.detach()
    return walk


def _slope(
    energy: Callable[[Tensor, int], Tensor], state: Tensor, landscape: int, twice: bool
) -> tuple[Tensor, Tensor]:
    """dE/dy and E. The two ways agree; eagerly autograd's is faster, torch.compile traces that of torch.func alone."""
    if torch.compiler.is_compiling():

        def total(candidates: Tensor) -> tuple[Tensor, Tensor]:
            values = energy(candidates, landscape)
            return values.sum(), values

        slope, values = torch.func.grad(total, has_aux=True)(state)
        return (slope, values) if twice else (slope.detach(), values.detach())
    if not state.requires_grad:
        state = state.detach().requires_grad_()
    values = energy(state, landscape)
    (slope,) = torch.autograd.grad(values.sum(), state, create_graph=twice)
    return slope, values if twice else values.detach()


def parameter_groups(model: nn.Module, lr: float, multiplier: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: the step size ``alpha`` learns ``multiplier`` times as fast and without weight decay.

    A step size that is not learnable is left out.

    Raises:
        ValueError: a model without ``alpha``, or rates that are not above 0.
    """
    alpha = getattr(model, "alpha", None)
    if not isinstance(alpha, nn.Parameter):
        raise ValueError(f"model must have a parameter alpha, got {type(model).__name__}")
    for name, value in (("lr", lr), ("multiplier", multiplier)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    others = [parameter for parameter in model.parameters() if parameter is not alpha and parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": others, "lr": lr}]
    if alpha.requires_grad:
        groups.append({"params": [alpha], "lr": lr * multiplier, "weight_decay": 0.0})
    return groups


def step_size(alpha: float, learnable: bool) -> nn.Parameter:
    """The parameter ``alpha``.

    Raises:
        ValueError: not above 0.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    return nn.Parameter(torch.tensor(float(alpha)), requires_grad=learnable)


class ReplayBuffer(nn.Module):
    """Texts and where their candidates came to, from which later walks go on (arXiv 2507.02092, section 3.3).

    The newest ``size`` texts are kept. They are buffers of the module, so that a training that is resumed finds them.

    Args:
        size: texts in it when it is full.
        length: tokens of a text, the last being a target only.
        vocabulary: of the logits.
    """

    tokens: Tensor
    logits: Tensor
    written: Tensor

    def __init__(self, size: int, length: int, vocabulary: int) -> None:
        super().__init__()
        for name, value, least in (("size", size, 1), ("length", length, 2), ("vocabulary", vocabulary, 2)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.register_buffer("tokens", torch.zeros(size, length, dtype=torch.long))
        self.register_buffer("logits", torch.zeros(size, length - 1, vocabulary))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    def sample(self, count: int) -> tuple[Int[Tensor, "count length"], Float[Tensor, "count length-1 vocabulary"]]:
        """Up to ``count`` different texts with their logits; none from an empty buffer."""
        chosen = torch.randperm(min(int(self.written), len(self.tokens)))[:count]
        return self.tokens[chosen], self.logits[chosen]

    @torch.no_grad()
    def keep(self, tokens: Int[Tensor, "batch length"], logits: Float[Tensor, "batch length-1 vocabulary"]) -> None:
        """Write over the oldest texts."""
        if logits.shape != (len(tokens), *self.logits.shape[1:]) or tokens.shape[1:] != self.tokens.shape[1:]:
            raise ValueError(
                f"tokens and logits must be (batch, {self.tokens.shape[1]}) and (batch, "
                f"{', '.join(map(str, self.logits.shape[1:]))}), got {tuple(tokens.shape)} and {tuple(logits.shape)}"
            )
        kept = min(len(tokens), len(self.tokens))
        places = (self.written + torch.arange(len(tokens) - kept, len(tokens), device=tokens.device)) % len(self.tokens)
        self.tokens[places], self.logits[places] = tokens[-kept:], logits[-kept:].detach().to(self.logits.dtype)
        self.written += len(tokens)
