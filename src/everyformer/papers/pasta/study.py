"""What the claims share: robots and their trajectories, the models pretrained on them once, and heads on top of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.catalog import Job, Scale
from everyformer.lab import train
from everyformer.lab.pretrained import load_or_train
from everyformer.lab.trajectories import Domain, Trajectories, Wrap, collected, evaluate, joined, make, rollout
from everyformer.papers.pasta import model as model_file
from everyformer.papers.pasta import objectives, tokenizer
from everyformer.papers.pasta.downstream import Features, Policy
from everyformer.papers.pasta.model import Pasta
from everyformer.papers.pasta.objectives import Windows, WindowSampler, pretraining_loss
from everyformer.papers.pasta.tokenizer import ComponentTokenizer

UNSEEN = 500_000  # seeds of the episodes that everything is tested in lie beyond this
COMPONENT, MODALITY = ("c-gpt", "c-bert"), ("m-gpt", "m-bert")
HELD = 5  # every fifth episode is not pretrained on
NAMES = {
    "c-gpt": "C-GPT", "c-bert": "C-BERT", "m-gpt": "states, next", "m-bert": "states, masked",
    "raw": "raw observation", "untrained": "untrained C-BERT",
}  # fmt: skip
Encode = Callable[[Float[Tensor, "batch sensors"], Sequence[int]], Float[Tensor, "batch features"]]


@dataclasses.dataclass(frozen=True)
class Size:
    """Robots (the first is the one that tasks are on), the model, its training, and that of heads.

    ``experts`` episodes are cloned; ``tested`` episodes of ``horizon`` steps test a policy. Heads are two layers of
    ``hidden`` trained for ``cloning`` steps on batches of 128; ``tuning`` steps where the model is tuned with them, and
    ``offline`` of offline learning.
    """

    domains: tuple[Domain, ...]
    model: model_file.Size
    bins: int
    batch: int
    steps: int
    rate: float
    experts: int
    hidden: int
    cloning: int
    tuning: int
    offline: int
    tested: int
    horizon: int


SIZES: dict[Scale, Size] = {
    "smoke": Size(
        (Domain("HalfCheetah-v5", "PPO", steps=2048, stages=2, episodes=6, horizon=20, hidden=16),
         Domain("InvertedDoublePendulum-v5", "PPO", steps=2048, stages=2, episodes=6, horizon=20, hidden=16)),
        model_file.Size(1, 16, 2, 46), bins=32, batch=4, steps=4, rate=2e-3, experts=2, hidden=16, cloning=4, tuning=3,
        offline=4, tested=2, horizon=20,
    ),
    "cpu": Size(
        (Domain("HalfCheetah-v5", "PPO", steps=163_840, stages=4, episodes=20, horizon=300, discount=0.98),
         Domain("Hopper-v5", "PPO", steps=81_920, stages=4, episodes=40, horizon=300),
         Domain("Swimmer-v5", "PPO", steps=40_960, stages=4, episodes=20, horizon=300, discount=0.9999)),
        model_file.Size(2, 64, 4, 92), bins=256, batch=16, steps=2000, rate=2e-3, experts=5, hidden=128, cloning=1000,
        tuning=1000, offline=2000, tested=10, horizon=300,
    ),
    "paper": Size(
        (Domain("HalfCheetah-v5", "SAC", steps=1_000_000, stages=10, episodes=1000, horizon=1000, hidden=256),
         Domain("Hopper-v5", "SAC", steps=1_000_000, stages=10, episodes=2000, horizon=1000, hidden=256),
         Domain("Walker2d-v5", "SAC", steps=1_000_000, stages=10, episodes=1000, horizon=1000, hidden=256)),
        model_file.SIZES["base"], bins=1024, batch=64, steps=200_000, rate=3e-4, experts=20, hidden=256, cloning=20_000,
        tuning=20_000, offline=100_000, tested=50, horizon=1000,
    ),
}  # fmt: skip
# A compression that spreads the bins over the ten deviations in which the data lie; the paper's has room for 256.
MU, LIMIT = 10.0, 10.0


@dataclasses.dataclass(frozen=True)
class Robot:
    """One environment's trajectories: to pretrain on, held back, and the best of the last policy, to clone."""

    env: str
    shown: Trajectories
    held: Trajectories
    experts: Trajectories
    tokenizer: ComponentTokenizer


@functools.cache
def robot(scale: Scale, number: int = 0) -> Robot:
    """A robot of a scale; its data do not depend on the claim's seed."""
    size = SIZES[scale]
    domain = size.domains[number]
    stages = collected(domain)
    everything = joined(stages)
    held = list(range(0, len(everything), HELD))
    shown = everything.chosen([index for index in range(len(everything)) if index % HELD])
    last = stages[-1]
    best = last.returns().argsort(descending=True)[: size.experts].tolist()
    env = make(domain.env)
    fitted = ComponentTokenizer(env.observation_space, env.action_space, bins=size.bins, mu=MU, limit=LIMIT).fit(shown)
    return Robot(domain.env, shown, everything.chosen(held), last.chosen(best), fitted)


def pretrained(job: Job, objective: str, *, robots: int = 1, updates: int = 1) -> Pasta:
    """A model trained from the job's seed by one objective on the first ``robots``, or read from the cache.

    ``updates`` times as many steps as the size says, each on windows of one robot that is drawn.
    """
    size = SIZES[job.scale]
    known = [robot(job.scale, number) for number in range(robots)]
    net = untrained(job, objective, robots=robots)
    samplers = [WindowSampler(one.shown, net.context, one.env) for one in known]

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        number = int(torch.randint(len(samplers), (1,), generator=generator))
        windows = samplers[number].draw(size.batch, generator)
        seeds = torch.randint(2**31, (size.batch,), generator=generator)
        return windows.observations, windows.actions, torch.full((size.batch,), number), seeds

    def step(net: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        seen, acted, number, seeds = batch
        windows = Windows(seen, acted, known[int(number[0])].env)
        learner: Any = net
        return pretraining_loss(
            getattr(learner, "module", learner), windows, torch.Generator().manual_seed(int(seeds[0]))
        )

    def fit(folder: Path) -> None:
        train.fit_drawn(
            net, step, draw, steps=updates * size.steps, rate=size.rate, warm=50, folder=folder, seed=job.seed,
            device=job.device, precision=job.precision, label=f"PASTA, {NAMES[objective]}",
        )  # fmt: skip

    recipe = {"objective": objective, "robots": robots, "updates": updates, "seed": job.seed, "steps": size.steps,
              "batch": size.batch, "rate": size.rate, "precision": job.precision, "model": dataclasses.asdict(size.model),
              "bins": size.bins, "mu": MU, "limit": LIMIT}  # fmt: skip
    samples = [tensor for one in known for tensor in (one.shown.observations, one.shown.actions, one.shown.episode)]
    code = (model_file, objectives, tokenizer, train, sys.modules[__name__])
    load_or_train(net, fit, recipe=recipe, samples=samples, code=code)
    return net.to(job.device).eval().requires_grad_(False)


def untrained(job: Job, objective: str, *, robots: int = 1) -> Pasta:
    """The model with the weights that its training starts from."""
    torch.manual_seed(job.seed)
    known = [robot(job.scale, number) for number in range(robots)]
    named = {one.env: one.tokenizer for one in known}
    net = Pasta(named, size=SIZES[job.scale].model, objective=objective, dropout=0.0)
    return net.eval()


def encoder(job: Job, kind: str) -> Encode:
    """Features of states with some sensors lost, by a pretrained model, an untrained one, or the state itself."""
    env, known = robot(job.scale).env, robot(job.scale).tokenizer
    if kind == "raw":

        def raw(seen: Tensor, missing: Sequence[int]) -> Tensor:
            found = known.standardised(seen)
            return found.index_fill(-1, torch.tensor(missing, dtype=torch.long), 0.0)

        return raw
    return of_model(untrained(job, "c-bert") if kind == "untrained" else pretrained(job, kind), env)


def of_model(net: Pasta, env: str) -> Encode:
    """Features of states by a model that is not tuned, wherever it is; states and features are on the CPU."""

    @torch.inference_mode()
    def encode(seen: Tensor, missing: Sequence[int]) -> Tensor:
        return net.observation_features(seen.to(net.mask.device), domain=env, missing=missing).cpu()

    return encode


class Heads(nn.Module):
    """Several heads side by side, each of which learns from its own features as if it were alone."""

    def __init__(self, heads: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        widths = (inputs, hidden, hidden, outputs)
        shapes = list(itertools.pairwise(widths))
        self.weights = nn.ParameterList(
            torch.empty(heads, *shape).uniform_(-1, 1) / math.sqrt(shape[0]) for shape in shapes
        )
        self.biases = nn.ParameterList(torch.zeros(heads, 1, width) for width in widths[1:])

    def forward(self, x: Float[Tensor, "heads batch inputs"]) -> Float[Tensor, "heads batch outputs"]:
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x if index == 0 else x.relu(), weight)
        return x.tanh()


@dataclasses.dataclass(frozen=True)
class Cloned:
    """Heads that imitate the experts, each with its own lost sensors; features are standardised as in training."""

    heads: Heads
    encode: Encode
    missing: list[Sequence[int]]
    mean: Float[Tensor, "heads 1 features"]
    std: Float[Tensor, "heads 1 features"]

    def act(self, seen: Float[Tensor, "rows sensors"]) -> Float[Tensor, "rows actuators"]:
        """Actions in states, an equal number of rows in a row for each head."""
        parts = seen.chunk(len(self.missing))
        features = torch.stack([self.encode(part, lost) for part, lost in zip(parts, self.missing, strict=True)])
        with torch.no_grad():
            return self.heads((features - self.mean) / self.std).flatten(0, 1)


def cloned(job: Job, encode: Encode, missing: list[Sequence[int]]) -> Cloned:
    """Heads trained on the experts' states and actions, by the squared error; a head for each list of lost sensors."""
    size, experts = SIZES[job.scale], robot(job.scale).experts
    features = torch.stack([encode(experts.observations, lost) for lost in missing]).clone()
    mean, std = features.mean(1, keepdim=True), features.std(1, keepdim=True).clamp(min=1e-3)
    features = (features - mean) / std
    torch.manual_seed(job.seed)
    heads = Heads(len(missing), features.shape[-1], size.hidden, experts.actions.shape[-1])

    def draw(generator: torch.Generator) -> Int[Tensor, " batch"]:
        return torch.randint(len(experts.actions), (128,), generator=generator)

    def step(net: nn.Module, chosen: Tensor) -> Tensor:
        told = net(features[:, chosen])
        return (told - experts.actions[chosen]).square().mean((1, 2)).sum()

    train_heads(job, heads, step, draw, size.cloning)
    return Cloned(heads.requires_grad_(False), encode, missing, mean, std)


class Standardised(nn.Module):
    """Features less their mean and in their deviations, as both are on ``seen`` before anything is tuned."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Module, seen: Float[Tensor, "batch sensors"]) -> None:
        super().__init__()
        self.features = features
        with torch.no_grad():
            first = features(seen)
        self.register_buffer("mean", first.mean(0))
        self.register_buffer("std", first.std(0).clamp(min=1e-3))

    def forward(self, seen: Float[Tensor, "batch sensors"]) -> Float[Tensor, "batch dim"]:
        return (self.features(seen) - self.mean) / self.std  # type: ignore[no-any-return]


def tuned(job: Job, features: Features, width: int) -> Callable[[Tensor], Tensor]:
    """What a policy does whose features are tuned together with its head to imitate the experts."""
    size, known = SIZES[job.scale], robot(job.scale)
    centre, reach = known.tokenizer.centre, known.tokenizer.reach
    torch.manual_seed(job.seed)
    first = Standardised(features.to(job.device), known.experts.observations.to(job.device))
    policy = Policy(first, width, centre - reach, centre + reach, hidden=size.hidden).to(job.device)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        chosen = torch.randint(len(known.experts.actions), (64,), generator=generator)
        return known.experts.observations[chosen].to(job.device), known.experts.actions[chosen].to(job.device)

    def step(net: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.mse_loss(net(batch[0]), batch[1])

    train_heads(job, policy, step, draw, size.tuning)
    policy.requires_grad_(False).eval()
    return lambda seen: policy(seen.to(job.device))


def train_heads(
    job: Job,
    net: nn.Module,
    step: Callable[[nn.Module, Any], Tensor],
    draw: Callable[[torch.Generator], Any],
    steps: int,
) -> None:
    """The one recipe of heads, kept nowhere: Adam with a batch drawn at each step, its rate falling to zero."""
    generator = torch.Generator().manual_seed(job.seed)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-3)
    pace = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        step(net, draw(generator)).backward()
        optimizer.step()
        pace.step()


def scores(
    job: Job, act: Callable[[Tensor], Tensor], *, wraps: Sequence[Wrap] = (lambda env: env,)
) -> Float[Tensor, " wraps"]:
    """Normalised returns (0 as random actions, 1 as the experts), the mean over test episodes for each wrapper.

    Episodes of all wrappers go side by side; ``act`` sees those of the first wrapper first.
    """
    size, env = SIZES[job.scale], robot(job.scale).env
    low, high = references(job.scale)
    envs = [wrap(make(env, size.horizon)) for wrap in wraps for _ in range(size.tested)]
    seeds = [UNSEEN + 1000 * job.seed + index for _ in wraps for index in range(size.tested)]
    returns = rollout(envs, act, seeds).returns().view(len(wraps), -1).mean(1)
    return (returns - low) / (high - low)


@functools.cache
def references(scale: Scale) -> tuple[float, float]:
    """Mean returns of random actions and of the experts that are cloned, on the first robot."""
    size, known = SIZES[scale], robot(scale)
    generator = torch.Generator().manual_seed(0)

    def random(seen: Tensor) -> Tensor:
        chance = 2 * torch.rand(len(seen), known.tokenizer.actuators, generator=generator) - 1
        return chance * known.tokenizer.reach + known.tokenizer.centre

    low = evaluate(known.env, random, episodes=10, seed=UNSEEN - 1000, horizon=size.horizon)
    return float(low.mean()), float(known.experts.returns().mean())
