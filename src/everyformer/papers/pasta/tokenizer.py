"""Numbers of states and actions as tokens (arXiv 2307.10936; the compression is that of Gato, arXiv 2205.06175)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def mu_law(x: Float[Tensor, "*any"], mu: float = 100.0, limit: float = 256.0) -> Float[Tensor, "*any"]:
    """``x`` compressed so that ``limit`` becomes 1 and what is near zero keeps its detail (Gato, section 2.2)."""
    return x.sign() * (mu * x.abs()).log1p() / math.log1p(mu * limit)


def mu_law_inverse(y: Float[Tensor, "*any"], mu: float = 100.0, limit: float = 256.0) -> Float[Tensor, "*any"]:
    """The ``x`` of which :func:`mu_law` makes ``y``."""
    return y.sign() * (y.abs() * math.log1p(mu * limit)).expm1() / mu


class ComponentTokenizer(nn.Module):
    """Every component of a state and an action as one of ``bins`` tokens, or as a number near one.

    Components of states are standardised by what :meth:`fit` has seen, then compressed by :func:`mu_law`; those of
    actions are scaled to [-1, 1] by their space. Then both are cut into equal bins.

    Args:
        observation_space, action_space: flat Gymnasium ``Box`` spaces; those of actions have bounds.
        bins: how many tokens there are.
        mu, limit: constants of the compression, in standard deviations.

    Raises:
        ValueError: other spaces, fewer than two bins, or constants that are not positive.
    """

    mean: Tensor
    std: Tensor
    centre: Tensor
    reach: Tensor

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        bins: int = 1024,
        mu: float = 100.0,
        limit: float = 256.0,
    ) -> None:
        super().__init__()
        sizes = []
        for name, space in (("observation_space", observation_space), ("action_space", action_space)):
            shape = getattr(space, "shape", None)
            if not hasattr(space, "low") or shape is None or len(shape) != 1:
                raise ValueError(f"{name} must be a flat Box, got {space}")
            sizes.append(int(shape[0]))
        low, high = (torch.as_tensor(edge, dtype=torch.float32) for edge in (action_space.low, action_space.high))
        if not (low.isfinite() & high.isfinite()).all():
            raise ValueError(f"action_space must have bounds, got {action_space}")
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}")
        if not (mu > 0 and limit > 0):
            raise ValueError(f"mu and limit must be above 0, got {mu} and {limit}")
        self.sensors, self.actuators = sizes
        self.bins, self.mu, self.limit = bins, mu, limit
        self.register_buffer("mean", torch.zeros(self.sensors))
        self.register_buffer("std", torch.ones(self.sensors))
        self.register_buffer("centre", (high + low) / 2)
        self.register_buffer("reach", (high - low) / 2)

    @property
    def components(self) -> int:
        """Tokens of a time step."""
        return self.sensors + self.actuators

    def fit(self, dataset: Iterable[Any]) -> ComponentTokenizer:
        """Take mean and deviation of every sensor from episodes, such as those of a Minari data set.

        Raises:
            ValueError: no episodes, observations of another size, or NaN in them.
        """
        seen = [torch.as_tensor(episode.observations) for episode in dataset]
        if not seen:
            raise ValueError("dataset must hold at least one episode, got none")
        for episode in seen:
            self._check(episode, self.sensors, "observations")
        observed = torch.cat(seen).double()
        self.mean.copy_(observed.mean(0))
        self.std.copy_(observed.std(0).clamp(min=1e-3))
        return self

    def standardised(self, observations: Float[Tensor, "*any sensors"]) -> Float[Tensor, "*any sensors"]:
        """States in standard deviations from the mean."""
        self._check(observations, self.sensors, "observations")
        return (observations - self.mean) / self.std

    def values(
        self, observations: Float[Tensor, "*any sensors"], actions: Float[Tensor, "*any actuators"] | None = None
    ) -> Float[Tensor, "*any components"]:
        """Components as numbers in [-1, 1] that the bins cut evenly; of the state alone without actions."""
        values = mu_law(self.standardised(observations), self.mu, self.limit)
        if actions is not None:
            self._check(actions, self.actuators, "actions")
            values = torch.cat([values, (actions - self.centre) / self.reach], -1)
        return values.clamp(-1, 1)

    def encode(
        self, observations: Float[Tensor, "*any sensors"], actions: Float[Tensor, "*any actuators"] | None = None
    ) -> Int[Tensor, "*any components"]:
        """Tokens of states and actions, those of a step side by side.

        Raises ``ValueError`` for other sizes and for NaN.
        """
        return self.bin_of(self.values(observations, actions))

    def decode(
        self, ids: Int[Tensor, "*any components"]
    ) -> tuple[Float[Tensor, "*any sensors"], Float[Tensor, "*any actuators"]]:
        """The states and actions in the middle of the bins; raises ``ValueError`` for ids out of range."""
        if ids.shape[-1] != self.components or (ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.bins):
            raise ValueError(f"ids must be (*any, {self.components}) of 0 to {self.bins - 1}, got {tuple(ids.shape)}")
        return self.restore(self.middle_of(ids))

    def restore(
        self, values: Float[Tensor, "*any components"]
    ) -> tuple[Float[Tensor, "*any sensors"], Float[Tensor, "*any actuators"]]:
        """The states and actions of which :meth:`values` makes ``values``."""
        state, action = values.split([self.sensors, self.actuators], -1)
        observed = mu_law_inverse(state, self.mu, self.limit) * self.std + self.mean
        return observed, action * self.reach + self.centre

    def bin_of(self, values: Float[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """The bins that numbers in [-1, 1] fall in."""
        return ((values + 1) * (self.bins / 2)).long().clamp(0, self.bins - 1)

    def middle_of(self, ids: Int[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """The numbers in the middle of bins."""
        return (2 * ids + 1) / self.bins - 1

    def _check(self, given: Tensor, size: int, name: str) -> None:
        if given.dim() < 1 or given.shape[-1] != size:
            raise ValueError(f"{name} must have {size} components, as the tokenizer has, got {tuple(given.shape)}")
        if not (torch.compiler.is_compiling() or given.is_meta) and given.isnan().any():
            raise ValueError(f"{name} must hold no NaN: leave a sensor out by its index instead")
