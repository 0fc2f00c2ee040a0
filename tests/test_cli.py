import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import everyformer
from everyformer import cli


def call(*arguments, cwd=None, env=None):
    return subprocess.run(
        [sys.executable, "-m", "everyformer", *arguments],
        capture_output=True, text=True, cwd=cwd, env={**os.environ, "COLUMNS": "200", **(env or {})},
    )  # fmt: skip


def test_list_shows_every_paper_and_what_is_built():
    out = call("list").stdout
    assert "34 papers" in out
    for paper in everyformer.papers():
        assert paper.slug in out


def test_list_as_json():
    rows = json.loads(call("list", "--json").stdout)
    assert len(rows) == len(everyformer.papers())
    for row in rows:
        assert {"slug", "title", "built", "claims"} <= row.keys()
    assert {row["slug"] for row in rows if row["built"]} >= {"sla", "bytetransformer", "itransformer"}


def test_list_filters_by_tag_and_built():
    rows = json.loads(call("list", "--json", "--tag", "series").stdout)
    assert "itransformer" in {row["slug"] for row in rows}
    assert all("series" in row["tags"] for row in rows)
    assert all(not row["built"] for row in json.loads(call("list", "--json", "--not-built").stdout))


def test_show_tells_the_claims():
    done = call("show", "sla")
    assert done.returncode == 0
    assert "2509.24006" in done.stdout
    for claim in everyformer.paper("sla").claims:
        assert claim.name in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "itransfomer"), "did you mean itransformer"),
        (("run", "slaa"), "did you mean sla"),
        (("run", "sla.sped"), "did you mean speed"),
        (("run", "sla", "--scale", "huge"), "scale must be one of smoke, cpu, paper"),
        (("run", "sla", "--device", "quantum"), "device must be one of cpu"),
        (("list", "--tag", "vison"), "did you mean vision"),
        (("list", "--verdict", "maybe"), "unknown verdict"),
        (("run", "sla", "--seeds", "0"), "--seeds"),
        (("frobnicate",), "No such command"),
    ],
)
def test_mistakes_get_one_clear_line_and_status_two(arguments, message):
    done = call(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("command", "message"), [("run", "not built yet"), ("bench", "has no benchmark")])
def test_a_paper_that_is_not_built_is_said_to_be(command, message):
    slug = next((paper.slug for paper in everyformer.papers() if not paper.built), None)
    if slug is None:
        pytest.skip("every paper is built")
    done = call(command, slug)
    assert done.returncode == 2
    assert message in done.stderr


def test_results_folder_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = call("run", "sla.speed", "--scale", "smoke", "--seeds", "1", "--out", str(blocked / "results"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_a_missing_extra_is_answered_with_the_install_line(tmp_path):
    (tmp_path / "transformers.py").write_text("raise ModuleNotFoundError('gone', name='transformers')")
    done = call(
        "run", "bytetransformer.speed", "--scale", "smoke", "--seeds", "1", "--out", str(tmp_path / "out"),
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert 'pip install "everyformer[language]"' in done.stderr


@pytest.mark.parametrize("slug", [paper.slug for paper in everyformer.papers() if paper.built])
def test_dry_run_prints_what_the_papers_size_costs(slug, capsys):
    # In this process: 34 others would mostly import.
    assert not cli.app(["run", slug, "--scale", "paper", "--dry-run"], standalone_mode=False)
    printed = capsys.readouterr().out
    for word in ("parameters", "FLOPs", "memory", "launch"):
        assert word in printed
    for claim in everyformer.paper(slug).claims:
        assert f"everyformer run {slug}.{claim.name} " in printed or not claim.plan


def test_new_lays_out_rooms_that_work(tmp_path):
    from everyformer.scaffold import lay_out

    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "src" / "everyformer" / "papers").mkdir(parents=True)
    files = lay_out("tiny_thing", arxiv="2401.00001", title="A tiny thing", tags=("vision",), root=tmp_path)
    package = tmp_path / "src" / "everyformer" / "papers"
    code = (
        "import everyformer.papers as p, sys; p.__path__.append(sys.argv[1]);"
        "from everyformer.papers.tiny_thing import PAPER, TinyThing; import torch;"
        "assert PAPER.tags == ('vision',); assert TinyThing(4)(torch.zeros(1, 2, 4)).shape == (1, 2, 4);"
        "import everyformer.papers.tiny_thing.claim"
    )
    subprocess.run([sys.executable, "-c", code, str(package)], check=True)
    assert {file.name for file in files} == {"__init__.py", "model.py", "claim.py", "README.md", "test_model.py"}
    with pytest.raises(ValueError, match="exists already"):
        lay_out("tiny_thing", arxiv="2401.00001", title="A tiny thing", tags=("vision",), root=tmp_path)
    with pytest.raises(ValueError, match="slug must be"):
        lay_out("Tiny-Thing", arxiv="2401.00001", title="A tiny thing", tags=("vision",), root=tmp_path)
    with pytest.raises(ValueError, match="tags must be"):
        lay_out("other", arxiv="2401.00001", title="A tiny thing", tags=("magic",), root=tmp_path)


def test_ctrl_c_leaves_a_resumable_run_and_status_130(tmp_path):
    arguments = ["run", "itransformer.unseen_variates", "--scale", "smoke", "--seeds", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "everyformer", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    runs = tmp_path / ".runs"
    deadline = time.monotonic() + 120
    while not list(runs.glob("*/seed-0/work/*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "--resume" in stderr
    done = call(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / "itransformer.unseen_variates.smoke.json").is_file()
