"""What a model of trajectories learns by: one table of objectives, the masks that they draw, and one loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from everyformer.papers.pasta.model import Pasta

MASKED = 0.15  # share of tokens that a random mask hides


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is a token, and what is hidden from the model: ``nothing`` but the future, or tokens that a mask draws."""

    name: str
    tokens: Literal["component", "modality"]
    masks: Literal["nothing", "random", "random and future", "dynamics"]

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return self.masks == "nothing"


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("c-gpt", "component", "nothing"),
        Objective("c-bert", "component", "random"),
        Objective("c-mtm", "component", "random and future"),  # MTM, arXiv 2305.02968
        Objective("c-smart", "component", "dynamics"),  # SMART, arXiv 2301.09816
        Objective("m-gpt", "modality", "nothing"),
        Objective("m-bert", "modality", "random"),
        Objective("mtm", "modality", "random and future"),
        Objective("smart", "modality", "dynamics"),
    )
}


@dataclasses.dataclass(frozen=True)
class Windows:
    """Pieces of ``steps`` steps, all of one domain."""

    observations: Float[Tensor, "batch steps sensors"]
    actions: Float[Tensor, "batch steps actuators"]
    domain: str | None = None


class WindowSampler:
    """Draws windows evenly over all places in a data set's episodes, such as those of a Minari data set.

    Raises ``ValueError`` where no episode is as long as a window.
    """

    def __init__(self, dataset: Iterable[Any], steps: int, domain: str | None = None) -> None:
        observations, actions, starts, before = [], [], [], 0
        for episode in dataset:
            acted = torch.as_tensor(episode.actions, dtype=torch.float32)
            observations.append(torch.as_tensor(episode.observations, dtype=torch.float32)[: len(acted)])
            actions.append(acted)
            starts.append(torch.arange(before, before + max(0, len(acted) - steps + 1)))
            before += len(acted)
        self.steps, self.domain = steps, domain
        self.starts = torch.cat(starts) if starts else torch.zeros(0)
        if not len(self.starts):
            raise ValueError(f"dataset must hold an episode of at least {steps} steps, got none")
        self.observations, self.actions = torch.cat(observations), torch.cat(actions)

    def draw(self, batch: int, generator: torch.Generator) -> Windows:
        """``batch`` windows."""
        chosen = self.starts[torch.randint(len(self.starts), (batch,), generator=generator)]
        places = chosen[:, None] + torch.arange(self.steps)
        return Windows(self.observations[places], self.actions[places], self.domain)


def draw_masks(
    objective: Objective,
    batch: int,
    steps: int,
    state: int,
    action: int,
    *,
    progress: float,
    generator: torch.Generator,
) -> tuple[Bool[Tensor, "batch steps slots"], Bool[Tensor, "batch steps slots"]]:
    """Which tokens are hidden, and which of those are to be told.

    ``random`` hides :data:`MASKED` of the tokens, at least one. ``random and future`` hides those and all from a random
    token on, so that the last that is seen is followed by nothing. ``dynamics`` gives a third of the windows each: the
    state after a state and an action; the action between two states; and the actions hidden at random while states are
    hidden too, ever more of both as ``progress`` goes from 0 to 1.

    Args:
        state, action: tokens of a state and of an action.
    """
    slots, total = state + action, steps * (state + action)

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    if objective.masks == "dynamics":
        is_state = torch.arange(slots) < state
        at = torch.randint(steps - 1, (batch, 1, 1), generator=generator)
        step = torch.arange(steps)[:, None]
        now, after = (step == at), (step == at + 1)
        share = 0.2 + 0.6 * progress
        picked = chance(batch, steps, slots) < share
        picked[:, -1, -1] = True
        kind = torch.randint(3, (batch, 1, 1), generator=generator)
        forward = ~now & torch.ones(slots, dtype=torch.bool), after & is_state
        inverse = ~((now | after) & is_state), now & ~is_state
        hindsight = picked, picked & ~is_state
        hidden, told = (
            torch.where(kind == 0, one, torch.where(kind == 1, two, three))
            for one, two, three in zip(forward, inverse, hindsight, strict=True)
        )
        return hidden, told
    drawn = chance(batch, total)
    hidden = drawn < MASKED
    hidden.scatter_(1, drawn.argmin(1, keepdim=True), True)
    if objective.masks == "random and future":
        cut = torch.randint(1, total, (batch, 1), generator=generator)
        hidden = (hidden | (torch.arange(total) >= cut)).scatter_(1, cut - 1, False)  # something is seen
    hidden = hidden.view(batch, steps, slots)
    return hidden, hidden


def pretraining_loss(
    model: Pasta, windows: Windows, generator: torch.Generator, *, progress: float = 1.0
) -> Float[Tensor, ""]:
    """The model's own objective on windows: cross-entropy over bins, or a squared error of standardised numbers.

    ``progress`` is how far the training has come, from 0 to 1. Raises ``ValueError`` for what does not fit the model.
    """
    objective, domain = model.objective, windows.domain
    state, action = model.slots(domain)
    batch, steps = windows.observations.shape[:2]
    hidden = None
    if objective.causal:
        told = torch.ones(batch, steps, state + action, dtype=torch.bool)
        told[:, 0, 0] = False  # nothing comes before it
    else:
        hidden, told = draw_masks(objective, batch, steps, state, action, progress=progress, generator=generator)
        hidden = hidden.to(windows.observations.device)
    told = told.to(windows.observations.device)
    outputs = model(windows.observations, windows.actions, domain=domain, hidden=hidden)
    index, tokenizer = model.tokenizer_of(domain)
    values = tokenizer.values(windows.observations, windows.actions)
    if objective.causal and model.discrete:  # the most common, without a copy
        ids = tokenizer.bin_of(values).flatten(1)
        return F.cross_entropy(model.logits(outputs[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    if objective.causal:  # a token is told by the output before it
        outputs = F.pad(outputs[:, :-1], (0, 0, 1, 0))
    outputs = outputs.unflatten(1, (steps, state + action))
    if model.discrete:
        return F.cross_entropy(model.logits(outputs[told]), tokenizer.bin_of(values[told]))
    numbers = model.numbers(values, domain)
    if model.by_component:
        return F.mse_loss(model.head(outputs[told])[..., 0], numbers[told])
    parts = numbers.split([tokenizer.sensors, tokenizer.actuators], -1)
    errors = [(model.heads[2 * index + part](outputs[:, :, part]) - parts[part]).square().mean(-1) for part in (0, 1)]
    return torch.stack(errors, -1)[told].mean()


def pretrain(
    model: Pasta,
    datasets: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    steps: int = 100_000,
    batch: int = 64,
    rate: float = 3e-4,
    seed: int = 0,
) -> list[float]:
    """Train on Minari data sets (one, or one for each domain, which take turns), and return the loss of each step.

    AdamW with a warm-up of a fiftieth of the steps, then a cosine down to zero. Raises ``ValueError`` for a domain that
    the model does not know or that has no data.
    """
    given = datasets if isinstance(datasets, Mapping) else {model.domains[0]: datasets}
    if set(given) != set(model.domains):
        raise ValueError(f"datasets must be of the domains {', '.join(model.domains)}, got {', '.join(given)}")
    samplers = [WindowSampler(data, model.context, domain) for domain, data in given.items()]
    device = model.mask.device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    warm = max(1, steps // 50)
    pace = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm, total_iters=warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm)),
        ],
        [warm],
    )
    losses = []
    model.train()
    for step in range(steps):
        drawn = samplers[step % len(samplers)].draw(batch, generator)
        windows = Windows(drawn.observations.to(device), drawn.actions.to(device), drawn.domain)
        optimizer.zero_grad()
        loss = pretraining_loss(model, windows, generator, progress=step / steps)
        loss.backward()
        optimizer.step()
        pace.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses
