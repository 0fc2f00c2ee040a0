"""The claims of Think-at-Hard: passes once, twice, and twice where it is hard, of small models trained on walks on rings."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.measure import count_parameters
from everyformer.papers.tah import rings
from everyformer.papers.tah.attention import Depth, Memory
from everyformer.papers.tah.model import TaHForCausalLM
from everyformer.papers.tah.training import hard_tokens

THRESHOLDS = (0.05, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# Qwen3-0.6B: layers, width, feed-forward, width of queries, of keys and values, vocabulary (its published configuration).
LAYERS, WIDTH, HIDDEN, QUERIES, KEYS, VOCABULARY = 28, 1024, 3072, 2048, 1024, 151_936


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Answers of a model under a policy.

    Attributes:
        right: (texts, answers).
        second: share of answers with a second pass.
    """

    right: Tensor
    second: float

    @property
    def texts(self) -> float:
        """Texts with every answer right, in %."""
        return 100 * float(self.right.all(1).float().mean())

    @property
    def answers(self) -> float:
        """Right answers, in %."""
        return 100 * float(self.right.float().mean())


def _tests(job: Job) -> rings.Texts:
    # Trainings draw from other seeds: multiples of 1,000,003 and what follows them.
    texts = rings.draw(rings.SIZES[job.scale].tests, torch.Generator().manual_seed(500_000 + job.seed))
    return rings.Texts(*(getattr(texts, field.name).to(job.device) for field in dataclasses.fields(texts)))


@torch.no_grad()
def answer(model: Any, texts: rings.Texts, depths: Tensor | int | None = None) -> Outcome:
    """What a model answers; a plain language model takes no depths."""
    if not isinstance(model, TaHForCausalLM):
        return Outcome(rings.right(model(texts.tokens).logits, texts), 0.0)
    out = model(texts.tokens, depths=depths)
    return Outcome(rings.right(out.logits, texts), float((out.depths[:, rings.FIRST : -1 : 2] > 1).float().mean()))


def _policies(models: rings.Models, texts: rings.Texts) -> dict[str, Outcome]:
    """Every policy: tuned to pass once and twice; TaH by its decider, by the oracle, and forced."""
    oracle = hard_tokens(models.reference, texts.tokens, labels=texts.labels)
    return {
        "once": answer(models.once, texts),
        "twice": answer(models.twice, texts, 2),
        "TaH": answer(models.tah, texts),
        "TaH, oracle": answer(models.tah, texts, oracle),
        "TaH, forced once": answer(models.tah, texts, 1),
        "TaH, forced twice": answer(models.tah, texts, 2),
    }


def _measured(job: Job, baseline: str) -> Measurement:
    """The gain of TaH over a policy, with all policies beside it and a sweep of the threshold."""
    models, texts = rings.trained(job), _tests(job)
    found = _policies(models, texts)
    extras = {f"texts right (%), {name}": outcome.texts for name, outcome in found.items()}
    extras |= {f"answers right (%), {name}": outcome.answers for name, outcome in found.items()}
    extras |= {
        f"second passes (%), {name}": 100 * found[name].second for name in ("TaH", "TaH, oracle", "TaH, forced twice")
    }
    counts = {"once": models.once, "twice": models.twice, "TaH": models.tah}
    extras |= {f"parameters, {name}": float(count_parameters(model)) for name, model in counts.items()}
    gain = found["TaH"].texts - found[baseline].texts
    return Measurement(gain, 0.0, extras, (_bars(found), _by_distance(found, texts), *_sweep(models.tah, texts)))


def _bars(found: dict[str, Outcome]) -> Panel:
    places = [float(index) for index in range(len(found))]
    values = [outcome.texts for outcome in found.values()]
    return Panel("Texts with every answer right", "", "%", {"texts": (places, values)}, kind="bar", ticks=list(found))


def _by_distance(found: dict[str, Outcome], texts: rings.Texts) -> Panel:
    lines = {}
    for name in ("once", "twice", "TaH", "TaH, oracle"):
        shares = [100 * float(found[name].right[texts.steps == steps].float().mean())
                  for steps in range(len(rings.SHARES))]  # fmt: skip
        lines[name] = ([float(steps) for steps in range(len(shares))], shares)
    return Panel("Right answers by how far they are", "steps", "%", lines)


def _sweep(model: TaHForCausalLM, texts: rings.Texts) -> tuple[Panel, Panel]:
    kept, outcomes = model.threshold, []
    for threshold in THRESHOLDS:
        model.threshold = threshold
        outcomes.append(answer(model, texts))
    model.threshold = kept
    at = list(THRESHOLDS)
    right = {"texts": (at, [outcome.texts for outcome in outcomes])}
    second = {"answers": (at, [100 * outcome.second for outcome in outcomes])}
    return (
        Panel("Right by the decider's threshold", "threshold", "% of texts", right),
        Panel("Second passes by the decider's threshold", "threshold", "% of answers", second),
    )


def selective(job: Job) -> Measurement:
    """Beside a model tuned to pass twice on every token, of the same parameters."""
    return _measured(job, "twice")


def single(job: Job) -> Measurement:
    """Beside a model tuned to pass once, with a layer more in place of decider and low-rank weights."""
    return _measured(job, "once")


def overthinking(job: Job) -> Measurement:
    """Of the answers that TaH's first pass has right, how many end up wrong: by its decider, and forced twice."""
    found = _policies(rings.trained(job), _tests(job))
    first = found["TaH, forced once"].right

    def share(name: str, of: Tensor, becomes: bool) -> float:
        return 100 * float((found[name].right[of] == becomes).float().mean()) if of.any() else 0.0

    extras = {"second passes (%), TaH": 100 * found["TaH"].second}
    for name in ("TaH", "TaH, oracle", "TaH, forced twice"):
        extras[f"right to wrong (%), {name}"] = share(name, first, False)
        extras[f"wrong to right (%), {name}"] = share(name, ~first, True)
    return Measurement(
        extras["right to wrong (%), TaH"], extras["right to wrong (%), TaH, forced twice"], extras, (_bars(found),)
    )


@torch.no_grad()
def exact(job: Job) -> Measurement:
    """Texts read token by token, as in generation, with keys of every depth kept and of the first alone."""
    model, tokens = rings.trained(job).tah, _tests(job).tokens[:64]
    whole = model(tokens)
    differences = {}
    for name, kept in (("every depth", model.config.max_depth), ("first depth", 1)):
        memory, parts = Memory(model.config.max_depth), []
        for place in range(tokens.shape[1]):
            parts.append(model(tokens[:, place : place + 1], memory=memory).logits)
            memory.depths[kept:] = [Depth() for _ in memory.depths[kept:]]
        differences[name] = float((torch.cat(parts, dim=1) - whole.logits).abs().max())
    extras = {
        "second passes (%)": 100 * float((whole.depths > 1).float().mean()),
        "largest logit": float(whole.logits.abs().max()),
    }
    return Measurement(differences["every depth"], differences["first depth"], extras)


def _plan(name: str) -> Plan:
    linear = LAYERS * (2 * WIDTH * QUERIES + 2 * WIDTH * KEYS + 3 * WIDTH * HIDDEN)
    parameters = linear + VOCABULARY * WIDTH
    tokens = 16 * 8192  # the authors' batch, at their longest
    flops = 6.0 * 1.06 * (linear + VOCABULARY * WIDTH) * tokens
    # Weights, gradients and two moments in bf16; logits of one text and what every layer keeps of it.
    memory = 8 * parameters + 8192 * (4 * VOCABULARY + 2 * LAYERS * (8 * WIDTH + 3 * HIDDEN))
    return Plan(
        parameters, flops, memory, f"everyformer run tah.{name} --scale paper --device cuda",
        "the paper tunes Qwen3-0.6B and 1.7B on OpenR1-Math; the launch trains a larger model on walks for longer",
    )  # fmt: skip


def plan_selective() -> Plan:
    """A tuning step of Qwen3-0.6B, a second pass on 6% of tokens."""
    return _plan("selective")


def plan_single() -> Plan:
    """The same."""
    return _plan("single")


def plan_overthinking() -> Plan:
    """The same."""
    return _plan("overthinking")


def plan_exact() -> Plan:
    """The same."""
    return _plan("exact")
