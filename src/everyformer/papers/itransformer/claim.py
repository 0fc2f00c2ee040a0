"""The claims of iTransformer: accuracy on ETTh1, what inverting alone gives, and variates never seen in training.

Every model goes through :func:`train`: same windows, same batch size, same optimizer, same early stopping.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.files import write_atomic
from everyformer.lab import data
from everyformer.lab.measure import count_flops
from everyformer.lab.train import fit
from everyformer.papers.itransformer.baselines import DLinear
from everyformer.papers.itransformer.model import ITransformer
from everyformer.parts.series import Split, Windows, calendar_features, split
from everyformer.parts.series_vanilla import VanillaTransformer

Batch = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
ATTENTIONS = ("full", "flow", "prob")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training budget: ``epochs`` or ``steps``, learning rate, batch size, early stopping."""

    rate: float
    epochs: int | None = None
    steps: int | None = None
    batch: int = 32
    patience: int | None = 3


@dataclasses.dataclass(frozen=True)
class Score:
    """Test errors of a trained model in standard units, its validation error, and its course."""

    mse: float
    mae: float
    validation: float
    curve: list[float]
    seconds: float


def forecast(model: nn.Module, batch: Batch) -> Tensor:
    """The model's forecast of a batch of windows, with the calendar features that the model was built for."""
    past, _, marks, future = batch
    given: dict[str, Tensor | None] = {"marks": marks if _of(model).marks else None}
    if isinstance(_of(model), VanillaTransformer):
        given["future"] = future if _of(model).marks else None
    return model(past, **given)  # type: ignore[no-any-return]


def _of(model: nn.Module) -> Any:
    """The model itself, behind whatever wraps it for precision or several processes."""
    return getattr(model, "module", model)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error over steps and variates."""
    return F.mse_loss(forecast(model, batch).float(), batch[1])


def train(job: Job, name: str, model: nn.Module, windows: Split, recipe: Recipe) -> Score:
    """Train ``model`` and score it on the test windows; a score that was finished before is read back.

    Adam; the base rate for two epochs, then halved every epoch; the best epoch on validation counts (arXiv 2310.06625,
    appendix A.2).
    """
    done = job.folder / f"{name}.json"
    if done.is_file():
        return Score(**json.loads(done.read_text(encoding="utf-8")))
    history = fit(
        model,
        loss,
        lambda epoch: windows.train.shuffled(recipe.batch, 1000 * job.seed + epoch),
        validation=lambda: windows.validation.batches(256),
        optimizer=lambda parameters: torch.optim.Adam(parameters, recipe.rate),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: 0.5 ** max(0, e - 1)),
        epochs=recipe.epochs,
        steps=recipe.steps,
        patience=recipe.patience,
        folder=job.folder / name,
        seed=job.seed,
        device=job.device,
        precision=job.precision,
        strategy=job.strategy,
        label=name,
    )
    mse, mae = errors(model, windows.test, job.device)
    score = Score(mse, mae, history.best, history.validation, history.seconds)
    write_atomic(done, json.dumps(dataclasses.asdict(score)))
    return score


@torch.no_grad()
def errors(model: nn.Module, windows: Windows, device: str) -> tuple[float, float]:
    """Mean squared and absolute error over all windows, steps and variates."""
    model.eval().to(device)
    squared = absolute = 0.0
    for batch in windows.batches(256):
        on_device: Any = tuple(None if part is None else part.to(device) for part in batch)
        difference = (forecast(model, on_device).float() - on_device[1]).double()
        squared += difference.square().mean((1, 2)).sum().item()
        absolute += difference.abs().mean((1, 2)).sum().item()
    return squared / len(windows), absolute / len(windows)


def naive_error(windows: Windows, period: int) -> float:
    """Mean squared error of repeating the last ``period`` steps; 1 is persistence."""
    total = 0.0
    for past, target, _, _ in windows.batches(1024):
        repeats = math.ceil(target.shape[1] / period)
        guess = past[:, -period:].repeat(1, repeats, 1)[:, : target.shape[1]]
        total += F.mse_loss(guess, target).item() * len(past)
    return total / len(windows)


def load(name: str, lookback: int, horizon: int) -> Split:
    """A forecasting set in its standard split, with hourly calendar features where it is hourly."""
    series = data.series(name)
    marks = calendar_features(series.dates, "h") if name.startswith("etth") and series.dates is not None else None
    return split(name, torch.from_numpy(series.values), lookback, horizon, marks)


def every(windows: Windows, stride: int) -> Windows:
    """A shorter stretch at the start of ``windows``: a ``stride``-th of them."""
    return dataclasses.replace(windows, values=windows.values[: _part(windows, stride)], marks=_marks(windows, stride))


def _part(windows: Windows, stride: int) -> int:
    return windows.lookback + windows.horizon - 1 + max(1, len(windows) // stride)


def _marks(windows: Windows, stride: int) -> Tensor | None:
    return None if windows.marks is None else windows.marks[: _part(windows, stride)]


def etth1(job: Job) -> Measurement:
    """ETTh1, 96 steps to 96: iTransformer beside the vanilla transformer, DLinear and two naive forecasts."""
    windows = load("etth1", 96, 96)
    torch.manual_seed(job.seed)
    if job.scale == "smoke":
        small = dataclasses.replace(windows, validation=every(windows.validation, 8))
        sizes, ours, theirs, windows = (96, 96), Recipe(1e-3, steps=300), Recipe(1e-3, steps=60), small
    else:
        # The baseline's epochs take about as long as iTransformer's ten on a CPU; its width is the one that fits them.
        sizes, ours, theirs = (256, 64), Recipe(1e-4, epochs=10), Recipe(5e-4, epochs=4)
    model = ITransformer(96, 96, dim=sizes[0], ff=sizes[0], layers=2, marks=4)
    mine = train(job, "iTransformer", model, windows, ours)
    torch.manual_seed(job.seed)
    vanilla = VanillaTransformer(96, 96, 7, dim=sizes[1], ff=sizes[1], heads=4, marks=4, dropout=0.0)
    other = train(job, "Transformer", vanilla, windows, theirs)
    torch.manual_seed(job.seed)
    linear = train(job, "DLinear", DLinear(96, 96), windows, Recipe(1e-3, epochs=2 if job.scale == "smoke" else 10))
    persistence, yesterday = naive_error(windows.test, 1), naive_error(windows.test, 24)
    extras = {
        "MAE of iTransformer": mine.mae,
        "MAE of Transformer": other.mae,
        "MSE of DLinear": linear.mse,
        "MAE of DLinear": linear.mae,
        "MSE of persistence": persistence,
        "MSE of the same hour yesterday": yesterday,
        "training seconds of iTransformer": mine.seconds,
        "training seconds of Transformer": other.seconds,
    }
    models = {"iTransformer": mine.mse, "Transformer": other.mse, "DLinear": linear.mse}
    models |= {"last value": persistence, "yesterday": yesterday}
    panels = [
        Panel(
            "Validation error while training",
            "epoch",
            "MSE",
            {
                name: ([float(epoch + 1) for epoch in range(len(score.curve))], score.curve)
                for name, score in (("iTransformer", mine), ("Transformer", other), ("DLinear", linear))
            },
        ),
        Panel(
            "Test error",
            "",
            "MSE",
            {"test": ([float(i) for i in range(len(models))], list(models.values()))},
            kind="bar",
            ticks=list(models),
        ),
    ]
    return Measurement(mine.mse, other.mse, extras, (*panels, *pictures(model, windows, job)))


@torch.no_grad()
def pictures(model: ITransformer, windows: Split, job: Job) -> list[Panel]:
    """One forecast of the last variate beside what came, and the first layer's attention on that window."""
    state = torch.load(job.folder / "iTransformer" / "state.pt", weights_only=True)["model"]
    model.load_state_dict(state)
    model.eval().cpu()
    past, target, marks, _ = windows.test.gather(torch.tensor([len(windows.test) // 2]))
    predicted, maps = model(past, marks, return_attention=True)
    steps = [float(step) for step in range(-96, 96)]
    truth = torch.cat([past, target], dim=1)[0, :, -1].tolist()
    return [
        Panel(
            "Oil temperature, one test window",
            "hours from now",
            "standard units",
            {"measured": (steps, truth), "iTransformer": (steps[96:], predicted[0, :, -1].tolist())},
        ),
        Panel(
            "Attention of layer 1, mean of heads",
            "token attended to (7 variates, 4 marks)",
            "token",
            kind="heat",
            grid=maps[0][0].mean(0).tolist(),
        ),
    ]


def inversion(job: Job) -> Measurement:
    """Inverted or not, normalised or not, for three attentions on ETTh1: the same steps and two learning rates each."""
    windows = load("etth1", 96, 96)
    smoke = job.scale == "smoke"
    steps, rates, attentions = (40, (1e-3,), ATTENTIONS[:1]) if smoke else (300, (3e-4, 1e-3), ATTENTIONS)
    windows = dataclasses.replace(windows, validation=every(windows.validation, 4))
    cells: dict[tuple[str, bool, bool], Score] = {}
    for attention in attentions:
        for inverted in (True, False):
            for normalised in (True, False):
                scores = []
                for rate in rates:
                    torch.manual_seed(job.seed)
                    options: dict[str, Any] = {"attention": attention, "normalise": normalised, "dropout": 0.0}
                    options |= {"dim": 64, "ff": 64, "heads": 4, "marks": 4}
                    model: nn.Module
                    if inverted:
                        model = ITransformer(96, 96, layers=2, **options)
                    else:
                        model = VanillaTransformer(96, 96, 7, **options)
                    name = f"{attention}-{'inverted' if inverted else 'plain'}-{normalised}-{rate:g}"
                    recipe = Recipe(rate, steps=steps, patience=None)
                    scores.append(train(job, name, model, windows, recipe))
                cells[attention, inverted, normalised] = min(scores, key=lambda score: score.validation)

    def mean(inverted: bool, normalised: bool) -> float:
        return sum(cells[attention, inverted, normalised].mse for attention in attentions) / len(attentions)

    label = {True: "inverted", False: "plain"}
    extras = {
        f"{attention}, {label[inverted]}, {'normalised' if normalised else 'not normalised'}: MSE": score.mse
        for (attention, inverted, normalised), score in cells.items()
    }
    extras["relative gain of inverting without normalisation"] = 1 - mean(True, False) / mean(False, False)
    extras["relative gain of normalising without inverting"] = 1 - mean(False, True) / mean(False, False)
    places = [float(i) for i in range(len(attentions))]
    panel = Panel(
        "Test error of the four variants",
        "",
        "MSE",
        {
            f"{label[inverted]}{', normalised' if normalised else ''}": (
                places,
                [cells[attention, inverted, normalised].mse for attention in attentions],
            )
            for inverted in (True, False)
            for normalised in (True, False)
        },
        kind="bar",
        ticks=list(attentions),
    )
    return Measurement(mean(True, True), mean(False, True), extras, (panel,))


class Channels(nn.Module):
    """A transformer over time steps that treats every variate by itself with the same weights."""

    def __init__(self, lookback: int, horizon: int, dim: int) -> None:
        super().__init__()
        self.marks = 0
        self.inner = VanillaTransformer(
            lookback, horizon, 1, dim=dim, ff=dim, heads=2, layers=1, label=lookback // 2, normalise=True, dropout=0.0
        )

    def forward(self, series: Tensor, marks: None = None) -> Tensor:
        """(batch, lookback, variates) to (batch, horizon, variates)."""
        batch, _, variates = series.shape
        alone = self.inner(series.transpose(1, 2).reshape(batch * variates, -1, 1))
        return alone.reshape(batch, variates, -1).transpose(1, 2)  # type: ignore[no-any-return]


def lagged_factors(seed: int, steps: int, variates: int = 100, factors: int = 6) -> Tensor:
    """Simulated variates (steps, variates) that share slow random factors, each with lags and weights of its own.

    A factor is a noisy oscillator: an autoregression of order two with a period between 12 and 60 steps.
    """
    generator = torch.Generator().manual_seed(seed)
    longest = 24
    period = 12 + 48 * torch.rand(factors, generator=generator)
    decay = 0.995
    first, second = 2 * decay * torch.cos(2 * math.pi / period), -(decay**2)
    noise = torch.randn(steps + longest + 500, factors, generator=generator)
    paths = torch.zeros_like(noise)
    for step in range(2, len(noise)):
        paths[step] = first * paths[step - 1] + second * paths[step - 2] + noise[step]
    paths = paths[500:]
    paths = paths / paths.std(0)
    lags = torch.randint(longest, (variates, factors), generator=generator)
    weights = torch.randn(variates, factors, generator=generator) / math.sqrt(factors)
    index = longest + torch.arange(steps)[:, None, None] - lags
    shared = (paths[index, torch.arange(factors)] * weights).sum(-1)
    return shared + 0.2 * torch.randn(steps, variates, generator=generator)


@dataclasses.dataclass(frozen=True)
class SomeVariates(Windows):
    """Windows that show ``count`` of the first ``known`` variates, drawn anew for every batch."""

    count: int = 0
    known: int = 0

    def shuffled(self, size: int, seed: int) -> Iterator[Batch]:
        """As in :class:`Windows`, fewer variates."""
        generator = torch.Generator().manual_seed(seed)
        for past, target, marks, future in super().shuffled(size, seed):
            chosen = torch.randperm(self.known, generator=generator)[: self.count]
            yield past[..., chosen], target[..., chosen], marks, future


def _only(windows: Windows, variates: slice) -> Windows:
    return dataclasses.replace(windows, values=windows.values[:, variates].contiguous())


def unseen_variates(job: Job) -> Measurement:
    """Train on 20 of 100 simulated variates and forecast the other 80; beside the same trained on all 100."""
    smoke = job.scale == "smoke"
    length, steps, dim = (1500, 30, 16) if smoke else (4000, 250, 32)
    lookback, horizon, shown = 48, 24, 20
    whole = split("lagged factors", lagged_factors(job.seed, length), lookback, horizon)
    test = _only(every(whole.test, 8), slice(shown, None))
    mse: dict[tuple[str, str], float] = {}
    for name in ("iTransformer", "channel-independent Transformer"):
        for taught, known in (("20 variates", shown), ("all variates", 100)):
            fields = {field.name: getattr(whole.train, field.name) for field in dataclasses.fields(Windows)}
            view = Split(
                SomeVariates(**fields, count=shown, known=known),
                _only(every(whole.validation, 8), slice(None, known)),
                test,
                whole.scaler,
            )
            torch.manual_seed(job.seed)
            model: nn.Module = Channels(lookback, horizon, dim)
            if name == "iTransformer":
                model = ITransformer(lookback, horizon, dim=4 * dim, ff=4 * dim, heads=4, layers=2, dropout=0.0)
            recipe = Recipe(1e-3, steps=steps, batch=16, patience=None)
            mse[name, taught] = train(job, f"{name}-{taught}".replace(" ", "_"), model, view, recipe).mse
    names = ["iTransformer", "channel-independent Transformer"]
    extra = {name: mse[name, "20 variates"] - mse[name, "all variates"] for name in names}
    panel = Panel(
        "Test error on 80 variates",
        "",
        "MSE",
        {
            f"trained on {taught}": ([0.0, 1.0], [mse[name, taught] for name in names])
            for taught in ("20 variates", "all variates")
        },
        kind="bar",
        ticks=names,
    )
    extras = {f"MSE of {name} trained on {taught}": value for (name, taught), value in mse.items()}
    return Measurement(extra[names[0]], extra[names[1]], extras, (panel,))


def plan_etth1() -> Plan:
    """The authors' ETTh1 run."""
    return _plan(
        ITransformer(96, 96, dim=256, ff=256, layers=2, marks=4), (32, 96, 7), 4, "itransformer.etth1", "10 epochs"
    )


def plan_ecl() -> Plan:
    """The authors' ECL run: 321 variates."""
    model = ITransformer(96, 96, dim=512, ff=512, layers=3, marks=4)
    return _plan(model, (16, 96, 321), 4, "itransformer.inversion", "10 epochs of ECL, which must be downloaded")


def _plan(model: nn.Module, shape: tuple[int, ...], marks: int, claim: str, notes: str) -> Plan:
    """Figures of one training step: FLOPs counted, memory as weights, gradients, Adam's state and the activations."""
    held = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    def one_step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = model(torch.randn(shape), torch.randn(*shape[:2], marks)).sum()
        out.backward()

    flops = count_flops(one_step)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    launch = f"everyformer run {claim} --scale paper --device cuda"
    return Plan(parameters, flops, 16 * parameters + held, launch, f"one step at batch {shape[0]}; {notes}")
