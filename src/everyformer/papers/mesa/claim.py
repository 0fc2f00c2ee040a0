"""The claims about what training ends in: one sweep over laws and starts per seed, of which each claim takes its part.

All laws and starts are trained together by :func:`~.training.train`, with the same steps and the same rule for the rate.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.papers.mesa.conditions import moments
from everyformer.papers.mesa.data import ar_sequences
from everyformer.papers.mesa.model import forecast, least_squares, recovery_ratios
from everyformer.papers.mesa.theory import limit_product, limit_weights, mean_reciprocal
from everyformer.papers.mesa.training import LossForm, Path, off_diagonal_norm, train

LAWS = ("sparse", "signs", "uniform", "gaussian", "ones")
SETTLED = ("sparse", "signs", "uniform")  # laws whose moments a sample of this size gets right
STARTS = ((0.1, 0.1), (0.5, 1.5), (2.0, 2.0))  # the authors'
# Growth of a and b per step near zero. It gives the authors' rates: 1e-3 for sparse, 0.7e-4 (1e-4) for gaussian.
GROWTH = 0.02
STEPS = 400


@dataclasses.dataclass(frozen=True)
class Size:
    """Width, length and number of the training sequences; first values and turns W per first value of the test."""

    dim: int
    length: int
    batch: int
    starts: int
    repeats: int


SIZES = {
    "smoke": Size(dim=3, length=12, batch=300, starts=200, repeats=5),
    "cpu": Size(dim=5, length=100, batch=10_000, starts=2000, repeats=25),
    "paper": Size(dim=5, length=100, batch=10_000, starts=2000, repeats=25),
}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Every law from every start: the first values seen, the loss on them, and the training's path (steps, law, start)."""

    first: list[Tensor]
    form: LossForm
    rate: Tensor
    path: Path


@functools.lru_cache(maxsize=3)  # the claims of one run share the sweeps of their three seeds
def sweep(scale: str, seed: int, device: str) -> Sweep:
    """Draw the sequences of each law and train on all of them from all starts."""
    size = SIZES[scale]
    first, forms = [], []
    for index, law in enumerate(LAWS):
        x = ar_sequences(law, size.dim, size.length, size.batch, 1000 * seed + index)
        first.append(x[:, 0].real.clone())
        forms.append(LossForm.of(x.to(device)))
    form = LossForm.stack(forms)
    rate = torch.tensor([GROWTH / ((size.length - 2) * moments(law, size.dim).k1) for law in LAWS])
    return Sweep(first, form, rate, train(form, STARTS, rate, STEPS))


def limit(job: Job) -> Measurement:
    """The trained ab of the laws with light tails beside the closed form of each law."""
    size, done = SIZES[job.scale], sweep(job.scale, job.seed, job.device)
    extras: dict[str, float] = {}
    near, far = [], []
    for law in SETTLED:
        reached = done.path.product[-1, LAWS.index(law)]
        theory = limit_product(moments(law, size.dim), size.length)
        near.append(_distance(reached, theory))
        far.append(_distance(reached, limit_product(moments(law, size.dim))))
        extras |= {f"{law}: trained ab": float(reached.mean()), f"{law}: closed form": theory}
    panels = tuple(_product_panel(done, law, size) for law in SETTLED)
    return Measurement(max(near), max(far), extras, panels)


def limit_gaussian(job: Job) -> Measurement:
    """The trained ab of Gaussian first values beside the closed form with the sample's moments."""
    size, done = SIZES[job.scale], sweep(job.scale, job.seed, job.device)
    law = LAWS.index("gaussian")
    reached = done.path.product[-1, law]
    own = limit_product(moments(done.first[law]), size.length)
    whole = limit_product(moments("gaussian", size.dim), size.length)
    extras = {
        "trained ab": float(reached.mean()),
        "closed form, the sample's moments": own,
        "closed form, the law's moments": whole,
        "distance from the closed form with the law's moments": _distance(reached, whole),
    }
    return Measurement(
        _distance(reached, own), _distance(reached, 0.2), extras, (_product_panel(done, "gaussian", size),)
    )


def conservation(job: Job) -> Measurement:
    """The gradient flow of the whole layer, by Runge-Kutta: what a^2 - b^2 and a^2 + b^2 do on the way."""
    size, done = SIZES[job.scale], sweep(job.scale, job.seed, job.device)
    laws = [LAWS.index(law) for law in (*SETTLED, "gaussian")]
    # A longer step than in training, for the method is of order four, and still far from unstable.
    path = train(done.form.select(laws), STARTS, 1.5 * done.rate[laws], STEPS // 2, method="runge-kutta")
    difference, total = path.a**2 - path.b**2, path.a**2 + path.b**2
    largest = total.amax(dim=0)
    drift = (difference - difference[0]).abs() / largest
    worst = drift.amax(dim=(0, 2))
    moved = ((total - total[0]).abs() / largest).amax(dim=(0, 2))
    settled = len(SETTLED)
    extras = {f"{LAWS[law]}: change of a² - b²": float(change) for law, change in zip(laws, worst, strict=True)}
    signs = SETTLED.index("signs")
    theory = limit_product(moments("signs", size.dim), size.length)
    for start, (a, b) in enumerate(STARTS):
        extras |= {
            f"signs from ({a:g}, {b:g}): {name}{how}": value
            for name, reached, closed in zip("ab", (path.a, path.b), limit_weights(a, b, theory), strict=True)
            for how, value in (("", float(reached[-1, signs, start])), (" in closed form", closed))
        }
    steps = [float(step) for step in range(1, len(path.a))]
    axis = torch.linspace(theory / 2, 2, 60)
    panels = (
        Panel(
            "Change of a² - b² so far, from (0.5, 1.5)", "step of the flow", "over largest a² + b²",
            {LAWS[law]: (steps, _list(drift[1:, index, 1].clamp_min(1e-9).cummax(dim=0).values))
             for index, law in enumerate(laws)},
            log_y=True,
        ),
        Panel(
            "Paths of the flow, signs", "a", "b",
            {f"from ({a:g}, {b:g})": (_list(path.a[:, signs, i]), _list(path.b[:, signs, i]))
             for i, (a, b) in enumerate(STARTS)}
            | {"ab in closed form": (_list(axis), _list(theory / axis))},
        ),
    )  # fmt: skip
    return Measurement(float(worst[:settled].max()), float(moved[:settled].max()), extras, panels)


def recovery(job: Job) -> Measurement:
    """The mean of forecast / truth at the last step of unseen sequences, after training and on the way."""
    size, done = SIZES[job.scale], sweep(job.scale, job.seed, job.device)
    every = STEPS // 20
    steps = [float(step) for step in range(0, STEPS + 1, every)]
    extras: dict[str, float] = {}
    curves, last = {}, {}
    for index, law in enumerate(LAWS):
        if law == "ones":
            continue
        curves[law] = recovery_ratios(
            done.path.w_kq[::every, index], done.path.w_pv[::every, index], law, size.length,
            starts=size.starts, repeats=size.repeats, seed=1_000_000 + 1000 * job.seed,
        )  # fmt: skip
        last[law] = float(curves[law][-1].mean())
        extras |= {
            f"{law}: ratio": last[law],
            f"{law}: ratio expected at this length": _ratio(law, size.dim, size.length),
            f"{law}: ratio expected as the length grows": _ratio(law, size.dim, None),
        }
        x = ar_sequences(law, size.dim, size.length, size.starts, 2_000_000 + job.seed).to(job.device)
        context, truth = x[:, :-1], x[:, -1]
        learner = forecast(context, done.path.w_kq[-1, index], done.path.w_pv[-1, index])
        # Of the truth's power; a forecast of zero misses all of it, 1.
        extras |= {
            f"{law}: power missed by the learner": _missed(learner, truth),
            f"{law}: power missed by least squares, which knows that W is diagonal": _missed(
                least_squares(context), truth
            ),
        }
    names = list(last)
    places = [float(place) for place in range(len(names))]
    lengths = [float(2**power) for power in range(5, 16)]
    gaussian = curves["gaussian"]
    panels = (
        Panel(
            "Gaussian: ratio at the last step", "epoch", "forecast / truth",
            {f"from ({a:g}, {b:g})": (steps[1:], _list(gaussian[1:, i])) for i, (a, b) in enumerate(STARTS)}
            | {"1/5": ([steps[1], steps[-1]], [0.2, 0.2])},
        ),
        Panel(
            f"Ratio at the last step, length {size.length}", "law of the first value", "forecast / truth",
            {"trained": (places, [last[law] for law in names]),
             "closed form": (places, [_ratio(law, size.dim, size.length) for law in names])},
            kind="bar", ticks=names,
        ),
        Panel(
            "Closed form by length of the sequences", "length", "forecast / truth",
            {law: (lengths, [_ratio(law, size.dim, int(length)) for length in lengths]) for law in names}, log_x=True,
        ),
    )  # fmt: skip
    return Measurement(min(last["sparse"], last["signs"]), last["gaussian"], extras, panels)


def beyond_condition(job: Job) -> Measurement:
    """Entries off the diagonal where all first values are one, beside those that sampling leaves for signs."""
    size, done = SIZES[job.scale], sweep(job.scale, job.seed, job.device)
    path, ones, signs = done.path, LAWS.index("ones"), LAWS.index("signs")
    norms = off_diagonal_norm(path.w_kq, path.w_pv)
    clipped = train(done.form.select([ones]), STARTS, done.rate[[ones]], STEPS, clip=True)
    plain = 1 / (1 + (size.dim - 1) * mean_reciprocal(size.length))
    extras = {
        "ones: trained ab": float(path.product[-1, ones].mean()),
        "ones, off-diagonal entries cleared at every step: trained ab": float(clipped.product[-1].mean()),
        "ones, off-diagonal entries cleared at every step: closed form": plain,
        "ones: loss": float(done.form(path.w_kq[-1], path.w_pv[-1])[ones].mean()),
        "ones, off-diagonal entries cleared at every step: loss": float(
            done.form.select([ones])(clipped.w_kq[-1], clipped.w_pv[-1]).mean()
        ),
    }
    steps = [float(step) for step in range(0, STEPS + 1, 4)]
    panels = (
        Panel("W_PV after training on ones (real part)", "column", "row", kind="heat", grid=_grid(path.w_pv[-1, ones, 0])),
        Panel("W_KQ after training on ones (real part)", "column", "row", kind="heat", grid=_grid(path.w_kq[-1, ones, 0])),
        Panel("W_PV after training on signs (real part)", "column", "row", kind="heat",
              grid=_grid(path.w_pv[-1, signs, 0])),
        Panel("Off-diagonal entries from (0.1, 0.1)", "epoch", "norm",
              {law: (steps, _list(norms[::4, LAWS.index(law), 0])) for law in ("ones", "signs", "sparse")}),
    )  # fmt: skip
    return Measurement(float(norms[-1, ones].mean()), float(norms[-1, signs].mean()), extras, panels)


def plan() -> Plan:
    """One step of all laws and starts at the authors' size."""
    size = SIZES["paper"]
    terms = 8 * size.dim**3
    layers = len(LAWS) * len(STARTS)
    parameters = layers * 2 * 6 * size.dim**2
    flops = 3 * 8.0 * layers * size.dim * terms**2
    memory = len(LAWS) * 8.0 * terms**2 + 8.0 * STEPS * layers * 6 * size.dim**2
    notes = f"{layers} layers at once; the sums over {size.batch} sequences of each law come before, once"
    return Plan(parameters, flops, memory, "everyformer run mesa --scale paper", notes)


def _distance(reached: Tensor, theory: float) -> float:
    """The largest relative distance of the starts."""
    return float((reached / theory - 1).abs().max())


def _missed(forecasts: Tensor, truth: Tensor) -> float:
    """Squared error over the truth's power, mean of the models."""
    return float((forecasts - truth).abs().square().sum((-2, -1)).mean() / truth.abs().square().sum())


def _ratio(law: str, dim: int, length: int | None) -> float:
    """The expected forecast / truth of a coordinate that is not zero: ab E x^2 over the chance of that."""
    known = moments(law, dim)
    return limit_product(known, length) * known.second * (dim if law == "sparse" else 1)


def _product_panel(done: Sweep, law: str, size: Size) -> Panel:
    steps = [float(step) for step in range(0, STEPS + 1, 4)]
    product = done.path.product[::4, LAWS.index(law)]
    lines = {f"from ({a:g}, {b:g})": (steps, _list(product[:, i])) for i, (a, b) in enumerate(STARTS)}
    theory = limit_product(moments(law, size.dim), size.length)
    lines["closed form"] = ([0.0, float(STEPS)], [theory, theory])
    return Panel(f"{law}: ab while training", "epoch", "ab", lines)


def _list(values: Tensor) -> list[float]:
    return [float(value) for value in values]


def _grid(matrix: Tensor) -> list[list[float]]:
    return [_list(row) for row in matrix.real]
