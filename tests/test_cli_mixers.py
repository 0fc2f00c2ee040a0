import json

import pytest
import torch

from everyformer import cli, mixers
from everyformer.lab import data, mixer_bench, mixer_table


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(mixer_table, "own_file", lambda: tmp_path / "own" / "mixers.json")
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
    code, out, _ = call(capsys, monkeypatch, "bench", "mixers", "--quick", "--only", "full, linear", "--no-tasks")
    assert code == 0 and "8 timings and 0 accuracies" in out
    (table,) = mixer_table.load([file])
    assert {row.mixer for row in table.speed} == {"full", "linear"} and table.scale == "cpu" and table.dim == 32


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
    settings = mixer_bench.Settings(dim=32, heads=2, lengths=(32, 64, 128), rounds=1, scale=None)
    mixer_bench.measure(file, settings=settings, names=("full", "linear"))
    plot = tmp_path / "plot.svg"
    words = ("advise", "--tokens", "100", "--memory", "4GB", "--latency", "10s", "--causal", "--plot", str(plot))
    code, out, _ = call(capsys, monkeypatch, *words)
    assert code == 0 and "100 tokens" in out and "Predictions miss measured times by" in out
    assert "First choice: everyformer.mixers.create(" in out and "not on this device" not in out
    assert plot.read_text().lstrip().startswith("<?xml")
    for name in ("full", "linear"):
        assert mixers.cards()[name].time in out
    code, out, _ = call(capsys, monkeypatch, "advise", "--tokens", "100", "--latency", "1us")
    assert code == 0 and "None fits." in out and "too slow" in out


def test_another_machine_is_told(file, capsys, monkeypatch):
    settings = mixer_bench.Settings(dim=32, heads=2, lengths=(32,), rounds=1, scale=None)
    table = mixer_bench.measure(file, settings=settings, names=("full",))
    file.unlink()
    table.device = "somebody's machine"
    mixer_table.save(table, file)
    _, out, _ = call(capsys, monkeypatch, "advise", "--tokens", "32")
    assert "Measured on somebody's machine, not on this device" in out


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
        (("bench", "sla", "--dim", "30"), "are for `everyformer bench mixers`, got paper 'sla'"),
    ],
)
def test_bad_input_is_one_line(file, capsys, monkeypatch, words, message):
    code, _, err = call(capsys, monkeypatch, *words)
    assert code == 2 and message in err and err.startswith("error: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_here_is_refused(file, capsys, monkeypatch):
    assert "device must be one of cpu" in call(capsys, monkeypatch, "advise", "--tokens", "10", "--device", "cuda")[2]
