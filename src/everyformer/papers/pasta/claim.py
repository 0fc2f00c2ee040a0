"""The claims of PASTA on small robots: what a model of their trajectories knows, and what it is worth to a task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.measure import count_flops, count_parameters
from everyformer.lab.trajectories import Gravity, SensorFailure, Trajectories
from everyformer.papers.pasta.downstream import TD3BC, Features, Tuning, adapted, mlp, trainable
from everyformer.papers.pasta.model import Pasta
from everyformer.papers.pasta.objectives import Windows, WindowSampler, pretraining_loss
from everyformer.papers.pasta.study import (
    COMPONENT,
    MODALITY,
    NAMES,
    SIZES,
    Cloned,
    cloned,
    encoder,
    of_model,
    pretrained,
    robot,
    scores,
    train_heads,
    tuned,
)
from everyformer.papers.pasta.tokenizer import ComponentTokenizer

GRAVITIES = (0.5, 0.8, 1.2, 1.5)


def sensors(job: Job) -> Measurement:
    """Squared error of a lost sensor's newest value, in its variance, from the others' readings in a window."""
    known = robot(job.scale)
    component, modality = pretrained(job, "c-bert"), pretrained(job, "m-bert")
    shown = _windows(job, known.shown, component.context, 8192)
    held = _windows(job, known.held, component.context)
    truth = known.tokenizer.standardised(held.observations[:, -1])
    spread = truth.var(0)
    errors: dict[str, list[float]] = {name: [] for name in ("C-BERT", "state hidden", "state shown", "linear", "MLP")}
    network = _regression(job, shown, known.tokenizer)
    for index in range(known.tokenizer.sensors):
        found = {
            "C-BERT": _inferred(component, held, index),
            "state hidden": _inferred(modality, held, index),
            "state shown": _read_back(modality, held, index),
            "linear": _linear(shown, held, index, known.tokenizer),
            "MLP": network(held, index),
        }
        for name, value in found.items():
            errors[name].append(float((value - truth[:, index]).square().mean() / spread[index]))
    means = {name: float(torch.tensor(values).mean()) for name, values in errors.items()}
    places = [float(index) for index in range(known.tokenizer.sensors)]
    panel = Panel("A lost sensor, inferred from the others", "sensor", "squared error / variance",
                  {name: (places, values) for name, values in errors.items()}, log_y=True)  # fmt: skip
    best = min(means["state hidden"], means["state shown"])
    return Measurement(means["C-BERT"], best, _named("normalised error", means), (panel,))


def tokens(job: Job) -> Measurement:
    """Return of policies cloned on frozen features, component tokens beside tokens of whole states."""
    kinds = (*COMPONENT, *MODALITY, "raw", "untrained")
    found = {NAMES[kind]: float(scores(job, _clone(job, kind).act)[0]) for kind in kinds}
    method, baseline = (_mean(found, kinds) for kinds in (COMPONENT, MODALITY))
    return Measurement(method, baseline, _named("return", found), (_bars("Cloned policies", found),))


def failure(job: Job) -> Measurement:
    """Return of policies cloned and tested without one of the sensors, the mean over sensors."""
    known = robot(job.scale).tokenizer
    lost: list[Sequence[int]] = [(), *((index,) for index in range(known.sensors))]
    wraps = [lambda env: env, *(_failing(index, float(known.mean[index])) for index in range(known.sensors))]
    found = {
        NAMES[kind]: scores(job, cloned(job, encoder(job, kind), lost).act, wraps=wraps)
        for kind in ("c-bert", "m-bert", "raw")
    }
    extras = _named("return without a sensor", {name: float(values[1:].mean()) for name, values in found.items()})
    extras |= _named("return with all sensors", {name: float(values[0]) for name, values in found.items()})
    drops = {name: float(values[0] - values[1:].mean()) for name, values in found.items()}
    extras |= _named("drop", drops)
    places = [float(index) for index in range(known.sensors)]
    panel = Panel("Return without a sensor", "sensor that is lost", "normalised return",
                  {name: (places, values[1:].tolist()) for name, values in found.items()})  # fmt: skip
    method, baseline = (float(found[NAMES[kind]][1:].mean()) for kind in ("c-bert", "m-bert"))
    return Measurement(method, baseline, extras, (panel, _bars("Drop from all sensors", drops)))


def peft(job: Job) -> Measurement:
    """Return of a policy whose model is tuned by IA3 with it, as a share of the return where all is tuned."""
    net, env = pretrained(job, "c-bert"), robot(job.scale).env
    tunings: tuple[Tuning, ...] = ("frozen", "ia3", "lora", "full")
    found: dict[str, float] = {}
    counts: dict[str, float] = {}
    for tuning in tunings:
        network = adapted(net, tuning)
        counts[tuning] = float(trainable(network))
        found[tuning] = float(scores(job, tuned(job, Features(network, domain=env), net.size.dim))[0])
    found[NAMES["raw"]] = float(scores(job, _clone(job, "raw").act)[0])
    extras = _named("return", found) | _named("trained parameters beside the head", counts)
    share = 100 * found["ia3"] / found["full"]
    return Measurement(share, 100.0, extras, (_bars("Tuned with the head", found),))


def domains(job: Job) -> Measurement:
    """Return of policies cloned on features of a model of several robots, beside a model of one, at equal updates."""
    count, known = len(SIZES[job.scale].domains), robot(job.scale)
    held = _windows(job, known.held, pretrained(job, "c-bert").context)
    nets = {
        "one robot": pretrained(job, "c-bert"),
        "several robots": pretrained(job, "c-bert", robots=count),
        "several robots, as many updates for each": pretrained(job, "c-bert", robots=count, updates=count),
    }
    found, losses = {}, {}
    for name, net in nets.items():
        found[name] = float(scores(job, cloned(job, of_model(net, known.env), [()]).act)[0])
        with torch.inference_mode():
            shown = _beside(net, held)
            losses[name] = float(pretraining_loss(net, shown, torch.Generator().manual_seed(job.seed)))
    found[NAMES["raw"]] = float(scores(job, _clone(job, "raw").act)[0])
    extras = _named("return", found) | _named("loss on held back windows", losses)
    panels = (_bars("Cloned policies", found), _bars("Held back windows", losses, "loss (nats)"))
    return Measurement(found["several robots"], found["one robot"], extras, panels)


def dynamics(job: Job) -> Measurement:
    """Return of policies cloned in one gravity and tested in others, the mean over those."""
    factors = (1.0, *GRAVITIES)
    wraps = [functools.partial(Gravity, factor=factor) for factor in factors]
    found = {}
    for kind in ("c-bert", "m-bert", "raw"):
        clone = _clone(job, kind)
        found[NAMES[kind]] = scores(job, clone.act, wraps=wraps)
    extras = _named("return in other gravities", {name: float(values[1:].mean()) for name, values in found.items()})
    extras |= _named("return in its own gravity", {name: float(values[0]) for name, values in found.items()})
    order = sorted(range(len(factors)), key=lambda index: factors[index])
    lines = {
        name: ([factors[at] for at in order], [float(values[at]) for at in order]) for name, values in found.items()
    }
    panel = Panel("Return in other gravities", "gravity, as a multiple of its own", "normalised return", lines)
    method, baseline = (float(found[NAMES[kind]][1:].mean()) for kind in ("c-bert", "m-bert"))
    return Measurement(method, baseline, extras, (panel,))


def offline(job: Job) -> Measurement:
    """Return of TD3 with cloning on all policies' trajectories, on frozen features and on the raw observation."""
    found = {
        NAMES[kind]: float(scores(job, _offline(job, kind))[0]) for kind in ("c-bert", "m-bert", "raw", "untrained")
    }
    best = robot(job.scale).shown.returns()
    extras = _named("return", found) | {"mean return of the data, as it is": float(best.mean())}
    return Measurement(found[NAMES["c-bert"]], found[NAMES["raw"]], extras, (_bars("TD3 with cloning", found),))


def _clone(job: Job, kind: str) -> Cloned:
    return cloned(job, encoder(job, kind), [()])


def _offline(job: Job, kind: str) -> Callable[[Tensor], Tensor]:
    """An actor trained offline on features of a kind."""
    data, encode = robot(job.scale).shown, encoder(job, kind)
    known = robot(job.scale).tokenizer
    state, following = (encode(part, ()).clone() for part in (data.observations, data.following))
    mean, std = state.mean(0), state.std(0).clamp(min=1e-3)
    state, following = (state - mean) / std, (following - mean) / std
    action, reward = (data.actions - known.centre) / known.reach, data.rewards / data.rewards.std()
    torch.manual_seed(job.seed)
    learner = TD3BC(state.shape[-1], action.shape[-1], hidden=SIZES[job.scale].hidden)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        chosen = torch.randint(len(state), (128,), generator=generator)
        noise = torch.randn(128, action.shape[-1], generator=generator)
        fields = (state, action, reward, following, data.terminated)
        return *(field[chosen] for field in fields), noise

    def step(net: nn.Module, batch: tuple[Any, ...]) -> Tensor:
        learner.follow()
        return learner.loss(*batch)

    train_heads(job, learner, step, draw, SIZES[job.scale].offline)

    @torch.no_grad()
    def act(seen: Tensor) -> Tensor:
        told = learner.actor((encode(seen, ()) - mean) / std).tanh()
        return told * known.reach + known.centre

    return act


def _failing(index: int, value: float) -> Callable[[Any], Any]:
    return lambda env: SensorFailure(env, index, value=value)


def _windows(job: Job, data: Trajectories, steps: int, count: int = 1024) -> Windows:
    """Windows of the first robot, drawn alike for all models."""
    return WindowSampler(data, steps, robot(job.scale).env).draw(count, torch.Generator().manual_seed(0))


def _inferred(net: Pasta, windows: Windows, index: int) -> Float[Tensor, " windows"]:
    """A sensor's newest standardised value where the model sees it at no step: for whole states, none of the state."""
    windows = _beside(net, windows)
    _, tokenizer = net.tokenizer_of(windows.domain)
    shape = (*windows.observations.shape[:2], sum(net.slots(windows.domain)))
    hidden = torch.zeros(shape, dtype=torch.bool, device=net.mask.device)
    if net.by_component:
        hidden[..., index] = True
    else:
        hidden[:, -1, 0] = True  # the states before keep the sensor's mean in its place
    with torch.inference_mode():
        seen = _without(windows, index, tokenizer)
        found, _ = net.fill(seen, windows.actions, hidden, domain=windows.domain)
    return tokenizer.standardised(found)[:, -1, index].cpu()


def _read_back(net: Pasta, windows: Windows, index: int) -> Float[Tensor, " windows"]:
    """The same where a model of whole states sees the newest state too, with the mean in the sensor's place."""
    windows = _beside(net, windows)
    number, tokenizer = net.tokenizer_of(windows.domain)
    with torch.inference_mode():
        outputs = net(_without(windows, index, tokenizer), windows.actions, domain=windows.domain)
        return net.heads[2 * number](outputs[:, -2])[:, index].cpu()  # type: ignore[no-any-return]


def _beside(net: Pasta, windows: Windows) -> Windows:
    """Windows on the device of a model."""
    device = net.mask.device
    return Windows(windows.observations.to(device), windows.actions.to(device), windows.domain)


def _without(windows: Windows, index: int, tokenizer: ComponentTokenizer) -> Float[Tensor, "windows steps sensors"]:
    seen = windows.observations.clone()
    seen[..., index] = tokenizer.mean[index]
    return seen


def _known(windows: Windows, index: int, tokenizer: ComponentTokenizer) -> Float[Tensor, "windows numbers"]:
    """All that a regression is given: readings without those of a sensor, and actions."""
    seen = tokenizer.standardised(_without(windows, index, tokenizer))
    return torch.cat([seen.flatten(1), windows.actions.flatten(1)], 1)


def _linear(shown: Windows, held: Windows, index: int, tokenizer: ComponentTokenizer) -> Float[Tensor, " windows"]:
    """By ridge regression on the windows to learn from."""
    inputs, asked = (F.pad(_known(part, index, tokenizer), (0, 1), value=1.0) for part in (shown, held))
    wanted = tokenizer.standardised(shown.observations)[:, -1, index]
    gram = inputs.T @ inputs + 1e-3 * len(inputs) * torch.eye(inputs.shape[1])
    return asked @ torch.linalg.solve(gram, inputs.T @ wanted)


def _regression(job: Job, shown: Windows, tokenizer: ComponentTokenizer) -> Callable[[Windows, int], Tensor]:
    """A network of raw numbers that learns to tell the newest state from a window in which any one sensor is lost."""
    states = tokenizer.standardised(shown.observations)
    size, count = SIZES[job.scale], tokenizer.sensors
    torch.manual_seed(job.seed)
    network = mlp(states[0].numel() + shown.actions[0].numel() + count, count, hidden=size.hidden)

    def step(net: nn.Module, drawn: tuple[Tensor, Tensor]) -> Tensor:
        chosen, lost = drawn
        flags = F.one_hot(lost, count)
        seen = states[chosen] * (1 - flags)[:, None]
        told = net(torch.cat([seen.flatten(1), shown.actions[chosen].flatten(1), flags], 1))
        return F.mse_loss(told[flags.bool()], states[chosen, -1][flags.bool()])

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen, lost = (torch.randint(limit, (128,), generator=generator) for limit in (len(states), count))
        return chosen, lost

    train_heads(job, network, step, draw, size.offline)

    @torch.no_grad()
    def tell(windows: Windows, index: int) -> Tensor:
        numbers = _known(windows, index, tokenizer)
        flags = F.one_hot(torch.full((len(numbers),), index), count)
        return network(torch.cat([numbers, flags], 1))[:, index]  # type: ignore[no-any-return]

    return tell


def _named(what: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{what}, {name}": value for name, value in values.items()}


def _mean(found: Mapping[str, float], kinds: Sequence[str]) -> float:
    return sum(found[NAMES[kind]] for kind in kinds) / len(kinds)


def _bars(title: str, values: Mapping[str, float], label: str = "normalised return") -> Panel:
    places = [float(index) for index in range(len(values))]
    return Panel(title, "", label, {"": (places, list(values.values()))}, kind="bar", ticks=list(values))


def plan() -> Plan:
    """One training step of the base size on windows of HalfCheetah."""
    box = _box(17), _box(6)
    model = Pasta(ComponentTokenizer(*box), size="base", objective="c-gpt").to("meta")
    with torch.device("meta"):
        windows = Windows(torch.zeros(1, model.context, 17), torch.zeros(1, model.context, 6))
    flops = count_flops(lambda: model.logits(model(windows.observations, windows.actions)).sum().backward())
    parameters = count_parameters(model)
    batch, tokens, size = 64, model.context * 23, model.size
    activations = 4.0 * batch * tokens * (34 * size.dim * size.layers + 2 * 1024)
    return Plan(
        parameters,
        float(flops * batch),
        16.0 * parameters + activations,
        "everyformer run pasta --scale paper --device cuda --precision bf16-mixed",
        "one step at batch 64 of 22 steps of 23 tokens; Gymnasium's MuJoCo bodies take the place of Brax, and the policies "
        "are trained by Stable-Baselines3 for a million steps each",
    )


def _box(size: int) -> Any:
    from gymnasium.spaces import Box

    return Box(-1.0, 1.0, (size,))
