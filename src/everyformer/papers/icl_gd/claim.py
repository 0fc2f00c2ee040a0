"""The claims: the construction is exact, and trained layers find it (arXiv 2212.07677, section 3 and 4).

Everything that is trained goes through :func:`learn`: fresh tasks at every step, the authors' optimiser, snapshots.
All losses are half the mean squared error on tasks that no training has seen.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.measure import count_flops
from everyformer.lab.train import fit
from everyformer.papers.icl_gd.compare import alignment, interpolate, iterated, normalised
from everyformer.papers.icl_gd.construct import (
    LearnedGDPlusPlus,
    best_rate,
    gd_weights,
    gradient_descent,
    optimal_rate,
)
from everyformer.papers.icl_gd.data import LAWS, Tasks, regression_tasks, regression_tokens, sine_tasks
from everyformer.papers.icl_gd.model import InContextTransformer, TokenMLP

D, N = 10, 10
Draw = Callable[[int, torch.Generator], Tasks]
Models = Mapping[str, nn.Module]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training budget in the authors' terms: steps, tasks per step, Adam's rate and betas, clipping of the gradient."""

    steps: int = 5000
    batch: int = 2048
    rate: float = 1e-3
    clip: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    snapshots: int = 25


def recipe_of(job: Job, **changes: Any) -> Recipe:
    """The authors' recipe with ``changes``, or a few steps of it for a smoke run."""
    recipe = dataclasses.replace(Recipe(), **changes)
    return dataclasses.replace(recipe, steps=120, batch=256, snapshots=3) if job.scale == "smoke" else recipe


class ClippedAdamW(torch.optim.AdamW):
    """AdamW without decay that clips the gradient by its global norm before each step."""

    def __init__(self, parameters: Any, recipe: Recipe) -> None:
        super().__init__(parameters, recipe.rate, recipe.betas, weight_decay=0.0, fused=True)
        self.bound = recipe.clip

    def step(self, closure: Any = None) -> Any:
        """Clip, then step."""
        nn.utils.clip_grad_norm_(self.param_groups[0]["params"], self.bound)
        return super().step(closure)


def half_mse(found: Tensor, target: Tensor) -> Tensor:
    """Half the squared error, summed over outputs and averaged over tasks."""
    return 0.5 * (found - target).square().sum(dim=-1).mean()


def loss(model: nn.Module, tasks: Any) -> Tensor:
    """Half the mean squared error of the predictions."""
    return half_mse(model(tasks[0]), tasks[1])


@torch.no_grad()
def score(model: nn.Module, tasks: Tasks) -> float:
    """The loss as a number."""
    return float(loss(model, tasks))


def learn(job: Job, name: str, model: nn.Module, draw: Draw, recipe: Recipe) -> dict[float, nn.Module]:
    """Train ``model`` in place on fresh tasks; copies of it from before each stretch of training and after, by step."""
    length = max(1, recipe.steps // recipe.snapshots)
    home = job.folder / name
    home.mkdir(parents=True, exist_ok=True)

    def stretch(epoch: int) -> Iterator[Tasks]:
        file = home / f"before-{epoch}.pt"
        if not file.is_file():  # a resumed run is in the middle of the stretch
            torch.save(model.state_dict(), file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
        generator = torch.Generator().manual_seed(1_000_000 * (job.seed + 1) + epoch)
        return (draw(recipe.batch, generator) for _ in range(length))

    fit(
        model,
        loss,
        stretch,
        optimizer=lambda parameters: ClippedAdamW(parameters, recipe),
        folder=home / "fit",
        seed=job.seed,
        steps=recipe.steps,
        device=job.device,
        precision=job.precision,
        strategy=job.strategy,
        label=name,
    )
    model.cpu()
    kept: dict[float, nn.Module] = {}
    for epoch in range(recipe.steps // length):
        earlier = copy.deepcopy(model)
        earlier.load_state_dict(torch.load(home / f"before-{epoch}.pt", weights_only=True))
        kept[float(epoch * length)] = earlier
    return {**kept, float(recipe.steps): model}


def unseen(job: Job, draw: Draw, count: int = 10_000) -> Tasks:
    """Tasks for measuring; no training draws them."""
    return draw(count if job.scale != "smoke" else 1000, torch.Generator().manual_seed(1_000_000 * (job.seed + 1) - 1))


def linear(batch: int, generator: torch.Generator) -> Tasks:
    """The regression tasks of the paper's main setting."""
    return regression_tasks(batch, D, context=N, generator=generator)


def sines(batch: int, generator: torch.Generator) -> Tasks:
    """The sine waves of the paper's non-linear setting."""
    return sine_tasks(batch, N, generator=generator)


def sweep(
    models: Models, values: list[float], draw: Callable[[float], Tasks]
) -> dict[str, tuple[list[float], list[float]]]:
    """Loss of every model at each of ``values``, on the same tasks."""
    lines: dict[str, tuple[list[float], list[float]]] = {name: (values, []) for name in models}
    for value in values:
        tasks = draw(value)
        for name, model in models.items():
            lines[name][1].append(score(model, tasks))
    return lines


def spaced(start: float, end: float, step: float) -> list[float]:
    """``start``, ``start + step``, .. up to ``end``."""
    return [start + step * i for i in range(round((end - start) / step) + 1)]


def out_of_distribution(job: Job, models: Models) -> list[Panel]:
    """Loss beyond what was trained on: wider inputs, larger weights, other laws of x, corrupted labels."""
    coarse = 10 if job.scale == "smoke" else 1

    def draw(count: int, **law: Any) -> Tasks:
        return regression_tasks(count, D, context=N, generator=torch.Generator().manual_seed(7 + job.seed), **law)

    def panel(title: str, x_label: str, values: list[float], task: Callable[[float], Tasks]) -> Panel:
        return Panel(title, x_label, "loss", sweep(models, values, task), log_y=True)

    return [
        panel(
            "Inputs of another range (trained at 1)",
            "range r",
            spaced(0.5, 2, 0.03 * coarse),
            lambda r: draw(1000, input_range=r),
        ),
        panel(
            "Weights of another scale (trained at 1)",
            "scale",
            spaced(0.5, 5, 0.1 * coarse),
            lambda s: draw(1000, weight_scale=s),
        ),
        panel(
            "Exponential, normal and Laplace inputs",
            "scale r",
            spaced(0.5, 5, 0.05 * coarse),
            lambda r: draw(500, input_range=r, law=LAWS[-1]),
        ),
        panel(
            "Corrupted labels",
            "corrupted points of 10",
            [0.0, 2.0, 4.0, 6.0, 8.0],
            lambda k: draw(1000, corrupted=int(k)),
        ),
    ]


@dataclasses.dataclass
class Trained:
    """A trained transformer beside gradient descent with the best step size."""

    model: InContextTransformer
    gd: InContextTransformer
    snapshots: dict[float, nn.Module]
    tasks: Tasks


def train_linear(job: Job, layers: int) -> Trained:
    """Tied linear self-attention, trained by the authors' recipe; the step size is the best on the measuring tasks."""
    torch.manual_seed(job.seed)
    model, tasks = InContextTransformer(D + 1, layers), unseen(job, linear)
    snapshots = learn(job, f"{layers}-layers", model, linear, recipe_of(job))
    rate = best_rate(*tasks, steps=layers).rate
    return Trained(model, gd_weights(D, 1, N, rate, steps=layers), snapshots, tasks)


def curve(snapshots: Mapping[float, nn.Module], measure: Callable[[Any], float]) -> tuple[list[float], list[float]]:
    """A figure over the steps of a training."""
    return list(snapshots), [measure(model) for model in snapshots.values()]


def construction(job: Job) -> Measurement:
    """Generated sizes, rates, starting weights and numbers of steps: transformers in float32 against descent in float64.

    The metric counts step sizes for which descent is stable. Where it diverges it multiplies rounding errors, its own as
    a layer's; those are in the extras.
    """
    generator = torch.Generator().manual_seed(job.seed)
    count, deepest = (400, 6) if job.scale != "smoke" else (40, 3)
    stable, diverging = ({name: [0.0] * deepest for name in WAYS} for _ in range(2))
    for _ in range(count):
        steps, share, errors = construction_errors(generator, deepest)
        worst = stable if share < 1 else diverging
        for name, error in errors.items():
            worst[name][steps - 1] = max(worst[name][steps - 1], error)

    shown = gd_weights(5, 2, N, 6.0, torch.ones(2, 5)).layer()
    kq, vp = (part[0].tolist() for part in shown.merged())
    depth = [float(step + 1) for step in range(deepest)]
    lines = {name: (depth, [max(value, 1e-17) for value in values]) for name, values in stable.items()}
    panels = (
        Panel("Largest error against float64 descent", "steps", "error / max(1, |prediction|)", lines, log_y=True),
        Panel("KQ for 5 inputs, 2 outputs", "channel", "channel", kind="heat", grid=kq),
        Panel("VP with starting weights of one, rate 6", "channel", "channel", kind="heat", grid=vp),
    )
    layer, double, descent = WAYS
    extras = {
        "largest error in float64": max(stable[double]),
        "largest error where descent diverges": max(diverging[layer]),
        "largest error of float32 descent where it diverges": max(diverging[descent]),
    }
    return Measurement(max(stable[layer]), max(stable[descent]), extras, panels)


WAYS = ("layer, float32", "layer, float64", "descent itself, float32")


@torch.no_grad()
def construction_errors(generator: torch.Generator, deepest: int) -> tuple[int, float, dict[str, float]]:
    """One generated size: steps, the rate as a share of the largest stable one, and the largest error of each way."""

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    dim_x, dim_y, context, steps = number(1, 20), number(1, 4), number(1, 40), number(1, deepest)
    drawn = regression_tasks(64, dim_x, dim_y, context, generator=generator).tokens
    w0 = torch.randn(dim_y, dim_x, generator=generator)
    x, y, query = drawn[:, :-1, :dim_x], drawn[:, :-1, dim_x:], drawn[:, -1, :dim_x]
    share = 0.01 + 1.99 * float(torch.rand((), generator=generator))
    rate = share * 2 * context / float(torch.linalg.matrix_norm(x, 2).square().max())
    tokens = regression_tokens(x, y, query, w0)
    exact = regression_tokens(x.double(), y.double(), query.double(), w0.double())
    target = gradient_descent(exact, rate, steps, dim_y, w0)[-1]
    predictions = (
        gd_weights(dim_x, dim_y, context, rate, w0, steps)(tokens),
        gd_weights(dim_x, dim_y, context, rate, w0, steps, dtype=torch.float64)(exact),
        gradient_descent(tokens, rate, steps, dim_y, w0)[-1],
    )
    scale = target.abs().clamp_min(1)
    found = [float(((p.detach().double() - target).abs() / scale).max()) for p in predictions]
    return steps, share, dict(zip(WAYS, found, strict=True))


def one_step(job: Job) -> Measurement:
    """One linear layer trained by the authors' recipe, its loss as a multiple of one step of gradient descent's."""
    run = train_linear(job, 1)
    trained, gd = score(run.model, run.tasks), score(run.gd, run.tasks)
    models = {"trained layer": run.model, "gradient step": run.gd, "interpolated": interpolate(run.model, run.gd)}
    steps = list(run.snapshots)
    later = {step: model for step, model in run.snapshots.items() if step}  # nothing to interpolate before training
    training = {
        "trained layer": curve(run.snapshots, lambda model: score(model, run.tasks)),
        "interpolated": curve(later, lambda model: score(interpolate(model, run.gd), run.tasks)),
        "gradient step": (steps, [gd] * len(steps)),
    }
    path = [i / 10 for i in range(11)]
    between = [score(interpolate(run.model, run.gd, weight), run.tasks) for weight in path]
    kq, vp = normalised(run.model)
    panels = (
        Panel("While training", "training step", "loss", training),
        *out_of_distribution(job, models),
        Panel(
            "From the trained layer to the gradient step",
            "share of the gradient step",
            "loss",
            {"interpolated": (path, between)},
        ),
        iterations({"trained layer": run.model, "gradient step": run.gd}, run.tasks),
        Panel("KQ of the trained layer, scaled", "channel", "channel", kind="heat", grid=kq.tolist()),
        Panel("VP of the trained layer, scaled", "channel", "channel", kind="heat", grid=vp.tolist()),
    )
    rate = -float(normalised(run.gd)[1][-1, -1])
    extras = {
        "loss of the trained layer": trained,
        "loss of the gradient step": gd,
        "loss interpolated half way": score(models["interpolated"], run.tasks),
        "expected loss of the best step, closed form": optimal_rate(D, N, 1 / 12, 1 / 80).loss,
        "best rate / N, scan": rate,
        "best rate / N, closed form": optimal_rate(D, N, 1 / 12, 1 / 80).rate / N,
        "y entry of VP, trained": float(vp[-1, -1]),
        "largest deviation of KQ from the identity": float((kq[:D, :D] - torch.eye(D)).abs().max()),
        "loss of least squares": least_squares(run.tasks),
        **{f"{name}: loss at r = 2": panels[1].lines[name][1][-1] for name in models},
    }
    return Measurement(trained / gd, 1.0, extras, panels)


@torch.no_grad()
def iterations(
    models: dict[str, InContextTransformer], tasks: Tasks, steps: int = 50, dampening: float = 0.75
) -> Panel:
    """Loss after each of 50 dampened uses of the one layer."""
    few = Tasks(tasks.tokens[:1000], tasks.target[:1000])
    lines = {}
    for name, model in models.items():
        states = iterated(model, steps, dampening).trace(few.tokens)
        losses = [float(half_mse(-h[:, -1, -1:], few.target)) for h, _ in states]
        lines[name] = ([float(step + 1) for step in range(steps)], losses)
    return Panel(f"Used {steps} times, dampened by {dampening}", "uses", "loss", lines, log_y=True)


def least_squares(tasks: Tasks) -> float:
    """Loss of the exact least-squares solution of each task, in float64."""
    tokens = tasks.tokens.double()
    weight = torch.linalg.lstsq(tokens[:, :-1, :D], tokens[:, :-1, D:]).solution
    return float(half_mse((tokens[:, -1:, :D] @ weight)[:, 0], tasks.target))


def aligned(job: Job) -> Measurement:
    """The same training; mean cosine of the sensitivities of the trained layer and of the gradient step."""
    run = train_linear(job, 1)
    at = {step: alignment(model, run.gd, run.tasks.tokens) for step, model in run.snapshots.items()}
    steps = list(at)

    def over_training(key: str) -> dict[str, tuple[list[float], list[float]]]:
        return {"trained layer beside the gradient step": (steps, [found[key] for found in at.values()])}

    other = regression_tasks(1000, D, context=N, law=LAWS[-1], generator=torch.Generator().manual_seed(7 + job.seed))
    panels = (
        Panel("Cosine of sensitivities", "training step", "cosine", over_training("cosine")),
        Panel(
            "Difference of sensitivities", "training step", "mean L2 distance", over_training("sensitivity_difference")
        ),
        Panel("Difference of predictions", "training step", "mean distance", over_training("prediction_difference")),
    )
    last = at[steps[-1]]
    extras = {
        "difference of sensitivities": last["sensitivity_difference"],
        "difference of predictions": last["prediction_difference"],
        "cosine on exponential, normal and Laplace inputs": alignment(run.model, run.gd, other.tokens)["cosine"],
    }
    return Measurement(last["cosine"], at[0.0]["cosine"], extras, panels)


def two_steps(job: Job) -> Measurement:
    """Two tied layers beside GD++ with four learned scalars; both losses as multiples of GD++'s."""
    run = train_linear(job, 2)
    scan = best_rate(*run.tasks, steps=2, curvature=1 / N**2)
    plus = LearnedGDPlusPlus(N, scan.rate, scan.rate / N**2)
    recipe = recipe_of(job, steps=1000, batch=512, betas=(0.9, 0.999))
    course = learn(job, "gd++", plus, linear, recipe)
    reference = plus.module(D)
    trained, plain, learned = (score(model, run.tasks) for model in (run.model, run.gd, reference))
    best, bend = min(
        (best_rate(*run.tasks, steps=2, rates=torch.arange(2.0, 25, 0.5), curvature=c / N**2).loss, c / N**2)
        for c in (spaced(0.5, 2, 0.1) if job.scale != "smoke" else (1.0, 1.3))
    )
    models = {"trained layers": run.model, "GD++": reference, "two gradient steps": run.gd}
    steps = list(run.snapshots)
    training = {
        "trained layers": curve(run.snapshots, lambda model: score(model, run.tasks)),
        "GD++": (steps, [learned] * len(steps)),
        "two gradient steps": (steps, [plain] * len(steps)),
    }
    kq, vp = normalised(run.model)
    panels = (
        Panel("While training", "training step", "loss", training),
        Panel(
            "Cosine of sensitivities",
            "training step",
            "cosine",
            {
                "with GD++": curve(
                    run.snapshots, lambda model: alignment(model, reference, run.tasks.tokens)["cosine"]
                ),
                "with two gradient steps": curve(
                    run.snapshots, lambda model: alignment(model, run.gd, run.tasks.tokens)["cosine"]
                ),
            },
        ),
        *out_of_distribution(job, models),
        Panel(
            "GD++ while its scalars are learned",
            "training step",
            "loss",
            {"GD++": curve(course, lambda m: score(m, run.tasks))},
        ),
        Panel("KQ of the trained layer, scaled", "channel", "channel", kind="heat", grid=kq.tolist()),
        Panel("VP of the trained layer, scaled", "channel", "channel", kind="heat", grid=vp.tolist()),
    )
    towards = {name: alignment(run.model, other, run.tasks.tokens) for name, other in list(models.items())[1:]}
    extras = {
        "loss of the trained layers": trained,
        "loss of GD++, learned": learned,
        "loss of GD++, best of a scan": best,
        "gamma / rate of GD++, best of a scan": bend,
        "loss of two gradient steps": plain,
        "loss half way to GD++": score(interpolate(run.model, reference), run.tasks),
        **{f"cosine with {name}": found["cosine"] for name, found in towards.items()},
        **{f"{name}: loss at r = 2": panels[2].lines[name][1][-1] for name in models},
    }
    return Measurement(trained / learned, plain / learned, extras, panels)


def softmax_heads(job: Job) -> Measurement:
    """One softmax layer with two heads and one with a single head; losses as multiples of one step of descent's."""
    tasks = unseen(job, linear)
    gd = gd_weights(D, 1, N, best_rate(*tasks).rate)
    reached = score(gd, tasks)
    lines, models = {}, {}
    for heads in (1, 2):
        torch.manual_seed(job.seed)
        name = "one softmax head" if heads == 1 else "two softmax heads"
        models[name] = InContextTransformer(D + 1, heads=heads, softmax=True)
        snapshots = learn(job, f"{heads}-heads", models[name], linear, recipe_of(job))
        lines[name] = curve(snapshots, lambda model: score(model, tasks))
    lines["gradient step"] = (lines["one softmax head"][0], [reached] * len(lines["one softmax head"][0]))
    losses = {name: score(model, tasks) for name, model in models.items()}
    cosines = {name: alignment(model, gd, tasks.tokens)["cosine"] for name, model in models.items()}
    extras = {f"{name}: loss": value for name, value in losses.items()}
    extras |= {f"{name}: cosine with the gradient step": value for name, value in cosines.items()}
    panels = (
        Panel("While training", "training step", "loss", lines),
        *out_of_distribution(job, {**models, "gradient step": gd}),
    )
    return Measurement(losses["two softmax heads"] / reached, losses["one softmax head"] / reached, extras, panels)


# Steps and tasks per step; on a CPU as many as fit beside the other claims.
SINE_BUDGET = {"smoke": (120, 256), "cpu": (8000, 128), "paper": (20_000, 2048)}


def nonlinear(job: Job) -> Measurement:
    """An MLP and one linear layer on sine waves; beside a linear learner, and descent on the head of a trained MLP."""
    steps, batch = SINE_BUDGET[job.scale]
    tasks = unseen(job, sines)
    torch.manual_seed(job.seed)
    model = InContextTransformer(40, embed=TokenMLP(2, 40, 160))
    course = learn(job, "mlp", model, sines, recipe_of(job, steps=steps, batch=batch, clip=100.0))
    torch.manual_seed(job.seed)
    head = gd_weights(39, 1, N, 0.1, embed=TokenMLP(2, 40, 160))
    head.attention.requires_grad_(False)
    recipe = recipe_of(job, steps=steps, batch=batch, clip=100.0, rate=3e-4, betas=(0.9, 0.999))
    twin = learn(job, "gd-on-the-head", head, sines, recipe)
    baseline = linear_learner(tasks)
    at = list(course)
    training = {
        "MLP and attention": curve(course, lambda m: score(m, tasks)),
        "MLP and a gradient step on its head": curve(twin, lambda m: score(m, tasks)),
        "linear learner": (at, [baseline] * len(at)),
    }
    found = alignment(model, head, tasks.tokens)
    extras = {
        "loss of the MLP and a gradient step on its head": score(head, tasks),
        "loss of predicting zero": float(half_mse(torch.zeros_like(tasks.target), tasks.target)),
        "cosine of sensitivities of the two": found["cosine"],
        "difference of predictions of the two": found["prediction_difference"],
    }
    panels = (
        Panel("While training", "training step", "loss", training, log_y=True),
        wave({"MLP and attention": model, "MLP and a gradient step": head}),
    )
    return Measurement(score(model, tasks), baseline, extras, panels)


def linear_learner(tasks: Tasks) -> float:
    """Loss of ridge regression with an intercept, in the context of each task; the two penalties are the best of a grid."""
    tokens = tasks.tokens.double()
    x = torch.stack([torch.ones_like(tokens[..., 0]), tokens[..., 0]], dim=-1)
    gram, moment = x[:, :-1].mT @ x[:, :-1], x[:, :-1].mT @ tokens[:, :-1, 1:]
    penalties = [0.0, *(10.0**e for e in torch.arange(-2, 4.1, 0.5).tolist())]
    losses = []
    for intercept in penalties:
        for slope in penalties:
            weight = torch.linalg.solve(gram + torch.diag(torch.tensor([intercept, slope]).double()), moment)
            losses.append(float(half_mse((x[:, -1:] @ weight)[:, 0], tasks.target)))
    return min(losses)


@torch.no_grad()
def wave(models: Models) -> Panel:
    """One sine wave from ten points, and what the models predict along it."""
    one = sine_tasks(1, N, generator=torch.Generator().manual_seed(3)).tokens
    along = torch.linspace(-5, 5, 101)
    tokens = one.repeat(len(along), 1, 1)
    tokens[:, -1, 0] = along
    # A wave is a combination of sine and cosine; ten points without noise give it exactly.
    basis = torch.stack([one[0, :-1, 0].sin(), one[0, :-1, 0].cos()], dim=1)
    truth = torch.stack([along.sin(), along.cos()], dim=1) @ torch.linalg.lstsq(basis, one[0, :-1, 1:]).solution
    xs = along.tolist()
    lines = {"truth": (xs, truth[:, 0].tolist())}
    lines |= {name: (xs, model(tokens)[:, 0].tolist()) for name, model in models.items()}
    return Panel("One wave, from ten points", "x", "y", lines)


def plan_construction() -> Plan:
    """Nothing is trained."""
    return _plan(gd_weights(20, 4, 40, 1.0, steps=6), (64, 41, 24), "construction", "one batch of the largest kind")


def plan_one_layer() -> Plan:
    """The authors' one-layer training."""
    return _plan(InContextTransformer(D + 1), (2048, N + 1, D + 1), "one_step", "one of 5,000 steps at batch 2,048")


def plan_two_layers() -> Plan:
    """The authors' two-layer training."""
    return _plan(InContextTransformer(D + 1, 2), (2048, N + 1, D + 1), "two_steps", "one of 5,000 steps at batch 2,048")


def plan_softmax() -> Plan:
    """Two softmax heads."""
    model = InContextTransformer(D + 1, heads=2, softmax=True)
    return _plan(model, (2048, N + 1, D + 1), "softmax_heads", "one of 5,000 steps at batch 2,048")


def plan_nonlinear() -> Plan:
    """The authors' sine training."""
    model = InContextTransformer(40, embed=TokenMLP(2, 40, 160))
    return _plan(model, (2048, N + 1, 2), "nonlinear", "one of 20,000 steps at batch 2,048")


def _plan(model: nn.Module, shape: tuple[int, ...], claim: str, notes: str) -> Plan:
    held = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    def one_step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = model(torch.rand(shape)).sum()
        out.backward()

    flops = count_flops(one_step)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Plan(parameters, flops, 16 * parameters + held, f"everyformer run icl_gd.{claim} --scale paper", notes)
