"""Measuring: time side by side, peak memory, FLOPs, and intervals over seeds."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everyformer.catalog import Spread, Threshold
from everyformer.files import write_atomic

# Two-sided 95% quantiles of Student's t for 1..30 degrees of freedom; beyond that the normal's is close enough.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def synchronise(device: str | torch.device = "cpu") -> None:
    """Wait for the device's queued work, so that a clock read afterwards has counted it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def noted_steps(file: Path, count: Callable[[], float], *, at_least: int = 1) -> int:
    """Whole steps as ``count`` measured them when first asked: written to ``file``, so that a resumed run keeps to them."""
    if not file.is_file():
        write_atomic(file, str(max(at_least, round(count()))))
    return int(file.read_text(encoding="utf-8"))


def side_by_side(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each candidate, taken alternately so that a slow spell of the machine hits all of them.

    Every round runs each candidate once, in an order that rotates by one from round to round.

    Args:
        candidates: name to a function without arguments.
        rounds: timings per candidate, at least 1.
        warmup: untimed calls of each candidate before the first round.

    Raises:
        ValueError: ``rounds`` below 1 or no candidates.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if not candidates:
        raise ValueError("candidates must hold at least one function")
    names = list(candidates)
    for name in names:
        for _ in range(warmup):
            candidates[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            synchronise(device)
            began = time.perf_counter()
            candidates[name]()
            synchronise(device)
            times[name].append(time.perf_counter() - began)
    return times


def forward_pass(call: Callable[..., Any], *inputs: Any, **named: Any) -> Callable[[], Any]:
    """``call`` on these inputs without gradients, as a function to be timed."""

    def run() -> Any:
        with torch.inference_mode():
            return call(*inputs, **named)

    return run


def gradient_pass(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """The loss and its gradients by the weights of ``model``, as a function to be timed; no step is taken."""

    def run() -> None:
        model.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]

    return run


def median(values: Sequence[float]) -> float:
    """The middle value: robust against the odd slow round."""
    return statistics.median(values)


def peak_extra_bytes(fn: Callable[[], Any], device: str = "cpu") -> int:
    """Peak bytes that tensors took while ``fn`` ran, beyond what was live before (its result counts).

    On the CPU the allocator's events are followed by the profiler, so scratch buffers inside operators count too.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        fn()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _quiet_stderr():
        profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        with profile:
            fn()
    live = peak = 0
    kineto: Any = profile.profiler
    for event in sorted(kineto.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send what C++ writes to stderr nowhere: the profiler reports its own starts and stops there."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def count_parameters(model: nn.Module) -> int:
    """How many numbers a model has as parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(fn: Callable[[], Any]) -> int:
    """Floating-point operations of ``fn`` as torch's counter sees them: matrix products, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        fn()
    return int(counter.get_total_flops())


def reset_process_peak() -> None:
    """Start the high-water mark of resident memory anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def process_peak_mb() -> float:
    """The highest resident memory of this process, in MiB, since :func:`reset_process_peak` where that works."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def spread(values: Sequence[float]) -> Spread:
    """Mean and 95% interval of independent values by Student's t; one value gives a mean without an interval."""
    if not values:
        raise ValueError("values must not be empty")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Spread(mean, None, None, list(values))
    degrees = len(values) - 1
    quantile = _T95[degrees - 1] if degrees <= len(_T95) else 1.96
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Spread(mean, mean - half, mean + half, list(values))


def effect_of(method: Sequence[float], baseline: Sequence[float], better: str, threshold: Threshold) -> Spread:
    """The effect of a claim, paired seed by seed, in the threshold's terms (see :class:`Threshold`).

    Ratios are averaged as logarithms, so that 2x and 0.5x balance.
    """
    if len(method) != len(baseline):
        raise ValueError(f"method and baseline must pair up, got {len(method)} and {len(baseline)} values")
    sign = 1.0 if better == "higher" else -1.0
    pairs = list(zip(method, baseline, strict=True))
    if threshold.kind == "ratio":
        if any(m <= 0 or b <= 0 for m, b in pairs):
            raise ValueError(f"a ratio needs positive values, got {pairs}")
        logs = spread([sign * math.log(m / b) for m, b in pairs])
        low, high = (None if edge is None else math.exp(edge) for edge in (logs.low, logs.high))
        return Spread(math.exp(logs.mean), low, high, [math.exp(value) for value in logs.values])
    if threshold.kind == "relative":
        return spread([sign * (m - b) / abs(b) for m, b in pairs])
    if threshold.kind == "difference":
        return spread([sign * (m - b) for m, b in pairs])
    return spread([sign * (m - threshold.size) for m in method])


def verdict_of(effect: Spread, threshold: Threshold) -> str:
    """The verdict, by the threshold alone.

    ``reproduced``: the effect is at least the declared size and its interval excludes 'no effect' (for a bound: the
    whole interval keeps to the better side). ``direction only``: the mean points the claimed way but is smaller,
    uncertain, or of a single seed. Otherwise ``not reproduced``.
    """
    certain = effect.low is not None and (effect.low >= 0 if threshold.kind == "bound" else effect.low > threshold.null)
    if certain and effect.mean >= threshold.goal:
        return "reproduced"
    return "direction only" if effect.mean > threshold.null else "not reproduced"
