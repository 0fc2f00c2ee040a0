import dataclasses
import json
import re

import pytest
import torch

from everyformer import cli, mixers
from everyformer.lab import compress_bench, data, mixer_bench, mixer_table


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(mixer_table, "own_file", lambda: tmp_path / "own" / "mixers.json")
    monkeypatch.setattr(mixer_table, "_checkout", lambda: tmp_path / "no")
    monkeypatch.setattr(mixer_table, "shipped_file", lambda: tmp_path / "no" / "mixers.json")
    return tmp_path / "own" / "mixers.json"


def call(capsys, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["everyformer", *words])
    monkeypatch.setattr(cli.console, "width", 300)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_mixers_are_measured_into_the_users_file_outside_a_checkout(file, capsys, monkeypatch):
    monkeypatch.setattr(mixer_bench, "QUICK", dataclasses.replace(mixer_bench.QUICK, lengths=(32, 64, 128)))
    code, out, _ = call(capsys, monkeypatch, "bench", "mixers", "--quick", "--only", "full, linear", "--no-tasks")
    assert "Time of a training step grows with the tokens to the power of: full " in out
    assert code == 0 and "12 timings and 0 accuracies" in out
    (table,) = mixer_table.load([file])
    assert {row.mixer for row in table.speed} == {"full", "linear"} and table.scale == "smoke" and table.dim == 32


def test_a_folder_can_be_told(file, tmp_path, capsys, monkeypatch):
    words = (
        "bench",
        "mixers",
        "--quick",
        "--only",
        "full",
        "--no-tasks",
        "--dim",
        "16",
        "--out",
        str(tmp_path / "told"),
    )
    assert call(capsys, monkeypatch, *words)[0] == 0
    assert json.loads((tmp_path / "told" / "mixers.json").read_text())["tables"][0]["dim"] == 16
    assert not file.exists()


def test_what_was_measured_is_advised(file, capsys, monkeypatch, tmp_path):
    settings = mixer_bench.Settings(dim=32, heads=2, lengths=(32, 64, 128), rounds=1, tasks=False)
    mixer_bench.measure(file, settings=settings, names=("full", "linear"))
    plot = tmp_path / "plot.svg"
    words = ("advise", "--tokens", "100", "--memory", "4GB", "--latency", "10s", "--causal", "--plot", str(plot))
    code, out, _ = call(capsys, monkeypatch, *words)
    assert code == 0 and "100 tokens" in out and "n^" in out and "Predictions miss measured times by" in out
    assert "from everyformer import mixers; mixer = mixers.create(" in out and "not on this device" not in out
    assert plot.read_text().lstrip().startswith("<?xml")
    first = mixers.cards()[re.search(r"First choice: (\w+)", out)[1]]
    assert first.time in out and first.memory in out
    code, out, _ = call(capsys, monkeypatch, "advise", "--tokens", "100", "--latency", "1us")
    assert code == 0 and "None fits." in out and "too slow" in out


def test_another_machine_is_told(file, capsys, monkeypatch):
    settings = mixer_bench.Settings(dim=32, heads=2, lengths=(32,), rounds=1, tasks=False)
    table = mixer_bench.measure(file, settings=settings, names=("full",))
    file.unlink()
    table.device = "somebody's machine"
    mixer_table.save(table, file)
    _, out, _ = call(capsys, monkeypatch, "advise", "--tokens", "32")
    assert "Measured on somebody's machine, not on this device" in out


def test_time_and_accuracy_can_be_measured_apart(file, capsys, monkeypatch):
    words = ("bench", "mixers", "--quick", "--only", "full")
    assert "0 timings and 4 accuracies" in call(capsys, monkeypatch, *words, "--no-speed")[1]
    assert "4 timings and 4 accuracies" in call(capsys, monkeypatch, *words, "--no-tasks")[1]
    (table,) = mixer_table.load([file])
    assert len(table.speed) == len(table.accuracy) == 4


def test_what_is_known_can_be_measured_again(file, capsys, monkeypatch):
    words = ("bench", "mixers", "--quick", "--only", "fnet", "--no-tasks")
    assert "once more" in call(capsys, monkeypatch, *words)[1]
    before = file.read_bytes()
    assert "seeing all" not in call(capsys, monkeypatch, *words)[1] and file.read_bytes() == before
    assert "fnet, seeing all, once more" in call(capsys, monkeypatch, *words, "--again")[1]
    (table,) = mixer_table.load([file])
    assert len(table.runs) == 2 and {row.run for row in table.speed} == {max(table.runs)}


def test_what_is_measured_in_haste_is_not_advised_by(file, capsys, monkeypatch):
    call(capsys, monkeypatch, "bench", "mixers", "--quick", "--only", "full", "--no-tasks")
    code, _, err = call(capsys, monkeypatch, "advise", "--tokens", "64")
    assert code == 2 and "nothing was measured on cpu" in err


def test_compressors_are_measured_and_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path / "cache")
    chosen = {name: compress_bench.TABLE[name] for name in ("half of the heads",)}
    monkeypatch.setattr(compress_bench, "TABLE", chosen)
    words = ("bench", "compress", "--quick", "--out", str(tmp_path))
    code, out, _ = call(capsys, monkeypatch, *words)
    assert code == 0 and "characters, half of the heads" in out and "digits, half of the heads" in out
    rows = json.loads((tmp_path / "compress.json").read_text())["tables"][0]["rows"]
    before, after = (rows[0][name]["file_bytes"] / 1e3 for name in ("before", "after"))
    assert after < before and f"{before:.4g} → {after:.4g}" in out
    written = (tmp_path / "compress.json").read_bytes()
    assert call(capsys, monkeypatch, *words)[0] == 0 and (tmp_path / "compress.json").read_bytes() == written
    (tmp_path / "compress.json").write_text("[]")
    code, _, err = call(capsys, monkeypatch, *words)
    assert code == 2 and "compress.json holds no table of compressors" in err


def test_the_help_names_what_there_is_besides_papers(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "bench", "--help")
    assert code == 0 and "everyformer bench mixers" in out and "everyformer bench compress" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("advise", "--tokens", "10"), "measure here with: everyformer bench mixers --device cpu"),
        (("advise", "--tokens", "10", "--memory", "4"), "memory must be a number above 0 with its unit"),
        (("advise", "--tokens", "10", "--latency", "fast"), "latency must be a number above 0 with its unit"),
        (("advise", "--tokens", "10", "--device", "tpu"), "device must be one of cpu"),
        (("advise", "--tokens", "10", "--step", "backward"), "step must be one of forward, training, token"),
        (("advise", "--tokens", "-3"), "tokens must be 1 to"),
        (("bench", "mixers", "--only", "ful"), "did you mean full"),
        (("bench", "mixers", "--device", "tpu"), "device must be one of cpu"),
        (("bench", "mixers", "--dim", "30"), "dim must be a multiple of heads"),
        (("bench", "mixers", "--peer", "peers.py"), "peer must not be given for mixers"),
        (("bench", "mixers", "--no-tasks", "--no-speed"), "no-speed and no-tasks must not both be given"),
        (("bench", "sla", "--dim", "30"), "are for `everyformer bench mixers`, got paper 'sla'"),
        (("bench", "sla", "--again"), "again is for `everyformer bench mixers` and `compress`"),
        (("bench", "compress", "--no-speed"), "are for `everyformer bench mixers`, got paper 'compress'"),
        (("bench", "compress", "--peer", "peers.py"), "peer must not be given for compress"),
        (("bench", "compress", "--device", "tpu"), "device must be one of cpu"),
    ],
)
def test_bad_input_is_one_line(file, capsys, monkeypatch, words, message):
    code, _, err = call(capsys, monkeypatch, *words)
    assert code == 2 and message in err and err.startswith("error: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_here_is_refused(file, capsys, monkeypatch):
    assert "device must be one of cpu" in call(capsys, monkeypatch, "advise", "--tokens", "10", "--device", "cuda")[2]
