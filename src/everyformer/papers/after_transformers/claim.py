"""The claims: alternatives beside attention on small tasks, what a token costs after many, and what is the same thing."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import mixing_tasks
from everyformer.lab.measure import count_parameters, side_by_side
from everyformer.papers.after_transformers import links
from everyformer.parts.mixers.base import Cache, Mixer
from everyformer.parts.mixers.full import FullAttention
from everyformer.parts.mixers.retention import Retention
from everyformer.parts.mixers.rwkv import RWKV
from everyformer.parts.mixers.ssd import SSD

TASKS = ("listops", "chars")
RATES = {"smoke": (2e-3,), "cpu": (2e-3, 6e-3), "paper": (3e-4, 1e-3, 3e-3)}
CHOSEN_BY = {"smoke": 16, "cpu": 256, "paper": 1024}  # samples that a rate is chosen by
CHOICE_SEED = 10_000_000  # of those; trainings draw from others, and tests from others still
TITLES = {"ssd": "Mamba-2", "full": "full attention"}


def alternatives(job: Job) -> Measurement:
    """Accuracy of Mamba-2 and of full attention on each task, after the better of the same rates."""
    accuracy: dict[str, dict[str, float]] = {name: {} for name in TITLES}
    extras: dict[str, float] = {}
    for task in TASKS:
        for name, title in TITLES.items():
            model, rate = _best(job, name, task)
            found = mixing_tasks.score(model, mixing_tasks.task(task, job.scale), mixing_tasks.SIZES[job.scale].tested)
            accuracy[name][task] = found["accuracy"]
            extras[f"accuracy (%), {task}, {title}"] = found["accuracy"]
            extras[f"loss (nats), {task}, {title}"] = found["loss"]
            extras[f"rate, {task}, {title}"] = rate
            extras[f"parameters, {task}, {title}"] = float(count_parameters(model))
        extras[f"accuracy (%), {task}, by chance"] = mixing_tasks.task(task, job.scale).chance
    lost = statistics.fmean(accuracy["full"][task] - accuracy["ssd"][task] for task in TASKS)
    places = [float(place) for place in range(len(TASKS))]
    bars = {title: (places, list(accuracy[name].values())) for name, title in TITLES.items()}
    bars["chance"] = (places, [extras[f"accuracy (%), {task}, by chance"] for task in TASKS])
    panel = Panel("Small tasks, equal parameters", "", "accuracy, %", bars, kind="bar", ticks=list(TASKS))
    return Measurement(lost, 0.0, extras, (panel,))


def _best(job: Job, mixer: str, task: str) -> tuple[mixing_tasks.Network, float]:
    """The network of the rate whose loss is lowest on samples that are neither trained nor tested on."""
    given = mixing_tasks.task(task, job.scale)
    batch = given.draw(torch.Generator().manual_seed(CHOICE_SEED + job.seed), CHOSEN_BY[job.scale], False)

    def loss(model: mixing_tasks.Network) -> float:
        with torch.no_grad():
            tokens, targets = (part.to(job.device).split(64) for part in batch)
            return statistics.fmean(float(mixing_tasks.loss(model, pair)) for pair in zip(tokens, targets, strict=True))

    def trained(rate: float) -> mixing_tasks.Network:
        made = mixing_tasks.trained(mixer, task, job.scale, seed=job.seed, rate=rate, device=job.device)
        return made.to(job.device).eval()

    tried = [(trained(rate), rate) for rate in RATES[job.scale]]
    return min(tried, key=lambda one: loss(one[0]))


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens read before those that are timed, the tokens of one timing, the timings, and the mixers' width."""

    read: tuple[int, ...]
    steps: int
    rounds: int
    dim: int


LENGTHS = {
    "smoke": Lengths((64, 1024), 4, 9, 64),
    "cpu": Lengths((256, 512, 1024, 2048, 4096, 8192), 2, 400, 256),
    "paper": Lengths((256, 1024, 4096, 16_384, 65_536), 16, 50, 1024),
}
RECURRENT: dict[str, Callable[[int], Mixer]] = {
    "Mamba-2": lambda dim: SSD(dim, heads=4),
    "RWKV-6": lambda dim: RWKV(dim, heads=4),
    "RetNet": lambda dim: Retention(dim, heads=4),
}
BATCH = 2


@torch.no_grad()
def constant_state(job: Job) -> Measurement:
    """Time of a token after a few and after many, taken alternately for each mixer, and the bytes kept."""
    size = LENGTHS[job.scale]
    torch.manual_seed(job.seed)
    text = torch.randn(BATCH, size.read[-1] + 1, size.dim, device=job.device)
    mixers = {name: make(size.dim) for name, make in RECURRENT.items()}
    mixers["full attention"] = FullAttention(size.dim, heads=4, causal=True)
    micros: dict[str, list[float]] = {}
    kept: dict[str, list[float]] = {name: [] for name in mixers}
    for name, mixer in mixers.items():
        mixer.to(job.device).eval()
        steps: dict[str, Callable[[], None]] = {}
        for tokens in size.read:
            cache: Cache = {}
            mixer(text[:, :tokens], cache=cache)
            kept[name].append(sum(part.nbytes for part in cache.values() if isinstance(part, Tensor)) / 2**20)
            steps[str(tokens)] = _writing(mixer, text[:, -1:], cache, size.steps)
        # One mixer at a time: after attention to many tokens, another would find its weights gone from the machine's
        # cache. The quickest round: what else a machine does can only add to the time of so short a step.
        times = side_by_side(steps, rounds=size.rounds, warmup=2, device=job.device)
        micros[name] = [1e6 * min(times[str(tokens)]) / size.steps for tokens in size.read]
    extras = {f"kept (MiB) after {size.read[-1]}, {name}": values[-1] for name, values in kept.items()}
    for name, values in micros.items():
        extras[f"time of a token (us) after {size.read[-1]}, {name}"] = values[-1]
        extras[f"growth of the time, {name}"] = values[-1] / values[0]
    read = [float(tokens) for tokens in size.read]
    panels = (
        Panel("Time of one more token", "tokens read", "us", {name: (read, micros[name]) for name in mixers},
              log_x=True, log_y=True),
        Panel("Kept for it", "tokens read", "MiB", {name: (read, kept[name]) for name in mixers}, log_x=True, log_y=True),
    )  # fmt: skip
    worst = max(extras[f"growth of the time, {name}"] for name in RECURRENT)
    return Measurement(worst, extras["growth of the time, full attention"], extras, panels)


def _writing(mixer: Mixer, token: Tensor, cache: Cache, steps: int) -> Callable[[], None]:
    """Writes ``steps`` tokens, after the same ones every time it is called."""
    mixer(token, cache=cache)  # from here on the buffers of attention have room

    def write() -> None:
        again = dict(cache)
        for _ in range(steps):
            mixer(token, cache=again)

    return write


TOKENS = {"smoke": 70, "cpu": 300, "paper": 3000}


def duality(job: Job) -> Measurement:
    """Every connection's gap, and what a gate does to the weights between tokens."""
    tokens = TOKENS[job.scale]
    gaps = {f"{link.of} and {link.to}": link.gap(tokens, job.seed) for link in links.connections()}
    query, key, value, log_gate = links.drawn(tokens, job.seed)
    scores, gates = query @ key.transpose(-1, -2), links.gate_matrix(log_gate)
    baseline = float(((scores * gates - scores.tril()) @ value).abs().max())
    later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    weights = {
        "linear attention": scores.tril(),
        "Mamba-2": scores * gates,
        "softmax attention": scores.masked_fill(later, -torch.inf).softmax(-1),
    }
    half = tokens // 2
    extras = {f"gap, {name}": gap for name, gap in gaps.items()}
    spectra = {}
    for name, matrix in weights.items():
        # What the second half of a text hears of the first goes through the state: its rank is the state's size.
        singular = torch.linalg.svdvals(matrix[0, half:, :half])
        singular = (singular / singular[0]).clamp(min=1e-17)
        extras[f"rank of what the second half hears of the first, {name}"] = float((singular > 1e-10).sum())
        spectra[name] = ([float(place + 1) for place in range(min(half, 32))], singular[:32].tolist())
    shown = min(tokens, 40)
    heats = tuple(
        Panel(f"Weights between tokens: {name}", "seen", "seeing", kind="heat",
              grid=[[round(x, 4) for x in row] for row in matrix[0, :shown, :shown].abs().tolist()])
        for name, matrix in weights.items()
    )  # fmt: skip
    line = Panel("What the second half hears of the first", "singular value", "over the first", spectra, log_y=True)
    return Measurement(max(gaps.values()), baseline, extras, (line, *heats))


def _plan(claim: str, notes: str) -> Plan:
    """One training step of the network at paper scale, on recall, with Mamba-2."""
    size, given = mixing_tasks.SIZES["paper"], mixing_tasks.task("recall", "paper")
    with torch.device("meta"):
        model = mixing_tasks.network("ssd", given, size)
    count, tokens = count_parameters(model), size.batch * given.length
    activations = 4 * tokens * size.layers * 30 * size.dim
    launch = f"everyformer run after_transformers.{claim} --scale paper --device cuda"
    return Plan(count, 6.0 * count * tokens, 16 * count + activations, launch, notes)


def plan_alternatives() -> Plan:
    """A training step."""
    return _plan("alternatives", "the launch trains both mixers at three rates, longer texts than here")


def plan_constant_state() -> Plan:
    """The same network."""
    return _plan("constant_state", "the claim trains nothing: it times mixers of width 1,024 after up to 65,536 tokens")


def plan_duality() -> Plan:
    """The same network."""
    return _plan("duality", "the claim trains nothing: it compares outputs over 3,000 tokens")
