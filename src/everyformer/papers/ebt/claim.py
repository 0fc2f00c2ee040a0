"""The claims of EBT: scaling, thinking and uncertainty on bytes of text, denoising on digits."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import quality
from everyformer.lab.measure import count_parameters
from everyformer.papers.ebt import training
from everyformer.papers.ebt.images import ImageEBT
from everyformer.papers.ebt.model import EBT
from everyformer.papers.ebt.training import ALPHAS_CUMPROD, NOISIER, NOISIEST, SIZES
from everyformer.parts import diffusion
from everyformer.parts.dit import DiT
from everyformer.parts.language import LanguageModel

BOTH: tuple[training.Method, ...] = ("EBT", "Transformer++")
THINKING = (1, 2, 3, 4, 6, 8, 12)  # steps
LONG = 6  # steps that are called thinking longer: twice the most of training
CANDIDATES = 4
PASSES = {"EBT": (1, 2, 3, 4), "DiT": (1, 2, 3, 4, 10, 100)}


def scaling(job: Job) -> Measurement:
    """By how many per cent EBT's loss falls faster with the tokens trained on; both exponents of both, as extras.

    Fitted over all sizes and budgets: log loss = c - data exponent x log tokens - parameter exponent x log parameters.
    """
    size = SIZES[job.scale]
    plays = training.pieces_of(training.corpus(job.scale, "plays").test, size)
    articles = training.pieces_of(training.corpus(job.scale, "articles").test, size)
    tokens = [float(steps * size.batch * size.length) for steps in size.steps]
    extras: dict[str, float] = {}
    lines: dict[str, tuple[list[float], list[float]]] = {}
    exponents = {}
    for method in BOTH:
        rows, losses = [], []
        for width in size.widths:
            curve = []
            for steps, seen in zip(size.steps, tokens, strict=True):
                model = training.language_model(method, width, steps, job)
                curve.append(training.test_loss(model, plays, job.seed))
                rows.append((1.0, math.log(seen), math.log(count_parameters(model))))
            losses += curve
            lines[f"{method}, {count_parameters(model):,} parameters"] = (tokens, curve)
        fit = torch.linalg.lstsq(torch.tensor(rows).double(), torch.tensor(losses).double().log()[:, None]).solution
        exponents[method] = -float(fit[1])
        extras[f"data exponent, {method}"], extras[f"parameter exponent, {method}"] = exponents[method], -float(fit[2])
        extras[f"loss of the largest (nats), {method}"] = losses[-1]
        extras[f"its loss on articles (nats), {method}"] = training.test_loss(model, articles, job.seed)
    advantage = 100 * (exponents["EBT"] / exponents["Transformer++"] - 1)
    panel = Panel("Test loss", "tokens trained on", "nats per symbol", lines, log_x=True, log_y=True)
    return Measurement(advantage, 0.0, extras, (panel,))


def thinking(job: Job) -> Measurement:
    """By how many per cent perplexity falls from one step to :data:`LONG`; every number of steps as extras.

    A transformer has no steps: its loss after as many passes is that of the last of them, and is computed.
    """
    size = SIZES[job.scale]
    pieces = training.pieces_of(training.corpus(job.scale, "plays").test, size).to(job.device)
    middle, steps = size.widths[1], size.steps[-1]
    lines: dict[str, tuple[list[float], list[float]]] = {}
    extras: dict[str, float] = {}
    gains = {}
    for method in ("EBT, S2", *BOTH):
        model = training.language_model(method, middle, steps, job)
        torch.manual_seed(job.seed)
        losses = _loss_by_steps(model, pieces)
        lines[method] = ([float(step) for step in THINKING], losses)
        gains[method] = 100 * (1 - math.exp(losses[THINKING.index(LONG)] - losses[0]))
        extras |= {f"loss after {step} (nats), {method}": loss for step, loss in zip(THINKING, losses, strict=True)}
        if isinstance(model, EBT):
            usual = losses[THINKING.index(training.trained_steps(model))]
            extras[f"gain beyond the steps of training (%), {method}"] = 100 * (1 - math.exp(min(losses) - usual))
            best = _thought_loss(model, pieces, LONG, CANDIDATES)
            extras[f"loss of the best of {CANDIDATES} by energy (nats), {method}"] = best
    extras["gain (%), EBT, S1"] = gains["EBT"]
    panel = Panel("Thinking", "steps", "nats per symbol", lines)
    return Measurement(gains["EBT, S2"], gains["Transformer++"], extras, (panel,))


def uncertainty(job: Job) -> Measurement:
    """How well energy tells articles from the plays trained on, beside a transformer's entropy, as AUROC of pieces."""
    size = SIZES[job.scale]
    width, steps = size.widths[-1], size.steps[-1]
    texts = [
        training.pieces_of(training.corpus(job.scale, name).test, size).to(job.device) for name in ("plays", "articles")
    ]  # type: ignore[arg-type]
    labels = torch.cat([torch.full((len(text),), index) for index, text in enumerate(texts)])
    ebt = training.language_model("EBT", width, steps, job)
    transformer = training.language_model("Transformer++", width, steps, job)
    assert isinstance(ebt, EBT) and isinstance(transformer, LanguageModel)
    torch.manual_seed(job.seed)
    thoughts = [ebt.think(text[:, :-1]) for text in texts]
    scores = {
        "energy": [thought.energy for thought in thoughts],
        "entropy, EBT": [_entropy(thought.logits) for thought in thoughts],
        "entropy, Transformer++": [_entropy(transformer(text[:, :-1])) for text in texts],
    }
    found = {
        name: float(binary_auroc(torch.cat([each.mean(1) for each in parts]).cpu(), labels))
        for name, parts in scores.items()
    }
    extras = {f"AUROC, {name}": value for name, value in found.items()}
    truth = texts[0][:, 1:]
    for name, logits in (("energy", thoughts[0].logits), ("entropy, Transformer++", transformer(texts[0][:, :-1]))):
        surprise = -logits.log_softmax(-1).gather(-1, truth[..., None])[..., 0]
        extras[f"rank correlation with the loss of a token, {name}"] = _rank_correlation(scores[name][0], surprise)
    panel = Panel("Telling articles from plays", "", "AUROC", {
        "AUROC": ([float(index) for index in range(len(found))], list(found.values()))
    }, kind="bar", ticks=list(found))  # fmt: skip
    return Measurement(found["energy"], found["entropy, Transformer++"], extras, (panel,))


def denoising(job: Job) -> Measurement:
    """PSNR of digits at the noisiest level of training, of each after its best number of passes.

    That number is chosen on digits that were trained on; all others are extras, and so is a level beyond training.
    """
    size = SIZES[job.scale]
    models = {name: training.denoiser(name, job) for name in ("EBT", "DiT")}  # type: ignore[arg-type]
    seen, new = (training.digits(job.scale, part)[: size.images] for part in ("train", "test"))  # type: ignore[arg-type]
    best = {}
    extras: dict[str, float] = {f"parameters, {name}": float(count_parameters(model)) for name, model in models.items()}
    for name, model in models.items():
        chosen = _psnr_by_passes(model, seen, NOISIEST, job)
        best[name] = chosen.index(max(chosen))
        extras[f"passes, {name}"] = float(PASSES[name][best[name]])
    panels, found = [], {}
    for level, title in ((NOISIEST, "the noisiest level of training"), (NOISIER, "a level beyond training")):
        lines = {}
        for name, model in models.items():
            values = _psnr_by_passes(model, new, level, job)
            lines[name] = ([float(passes) for passes in PASSES[name]], values)
            extras |= {f"PSNR after {n} (dB), {name}, {title}": v for n, v in zip(PASSES[name], values, strict=True)}
            found[name, level] = values[best[name]]
        panels.append(Panel(f"Denoising at {title}", "passes", "PSNR, dB", lines, log_x=True))
    extras["advantage beyond training (dB)"] = found["EBT", NOISIER] - found["DiT", NOISIER]
    return Measurement(found["EBT", NOISIEST], found["DiT", NOISIEST], extras, tuple(panels))


def _loss_by_steps(model: EBT | LanguageModel, pieces: Tensor) -> list[float]:
    """The loss after each number of :data:`THINKING`; a transformer's passes are repeated."""
    tokens, targets = pieces[:, :-1], pieces[:, 1:].flatten()
    if isinstance(model, EBT):
        path = model.think(tokens, steps=max(THINKING)).path
    else:
        path = [model(tokens) for _ in range(max(THINKING))]
    return [float(torch.nn.functional.cross_entropy(path[n - 1].flatten(0, 1), targets)) for n in THINKING]


def _thought_loss(model: EBT, pieces: Tensor, steps: int, candidates: int) -> float:
    logits = model.think(pieces[:, :-1], steps=steps, candidates=candidates).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten()))


def _entropy(logits: Float[Tensor, "batch tokens symbols"]) -> Float[Tensor, "batch tokens"]:
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's."""
    ranks = torch.stack([x.flatten().argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def _psnr_by_passes(model: ImageEBT | DiT, clean: Tensor, level: int, job: Job) -> list[float]:
    """PSNR (dB) after each number of passes, from the same noisy digits for all models."""
    clean, table = clean.to(job.device), ALPHAS_CUMPROD.to(job.device)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(job.seed)).to(clean)
    timesteps = torch.full((len(clean),), level, device=clean.device)
    noisy = diffusion.noised(clean, noise, timesteps, table).noisy
    if isinstance(model, ImageEBT):
        states = model.think(noisy, steps=max(PASSES["EBT"])).states
        images = [states[passes - 1] for passes in PASSES["EBT"]]
    else:
        images = [
            diffusion.path_end(model, noisy, timesteps=timesteps, alphas_cumprod=table, steps=passes)
            for passes in PASSES["DiT"]
        ]
    return [quality.likeness(image, clean)["psnr"] for image in images]


# Floating-point operations of a training step for each weight of a linear layer that each token goes through. Text:
# forward and backward. Candidates: forward, the slope's backward, and for each of these both gradients of the loss.
TEXT, CANDIDATE = 6, 12


def _plan(claim: str, notes: str) -> Plan:
    """One step of the authors' language model xxs: six blocks of width 384, 50,277 tokens, batches of 256 x 256."""
    with torch.device("meta"):
        model = EBT(vocabulary=50_277, dim=384, depth=6, heads=6)
    blocks, embedding = count_parameters(model.blocks), model.embedding.weight.numel()
    flops = 2.0 * 256 * 256 * ((TEXT + CANDIDATE) * blocks + CANDIDATE * embedding)
    # Weights, gradients and two moments; of each token of a device's 32 texts three rows of logits in each of two steps.
    memory = 16.0 * count_parameters(model) + 32 * 256 * 50_277 * 4 * 6
    return Plan(count_parameters(model), flops, memory, f"everyformer run {claim} --scale paper --device cuda", notes)


def plan_scaling() -> Plan:
    """Pretraining on RedPajama."""
    return _plan("ebt.scaling", "the paper trains to larger sizes on RedPajama; the launch trains three on plays")


def plan_thinking() -> Plan:
    """The same model."""
    return _plan("ebt.thinking", "the paper thinks on language benchmarks; the launch thinks on plays")


def plan_uncertainty() -> Plan:
    """The same model."""
    return _plan("ebt.uncertainty", "the paper shows energies of sentences; the launch measures plays and articles")


def plan_denoising() -> Plan:
    """One step of the authors' large denoiser: 24 blocks of width 1536 on pictures of 128 x 128, batches of 128."""
    with torch.device("meta"):
        model = ImageEBT(image_size=128, patch=16, dim=1536, depth=24, heads=16, mlp_ratio=1.0)
    inner = 24 * (4 + 2) * 1536**2  # of a block's weights those that every patch goes through
    flops = float(128 * 64 * CANDIDATE * inner)
    memory = 16.0 * count_parameters(model) + 128 * 64 * 24 * 1536 * 4 * 40
    return Plan(count_parameters(model), flops, memory, "everyformer run ebt.denoising --scale paper --device cuda",
                "the paper denoises COCO; the launch denoises digits of MNIST")  # fmt: skip
