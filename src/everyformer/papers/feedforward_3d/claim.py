"""The claims of the review on rendered rooms: networks in one pass beside matching, and the families beside each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from everyformer.catalog import Job, Measurement, Panel, Plan
from everyformer.lab.measure import count_flops
from everyformer.lab.scenes import Views
from everyformer.papers.feedforward_3d import answers
from everyformer.papers.feedforward_3d.alignment import global_alignment
from everyformer.papers.feedforward_3d.answers import Answer, in_first, to_first
from everyformer.papers.feedforward_3d.export import picture
from everyformer.papers.feedforward_3d.geometry import aligned_errors, all_pairs, pose_auc, pose_errors, procrustes
from everyformer.papers.feedforward_3d.model import dust3r_linear
from everyformer.papers.feedforward_3d.training import SIZES, VIEWS, multi_model, pair_model, tuning, unseen

Named = dict[str, Answer]
TILE = 32  # pixels of a picture in a plot


def few_views(job: Job) -> Measurement:
    """AUC of the relative pose of two views without texture, by all views at once and by matching; textured in extras."""
    extras: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {}
    panels: list[Panel] = []
    for kind, textured in (("plain", False), ("textured", True)):
        views = unseen(job, 2, SIZES[job.scale].tested, textured=textured)
        found, truth = _two_views(job, views, textured), to_first(views.extrinsics)[:, 1]
        poses = {name: answer.extrinsics[:, 1] for name, answer in found.items()}
        scores[kind] = {name: pose_auc(pose, truth) for name, pose in poses.items()}
        for name, pose in {**poses, "one pose for all": _usual(truth)}.items():
            turn, shift = pose_errors(pose, truth)
            extras[f"AUC@30, {kind}, {name}"] = pose_auc(pose, truth)
            extras[f"AUC@15, {kind}, {name}"] = pose_auc(pose, truth, 15.0)
            extras[f"median error of rotation (degrees), {kind}, {name}"] = float(turn.median())
            extras[f"median error of direction (degrees), {kind}, {name}"] = float(shift.median())
        lost = poses["classic pipeline"].isnan().flatten(1).any(1)
        extras[f"pairs that the classic pipeline gives up, {kind}"] = float(lost.float().mean())
        if not textured:
            panels = [_recall(poses, truth), _depths(views, found)]
    places = [float(index) for index in range(len(scores["plain"]))]
    bars = {kind: (places, list(values.values())) for kind, values in scores.items()}
    panels.insert(0, Panel("Relative pose of two views", "", "AUC@30", bars, kind="bar", ticks=list(scores["plain"])))
    return Measurement(scores["plain"]["all views"], scores["plain"]["classic pipeline"], extras, tuple(panels))


def pointmap(job: Job) -> Measurement:
    """Error of both views' points in the first one's frame, by the pair model and by matching, without texture."""
    extras: dict[str, float] = {}
    errors: dict[str, dict[str, float]] = {}
    panels: list[Panel] = []
    for kind, textured in (("plain", False), ("textured", True)):
        views = unseen(job, 2, SIZES[job.scale].tested, textured=textured)
        truth = in_first(views.points, views.extrinsics)
        found = _two_views(job, views, textured)
        per_scene = {name: _errors(answer.points, truth) for name, answer in found.items()}
        errors[kind] = {name: 100 * float(_medians(values).mean()) for name, values in per_scene.items()}
        extras |= {f"error (%), {kind}, {name}": value for name, value in errors[kind].items()}
        flat = truth.new_tensor([0.0, 0.0, 1.0]) * truth[..., 2:].mean()
        plane = _errors(flat.expand_as(truth), truth)
        extras[f"error (%), {kind}, one point for all"] = 100 * float(_medians(plane).mean())
        if not textured:
            panels = [_spread(per_scene), _clouds(views, found)]
    return Measurement(errors["plain"]["pair"], errors["plain"]["classic pipeline"], extras, tuple(panels))


def confidence(job: Job) -> Measurement:
    """Rank correlation, inside a scene, of the pair model's confidence with the error of its points; chance is zero."""
    net, size = pair_model(job), SIZES[job.scale]
    ranks, extras, curve = [], {}, []
    for kind, textured in (("plain", False), ("textured", True)):
        views = unseen(job, 2, size.tested, textured=textured)
        answer = answers.by_pair(net, views.images.to(job.device))
        errors = _errors(answer.points.cpu(), in_first(views.points, views.extrinsics)).flatten(1)
        sure = answer.confidence.cpu().flatten(1)
        rank = _spearman(sure, errors)
        ranks.append(rank)
        ordered = errors.gather(1, sure.argsort(1, descending=True))
        halves = ordered.chunk(2, 1)
        extras[f"rank correlation, {kind}"] = float(rank.mean())
        extras[f"error of the surer half (%), {kind}"] = 100 * float(halves[0].mean())
        extras[f"error of the other half (%), {kind}"] = 100 * float(halves[1].mean())
        curve.append(ordered.cumsum(1).mean(0) / torch.arange(1, ordered.shape[1] + 1))
    shares = torch.linspace(0.05, 1, 20)
    lines = {
        kind: (shares.tolist(), (100 * line[(shares * len(line)).long() - 1]).tolist())
        for kind, line in zip(("plain", "textured"), curve, strict=True)
    }
    panels = (Panel("Error of the surest points", "share of points kept", "mean error (%)", lines),)
    return Measurement(float(torch.cat(ranks).mean()), 0.0, extras, panels)


def views(job: Job) -> Measurement:
    """Error of the same two views' points when the multi-view model also sees six more, all in one pass."""
    net, _ = multi_model(job)
    extras: dict[str, float] = {}
    errors: dict[int, float] = {}
    shown = [unseen(job, VIEWS, SIZES[job.scale].tested // 2 or 1, textured=textured) for textured in (False, True)]
    for number in (2, 4, VIEWS):
        off, poses, truth = [], [], []
        for scene in shown:
            answer = _in_parts(lambda images: answers.by_all_views(net, images), scene.images[:, :number], job)
            off.append(_errors(answer.points[:, :2], in_first(scene.points, scene.extrinsics)[:, :2]))
            poses.append(answer.extrinsics[:, 1])
            truth.append(to_first(scene.extrinsics)[:, 1])
        errors[number] = 100 * float(_medians(torch.cat(off)).mean())
        extras[f"error (%), {number} views"] = errors[number]
        extras[f"AUC@30 of the first two, {number} views"] = pose_auc(torch.cat(poses), torch.cat(truth))
    line = ([float(number) for number in errors], list(errors.values()))
    panel = Panel(
        "Points of the same two views", "views seen in one pass", "error (%)", {"all views": line}, log_x=True
    )
    return Measurement(errors[VIEWS], errors[2], extras, (panel,))


def one_pass(job: Job) -> Measurement:
    """Seconds for a scene of eight views: one pass, or all 56 ordered pairs and their alignment."""
    size, many, pair = SIZES[job.scale], multi_model(job)[0], pair_model(job)
    scene = unseen(job, VIEWS, 1, textured=False)
    images = scene.images.to(job.device)
    seconds: dict[str, list[float]] = {"one pass": [], "pairs": [], "alignment": []}
    for number in (2, 4, VIEWS):
        _, passed = _timed(answers.by_all_views, many, images[:, :number])
        pairs, paired = _timed(answers.pairs_of, pair, images[0, :number])
        _, begun = _timed(global_alignment, pairs, steps=0)
        some = max(1, size.descent // 10)  # every step costs the same: a tenth of them is timed
        _, gone = _timed(global_alignment, pairs, steps=some)
        descent = max(0.0, gone - begun) * size.descent / some
        for name, value in (("one pass", passed), ("pairs", paired), ("alignment", begun + descent)):
            seconds[name].append(value)
    numbers = [2.0, 4.0, float(VIEWS)]
    lines = {name: (numbers, values) for name, values in seconds.items()}
    extras = {f"seconds, {name}, {int(n)} views": value
              for name, (_, values) in lines.items() for n, value in zip(numbers, values, strict=True)}  # fmt: skip
    panel = Panel("Time of a scene", "views", "seconds", lines, log_x=True, log_y=True)
    return Measurement(seconds["one pass"][-1], seconds["pairs"][-1] + seconds["alignment"][-1], extras, (panel,))


def families(job: Job) -> Measurement:
    """AUC of all relative poses of four views: at once, by pairs and alignment, and by matching."""
    size, (many, steps) = SIZES[job.scale], multi_model(job)
    pair, settings = pair_model(job), _settings(job, textured=False)
    scene = unseen(job, 4, size.aligned, textured=False)
    images, truth = scene.images.to(job.device), all_pairs(scene.extrinsics)
    ways: dict[str, Callable[[], Answer]] = {
        "all views": lambda: answers.by_all_views(many, images),
        "pairs and alignment": lambda: answers.by_alignment(pair, images, steps=size.descent),
        "pairs without descent": lambda: answers.by_alignment(pair, images, steps=0),
        "classic pipeline": lambda: answers.by_matching(scene.images, scene.intrinsics, settings),
    }
    extras = {"steps of the pair model": float(size.steps), "steps of the multi-view model": float(steps)}
    found: Named = {}
    scores: dict[str, float] = {}
    for name, way in ways.items():
        answer, seconds = _timed(way)
        found[name] = Answer(answer.points.cpu(), answer.confidence.cpu(), answer.extrinsics.cpu())
        scores[name] = pose_auc(all_pairs(found[name].extrinsics), truth)
        extras[f"AUC@30, {name}"] = scores[name]
        extras[f"AUC@15, {name}"] = pose_auc(all_pairs(found[name].extrinsics), truth, 15.0)
        extras[f"error of points after alignment (%), {name}"] = 100 * _fitted(found[name].points, scene)
        extras[f"seconds a scene, {name}"] = seconds / size.aligned
    places = [float(index) for index in range(len(scores))]
    bars = Panel(
        "Poses of four views", "", "AUC@30", {"": (places, list(scores.values()))}, kind="bar", ticks=list(scores)
    )
    return Measurement(scores["all views"], scores["pairs and alignment"], extras, (bars, _clouds(scene, found)))


def _two_views(job: Job, scenes: Views, textured: bool) -> Named:
    many, pair = multi_model(job)[0], pair_model(job)
    settings = _settings(job, textured=textured)
    return {
        "all views": _in_parts(lambda images: answers.by_all_views(many, images), scenes.images, job),
        "pair": _in_parts(lambda images: answers.by_pair(pair, images), scenes.images, job),
        "classic pipeline": answers.by_matching(scenes.images, scenes.intrinsics, settings),
    }


def _settings(job: Job, *, textured: bool) -> Any:
    shown = tuning(job, textured=textured)
    return answers.tuned(shown.images, shown.intrinsics, shown.extrinsics)


def _in_parts(answer: Callable[[Tensor], Answer], images: Tensor, job: Job) -> Answer:
    """The answer to many scenes, a few at a time, on the CPU."""
    parts = [answer(part.to(job.device)) for part in images.split(20)]
    return Answer(
        *(torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("points", "confidence", "extrinsics"))
    )


def _timed(way: Callable[..., Any], *inputs: Any, **options: Any) -> tuple[Any, float]:
    """What ``way`` gives, and the seconds that it took."""
    began = time.perf_counter()
    given = way(*inputs, **options)
    return given, time.perf_counter() - began


def _usual(truth: Float[Tensor, "scenes 3 4"]) -> Float[Tensor, "scenes 3 4"]:
    """One pose for all scenes, the mean of the true ones: what can be said without looking."""
    u, _, vt = torch.linalg.svd(truth[..., :3].mean(0))
    turn = u @ torch.diag(torch.tensor([1.0, 1.0, float(torch.det(u @ vt))])) @ vt
    shift = F.normalize(truth[..., 3], dim=-1).mean(0)
    return torch.cat([turn, shift[:, None]], 1).expand_as(truth)


def _errors(found: Float[Tensor, "scenes views h w 3"], truth: Float[Tensor, "scenes views h w 3"]) -> Tensor:
    """Errors of points with the scale made right scene by scene, as shares of the median distance."""
    return torch.stack([aligned_errors(ours, theirs) for ours, theirs in zip(found, truth, strict=True)])


def _medians(errors: Tensor) -> Float[Tensor, " scenes"]:
    return errors.flatten(1).median(1).values


def _fitted(points: Float[Tensor, "scenes views h w 3"], scene: Views) -> float:
    """Median distance to the truth after the best similarity, as a share of the median distance to the camera."""
    ours, theirs = points.flatten(1, 3), scene.points.flatten(1, 3)
    away = (procrustes(ours, theirs)(ours) - theirs).norm(dim=-1).median(1).values
    return float((away / scene.depth.flatten(1).median(1).values).mean())


def _spearman(a: Float[Tensor, "scenes n"], b: Float[Tensor, "scenes n"]) -> Float[Tensor, " scenes"]:
    ranks = [x.argsort(1).argsort(1).double() for x in (a, b)]
    a, b = (x - x.mean(1, keepdim=True) for x in ranks)
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)).float()


def _recall(poses: dict[str, Tensor], truth: Tensor) -> Panel:
    limits = torch.arange(1.0, 31.0)
    lines = {
        name: (limits.tolist(), (torch.maximum(*pose_errors(pose, truth))[:, None] < limits).float().mean(0).tolist())
        for name, pose in poses.items()
    }
    return Panel("Pairs without texture", "error below (degrees)", "share of pairs", lines)


def _spread(errors: dict[str, Tensor]) -> Panel:
    shares = torch.linspace(0, 1, 21)
    lines = {
        name: (shares.tolist(), (100 * _medians(values).sort().values.quantile(shares)).tolist())
        for name, values in errors.items()
    }
    return Panel(
        "Scenes without texture, from best to worst", "share of scenes", "error of points (%)", lines, log_y=True
    )


def _depths(scenes: Views, found: Named) -> Panel:
    """Both views of the first scene, and below them the depth that is true and that each finds in the first's frame."""
    rows = [scenes.images[0].mean(1)]
    truth = in_first(scenes.points, scenes.extrinsics)
    depths = [points[0, ..., 2] for points in (truth, *(answer.points for answer in found.values()))]
    for depth in depths:
        level = depth / depth.median().clamp(min=1e-6)
        rows.append((1.6 - level).clamp(0, 1))
    tiles = [F.interpolate(row[:, None], (TILE, TILE), mode="area")[:, 0] for row in rows]
    grid = torch.cat([torch.cat(list(tile), 1) for tile in tiles])
    title = f"Two views, and nearness (distance in view 1): true, {', '.join(found)}"
    return Panel(title, "pixel", "pixel", kind="heat", grid=_rounded(grid))


def _clouds(scenes: Views, found: Named) -> Panel:
    """The first scene's points from two sides: true, and as each finds them."""
    clouds = {
        "true": in_first(scenes.points, scenes.extrinsics)[0],
        **{n: answer.points[0] for n, answer in found.items()},
    }
    grey = scenes.images[0].mean(1)[..., None].expand_as(clouds["true"])
    rows = []
    for cloud in clouds.values():
        sides = [picture(cloud, 0.15 + 0.85 * grey, degrees=angle, size=2 * TILE)[0] for angle in (-35.0, 35.0)]
        rows.append(torch.cat([torch.where(side == 1, 0.0, side) for side in sides], 1))
    small = F.avg_pool2d(torch.cat(rows)[None], 2)[0]
    return Panel(
        f"Points from left and right: {', '.join(clouds)}", "pixel", "pixel", kind="heat", grid=_rounded(small)
    )


def _rounded(grid: Tensor) -> list[list[float]]:
    return [[round(value, 2) for value in row] for row in grid.tolist()]


def plan() -> Plan:
    """One training step of DUSt3R with linear heads at 224 x 224."""
    with FakeTensorMode():  # shapes without memory; the meta device knows no autocast, which the heads switch off
        model, image = dust3r_linear(), torch.zeros(1, 3, 224, 224)
        flops = count_flops(lambda: torch.stack([found.points.sum() for found in model(image, image)]).sum().backward())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    batch, tokens = 128, 2 * 196
    activations = 2.0 * batch * tokens * 34 * (24 * 1024 + 2 * 12 * 768)
    return Plan(
        parameters,
        float(flops * batch),
        16.0 * parameters + activations,
        "everyformer run feedforward_3d --scale paper --device cuda --precision bf16-mixed",
        "one step of 128 pairs of 224 x 224, bf16 activations; --scale paper here trains smaller models on rendered rooms "
        "of 128 x 128: no photographs are read",
    )
