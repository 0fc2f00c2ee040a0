"""The claims of IFactFormer-m: forecasts of a plane turbulent flow and of a channel, near and far, and their time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import flow_statistics
from everyformer.lab.channel import ChannelFlow
from everyformer.lab.growth import exponent
from everyformer.lab.measure import count_flops, count_parameters, forward_pass, median, side_by_side
from everyformer.lab.turbulence import KolmogorovFlow
from everyformer.papers.ifactformer import study
from everyformer.papers.ifactformer.bench import Everywhere
from everyformer.papers.ifactformer.forecast import Forecaster, relative_error
from everyformer.papers.ifactformer.model import ifactformer_m
from everyformer.papers.ifactformer.study import FAILED, MODELS, ORIGINAL, OURS, SIZES, Flow, Life, Where

NEAR = 20  # snapshots of a short rollout
NOTHING = "no change"


def one_step(job: Job) -> Measurement:
    """Error of the next snapshot, beside that of the best of three other models."""
    truth = study.data("kolmogorov", job.scale).test
    errors, made = _errors(job, "kolmogorov"), _rolled(job, "kolmogorov")
    interval = SIZES["kolmogorov"][job.scale].interval
    curves = {}
    for name, flow in {**made, NOTHING: truth[:, :1].expand_as(truth)}.items():
        last = min(NEAR, flow.shape[1] - 1)
        error = [float(relative_error(flow[:, at], truth[:, at]).mean()) for at in range(1, last + 1)]
        curves[name] = ([interval * at for at in range(1, last + 1)], error)
    extras = {f"error of the next snapshot, {name}": error for name, error in errors.items()}
    extras |= {f"numbers in the model, {name}": float(count) for name, count in _sizes(job, "kolmogorov").items()}
    for at in (2, 5, 10, NEAR):
        extras |= {f"error after {at} snapshots, {name}": ys[at - 1]
                   for name, (_, ys) in curves.items() if len(ys) >= at}  # fmt: skip
    panels = (Panel("Error of a rollout", "time", "relative error", curves), _film(truth, made, 5))
    return Measurement(errors[OURS], _best(errors), extras, panels)


def parallel(job: Job) -> Measurement:
    """Error of the next snapshot with the axes side by side, and with one after the other."""
    shown = study.data("kolmogorov", job.scale)
    nets = {name: study.forecaster(job, "kolmogorov", name) for name in (OURS, ORIGINAL)}
    errors = {name: study.one_step(net, shown.test, job.device) for name, net in nets.items()}
    extras = {f"time of {name} for that of {OURS}": value for name, value in _times_of_training(job, nets).items()}
    panels = tuple(_kernel(name, net, shown.test) for name, net in nets.items())
    return Measurement(errors[OURS], errors[ORIGINAL], extras, panels)


def stability(job: Job) -> Measurement:
    """Error of the energy spectrum at the end of a long rollout; of one that is not alive, a decade."""
    truth = study.data("kolmogorov", job.scale).test
    made = _rolled(job, "kolmogorov")
    lives = _lives(job, "kolmogorov", made, _errors(job, "kolmogorov"))
    end = study.late(truth, truth.shape[1])
    true = flow_statistics.energy_spectrum(end)[1:-1]
    spectra, errors = {"truth": true}, {}
    for name, flow in made.items():
        found = flow_statistics.energy_spectrum(study.late(flow, truth.shape[1]))[1:-1]
        spectra[name] = found.clamp(min=1e-9 * true)  # a field that has died out has a logarithm, too
        errors[name] = float((spectra[name] / true).log10().abs().mean())
    scores = _scores(errors, lives)
    waves = [float(wave) for wave in range(1, len(true) + 1)]
    lines = {name: (waves, spectrum.tolist()) for name, spectrum in spectra.items()}
    panels = (
        Panel("Energy at the end", "wave number", "energy", lines, log_x=True, log_y=True),
        _pulse(truth, made, SIZES["kolmogorov"][job.scale].interval),
        _film(truth, made, truth.shape[1] - 1),
    )
    extras = {f"error of the spectrum whether alive or not, {name} (decades)": value for name, value in errors.items()}
    return Measurement(scores[OURS], _best(scores), extras | _told(lives), panels)


def channel(job: Job) -> Measurement:
    """Error of mean profile, fluctuations and stress in a long rollout of a channel; of one that is not alive, all."""
    shown = study.data("channel", job.scale)
    truth, y = shown.test, shown.coordinates[1]
    made, one = _rolled(job, "channel"), _errors(job, "channel")
    lives = _lives(job, "channel", made, one)
    statistics: dict[str, Callable[[Flow], Tensor]] = {
        "mean velocity": lambda flow: flow_statistics.mean_profile(flow, y, no_slip=False),
        "streamwise fluctuation": lambda flow: flow_statistics.rms(flow, y, no_slip=False)[:, 0],
        "wall-normal fluctuation": lambda flow: flow_statistics.rms(flow, y, no_slip=False)[:, 1],
        "spanwise fluctuation": lambda flow: flow_statistics.rms(flow, y, no_slip=False)[:, 2],
        "Reynolds stress": lambda flow: flow_statistics.reynolds_stress(flow, y, no_slip=False),
    }
    ends = {name: study.late(flow, truth.shape[1]) for name, flow in {"truth": truth, **made}.items()}
    profiles = {what: {name: of(end) for name, end in ends.items()} for what, of in statistics.items()}
    parts = {
        name: {what: float((found[name] - found["truth"]).norm() / found["truth"].norm())
               for what, found in profiles.items()}
        for name in made
    }  # fmt: skip
    errors = {name: sum(part.values()) / len(part) for name, part in parts.items()}
    scores = _scores(errors, lives)
    panels = tuple(
        Panel(what, "distance from the middle", what, {name: (y.tolist(), line.tolist()) for name, line in found.items()})
        for what, found in profiles.items() if what in ("mean velocity", "streamwise fluctuation", "Reynolds stress")
    )  # fmt: skip
    extras = {f"error of the next snapshot, {name}": value for name, value in one.items()}
    extras |= {f"error of {what} whether alive or not, {name}": value
               for name, part in parts.items() for what, value in part.items()}  # fmt: skip
    return Measurement(scores[OURS], _best(scores), extras | _told(lives), panels)


def speed(job: Job) -> Measurement:
    """Time of one snapshot of a channel ahead, by the model and by the solver that made its data; both for one run."""
    seconds: dict[str, float] = {}
    for where, solver in (("channel", _channel(job)), ("plane flow", _plane(job))):
        flow: Where = "channel" if where == "channel" else "kolmogorov"
        size, shown = SIZES[flow][job.scale], study.data(flow, job.scale)
        start = shown.test[:1, :1].to(job.device)
        candidates = {"solver": solver}
        for name in MODELS:
            axes = shown.coordinates if name in (OURS, ORIGINAL) else ()
            net = study.network(size, name, shown.test.shape[-1])
            candidates[name] = forward_pass(Forecaster(net, shown.test, axes).to(job.device).eval(), start)
        times = side_by_side(candidates, rounds=2 if job.scale == "smoke" else 9, device=job.device)
        seconds |= {f"{where}, {name}": median(found) for name, found in times.items()}
    values = list(seconds.values())
    half = len(values) // 2
    bars = {
        "channel": ([float(place) for place in range(half)], values[:half]),
        "plane flow": ([float(place) for place in range(half)], values[half:]),
    }
    panel = Panel("One snapshot ahead", "", "seconds", bars, kind="bar", log_y=True, ticks=["solver", *MODELS])
    extras = {f"seconds, {name}": value for name, value in seconds.items()}
    lines = _lengthened(job)
    for name, (points, spent) in lines.items():
        extras[f"exponent of the time over points along x, {name}"] = exponent(points[-2:], spent[-2:])
    growth = Panel("A channel that grows along x", "points along x", "seconds", lines, log_x=True, log_y=True)
    return Measurement(seconds[f"channel, {OURS}"], seconds["channel, solver"], extras, (panel, growth))


def _lengthened(job: Job) -> dict[str, tuple[list[float], list[float]]]:
    """Time of one snapshot ahead over the points along one axis; attention between all points up to 4 times."""
    grid, factors = ((8, 9, 8), (1, 2)) if job.scale == "smoke" else ((12, 21, 12), (1, 2, 4, 8, 16))
    size = SIZES["channel"][job.scale]
    torch.manual_seed(job.seed)
    axial = study.network(size, OURS, 3).to(job.device).eval()
    between_all = Everywhere(size.dim, size.heads, size.iterations).to(job.device).eval()
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for factor in factors:
        points = (factor * grid[0], *grid[1:])
        flow = torch.randn(1, 1, *points, 3, device=job.device)
        axes = [torch.linspace(0, 1, count, device=job.device) for count in points]
        candidates = {OURS: forward_pass(axial, flow, axes)}
        if factor <= 4:
            candidates["attention between all points"] = forward_pass(between_all, flow)
        for name, found in side_by_side(candidates, rounds=2 if job.scale == "smoke" else 5, device=job.device).items():
            line = lines.setdefault(name, ([], []))
            line[0].append(float(points[0]))
            line[1].append(median(found))
    return lines


def _channel(job: Job) -> Callable[[], object]:
    grid = (8, 17, 8) if job.scale == "smoke" else (24, 41, 24)
    solver = ChannelFlow(grid, reynolds=1800.0, dt=study.WALL_STEP, device=job.device)
    start = solver.initial(1, torch.Generator().manual_seed(job.seed))
    count = round(SIZES["channel"][job.scale].interval / solver.dt)
    return lambda: solver.step(start, count)


def _plane(job: Job) -> Callable[[], object]:
    solver = KolmogorovFlow(32 if job.scale == "smoke" else 64, dt=study.PLANE_STEP, device=job.device)
    start = solver.initial(1, torch.Generator().manual_seed(job.seed))
    count = round(SIZES["kolmogorov"][job.scale].interval / solver.dt)
    return lambda: solver.step(start, count)


def _errors(job: Job, where: Where) -> dict[str, float]:
    """Error of the next snapshot of the test flow, by model and for no change."""
    truth = study.data(where, job.scale).test
    errors = {name: study.one_step(study.forecaster(job, where, name), truth, job.device) for name in MODELS}
    return {**errors, NOTHING: study.one_step(study.unchanged, truth)}


def _rolled(job: Job, where: Where) -> dict[str, Flow]:
    truth = study.data(where, job.scale).test
    return {name: study.rolled(study.forecaster(job, where, name), truth, job.device) for name in MODELS}


def _lives(job: Job, where: Where, made: dict[str, Flow], errors: dict[str, float]) -> dict[str, Life]:
    truth, interval = study.data(where, job.scale).test, SIZES[where][job.scale].interval
    return {name: study.life(made[name], truth, interval, errors[name] / errors[NOTHING]) for name in MODELS}


def _scores(errors: dict[str, float], lives: dict[str, Life]) -> dict[str, float]:
    """The errors of rollouts that are alive, at most ``FAILED``; of the others, that."""
    return {name: min(errors[name], FAILED) if lives[name].alive else FAILED for name in MODELS}


def _best(values: dict[str, float]) -> float:
    return min(values[name] for name in MODELS if name != OURS)


def _told(lives: dict[str, Life]) -> dict[str, float]:
    told: dict[str, float] = {}
    for name, life in lives.items():
        told |= {
            f"alive, {name}": float(life.alive),
            f"error beside that of no change, {name}": life.one_step,
            f"late change beside the true one, {name}": life.change,
            f"late correlation time beside the true one, {name}": life.memory,
            f"late fluctuation beside the true one, {name}": life.rms,
        }
    return told


def _sizes(job: Job, where: Where) -> dict[str, int]:
    """Real numbers among the parameters: a complex one counts twice."""
    shown = study.data(where, job.scale)
    nets = {name: study.network(SIZES[where][job.scale], name, shown.test.shape[-1]) for name in MODELS}
    return {name: sum(p.numel() * (2 if p.is_complex() else 1) for p in net.parameters()) for name, net in nets.items()}


def _times_of_training(job: Job, nets: dict[str, Forecaster]) -> dict[str, float]:
    """CPU time of one training step beside that of the first model."""
    shown = study.data("kolmogorov", job.scale)
    batch = SIZES["kolmogorov"][job.scale].batch
    window, target = shown.training[:1, :batch].movedim(1, 0).to(job.device), shown.training[0, 1 : batch + 1]
    seconds = {}
    for name, net in nets.items():
        net.requires_grad_()
        weights = [parameter for parameter in net.parameters() if parameter.requires_grad]
        began = time.process_time()
        for _ in range(3):
            torch.autograd.grad(study.loss(net, (window, target.to(job.device))), weights)
        seconds[name] = time.process_time() - began
        net.requires_grad_(False)
    first = next(iter(seconds.values()))
    return {name: value / first for name, value in seconds.items()}


def vorticity(velocity: Float[Tensor, "*batch x y 2"]) -> Float[Tensor, "*batch x y"]:
    """Curl of a velocity in a periodic square of side 2 pi."""
    waves = torch.fft.fft2(velocity, dim=(-3, -2))
    number = 1j * torch.fft.fftfreq(velocity.shape[-2], 1 / velocity.shape[-2])
    return torch.fft.ifft2(number[:, None] * waves[..., 1] - number * waves[..., 0]).real


def _film(truth: Flow, made: dict[str, Flow], last: int) -> Panel:
    """Vorticity of the first trajectory, models side by side, at an early snapshot and below it at a later one."""
    deviation = vorticity(truth[0]).std()
    chosen = (1, min(last, truth.shape[1] - 1))
    blank = torch.zeros_like(truth[0, 0])
    columns = [
        torch.cat([vorticity(flow[0, at] if at < flow.shape[1] else blank) / deviation for at in chosen])
        for flow in (truth, *made.values())
    ]
    grid = [[round(value, 1) for value in row] for row in torch.cat(columns, dim=1).clamp(-4, 4).tolist()]
    names = ", ".join(("truth", *made))
    return Panel(f"Vorticity after {chosen[0]} and {chosen[1]} snapshots: {names}", "x", "y", kind="heat", grid=grid)


def _pulse(truth: Flow, made: dict[str, Flow], interval: float) -> Panel:
    """How much flows change from snapshot to snapshot, in tens of means over time."""
    lines = {}
    for name, flow in {"truth": truth, **made}.items():
        if flow.shape[1] < 2:  # broken at once
            continue
        changes = relative_error(flow[:, 1:].flatten(0, 1), flow[:, :-1].flatten(0, 1)).unflatten(0, (len(flow), -1))
        length = max(1, (truth.shape[1] - 1) // 10)
        means = [part.mean().item() for part in changes.split(length, dim=1)]
        lines[name] = ([interval * length * (place + 0.5) for place in range(len(means))], means)
    return Panel("Is it alive?", "time", "change from snapshot to snapshot", lines)


def _kernel(name: str, net: Forecaster, truth: Flow) -> Panel:
    """The kernel of the first axis and head when the model meets the first field."""
    network = net.network
    coordinates = [net.get_buffer(f"axis_{axis}") for axis in range(net.axes)]
    scaled = (truth[:1, :1].to(net.mean_in) - net.mean_in) / net.deviation_in
    with torch.no_grad():
        entered = network.lift(scaled) + network.places[0](coordinates)  # type: ignore[operator, index]
        kernel = network.blocks[0].kernels(entered, coordinates)[0][0, 0]  # type: ignore[index, union-attr, operator]
    scaled_kernel = kernel / kernel.abs().max()
    grid = [[round(value, 2) for value in row] for row in scaled_kernel.tolist()]
    return Panel(f"Kernel along x, {name}", "from", "to", kind="heat", grid=grid)


def plan() -> Plan:
    """One training step of the released IFactFormer-m on filtered channel flow, 32 x 33 x 16 points."""
    with torch.device("meta"):
        model, field = ifactformer_m(), torch.zeros(1, 1, 32, 33, 16, 3)
        coordinates = [torch.zeros(points) for points in (32, 33, 16)]
    flops = count_flops(lambda: model(field, coordinates).sum().backward())
    parameters, batch, points = count_parameters(model), 5, 32 * 33 * 16
    # Of an iteration: values, three axes' results, and some fields of the model's width.
    activations = 4 * batch * points * model.iterations * (4 * 480 + 10 * 96)
    return Plan(
        parameters,
        float(flops * batch),
        16.0 * parameters + activations,
        "everyformer run ifactformer --scale paper --device cuda",
        "one step at batch 5, float32; --scale paper here simulates its own flows: the authors' filtered channel flow "
        "(Kaggle, aifluid/coarsened-fdns-data-chl) is read by forecast.read_flow",
    )
