"""Region-adaptive sampling (arXiv 2502.10389): at each step of a sampler only some tokens go through the transformer.

The first steps are dense. Afterwards the noise predicted last scores every token, the chosen ones run, and the others
keep the prediction they had; what the chosen ones attend to is keys and values of all tokens, from a cache that they
update at their own rows. Dense steps in between stop the errors of kept predictions from piling up.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Metric = Literal["std", "l2norm"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which share of the tokens runs at each step.

    ``sample_ratio`` is the share at the region-adaptive steps, or a pair: at the first and at the last of them, linear
    in between. The first ``dense_steps`` steps and ``reset_steps`` (counted from 0) are dense.

    Raises ``ValueError`` for a ratio outside (0, 1], no dense step to begin with, or a negative reset step.
    Source: arXiv 2502.10389, sections on dynamic sampling ratio and on resetting the accumulated error.
    """

    sample_ratio: float | tuple[float, float] = 0.5
    dense_steps: int = 4
    reset_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ends = self._ends()
        if len(ends) != 2 or not all(0 < ratio <= 1 for ratio in ends):
            raise ValueError(f"sample_ratio must be in (0, 1], or a pair of such numbers, got {self.sample_ratio}")
        if self.dense_steps < 1:
            raise ValueError(f"dense_steps must be at least 1, got {self.dense_steps}")
        if any(step < 0 for step in self.reset_steps):
            raise ValueError(f"reset_steps must be 0 or more, got {tuple(self.reset_steps)}")

    def _ends(self) -> tuple[float, ...]:
        return self.sample_ratio if isinstance(self.sample_ratio, tuple) else (self.sample_ratio,) * 2

    def shares(self, steps: int) -> list[float]:
        """The share of the tokens that runs at each of ``steps``.

        Raises ``ValueError`` if a reset step lies outside the schedule.
        """
        outside = [step for step in self.reset_steps if step >= steps]
        if outside:
            raise ValueError(f"reset_steps must be below the number of steps, {steps}, got {outside}")
        first, last = self._ends()
        adaptive = [step for step in range(self.dense_steps, steps) if step not in self.reset_steps]
        shares = [1.0] * steps
        for place, step in enumerate(adaptive):
            shares[step] = first + (last - first) * place / max(1, len(adaptive) - 1)
        return shares

    def bound(self, steps: int) -> float:
        """The speed-up over dense sampling if a step's cost were proportional to the tokens that run."""
        return steps / sum(self.shares(steps))


class RegionSelector:
    """Ranks tokens by the noise predicted last and says which run next.

    A token's score is the mean over its patch of the standard deviation (``"std"``) or the norm (``"l2norm"``) over
    channels, times ``exp(starvation * how often it was skipped)``. Tokens with the lowest scores are skipped;
    ``high_ratio`` of the skipped ones are taken from the highest scores instead. A positive ``starvation`` brings tokens
    back that are skipped for low scores, a negative one those that are skipped for high scores.

    Raises ``ValueError`` for an unknown metric, ``high_ratio`` outside [0, 1] or ``starvation`` that is not finite.
    Source: arXiv 2502.10389, the section on selecting regions; ``high_ratio`` is an option of the authors' code, which
    takes 1.0 for Lumina and 0.3 for Stable Diffusion 3 and leaves ``starvation`` at +0.1.
    """

    def __init__(self, *, metric: Metric = "std", starvation: float = 0.1, high_ratio: float = 0.0) -> None:
        if metric not in ("std", "l2norm"):
            raise ValueError(f"metric must be 'std' or 'l2norm', got {metric!r}")
        if not math.isfinite(starvation):
            raise ValueError(f"starvation must be finite, got {starvation}")
        if not 0 <= high_ratio <= 1:
            raise ValueError(f"high_ratio must be in [0, 1], got {high_ratio}")
        self.metric, self.starvation, self.high_ratio = metric, starvation, high_ratio
        self.skipped: Int[Tensor, "batch tokens"] | None = None

    def reset(self) -> None:
        """Forget how often tokens were skipped."""
        self.skipped = None

    def scores(self, noise: Float[Tensor, "batch channels height width"], patch: int) -> Float[Tensor, "batch tokens"]:
        """How much each token varies, before skipped tokens are lifted; tokens go row by row.

        Raises ``ValueError`` if ``patch`` does not divide the sides, or one channel is to have a deviation.
        """
        _, channels, height, width = noise.shape
        if height % patch or width % patch:
            raise ValueError(f"patch must divide the sides of noise, got patch={patch} and {height} x {width}")
        if self.metric == "std" and channels < 2:
            raise ValueError("metric 'std' needs noise of at least 2 channels, got 1; use 'l2norm'")
        noise = noise.float()
        spread = noise.std(1) if self.metric == "std" else torch.linalg.vector_norm(noise, dim=1)
        return F.avg_pool2d(spread[:, None], patch).flatten(1)

    def select(
        self, noise: Float[Tensor, "batch channels height width"], patch: int, active: int
    ) -> Int[Tensor, "batch active"]:
        """The places of the ``active`` tokens of each image that run next, in order; counts the others as skipped.

        Raises ``ValueError`` if ``active`` is not between 1 and the number of tokens.
        """
        scores = self.scores(noise, patch)
        tokens = scores.shape[1]
        if not 1 <= active <= tokens:
            raise ValueError(f"active must be between 1 and the {tokens} tokens, got {active}")
        if self.skipped is None or self.skipped.shape != scores.shape:
            self.skipped = torch.zeros_like(scores, dtype=torch.long)
        order = (scores * torch.exp(self.starvation * self.skipped)).argsort(dim=1)
        low = int((tokens - active) * (1 - self.high_ratio))
        chosen = order[:, low : low + active].sort(dim=1).values
        self.skipped.add_(1).scatter_add_(1, chosen, torch.full_like(chosen, -1))
        return chosen


def gathered(x: Float[Tensor, "batch tokens ..."], active: Int[Tensor, "batch active"]) -> Tensor:
    """The active tokens of each image."""
    return x.flatten(0, 1).index_select(0, _rows(x, active)).unflatten(0, active.shape)


def _rows(x: Tensor, active: Int[Tensor, "batch active"]) -> Int[Tensor, " rows"]:
    """Where the active tokens are when images stand below one another: whole rows move faster than by two indices."""
    return (torch.arange(len(x), device=x.device)[:, None] * x.shape[1] + active).flatten()


class TokenCache:
    """Keys and values (or any named tensors) of all tokens, (batch, tokens, ...), renewed where tokens are active.

    For sampling only: what is stored is overwritten in place, and no gradient passes.
    Source: arXiv 2502.10389, the section on key and value caching.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def store(self, **tensors: Float[Tensor, "batch tokens ..."]) -> None:
        """Keep what a dense step computed."""
        self.tensors.update({name: tensor.detach().contiguous() for name, tensor in tensors.items()})

    def update(
        self, active: Int[Tensor, "batch active"], **rows: Float[Tensor, "batch active ..."]
    ) -> tuple[Float[Tensor, "batch tokens ..."], ...]:
        """Put ``rows`` where the active tokens are, and return the tensors of all tokens, in the order given.

        Raises ``ValueError`` if nothing was stored under a name, or for another batch.
        """
        for name, tensor in rows.items():
            if name not in self.tensors or len(self.tensors[name]) != len(tensor):
                raise ValueError(
                    f"{name} of a batch of {len(tensor)} must be stored by a dense step before it is updated"
                )
            kept = self.tensors[name]
            kept.flatten(0, 1).index_copy_(0, _rows(kept, active), tensor.detach().flatten(0, 1))
        return tuple(self.tensors[name] for name in rows)

    def clear(self) -> None:
        """Let go of the tensors."""
        self.tensors.clear()


class Sampling:
    """The course of one sampling: which tokens run at the present step, and what the others keep.

    ``begin(steps)``, then at each step run the model on the tokens ``active`` (``None``: on all) and give what the
    sampler would be given to :meth:`complete`. ``updates`` has a map per step taken, true where a token ran.
    """

    def __init__(self, schedule: Schedule, selector: RegionSelector, patch: int) -> None:
        self.schedule, self.selector, self.patch = schedule, selector, patch
        self.shares: list[float] = []
        self.updates: list[Bool[Tensor, "batch rows columns"]] = []
        self.end()

    def end(self) -> None:
        """Let go of what a sampling needs while it runs; the maps stay."""
        self.step = 0
        self.active: Int[Tensor, "batch active"] | None = None
        self._noise: Tensor | None = None
        self._mask: Tensor | None = None
        self.selector.reset()

    def begin(self, steps: int) -> None:
        """Start anew. Raises ``ValueError`` if a reset step lies outside the ``steps``."""
        self.shares = self.schedule.shares(steps)
        self.updates = []
        self.end()

    def adaptive(self, step: int) -> bool:
        """Whether some tokens are skipped at ``step``."""
        return step < len(self.shares) and self.shares[step] < 1

    @property
    def keeps(self) -> bool:
        """Whether keys and values of this dense step are needed at the next."""
        return self.active is None and self.adaptive(self.step + 1)

    def complete(
        self, noise: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """The prediction with skipped tokens as they were at the step before; chooses what runs at the next step.

        Raises ``ValueError`` if more steps are taken than were begun.
        """
        if self.step >= len(self.shares):
            raise ValueError(
                f"the sampling has {len(self.shares)} steps and all were taken: set the timesteps anew, in the with block"
            )
        rows, columns = noise.shape[2] // self.patch, noise.shape[3] // self.patch
        if self._mask is None:
            self.updates.append(torch.ones(len(noise), rows, columns, dtype=torch.bool, device=noise.device))
        else:
            assert self._noise is not None
            self.updates.append(self._mask)
            pixels = self._mask.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
            noise = torch.where(pixels[:, None], noise, self._noise)
        self.step += 1
        self.active = self._mask = self._noise = None
        if self.adaptive(self.step):
            tokens = rows * columns
            # As the authors round: the number skipped is rounded down.
            self.active = self.selector.select(noise, self.patch, tokens - int((1 - self.shares[self.step]) * tokens))
            self._noise = noise
            mask = torch.zeros(len(noise), tokens, dtype=torch.bool, device=noise.device)
            self._mask = mask.scatter_(1, self.active, True).view(-1, rows, columns)
        return noise


def draw_updates(updates: list[Bool[Tensor, "batch rows columns"]], image: int = 0) -> Float[Tensor, "rows width"]:
    """A picture of what ran: the maps of one image side by side, 1 where a token ran, 0 where not, 0.5 between maps.

    ``width`` is steps * (columns + 1) - 1. Raises ``ValueError`` if there are no maps or no such image.
    """
    if not updates or not 0 <= image < len(updates[0]):
        raise ValueError(f"image must be one of the {len(updates[0]) if updates else 0} that were sampled, got {image}")
    maps = torch.stack([step[image] for step in updates]).float()
    return F.pad(maps, (0, 1), value=0.5).permute(1, 0, 2).flatten(1)[:, :-1]
