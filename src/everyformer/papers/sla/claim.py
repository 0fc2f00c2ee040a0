"""The claims of SLA: how fast it is beside full attention, and what of the quality remains."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.measure import median, peak_extra_bytes, side_by_side
from everyformer.papers.sla import quality as quality_study
from everyformer.papers.sla.layer import SparseLinearAttention

HEADS, HEAD_DIM = 8, 64
SPARSITIES = (0.025, 0.05, 0.1, 0.2)
# Wan2.1-1.3B at 480p and 81 frames: 12 heads of 128, 21 x 30 x 52 latent tokens, 30 layers (its published configuration).
WAN = {"heads": 12, "head_dim": 128, "tokens": 32_760, "layers": 30}


def _tensors(job: Job, tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(job.seed)
    shape = (1, HEADS, tokens, HEAD_DIM)
    return [torch.randn(shape, generator=generator).to(job.device) for _ in range(3)]


def forward(attention: Callable[..., Tensor], tensors: list[Tensor]) -> Callable[[], None]:
    """Attention without gradients."""

    def run() -> None:
        with torch.no_grad():
            attention(*tensors)

    return run


def training(attention: Callable[..., Tensor], tensors: list[Tensor]) -> Callable[[], None]:
    """Attention and the gradients of its three inputs."""
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    weight = torch.ones_like(tensors[0])

    def run() -> None:
        torch.autograd.grad(attention(*inputs), inputs, weight)

    return run


def speed(job: Job) -> Measurement:
    """Forward time and memory against tokens and against sparsity."""
    return _speed(job, forward)


def speed_training(job: Job) -> Measurement:
    """Forward and backward time and memory against tokens and against sparsity."""
    return _speed(job, training)


def _speed(job: Job, work: Callable[[Callable[..., Tensor], list[Tensor]], Callable[[], None]]) -> Measurement:
    """Time SLA and full attention alternately at each length; the metric is the ratio at 8,192 tokens (smoke: 4,096)."""
    lengths, at, rounds = (
        ([1024, 2048, 4096], 4096, 3) if job.scale == "smoke" else ([2048, 4096, 8192, 16384], 8192, 5)
    )
    layer = SparseLinearAttention(HEAD_DIM).to(job.device)
    full = F.scaled_dot_product_attention
    seconds: dict[str, list[float]] = {"SLA": [], "full attention": []}
    memory: dict[str, list[float]] = {"SLA": [], "full attention": []}
    for tokens in lengths:
        tensors = _tensors(job, tokens)
        candidates = {"SLA": work(layer, tensors), "full attention": work(full, tensors)}
        times = side_by_side(candidates, rounds=rounds if tokens <= 8192 else 2, device=job.device)
        for name, candidate in candidates.items():
            seconds[name].append(median(times[name]))
            memory[name].append(peak_extra_bytes(candidate, job.device) / 2**20)
    tensors = _tensors(job, at)
    layers = {fraction: SparseLinearAttention(HEAD_DIM, critical=fraction).to(job.device) for fraction in SPARSITIES}
    by_fraction = side_by_side(
        {str(fraction): work(layer, tensors) for fraction, layer in layers.items()}, rounds=rounds, device=job.device
    )
    here = lengths.index(at)
    ratio = seconds["full attention"][here] / seconds["SLA"][here]
    xs = [float(tokens) for tokens in lengths]
    extras = {f"speed-up at {tokens} tokens": full_s / sla_s for tokens, full_s, sla_s in
              zip(lengths, seconds["full attention"], seconds["SLA"], strict=True)}  # fmt: skip
    extras |= {f"{name}: extra memory at {tokens} tokens (MiB)": value
               for name in memory for tokens, value in zip(lengths, memory[name], strict=True)}  # fmt: skip
    panels = (
        Panel("Time", "tokens", "seconds", {n: (xs, s) for n, s in seconds.items()}, log_x=True, log_y=True),
        Panel("Peak extra memory", "tokens", "MiB", {n: (xs, m) for n, m in memory.items()}, log_x=True, log_y=True),
        Panel(
            f"Time against critical blocks, {at} tokens",
            "fraction of blocks that are critical",
            "seconds",
            {"SLA": (list(SPARSITIES), [median(by_fraction[str(fraction)]) for fraction in SPARSITIES])},
        ),
    )
    return Measurement(ratio, 1.0, extras, panels)


def quality(job: Job) -> Measurement:
    """See :mod:`.quality`."""
    return quality_study.run(job)


def plan_speed() -> Plan:
    """One forward pass of all attention layers of Wan2.1-1.3B."""
    return _plan("sla.speed", passes=1, notes="attention of one forward pass, batch 1, bf16")


def plan_training() -> Plan:
    """Forward and backward of all attention layers of Wan2.1-1.3B."""
    return _plan("sla.speed_training", passes=3, notes="attention of one forward and backward pass, batch 1, bf16")


def _plan(claim: str, passes: int, notes: str) -> Plan:
    tokens, dim = WAN["tokens"], WAN["head_dim"]
    scores = 4 * tokens**2 * dim * 0.05
    sums = 6 * tokens * dim**2
    flops = passes * WAN["layers"] * WAN["heads"] * (scores + sums)
    parameters = WAN["layers"] * (dim * dim + dim)
    # Queries, keys, values, two features and two outputs in bf16, of one layer; a backward pass holds as many gradients.
    memory = (1 if passes == 1 else 2) * 7 * 2 * WAN["heads"] * tokens * dim
    return Plan(parameters, flops, memory, f"everyformer run {claim} --scale paper --device cuda", notes)


def plan_quality() -> Plan:
    """The largest setting of the study here; the paper fine-tunes Wan2.1-1.3B on data of its own."""
    from everyformer.lab.measure import count_flops
    from everyformer.parts.dit import DiT

    size = quality_study.SIZES["paper"]
    model = DiT(image_size=32, patch=1, channels=1, dim=size.dim, depth=size.depth, heads=size.heads, classes=10)
    one = count_flops(lambda: model(torch.zeros(1, 1, 32, 32), torch.zeros(1)).sum().backward())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    activations = size.batch * 1024 * size.dim * 4 * 16 * size.depth
    notes = "one step at batch 256 on MNIST; the paper's own model and data are Wan2.1-1.3B and a private video set"
    launch = "everyformer run sla.quality --scale paper --device cuda --precision bf16-mixed"
    return Plan(parameters, one * size.batch, 16 * parameters + activations, launch, notes)
