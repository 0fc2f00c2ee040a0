"""The claims of ByteTransformer: BERT-base on batches of different lengths, packed beside padded."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.measure import forward_pass, median, side_by_side
from everyformer.papers.bytetransformer.method import convert


def bert(layers: int) -> nn.Module:
    """BERT-base with random weights, ``layers`` deep."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(num_hidden_layers=layers), add_pooling_layer=False).eval()


def uniform_lengths(batch: int, longest: int, mean: float, generator: torch.Generator) -> Tensor:
    """Lengths spread evenly around ``mean`` times ``longest``, as far as they fit."""
    reach = min(mean, 1 - mean)
    low, high = (mean - reach) * longest, (mean + reach) * longest
    lengths = (low + (high - low) * torch.rand(batch, generator=generator)).round().clamp(1, longest)
    return _with_mean(lengths, mean * longest, longest)


def text_lengths(batch: int, longest: int, generator: torch.Generator) -> Tensor:
    """Log-normal lengths as of sentences: median a quarter of the maximum, cut at it."""
    drawn = torch.exp(math.log(longest / 4) + 0.6 * torch.randn(batch, generator=generator))
    return drawn.round().clamp(1, longest).long()


def _with_mean(lengths: Tensor, mean: float, longest: int) -> Tensor:
    """Scaled to the wanted mean, so that the draw of a small batch does not change the work to be done."""
    for _ in range(10):
        lengths = (lengths * mean / lengths.mean()).clamp(1, longest)
    return lengths.round().long()


def flops(lengths: Tensor, width: int = 768, hidden: int = 3072) -> float:
    """Operations of one layer on sequences of these lengths: projections, feed-forward, attention."""
    linear = 2 * (4 * width * width + 2 * width * hidden) * lengths.sum().item()
    return linear + 4 * width * lengths.double().square().sum().item()


def _ratios(job: Job, everything: bool) -> tuple[dict[str, float], dict[str, float]]:
    """For each case (or the first alone) the measured speed-up over Hugging Face, and the ratio of operations."""
    smoke = job.scale == "smoke"
    layers, batch = (2, 8) if smoke else (12, 16)
    torch.manual_seed(job.seed)
    precision = torch.bfloat16 if job.precision == "bf16-true" else torch.float32
    padded = bert(layers).to(job.device, precision)
    packed = convert(copy.deepcopy(padded))
    generator = torch.Generator().manual_seed(job.seed)
    cases = {"max 256, uniform, mean 0.6": (256, uniform_lengths(batch, 256, 0.6, generator))}
    if everything and not smoke:
        cases["max 512, uniform, mean 0.6"] = (512, uniform_lengths(batch, 512, 0.6, generator))
        cases["max 256, log-normal"] = (256, text_lengths(batch, 256, generator))
        cases["max 512, log-normal"] = (512, text_lengths(batch, 512, generator))
    speed, bound = {}, {}
    for name, (longest, lengths) in cases.items():
        tokens = torch.randint(30_000, (batch, longest), generator=generator).to(job.device)
        mask = (torch.arange(longest) < lengths[:, None]).long().to(job.device)
        inputs = {"input_ids": tokens, "attention_mask": mask}
        runs = {"packed": forward_pass(packed, **inputs), "padded": forward_pass(padded, **inputs)}
        rounds = 5 if longest == 256 else 3
        times = {run: median(values) for run, values in side_by_side(runs, rounds=rounds, device=job.device).items()}
        speed[name] = times["padded"] / times["packed"]
        bound[name] = flops(torch.full_like(lengths, longest)) / flops(lengths)
    return speed, bound


def speed(job: Job) -> Measurement:
    """Speed-up at a maximum of 256 and mean 0.6; the other cases as extras."""
    ratios, bound = _ratios(job, everything=True)
    extras = {f"speed-up, {name}": value for name, value in ratios.items()}
    extras |= {f"ratio of operations, {name}": value for name, value in bound.items()}
    return Measurement(next(iter(ratios.values())), 1.0, extras, (_bars(ratios, bound),))


def flop_bound(job: Job) -> Measurement:
    """Speed-up over the ratio of operations, at a maximum of 256 and mean 0.6."""
    ratios, bound = _ratios(job, everything=False)
    shares = {name: ratios[name] / bound[name] for name in ratios}
    return Measurement(
        next(iter(shares.values())), 1.0, {f"share, {n}": s for n, s in shares.items()}, (_bars(ratios, bound),)
    )


def _bars(ratios: dict[str, float], bound: dict[str, float]) -> Panel:
    places = [float(index) for index in range(len(ratios))]
    lines = {"measured": (places, list(ratios.values())), "ratio of operations": (places, list(bound.values()))}
    return Panel("Padded time over packed time", "", "x", lines, kind="bar", ticks=list(ratios))


def plan_speed() -> Plan:
    """BERT-base, batch 16, maximum 256, lengths averaging 0.6 of it."""
    lengths = torch.full((16,), int(0.6 * 256))
    parameters = sum(parameter.numel() for parameter in bert(12).parameters())
    activations = int(lengths.sum()) * (3 * 768 + 3072) * 2
    launch = "everyformer run bytetransformer.speed --scale paper --device cuda --precision bf16-true"
    return Plan(
        parameters,
        12 * flops(lengths),
        2 * parameters + activations,
        launch,
        "one forward pass, batch 16, bf16 (the paper: fp16)",
    )
