"""The claims of the survey: from which length cheaper mixers pay off, what they cost in recall, and reversible blocks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer import mixers
from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import mixing_tasks
from everyformer.lab.measure import count_parameters, forward_pass, median, peak_extra_bytes, side_by_side
from everyformer.papers.faster_lighter.method import Reversible, ReversibleSequence, checkpoint_layers
from everyformer.parts.mixers.full import FullAttention

LENGTHS = {
    "smoke": (128, 256),
    "cpu": (128, 256, 512, 1024, 2048, 4096),
    "paper": (128, 512, 1024, 2048, 4096, 8192, 16384, 32768),
}
WIDTH = {"smoke": (32, 2), "cpu": (128, 4), "paper": (512, 8)}  # and heads
ROUNDS = {"smoke": 1, "cpu": 15, "paper": 15}
RATES = (1e-3, 3e-3)
CHOSEN_SEED = 30_000_000  # of the samples by which a rate is chosen; not those that are tested on
RECALLING = {
    "smoke": ("linear", "window"),
    "cpu": ("linear", "performer", "retention", "ssd", "window"),
    "paper": ("linear", "performer", "retention", "ssd", "window", "longformer", "reformer", "rwkv", "hyena"),
}


def cheaper() -> list[mixers.Card]:
    """The mixers whose time grows slower than with the square of the length."""
    return [card for card in mixers.cards().values() if card.growth < 2]


def _timed(job: Job, lengths: tuple[int, ...]) -> dict[str, list[float]]:
    """Seconds of a forward pass by mixer and length, all mixers of a length in alternating rounds.

    A mixer that only reads from left to right is compared with full attention that does so too.
    """
    dim, heads = WIDTH[job.scale]
    ways = [("full", False), ("full", True), *((card.name, card.causal == "only") for card in cheaper())]
    found: dict[str, list[float]] = {}
    for length in lengths:
        torch.manual_seed(job.seed)
        x = torch.randn(1, length, dim, device=job.device)
        runs = {}
        for name, causal in ways:
            mixer = mixers.create(name, dim, heads=heads, causal=causal, length=length).to(job.device).eval()
            runs["full, causal" if (name, causal) == ("full", True) else name] = forward_pass(mixer, x)
        times = side_by_side(runs, ROUNDS[job.scale], device=job.device)
        for name, seconds in times.items():
            found.setdefault(name, []).append(median(seconds))
    return found


def crossing(lengths: tuple[int, ...], ours: list[float], full: list[float]) -> float:
    """From which length ``ours`` takes less time to the end, between lengths by straight lines of logarithms.

    The shortest length where it always does; twice the longest where it does not at the end.
    """
    gaps = [math.log(a / b) for a, b in zip(ours, full, strict=True)]
    if gaps[-1] >= 0:
        return 2.0 * lengths[-1]
    last = max((index for index, gap in enumerate(gaps) if gap >= 0), default=-1)
    if last < 0:
        return float(lengths[0])
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    return float(lengths[last] * (lengths[last + 1] / lengths[last]) ** share)


def crossover(job: Job) -> Measurement:
    """The median over the cheaper mixers of where each becomes faster than full attention."""
    lengths = LENGTHS[job.scale]
    times, found = _timed(job, lengths), {}
    for card in cheaper():
        full = times["full, causal" if card.causal == "only" else "full"]
        found[card.name] = crossing(lengths, times[card.name], full)
    ordered = dict(sorted(found.items(), key=lambda pair: pair[1]))
    extras = {f"faster from (tokens), {name}": value for name, value in ordered.items()}
    extras["never faster up to the longest"] = float(sum(value > lengths[-1] for value in found.values()))
    crossed = {name: value for name, value in ordered.items() if value <= lengths[-1]}
    places = [float(index) for index in range(len(crossed))]
    bars = Panel(
        "Faster than full attention from", "", "tokens", {"tokens": (places, list(crossed.values()))},
        kind="bar", ticks=list(crossed), log_y=True,
    )  # fmt: skip
    return Measurement(median(list(found.values())), float(lengths[-1]), extras, (_lines(times, lengths), bars))


def short(job: Job) -> Measurement:
    """Milliseconds at the shortest length: full attention, and the median of the cheaper mixers."""
    lengths = LENGTHS[job.scale][:3]
    times = _timed(job, lengths)
    first = {card.name: 1e3 * times[card.name][0] for card in cheaper()}
    extras = {
        f"at {lengths[0]} tokens (ms), {name}": value for name, value in sorted(first.items(), key=lambda p: p[1])
    }
    return Measurement(1e3 * times["full"][0], median(list(first.values())), extras, (_lines(times, lengths),))


def _lines(times: dict[str, list[float]], lengths: tuple[int, ...]) -> Panel:
    """Full attention and every third of the others, by their time at the longest length: more could not be told apart."""
    others = sorted((name for name in times if not name.startswith("full")), key=lambda name: times[name][-1])
    shown = [name for name in times if name.startswith("full")] + others[::3]
    lines = {name: ([float(n) for n in lengths], [1e3 * second for second in times[name]]) for name in shown}
    return Panel("A forward pass", "tokens", "ms", lines, log_x=True, log_y=True)


class Feed(nn.Sequential):
    """A feed-forward network on what is normalised."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


def blocks(depth: int, dim: int, heads: int) -> list[Reversible]:
    """Transformer blocks on two halves of ``dim`` each."""
    return [
        Reversible(nn.Sequential(nn.LayerNorm(dim), FullAttention(dim, heads=heads)), Feed(dim)) for _ in range(depth)
    ]


class Plain(nn.Module):
    """The same blocks with autograd as it is."""

    def __init__(self, made: list[Reversible]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(made)

    def forward(
        self, left: Float[Tensor, "batch tokens dim"], right: Float[Tensor, "batch tokens dim"]
    ) -> tuple[Tensor, Tensor]:
        """The halves after all blocks."""
        for block in self.blocks:
            left, right = block(left, right)
        return left, right


DEPTHS = {"smoke": (2, 12), "cpu": (2, 4, 8, 12, 16), "paper": (12, 24, 48)}
STATE = {"smoke": (1, 32, 16), "cpu": (2, 512, 128), "paper": (8, 2048, 512)}  # batch, tokens, width of a half
NAMES = ("reversible", "autograd", "checkpointed")


def reversible(job: Job) -> Measurement:
    """Peak bytes of a training step beyond weights and inputs, by depth; at 12 blocks its time and its gradients."""
    batch, tokens, dim = STATE[job.scale]
    depths = DEPTHS[job.scale]
    peaks: dict[str, list[float]] = {name: [] for name in NAMES}
    extras: dict[str, float] = {}
    for depth in depths:
        steps = {name: _training(name, depth, job) for name in NAMES}
        for name, (run, _) in steps.items():
            run()  # once before, so that what is set up at the first call does not count
            peaks[name].append(peak_extra_bytes(run, job.device) / 1e6)
        if depth == 12:
            for name, seconds in side_by_side(
                {name: run for name, (run, _) in steps.items()}, 3, device=job.device
            ).items():
                extras[f"seconds of a step, {name}"] = median(seconds)
            wanted = [weight.grad for weight in steps["autograd"][1].parameters()]
            for name in ("reversible", "checkpointed"):
                given = [weight.grad for weight in steps[name][1].parameters()]
                extras[f"largest difference of a gradient, {name}"] = _difference(given, wanted)
    at = depths.index(12)
    found = {name: values[at] for name, values in peaks.items()}
    extras["ratio"] = found["autograd"] / found["reversible"]
    extras["peak (MB), checkpointed"] = found["checkpointed"]
    lines = {name: ([float(depth) for depth in depths], values) for name, values in peaks.items()}
    panel = Panel(f"A training step, {batch} x {tokens} tokens of {2 * dim}", "blocks", "MB", lines)
    return Measurement(found["reversible"], found["autograd"], extras, (panel,))


def _training(name: str, depth: int, job: Job) -> tuple[Callable[[], None], nn.Module]:
    """A training step with gradients of the weights, and the model; all names have the same first weights and inputs."""
    batch, tokens, dim = STATE[job.scale]
    torch.manual_seed(job.seed)
    made = blocks(depth, dim, heads=4)
    model: nn.Module = ReversibleSequence(made) if name == "reversible" else Plain(made)
    if name == "checkpointed":
        checkpoint_layers(model, Reversible)
    model = model.to(job.device)
    halves = torch.randn(2, batch, tokens, dim, device=job.device)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        left, right = model(*halves)
        (left.square().mean() + right.square().mean()).backward()

    return run, model


def _difference(given: list[Tensor | None], wanted: list[Tensor | None]) -> float:
    """The largest difference as a share of the largest entry of the same gradient."""
    worst = 0.0
    for one, other in zip(given, wanted, strict=True):
        assert one is not None and other is not None
        worst = max(worst, float((one - other).abs().max() / other.abs().max()))
    return worst


def retrieval(job: Job) -> Measurement:
    """Associative recall of full attention and of cheaper mixers, each at the better of two rates."""
    given, size = mixing_tasks.task("recall", job.scale), mixing_tasks.SIZES[job.scale]
    found, extras = {}, {"accuracy (%) by chance": given.chance}
    for name in ("full", *RECALLING[job.scale]):
        models = {
            rate: mixing_tasks.trained(name, "recall", job.scale, seed=job.seed, rate=rate, device=job.device)
            for rate in RATES
        }
        rate = min(
            RATES, key=lambda rate: mixing_tasks.score(models[rate], given, size.tested, seed=CHOSEN_SEED)["loss"]
        )
        found[name] = mixing_tasks.score(models[rate], given, size.tested)["accuracy"]
        extras |= {
            f"accuracy (%), {name}": found[name], f"rate, {name}": rate,
            f"parameters, {name}": float(count_parameters(models[rate])),
        }  # fmt: skip
    panel = Panel(
        given.title, "", "right, %", {"accuracy": ([float(i) for i in range(len(found))], list(found.values()))},
        kind="bar", ticks=list(found),
    )  # fmt: skip
    others = [value for name, value in found.items() if name != "full"]
    return Measurement(found["full"], median(others), extras, (panel,))


def _plan(claim: str, model: nn.Module, tokens: int, activations: float, notes: str) -> Plan:
    count = count_parameters(model)
    launch = f"everyformer run faster_lighter.{claim} --scale paper --device cuda"
    return Plan(count, 6.0 * count * tokens, 16.0 * count + activations, launch, notes)


def plan_crossover() -> Plan:
    """One layer of full attention at the longest length; a forward pass."""
    dim, heads = WIDTH["paper"]
    length = LENGTHS["paper"][-1]
    with torch.device("meta"):
        count = count_parameters(FullAttention(dim, heads=heads))
    flops = 2.0 * count * length + 4.0 * length**2 * dim
    launch = "everyformer run faster_lighter.crossover --scale paper --device cuda"
    return Plan(
        count, flops, 4.0 * (count + 5 * length * dim), launch, "a forward pass at the longest length, in float32"
    )


def plan_reversible() -> Plan:
    """A training step of the deepest reversible model."""
    batch, tokens, dim = STATE["paper"]
    with torch.device("meta"):
        model = ReversibleSequence(blocks(DEPTHS["paper"][-1], dim, heads=4))
    return _plan("reversible", model, batch * tokens, 4.0 * batch * tokens * dim * 24, "activations of one block")


def plan_retrieval() -> Plan:
    """A training step of full attention's network."""
    size = mixing_tasks.SIZES["paper"]
    given = mixing_tasks.task("recall", "paper")
    with torch.device("meta"):
        model = mixing_tasks.network("full", given, size)
    activations = 4.0 * size.batch * given.length * size.dim * 24 * size.layers
    return _plan("retrieval", model, size.batch * given.length, activations, "associative recall needs no data")
