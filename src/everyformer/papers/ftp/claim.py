"""The claims of Future Token Prediction: models of equal size on plays, and on small programs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import text
from everyformer.lab.measure import count_parameters
from everyformer.papers.ftp import plays, programs
from everyformer.papers.ftp.model import FutureTokenPredictor

PIECES = {"smoke": 8, "cpu": 128, "paper": 1024}  # of the test text
FARTHEST = 16  # tokens apart at most, of states that are compared
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
WRITTEN = {"smoke": (2, 16), "cpu": (16, 64), "paper": (256, 64)}  # prompts and tokens after each
PROMPT = 64


def _on_plays(job: Job) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """The three models, and their parameters and next-token losses."""
    names: tuple[plays.Name, ...] = ("ftp", "gpt", "gpt, equal loss")
    models: dict[str, nn.Module] = {
        name: plays.trained(name, job.scale, seed=job.seed, device=job.device, precision=job.precision)
        for name in names
    }
    extras: dict[str, float] = {}
    for name, model in models.items():
        extras[f"parameters, {name}"] = float(count_parameters(model))
        extras[f"next-token loss (nats), {name}"] = text.evaluate(
            model, plays.plays(job.scale).test, pieces=PIECES[job.scale]
        )
    return models, extras


def cosines(states: Float[Tensor, "batch tokens dim"], farthest: int) -> list[float]:
    """Mean cosine of states that are 1, 2, ... ``farthest`` tokens apart."""
    unit = F.normalize(states.float(), dim=-1)
    return [float((unit[:, apart:] * unit[:, :-apart]).sum(-1).mean()) for apart in range(1, farthest + 1)]


def smoothness(job: Job) -> Measurement:
    """Cosines of states along the test text, as they are and, as extras, with their mean taken off."""
    models, extras = _on_plays(job)
    test = plays.plays(job.scale).test
    pieces = test.unfold(0, text.LENGTH, text.LENGTH)[: PIECES[job.scale]]
    lines, found = {}, {}
    for name, model in models.items():
        states = plays.states(model, pieces)
        curve = cosines(states, FARTHEST)
        centred = cosines(states - states.mean((0, 1)), FARTHEST)
        found[name] = curve[0]
        extras[f"cosine of neighbours, {name}"] = curve[0]
        extras[f"cosine of neighbours without the mean, {name}"] = centred[0]
        extras[f"cosine {FARTHEST} tokens apart, {name}"] = curve[-1]
        lines[name] = ([float(apart) for apart in range(1, FARTHEST + 1)], curve)
    panel = Panel("States along unseen text", "tokens apart", "cosine", lines)
    return Measurement(found["ftp"], found["gpt, equal loss"], extras, (panel,))


def topic(job: Job) -> Measurement:
    """A linear probe of a passage's mean state for the part of the plays; of its last state alone as an extra."""
    models, extras = _on_plays(job)
    passages, labels = plays.passages(job.scale, job.seed)
    found = {}
    for name, model in models.items():
        states = plays.states(model, passages)
        found[name] = probe(*zip(_split(states.mean(1)), _split(labels), strict=True))
        extras[f"accuracy (%), {name}"] = found[name]
        extras[f"accuracy (%) by the last state, {name}"] = probe(
            *zip(_split(states[:, -1]), _split(labels), strict=True)
        )
    extras["accuracy (%) by chance"] = 100 / plays.SIZES[job.scale].topics
    bars = {"accuracy": ([float(index) for index in range(len(found))], list(found.values()))}
    panel = Panel("Where in the plays a passage is from", "", "%", bars, kind="bar", ticks=list(found))
    return Measurement(found["ftp"], found["gpt, equal loss"], extras, (panel,))


def _split(of_passages: Tensor) -> tuple[Tensor, ...]:
    """A half to fit to, a quarter to choose by, a quarter to test."""
    count = len(of_passages)
    return of_passages.tensor_split([count // 2, count * 3 // 4])


Samples = tuple[Float[Tensor, "samples dim"], Int[Tensor, " samples"]]


def probe(train: Samples, chosen: Samples, test: Samples) -> float:
    """Per cent of ``test`` that a logistic regression names; the weight decay is the best of four on ``chosen``."""
    mean, deviation = train[0].mean(0), train[0].std(0) + 1e-6
    classes = int(train[1].max()) + 1

    def fitted(decay: float) -> nn.Linear:
        layer = nn.Linear(train[0].shape[1], classes)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")
        inputs = (train[0] - mean) / deviation

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(layer(inputs), train[1]) + decay * layer.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        return layer

    @torch.no_grad()
    def accuracy(layer: nn.Linear, samples: Samples) -> float:
        guessed = layer((samples[0] - mean) / deviation).argmax(-1)
        return 100 * float((guessed == samples[1]).float().mean())

    return accuracy(max((fitted(decay) for decay in DECAYS), key=lambda layer: accuracy(layer, chosen)), test)


def code(job: Job) -> Measurement:
    """Answers of both models to new programs, one token at a time; the decoder's whole draft as an extra."""
    size, found, extras = programs.SIZES[job.scale], {}, {}
    lines: dict[str, tuple[list[float], list[float]]] = {}
    names: tuple[programs.Name, ...] = ("ftp", "gpt")
    for name in names:
        model = programs.trained(name, job.scale, seed=job.seed, device=job.device, precision=job.precision)
        shares = programs.solved(model, job.scale, seed=job.seed)
        found[name] = shares["whole"]
        extras[f"parameters, {name}"] = float(count_parameters(model))
        extras |= {f"right (%), {part}, {name}": share for part, share in shares.items()}
        letters = [shares[f"letter {place}"] for place in range(1, size.answer + 1)]
        lines[name] = ([float(place) for place in range(1, size.answer + 1)], letters)
        if isinstance(model, FutureTokenPredictor):
            whole = programs.solved(model, job.scale, seed=job.seed, draft=size.answer)["whole"]
            extras["right (%), whole, ftp in one draft"] = whole
    panel = Panel("Letters of the answer", "letter", "right, %", lines)
    return Measurement(found["ftp"], found["gpt"], extras, (panel,))


def speculative(job: Job) -> Measurement:
    """Tokens per pass with drafts of every length; drafts of 1 are plain sampling."""
    model = plays.trained("ftp", job.scale, seed=job.seed, device=job.device, precision=job.precision)
    assert isinstance(model, FutureTokenPredictor)
    prompts, count = WRITTEN[job.scale]
    test = plays.plays(job.scale).test
    starts = torch.linspace(0, len(test) - PROMPT, prompts).long()
    generator = torch.Generator(job.device).manual_seed(job.seed)

    def rate(draft: int, temperature: float) -> float:
        passes = 0
        for start in starts.tolist():
            prompt = test[None, start : start + PROMPT].to(job.device)
            passes += model.speculate(prompt, count, draft=draft, temperature=temperature, generator=generator).passes
        return prompts * count / passes

    drafts = sorted({1, 2, model.ahead // 2, model.ahead})
    rates = {draft: rate(draft, 1.0) for draft in drafts}
    extras = {f"tokens per pass, drafts of {draft}": value for draft, value in rates.items()}
    extras["tokens per pass, the likeliest tokens"] = rate(model.ahead, 0.0)
    lines = {"temperature 1": ([float(draft) for draft in drafts], list(rates.values()))}
    panel = Panel("Checked drafts", "tokens of a draft", "tokens per pass", lines)
    return Measurement(rates[model.ahead], rates[1], extras, (panel,))


def _plan(claim: str, notes: str) -> Plan:
    """One step of the paper's size: 12 blocks of 768, a decoder of 3, 64 pieces of 128 tokens, 32 positions of each."""
    size = plays.SIZES["paper"]
    with torch.device("meta"):
        model = plays.build("ftp", "paper")
    assert isinstance(model, FutureTokenPredictor)
    encoder = count_parameters(model.encoder)
    rows = size.batch * size.positions
    # The expansion once a row, the decoder and the head for each token of a row, the keys of the cross-attention (2 of
    # the 16 squares of a block) for each vector of the pseudo-sequence: all of those are eight.
    decoder = count_parameters(model.decoder) + size.vocabulary * size.dim
    multiply_adds = encoder * size.batch * text.LENGTH + rows * (count_parameters(model.expand) + decoder * model.ahead)
    activations = (
        4 * size.dim * 24 * (size.depth * size.batch * text.LENGTH + size.decoder_depth * rows * model.ahead)
        + 8 * size.vocabulary * rows * model.ahead
    )
    launch = f"everyformer run ftp.{claim} --scale paper --device cuda --precision bf16-mixed"
    count = count_parameters(model)
    return Plan(count, 6.0 * multiply_adds, 16 * count + activations, launch, notes)


HERE = "the paper trains on OpenWebText; the launch trains a model of its size on plays"


def plan_smoothness() -> Plan:
    """A training step."""
    return _plan("smoothness", HERE)


def plan_topic() -> Plan:
    """The same models."""
    return _plan("topic", HERE)


def plan_code() -> Plan:
    """A model of that size, on programs instead."""
    return _plan("code", "the launch trains on programs of four chains of seven; the step planned is one on text")


def plan_speculative() -> Plan:
    """The same models."""
    return _plan("speculative", HERE)
