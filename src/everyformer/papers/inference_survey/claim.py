"""The claims of the survey: what each way to compress costs in quality, and what it brings in size and time."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer import compressors
from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab import compress_subjects as subjects
from everyformer.lab import text
from everyformer.lab.compress_bench import forward
from everyformer.lab.measure import count_parameters, median, side_by_side
from everyformer.lab.pretrained import load_or_train
from everyformer.papers.inference_survey import pictures
from everyformer.papers.inference_survey.method import SCHEMES, Scheme, best_within, curve, frontier
from everyformer.parts.compress import distillation, storage
from everyformer.parts.compress.merging import matched, merge_tokens, unmerge

HEALING = {"smoke": 2, "cpu": 40, "paper": 1000}  # training steps after what removes weights
PRETRAINING = {"smoke": 20, "cpu": 600, "paper": 20_000}  # of the characters' model, and so of the smaller one
SMALL_RATES = (1e-3, 3e-3)  # the first is the larger model's; its schemes are chosen by the same other plays
SHARE = {"smoke": 0.6, "cpu": 0.25, "paper": 0.25}  # of the file; embeddings alone are a third of the tiny model's
ROUNDS = {"smoke": 3, "cpu": 15, "paper": 30}


def compression(job: Job) -> Measurement:
    """Quality kept at a quarter of the file: the best scheme by other data, beside a smaller model trained as long."""
    extras: dict[str, float] = {}
    panels: list[Panel] = []
    kept = {}
    for name in ("characters", "digits"):
        whole = subjects.subject(name, scale=job.scale, seed=job.seed, device=job.device)  # type: ignore[arg-type]

        def heal(model: nn.Module, scheme: Scheme, whole: subjects.Subject = whole) -> None:
            whole.heal(model, scheme.steps, HEALING[job.scale])

        points = curve(whole.model, functools.partial(whole.quality, part="validation"), heal=heal)
        original = points[0]
        tested = {point.scheme: whole.quality(point.model, "test") for point in points}
        share = {point.scheme: 100 * point.size / original.size for point in points}
        quality = {scheme: 100 * value / tested[None] for scheme, value in tested.items()}
        best = best_within(points, SHARE[job.scale] * original.size)
        kept[name] = quality[best.scheme]
        extras[f"right (%), {name}, as trained"] = tested[None]
        extras[f"size (MB), {name}, as trained"] = original.size / 1e6
        for scheme in SCHEMES:
            extras[f"size (%), {name}, {scheme.name}"] = share[scheme]
            extras[f"quality kept (%), {name}, {scheme.name}"] = quality[scheme]
        extras[f"schemes no smaller one betters, {name}"] = float(len(frontier(points)))
        panels.append(pictures.trade(f"Size and quality, {name}", share, quality))
        if name == "characters":
            small, rate = max(
                ((_smaller(job, SHARE[job.scale] * original.size, rate), rate) for rate in SMALL_RATES),
                key=lambda made: whole.quality(made[0], "validation"),
            )
            extras["rate, smaller model"] = rate
            extras["parameters, smaller model"] = float(count_parameters(small))
            extras["size (%), smaller model"] = 100 * len(storage.to_bytes(small)) / original.size
            scratch = 100 * whole.quality(small, "test") / tested[None]
            panels[-1].lines["trained small"] = ([extras["size (%), smaller model"]], [scratch])
    extras["quality kept at a quarter of the size (%), digits"] = kept["digits"]
    return Measurement(kept["characters"], scratch, extras, tuple(panels))


def _smaller(job: Job, size: float, rate: float) -> nn.Module:
    """The widest LLaMA whose file is that small, trained for as many steps as the other and its healing together."""
    shape = {"smoke": (2, 2), "cpu": (4, 4), "paper": (12, 12)}[job.scale]
    step = 2 * shape[1]
    width = step
    while _file(width + step, shape) <= size:
        width += step
    plays = text.corpus("made_up" if job.scale == "smoke" else "tiny_shakespeare").train
    updates = PRETRAINING[job.scale] + HEALING[job.scale]
    torch.manual_seed(job.seed)
    model = text.build("llama", width=width, layers=shape[0], heads=shape[1])
    load_or_train(
        model,
        lambda folder: text.fit(
            model,
            plays,
            steps=updates,
            folder=folder,
            seed=job.seed,
            learning_rate=rate,
            label="a smaller LLaMA",
            device=job.device,
        ),
        recipe={"width": width, "shape": list(shape), "updates": updates, "rate": rate, "seed": job.seed},
        samples=[plays],
        code=[text],
    )
    return model.to(job.device)


def _file(width: int, shape: tuple[int, int]) -> int:
    return len(storage.to_bytes(text.build("llama", width=width, layers=shape[0], heads=shape[1])))


def sparsity_speed(job: Job) -> Measurement:
    """Speed of a LLaMA without half of its heads and a quarter of its blocks, and with as many of its weights at zero."""
    width, layers = {"smoke": (64, 4), "cpu": (256, 8), "paper": (1024, 16)}[job.scale]
    torch.manual_seed(job.seed)
    whole = text.build("llama", width=width, layers=layers, heads=8).to(job.device)
    inputs = torch.randint(text.BYTES, (1 if job.scale == "smoke" else 4, text.LENGTH), device=job.device)
    weights = _weights(whole)

    def made(*steps: compressors.Step) -> nn.Module:
        return compressors.compose(copy.deepcopy(whole), steps)  # type: ignore[no-any-return]

    shorter = made(("blocks", {"ratio": 0.25}), ("heads", {"ratio": 0.5}))
    gone = 1 - _weights(shorter) / weights
    models = {
        "as built": whole,
        "heads and blocks out": shorter,
        "zeros": made(("magnitude", {"sparsity": gone})),
        "half of the heads out": made(("heads", {"ratio": 0.5})),
        "half of the blocks out": made(("blocks", {"ratio": 0.5})),
        "nine tenths zeros": made(("magnitude", {"sparsity": 0.9})),
        "nine tenths zeros, stored as such": pictures.sparse(made(("magnitude", {"sparsity": 0.9}))),
        "99 of 100 zeros, stored as such": pictures.sparse(made(("magnitude", {"sparsity": 0.99}))),
    }
    runs = {name: forward(model, inputs) for name, model in models.items()}
    times = {
        name: median(values) for name, values in side_by_side(runs, rounds=ROUNDS[job.scale], device=job.device).items()
    }
    speed = {name: times["as built"] / value for name, value in times.items() if name != "as built"}
    extras = {f"speed-up, {name}": value for name, value in speed.items()}
    extras |= {"weights gone (%)": 100 * gone, "seconds, as built": times["as built"]}
    panel = pictures.bars("Speed-up by what was removed", "times as fast", speed)
    return Measurement(speed["heads and blocks out"], speed["zeros"], extras, (panel,))


def _weights(model: nn.Module) -> int:
    from everyformer.parts.compress.anatomy import linears

    return sum(layer.weight.numel() for layer in linears(model).values())


def merging(job: Job) -> Measurement:
    """Pictures a second where tokens merge as far as a point of accuracy allows, by digits to choose by; and without."""
    whole = subjects.subject("digits", scale=job.scale, seed=job.seed, device=job.device)
    counts = {"smoke": (1, 2), "cpu": (2, 4, 6, 8, 10, 12), "paper": (2, 4, 6, 8, 10, 12)}[job.scale]

    def merged(count: int, **options: Callable[..., object]) -> nn.Module:
        return merge_tokens(unmerge(copy.deepcopy(whole.model)), count, **options)  # type: ignore[arg-type]

    models = {count: merged(count) for count in counts}
    chosen_by = {count: whole.quality(model, "validation") for count, model in models.items()}
    limit = whole.quality(whole.model, "validation") - 1
    allowed = [count for count in counts if chosen_by[count] >= limit]
    count = max(allowed, default=0)
    models[0] = whole.model
    runs = {str(key): forward(model, whole.inputs) for key, model in models.items()}
    times = {
        int(key): median(values)
        for key, values in side_by_side(runs, rounds=ROUNDS[job.scale], device=job.device).items()
    }
    generator = torch.Generator().manual_seed(job.seed)
    blind = {key: merged(key, match=_blind(generator)) for key in counts}
    right = {key: whole.quality(model, "test") for key, model in models.items()}
    extras = {"pairs in each block": float(count), "accuracy (%), merged": right[count], "accuracy (%)": right[0]}
    curves: dict[str, dict[float, float]] = {"alike tokens": {1.0: right[0]}, "any tokens": {1.0: right[0]}}
    for key in counts:
        speed = times[0] / times[key]
        curves["alike tokens"][speed] = right[key]
        curves["any tokens"][speed] = whole.quality(blind[key], "test")
        extras[f"speed-up, {key} pairs"] = speed
        extras[f"accuracy (%), {key} pairs"] = right[key]
        extras[f"accuracy (%), {key} pairs of any tokens"] = curves["any tokens"][speed]
    lines = {label: (sorted(found), [found[x] for x in sorted(found)]) for label, found in curves.items()}
    panels = (
        Panel("Merging tokens of a ViT, untrained", "times as fast", "right, %", lines),
        pictures.merged_digit(models[counts[-1]], whole.inputs[0]),
    )
    batch = len(whole.inputs)
    return Measurement(batch / times[count], batch / times[0], extras, panels)


def _blind(generator: torch.Generator) -> Callable[[Tensor, int, int], object]:
    """Pairs of an even and an odd token that are drawn, whatever they hold."""

    def match(keys: Tensor, count: int, protected: int) -> object:
        batch, tokens, _ = keys.shape
        evens = [place for place in range(0, tokens, 2) if place >= protected]
        odds = torch.tensor([place for place in range(1, tokens, 2) if place >= protected])
        drawn = torch.rand(batch, len(evens), generator=generator).argsort(dim=1)[:, :count]
        source = torch.tensor(evens)[drawn].to(keys.device)
        target = odds[torch.randint(len(odds), (batch, count), generator=generator)].to(keys.device)
        return matched(source, target, tokens)

    return match


STUDENT: dict[str, tuple[dict[str, int], int]] = {  # shapes, and training steps
    "smoke": ({"width": 32, "depth": 2, "heads": 2, "patch": 5}, 10),
    "cpu": ({"width": 32, "depth": 2, "heads": 2}, 900),
    "paper": ({"width": 96, "depth": 4, "heads": 3}, 10_000),
}
LABELLED = {"smoke": 200, "cpu": 1000, "paper": 5000}
RATES = (1e-3, 3e-3)
TEMPERATURE, HARD = 4.0, 0.1


def distilled_loss(distiller: distillation.Distiller, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A tenth of the cross entropy with the labels beside what the teacher says."""
    logits, loss = distiller(batch[0])
    return HARD * F.cross_entropy(logits, batch[1]) + loss


def distillation_gain(job: Job) -> Measurement:
    """A small ViT on few digits, with and without a teacher that has seen more; rates by other digits, for both."""
    whole = subjects.subject("digits", scale=job.scale, seed=job.seed, device=job.device)
    samples = subjects.digits(job.scale)
    few = (samples.train[0][: LABELLED[job.scale]], samples.train[1][: LABELLED[job.scale]])
    extras: dict[str, float] = {"accuracy (%), teacher": whole.quality(whole.model, "test")}
    tested: dict[str, float] = {}
    rate = RATES[0]
    for name, hidden in (("labels alone", None), ("distilled", 0.0), ("distilled, hidden states too", 1.0)):
        scores = {}
        for tried in (rate,) if hidden else RATES:  # an extra takes the rate of what it is added to
            student = _student(job, whole.model, few, tried, hidden)
            scores[subjects.accuracy(student, samples.validation), -tried] = subjects.accuracy(student, samples.test)
        (chosen, slowest), tested[name] = max(scores.items())
        rate = -slowest
        extras[f"accuracy (%), {name}"] = tested[name]
        extras[f"accuracy (%) where the rate was chosen, {name}"] = chosen
        extras[f"rate, {name}"] = rate
    extras["parameters, student"] = float(count_parameters(student))
    extras["parameters, teacher"] = float(count_parameters(whole.model))
    panel = pictures.bars(
        "Digits read by a small ViT", "right, %", {**tested, "teacher": extras["accuracy (%), teacher"]}
    )
    return Measurement(tested["distilled"], tested["labels alone"], extras, (panel,))


def _student(job: Job, teacher: nn.Module, few: tuple[Tensor, Tensor], rate: float, hidden: float | None) -> nn.Module:
    shape, updates = STUDENT[job.scale]
    torch.manual_seed(job.seed)
    student = subjects.vit(**shape)
    trained: nn.Module = student
    if hidden is not None:
        trained = distillation.Distiller(student, teacher, temperature=TEMPERATURE, soft=1 - HARD, hidden=hidden)

    def fit(folder: Path) -> None:
        subjects.fit_digits(
            trained, few, updates=updates, folder=folder, seed=job.seed, learning_rate=rate, device=job.device,
            loss=None if hidden is None else distilled_loss, label="a student",  # type: ignore[arg-type]
        )  # fmt: skip

    recipe = {
        "student": shape,
        "updates": updates,
        "rate": rate,
        "hidden": hidden,
        "seed": job.seed,
        "scale": job.scale,
    }
    weights = [parameter.detach().cpu() for parameter in teacher.parameters()] if hidden is not None else []
    load_or_train(
        trained, fit, recipe=recipe, samples=[*few, *weights], code=[sys.modules[__name__], subjects, distillation]
    )
    return student.to(job.device)


WEIGHTS: dict[str, tuple[str, dict[str, float]]] = {
    "half of the weights": ("magnitude", {"sparsity": 0.5}),
    "2 of 4 weights": ("n_of_m", {}),
    "half of the heads": ("heads", {"ratio": 0.5}),
    "factors": ("low_rank", {"ratio": 0.5}),
}
BITS: dict[str, tuple[str, dict[str, int]]] = {
    "int8": ("int8", {}),
    "int4": ("int4", {"group": 16}),
    "NVFP4": ("nvfp4", {}),
}


def composed(job: Job) -> Measurement:
    """Quality that int8 after pruning loses beyond what each loses alone, and the same for other pairs."""
    whole = subjects.subject("characters", scale=job.scale, seed=job.seed, device=job.device)

    def lost(*steps: compressors.Step, heal: bool = False) -> float:
        updates = HEALING[job.scale]
        training = (lambda model: whole.heal(model, [steps[0]], updates)) if heal else None  # type: ignore[list-item]
        made = compressors.compose(copy.deepcopy(whole.model), steps, heal=training)
        return 100 * (1 - whole.quality(made, "test") / as_trained)

    as_trained = whole.quality(whole.model, "test")
    extras = {"right (%), as trained": as_trained}
    alone = {label: lost(bits) for label, bits in BITS.items()}
    extras |= {f"quality lost (%), {label}": value for label, value in alone.items()}
    lines: dict[str, tuple[list[float], list[float]]] = {label: ([], []) for label in BITS}
    treated = {name: step for name, step in WEIGHTS.items() if job.scale != "smoke" or name != "factors"}
    for name, step in treated.items():
        first = lost(step)
        extras[f"quality lost (%), {name}"] = first
        for label, bits in BITS.items():
            both = lost(step, bits)
            extras[f"quality lost (%), {name}, {label}"] = both
            extras[f"beyond the sum, {name}, {label}"] = both - first - alone[label]
            lines[label][0].append(first + alone[label])
            lines[label][1].append(both)
    step = WEIGHTS["half of the weights"]
    extras["quality lost (%), half of the weights, healed"] = healed = lost(step, heal=True)
    extras["quality lost (%), half of the weights, healed, int8"] = both = lost(step, "int8", heal=True)
    extras["beyond the sum, half of the weights, healed, int8"] = both - healed - alone["int8"]
    sums = [value for places, _ in lines.values() for value in places]
    lines = {label: _by_place(*values) for label, values in lines.items()}
    lines["the sum"] = ([min(sums), max(sums)], [min(sums), max(sums)])
    panel = Panel("What two methods lose together", "lost by each alone, summed, %", "lost together, %", lines)
    return Measurement(extras["beyond the sum, half of the weights, int8"], 0.0, extras, (panel,))


def _by_place(places: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """A line from left to right."""
    order = sorted(range(len(places)), key=places.__getitem__)
    return [places[index] for index in order], [values[index] for index in order]


def plan() -> Plan:
    """A training step of the larger LLaMA of bytes that the launch compresses; the survey has no experiment of its own."""
    with torch.device("meta"):
        model = text.build("llama", **subjects.LARGE)
    parameters = count_parameters(model)
    return Plan(
        parameters,
        6.0 * parameters * 16 * text.LENGTH,
        16.0 * parameters + 34 * subjects.LARGE["layers"] * 16 * text.LENGTH * subjects.LARGE["width"],
        "everyformer run inference_survey --scale paper --device cuda",
        "a survey names no configuration; the launch takes a LLaMA of 12 blocks of 768 on plays and a ViT of 12 blocks of "
        "384 on MNIST. The step is one on 16 pieces of 128 bytes, its activations 34 bytes a feature and block.",
    )
