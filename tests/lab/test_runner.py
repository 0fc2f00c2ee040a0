import base64
import json
import os
import re
import sys
import types
from pathlib import Path

import pytest

from everyformer import catalog
from everyformer.catalog import Claim, Measurement, Panel, Paper, Threshold
from everyformer.lab import report, runner


class Counter:
    """A claim whose runs are counted and that can be stopped at a seed."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.stop_at: int | None = None
        self.figure = 1.0

    def __call__(self, job):
        (job.folder / "half").write_text("work")
        if job.seed == self.stop_at:
            raise KeyboardInterrupt
        self.seeds.append(job.seed)
        panel = Panel("t", "x", "y", {"a": ([1.0, 2.0], [1.0, 4.0]), "b": ([1.0, 2.0], [2.0, 3.0])})
        heat = Panel("h", "x", "y", kind="heat", grid=[[0.0, 1.0]])
        bars = Panel("b", "x", "y", {"a": ([0.0, 1.0], [2.0, 3.0])}, kind="bar", ticks=["one", "another one"])
        return Measurement(self.figure + job.seed / 10, 0.5, {"extra": 2.0}, (panel, heat, bars))


@pytest.fixture
def counted(monkeypatch):
    claim = Claim(
        "main", "S.", "speed", "x", "higher", 3.0, 1.0, "there", "ours", "theirs", Threshold("ratio", 1.5), "main"
    )
    paper = Paper("sla", "T", "2509.24006", None, None, None, "s", None, "none", ("attention",), (claim,))
    counter = Counter()
    module = types.ModuleType("everyformer.papers.sla.claim")
    module.main = counter
    monkeypatch.setitem(sys.modules, "everyformer.papers.sla.claim", module)
    return paper, claim, counter


def run(counted, out: Path, **options):
    paper, claim, _ = counted
    return runner.run_claim(paper, claim, **{"scale": "smoke", "seeds": [0, 1, 2], "out": out, **options})


def test_result_is_written_with_everything_that_it_must_hold(counted, tmp_path):
    result = run(counted, tmp_path)
    data = json.loads((tmp_path / "sla.main.smoke.json").read_text())
    for field in (
        "paper", "claim", "scale", "metric", "unit", "better", "method", "baseline", "effect", "threshold", "verdict",
        "paper_value", "paper_baseline", "seeds", "device", "versions", "commit", "seconds", "peak_mb", "created",
    ):  # fmt: skip
        assert field in data
    assert data["method"]["values"] == [1.0, 1.1, 1.2]
    assert result.verdict == "reproduced"
    assert catalog.recorded(tmp_path)["sla.main.smoke"].verdict == "reproduced"


def test_interrupted_run_keeps_finished_seeds_and_resumes_to_the_same_figures(counted, tmp_path):
    *_, counter = counted
    whole = run(counted, tmp_path / "whole")
    counter.seeds.clear()
    counter.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        run(counted, tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("*.json"))
    work = tmp_path / "cut" / ".runs" / "sla.main.smoke" / "seed-1" / "work" / "half"
    assert work.read_text() == "work"
    counter.stop_at = None
    again = run(counted, tmp_path / "cut", resume=True)
    assert counter.seeds == [0, 1, 2], "seed 0 must not run a second time"
    assert again.method.values == whole.method.values
    assert not work.exists()


def test_without_resume_everything_runs_anew(counted, tmp_path):
    *_, counter = counted
    run(counted, tmp_path)
    run(counted, tmp_path)
    assert counter.seeds == [0, 1, 2, 0, 1, 2]


def test_resume_does_not_reuse_what_another_precision_measured(counted, tmp_path):
    *_, counter = counted
    run(counted, tmp_path)
    run(counted, tmp_path, resume=True, precision="bf16-mixed")
    assert counter.seeds == [0, 1, 2, 0, 1, 2]


def test_figures_that_are_not_finite_are_refused(counted, tmp_path):
    *_, counter = counted
    counter.figure = float("nan")
    with pytest.raises(ValueError, match=r"sla\.main \(smoke, seed 0\) gave figures that are not finite: method"):
        run(counted, tmp_path)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "huge"}, "scale must be one of smoke, cpu, paper, got 'huge'"),
        ({"device": "quantum"}, "device must be one of cpu"),
        ({"seeds": []}, "seeds must be"),
        ({"seeds": [1, 1]}, "seeds must be"),
    ],
)
def test_bad_requests_are_named(counted, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(counted, tmp_path, **options)


def test_folder_that_cannot_be_written_is_named_before_anything_runs(counted, tmp_path):
    *_, counter = counted
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(PermissionError, match=r"results folder .*file.* cannot be written"):
        run(counted, blocked / "results")
    assert counter.seeds == []


def test_select_takes_papers_and_single_claims(counted):
    paper, claim, _ = counted
    assert runner.select(["sla", "sla.main"], lambda slug: paper) == [(paper, claim)]
    with pytest.raises(ValueError, match=r"unknown claim of sla 'mian'; did you mean main"):
        runner.select(["sla.mian"], lambda slug: paper)


def test_report_is_one_file_without_scripts_in_both_themes(counted, tmp_path):
    paper, claim, _ = counted
    result = run(counted, tmp_path)
    report.save_plots(result, claim, tmp_path)
    assert (tmp_path / "sla.main.smoke.png").read_bytes().startswith(b"\x89PNG")
    page = report.html_report([(paper, claim, result)], "A <title>", tmp_path)
    assert "A &lt;title&gt;" in page
    assert "prefers-color-scheme: dark" in page
    assert "<script" not in page
    assert 'src="http' not in page
    (plot,) = re.findall('data:image/svg[+]xml;base64,([^"]+)', page)
    assert base64.b64decode(plot) == (tmp_path / "sla.main.smoke.svg").read_bytes()
    assert b"prefers-color-scheme: dark" in base64.b64decode(plot)


def test_plots_are_the_same_bytes_for_the_same_result(counted, tmp_path):
    _, claim, _ = counted
    result = run(counted, tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        report.save_plots(result, claim, tmp_path / folder)
    name = "sla.main.smoke.svg"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_seconds_of_an_attempt_that_was_killed_count_until_it_last_wrote(counted, tmp_path):
    counted[2].stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        run(counted, tmp_path)
    counted[2].stop_at = None
    folder = tmp_path / ".runs" / "sla.main.smoke" / "seed-1"
    (folder / "seconds").write_text("20.0")
    now = (folder / "work" / "half").stat().st_mtime
    os.utime(folder / "seconds", (now - 100, now - 100))  # begun 100 s before the last sign of life
    assert 120 <= run(counted, tmp_path, resume=True).seconds < 125
