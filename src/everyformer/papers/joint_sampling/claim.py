"""The claims of joint sampling: how near K tokens per full pass come to one token per pass, with and without the sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.measure import median, side_by_side
from everyformer.papers.joint_sampling import tasks
from everyformer.papers.joint_sampling.generation import generate
from everyformer.papers.joint_sampling.mauve import mauve as mauve_score
from everyformer.papers.joint_sampling.model import JointSampler, MaskedDiffusionLM

PER_PASS = (2, 4, 8)
SAMPLER, PARALLEL = "with the sampler", "marginal sampling"
TOLERANCE = 1.0  # percentage points of impossible pairs above one token per pass that count as equal quality
SAMPLES_TOGETHER = 500
CHAIN = {
    "smoke": tasks.Size(length=16, dim=32, depth=2, heads=2, steps=300, sampler_steps=30, pool=128, samples=256),
    "cpu": tasks.Size(length=16, dim=64, depth=3, heads=2, steps=2000, sampler_steps=1200, pool=2048, samples=4000),
    "paper": tasks.Size(
        length=64, dim=512, depth=12, heads=8, steps=50_000, sampler_steps=20_000, pool=50_000, samples=20_000
    ),
}
PAIRS = {
    "smoke": tasks.Size(length=16, dim=32, depth=3, heads=2, steps=60, sampler_steps=30, pool=128, samples=128),
    "cpu": tasks.Size(length=16, dim=48, depth=12, heads=2, steps=700, sampler_steps=700, pool=2048, samples=1500),
    "paper": tasks.Size(
        length=64, dim=512, depth=28, heads=8, steps=50_000, sampler_steps=20_000, pool=50_000, samples=20_000
    ),
}
TEXT = {
    "smoke": tasks.Size(length=32, dim=32, depth=2, heads=2, steps=40, sampler_steps=20, pool=64, samples=100),
    "cpu": tasks.Size(
        length=32, dim=96, depth=3, heads=3, steps=1200, sampler_steps=500, pool=512, samples=500, batch=32
    ),
    "paper": tasks.Size(
        length=256, dim=768, depth=12, heads=12, steps=200_000, sampler_steps=50_000, pool=50_000, samples=5000
    ),
}
SCORER_STEPS = {"smoke": 20, "cpu": 300, "paper": 50_000}
ROUNDS = {"smoke": 2, "cpu": 9, "paper": 20}


@dataclasses.dataclass
class Pair:
    """A frozen base and its trained sampler."""

    base: MaskedDiffusionLM
    sampler: JointSampler
    length: int
    task: tasks.Task

    def write(self, count: int, tokens_per_pass: int, sampler: bool, seed: int) -> Tensor:
        """Sequences from the task's prompts, in a random order, at temperature 1; a seed gives the same random numbers."""
        device = str(next(self.base.parameters()).device)
        generator = torch.Generator().manual_seed(seed)
        prompts = self.task.prompts(count, device)
        parts = [
            generate(
                self.base,
                self.sampler if sampler else None,
                None if prompts is None else prompts[start : start + SAMPLES_TOGETHER],
                length=self.length,
                batch=min(SAMPLES_TOGETHER, count - start),
                tokens_per_pass=tokens_per_pass,
                generator=generator,
            ).sequences
            for start in range(0, count, SAMPLES_TOGETHER)
        ]
        return torch.cat(parts)


def _trained(task: tasks.Task, size: tasks.Size, job: Job) -> Pair:
    base = tasks.trained_base(task, size, job.seed, job.device)
    return Pair(base, tasks.trained_sampler(base, task, size, job.seed, job.device), size.length, task)


def _swept(
    pair: Pair, size: tasks.Size, seed: int, score: Callable[[Tensor], tuple[float, ...]]
) -> list[dict[str, dict[int, float]]]:
    """Scores at one token per pass and at each K, both ways, from the same random numbers; one sweep for each score."""
    one = score(pair.write(size.samples, 1, False, seed))
    found: list[dict[str, dict[int, float]]] = [{SAMPLER: {1: value}, PARALLEL: {1: value}} for value in one]
    for count in PER_PASS:
        for name in (SAMPLER, PARALLEL):
            scores = score(pair.write(size.samples, count, name == SAMPLER, seed))
            for sweep, value in zip(found, scores, strict=True):
                sweep[name][count] = value
    return found


def _panel(title: str, label: str, found: dict[str, dict[int, float]]) -> Panel:
    lines = {name: ([float(count) for count in values], list(values.values())) for name, values in found.items()}
    return Panel(title, "tokens per full pass", label, lines)


def _extras(label: str, found: dict[str, dict[int, float]]) -> dict[str, float]:
    return {f"{label}, {name}, K = {count}": value for name, values in found.items() for count, value in values.items()}


def _closed(found: dict[str, dict[int, float]], count: int) -> float:
    """Per cent of the gap between marginal sampling and one token per pass that the sampler closes."""
    gap = found[PARALLEL][count] - found[PARALLEL][1]
    if gap <= 0:
        raise RuntimeError(f"marginal sampling of {count} tokens per pass loses nothing here: there is no gap to close")
    return 100 * (found[PARALLEL][count] - found[SAMPLER][count]) / gap


def chain(job: Job) -> Measurement:
    """The share of the gap in likelihood under the true chain that is closed at K = 4."""
    return _chain(job, 4)


def chain8(job: Job) -> Measurement:
    """The same at K = 8."""
    return _chain(job, 8)


def _chain(job: Job, count: int) -> Measurement:
    size = CHAIN[job.scale]
    law, task = tasks.chain(size, job.seed)
    pair = _trained(task, size, job)
    truth = task.sequences[: size.samples]
    reference = _histogram(pair.write(size.samples, 1, False, job.seed + 10_000))

    def score(sequences: Tensor) -> tuple[float, float]:
        return law.nll(sequences), 0.5 * float((_histogram(sequences) - reference).abs().sum())

    found, variation = _swept(pair, size, job.seed + 20_000, score)
    learnt = law.learnt(found[SAMPLER][1], truth)
    if learnt < (least := tasks.LEARNT[job.scale]):
        raise RuntimeError(f"the base must have learnt {least:.0%} of the chain's dependence, it has {learnt:.0%}")
    extras = _extras("NLL (nats a token)", found) | _extras("total variation of neighbours", variation)
    extras |= {"NLL of the chain itself": law.nll(truth), "share of the dependence that the base learnt": learnt}
    panels = (
        _panel("Likelihood under the chain", "NLL, nats a token", found),
        _panel("Neighbours beside those of one token per pass", "total variation", variation),
    )
    return Measurement(_closed(found, count), 0.0, extras, panels)


def _histogram(sequences: Tensor) -> Tensor:
    """How often each pair of neighbours occurs."""
    neighbours = sequences[:, :-1] * tasks.SYMBOLS + sequences[:, 1:]
    return neighbours.flatten().cpu().bincount(minlength=tasks.SYMBOLS**2).double() / neighbours.numel()


def pairs(job: Job) -> Measurement:
    """Impossible pairs, in per cent, at K = 4."""
    _, _, found = _swept_pairs(job)
    panel = _panel("Impossible pairs", "% of neighbours", found)
    return Measurement(found[SAMPLER][4], found[PARALLEL][4], _extras("impossible pairs (%)", found), (panel,))


def _swept_pairs(job: Job) -> tuple[Pair, tasks.Size, dict[str, dict[int, float]]]:
    """The models of the pairs, and their impossible pairs; the base must have learnt what goes with what."""
    size = PAIRS[job.scale]
    law, task = tasks.pairs(size, job.seed)
    pair = _trained(task, size, job)
    (found,) = _swept(pair, size, job.seed + 20_000, lambda sequences: (law.impossible(sequences),))
    rate, most = found[PARALLEL][1], tasks.UNLEARNT[job.scale]
    if rate > most:
        raise RuntimeError(
            f"the base must write at most {most:.0f}% impossible pairs at one token per pass, it writes {rate:.0f}%"
        )
    return pair, size, found


def mauve(job: Job) -> Measurement:
    """The MAUVE-like score at K = 4 against samples of one token per pass; NLL under the scorer as extras."""
    size = TEXT[job.scale]
    task = tasks.letters(size, job.scale == "smoke")
    pair = _trained(task, size, job)
    scorer = tasks.Scorer(task, size, job.seed, job.device, SCORER_STEPS[job.scale])
    _, reference = scorer.read(pair.write(size.samples, 1, False, job.seed + 10_000))

    def score(texts: Tensor) -> tuple[float, float]:
        loss, features = scorer.read(texts)
        return mauve_score(features, reference, clusters=size.samples // 10, seed=job.seed), loss

    found, losses = _swept(pair, size, job.seed + 20_000, score)
    extras = _extras("MAUVE-like score", found) | _extras("NLL under the scorer (nats a letter)", losses)
    extras["NLL under the scorer (nats a letter), plays"] = scorer.read(
        task.sequences[:: len(task.sequences) // size.samples]
    )[0]
    panels = (
        _panel("MAUVE-like score beside one token per pass", "", found),
        _panel("Likelihood under an autoregressive scorer", "NLL, nats a letter", losses),
    )
    return Measurement(found[SAMPLER][4], found[PARALLEL][4], extras, panels)


def speed(job: Job) -> Measurement:
    """Tokens a second at equal quality: each way at its largest K whose impossible pairs stay within the tolerance."""
    pair, size, found = _swept_pairs(job)
    chosen = {
        name: max(count for count, rate in values.items() if rate <= values[1] + TOLERANCE)
        for name, values in found.items()
    }
    count = 64

    def writing(tokens_per_pass: int, sampler: bool) -> Callable[[], Tensor]:
        return lambda: pair.write(count, tokens_per_pass, sampler, job.seed)

    runs = {(name, k): writing(k, name == SAMPLER) for name in found for k in (1, *PER_PASS)}
    times = side_by_side(runs, rounds=ROUNDS[job.scale], device=job.device)  # type: ignore[type-var, arg-type]
    rates = {key: count * (size.length - pair.task.prompt) / median(values) for key, values in times.items()}  # type: ignore[attr-defined]
    speeds = {name: {k: rates[name, k] for k in (1, *PER_PASS)} for name in found}  # type: ignore[index]
    method, baseline = (speeds[name][chosen[name]] for name in (SAMPLER, PARALLEL))
    extras = {f"tokens per full pass at equal quality, {name}": float(k) for name, k in chosen.items()}
    extras |= _extras("tokens a second", speeds) | _extras("impossible pairs (%)", found) | {"ratio": method / baseline}
    panels = (_panel("Speed", "tokens a second", speeds), _panel("Impossible pairs", "% of neighbours", found))
    return Measurement(method, baseline, extras, panels)


# Dream-7B (its published configuration).
WIDTH, HIDDEN, LAYERS, KEYS, VOCABULARY = 3584, 18_944, 28, 512, 152_064


def _plan(claim: str, notes: str) -> Plan:
    """One training step of the sampler on Dream-7B: two passes of the base, one of the sampler and back."""
    layer = 2 * WIDTH * WIDTH + 2 * WIDTH * KEYS + 3 * WIDTH * HIDDEN
    head, sampler = VOCABULARY * WIDTH, layer + 3 * WIDTH * WIDTH
    base = LAYERS * layer + 2 * head
    tokens = 64 * 512
    flops = tokens * (2 * 2.0 * (LAYERS * layer + head) + 6.0 * sampler + 4.0 * head)
    # The base in bf16; weights, gradients and two moments of the sampler in float32; two sets of logits in bf16.
    memory = 2.0 * base + 16.0 * sampler + 4.0 * tokens * VOCABULARY
    return Plan(base + sampler, flops, memory, f"everyformer run {claim} --scale paper --device cuda", notes)


def plan_mauve() -> Plan:
    """Dream-7B-Base and its sampler."""
    return _plan(
        "joint_sampling.mauve",
        "the figures of the paper are of Dream-7B; the launch trains a model of plays of 12 layers",
    )


def plan_known() -> Plan:
    """The same model; the tasks with a known joint are ours."""
    return _plan("joint_sampling", "the launch trains a larger model of the same chain or pairs, not Dream-7B")
