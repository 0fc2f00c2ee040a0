"""Running claims: seed by seed, resumable, with a verdict computed from the declared threshold."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from everyformer.catalog import SCALES, Claim, Job, Measurement, Panel, Paper, Result, Scale, lookup
from everyformer.files import write_atomic
from everyformer.lab import environment, measure


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints when several train together."""
    return os.environ.get("RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"


def check_scale(scale: str) -> Scale:
    """``scale`` when there is such a one; raises ``ValueError`` with those there are."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    return scale  # type: ignore[return-value]


def check_writable(folder: Path) -> Path:
    """``folder``, made if need be; raises ``PermissionError`` that names it when nothing can be written there."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"results folder {folder} cannot be written: {error.strerror or error}") from error
    return folder


def run_claim(
    paper: Paper,
    claim: Claim,
    *,
    scale: str,
    seeds: Sequence[int],
    device: str = "cpu",
    out: Path,
    resume: bool = False,
    precision: str = "32-true",
    strategy: str = "auto",
    progress: Callable[[str], None] = lambda line: None,
) -> Result:
    """Measure a claim on every seed and record the result as ``<out>/<paper>.<claim>.<scale>.json``.

    A seed that finished is kept in ``<out>/.runs``; with ``resume`` it is taken from there when library, versions,
    device and precision are the same, and an unfinished seed goes on from its last checkpoint.

    Raises:
        ValueError: unknown scale or device, no seeds, a claim that is not built, or a measurement that is not finite.
        PermissionError: ``out`` cannot be written.
    """
    scale = check_scale(scale)
    environment.check_device(device)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be different numbers, at least one, got {list(seeds)}")
    if not claim.run or claim.threshold is None:
        raise ValueError(
            f"claim {paper.slug}.{claim.name} is not built yet; `everyformer list --built` shows those that are"
        )
    check_writable(out)
    function = getattr(paper.room("claim"), claim.run)
    home = out / ".runs" / f"{paper.slug}.{claim.name}.{scale}"
    if not resume and is_main_process():
        shutil.rmtree(home, ignore_errors=True)

    same = {**environment.describe(device), "precision": precision}
    finished: list[dict[str, Any]] = []
    for seed in seeds:
        label = f"{paper.slug}.{claim.name} ({scale}, seed {seed})"
        folder = home / f"seed-{seed}"
        file = folder / "measurement.json"
        kept = _kept(file, same) if resume else None
        if kept is not None:
            progress(f"{label}: finished before")
            finished.append(kept)
            continue
        progress(label)
        folder.mkdir(parents=True, exist_ok=True)
        job = Job(scale, seed, device, folder / "work", precision, strategy)
        job.folder.mkdir(exist_ok=True)
        # Seconds of earlier, interrupted attempts count: they are part of what the figure cost.
        spent = folder / "seconds"
        before = _spent(spent, job.folder) if resume else 0.0
        if is_main_process():
            write_atomic(spent, repr(before))
        measure.reset_process_peak()
        began = time.perf_counter()
        try:
            measurement = function(job)
        except BaseException:
            if is_main_process():
                write_atomic(spent, repr(before + time.perf_counter() - began))
            raise
        _check(measurement, label)
        record = {
            "measurement": dataclasses.asdict(measurement),
            "seconds": before + time.perf_counter() - began,
            "peak_mb": measure.process_peak_mb(),
            "same": same,
        }
        if is_main_process():
            write_atomic(file, json.dumps(record))
            shutil.rmtree(job.folder, ignore_errors=True)
        finished.append(record)

    result = _result(paper, claim, scale, list(seeds), same, finished)
    if is_main_process():
        write_atomic(out / f"{result.stem}.json", json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")
    return result


def _kept(file: Path, same: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record in ``file`` when it was made by the same library on the same machine."""
    if not file.is_file():
        return None
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record if record["same"] == json.loads(json.dumps(same)) else None


def _spent(file: Path, work: Path) -> float:
    """Seconds noted in ``file``; after a kill, which notes nothing, also those until the attempt last wrote something."""
    if not file.is_file():
        return 0.0
    noted, at = float(file.read_text(encoding="ascii")), file.stat().st_mtime
    return noted + max([0.0, *(written.stat().st_mtime - at for written in work.rglob("*"))])


def _check(measurement: Measurement, label: str) -> None:
    figures = {"method": measurement.method, "baseline": measurement.baseline, **measurement.extras}
    broken = [name for name, value in figures.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(f"{label} gave figures that are not finite: {', '.join(broken)}")


def _result(
    paper: Paper, claim: Claim, scale: Scale, seeds: list[int], same: Mapping[str, Any], records: list[dict[str, Any]]
) -> Result:
    assert claim.threshold is not None
    measurements = [record["measurement"] for record in records]
    method = [float(m["method"]) for m in measurements]
    baseline = [float(m["baseline"]) for m in measurements]
    effect = measure.effect_of(method, baseline, claim.better, claim.threshold)
    shared = [name for name in measurements[0]["extras"] if all(name in m["extras"] for m in measurements)]
    return Result(
        paper=paper.slug,
        claim=claim.name,
        scale=scale,
        metric=claim.metric,
        unit=claim.unit,
        better=claim.better,
        method=measure.spread(method),
        baseline=measure.spread(baseline),
        effect=effect,
        threshold=claim.threshold,
        verdict=measure.verdict_of(effect, claim.threshold),
        paper_value=claim.paper_value,
        paper_baseline=claim.paper_baseline,
        seeds=seeds,
        device=same["device"],
        versions=dict(same["versions"]),
        commit=same["commit"],
        seconds=sum(record["seconds"] for record in records),
        peak_mb=max(record["peak_mb"] for record in records),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        extras={name: measure.spread([float(m["extras"][name]) for m in measurements]) for name in shared},
        series=[Panel(**panel) for panel in measurements[0]["series"]],
    )


def select(targets: Sequence[str], find: Callable[[str], Paper]) -> list[tuple[Paper, Claim]]:
    """The claims that ``targets`` name: ``"sla"`` is all claims of a paper, ``"sla.speed"`` one of them.

    Raises:
        ValueError: a paper or claim of that name does not exist (nearest names are given) or is not built.
    """
    chosen: list[tuple[Paper, Claim]] = []
    for target in targets:
        slug, _, name = target.partition(".")
        paper = find(slug)
        if not paper.built:
            raise ValueError(f"{slug} is not built yet: it has a card but no model; `everyformer show {slug}`")
        claims = {claim.name: claim for claim in paper.claims}
        wanted = [lookup(name, claims, f"claim of {slug}")] if name else [c for c in paper.claims if c.run]
        chosen += [(paper, claim) for claim in wanted if (paper, claim) not in chosen]
    return chosen
