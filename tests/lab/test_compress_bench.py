import json

import pytest
import torch
from torch import nn

from everyformer.lab import compress_bench as bench
from everyformer.lab import data, environment
from everyformer.parts.compress import pruning, quantise


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path_factory.getbasetemp() / "compress")


def test_before_and_after_tell_what_shrank():
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Linear(64, 64), nn.GELU())  # noqa: E731
    before, after = nn.Sequential(block(), block()), nn.Sequential(block(), block())
    costs = bench.before_after(before, quantise.nvfp4_weights(after), torch.randn(4, 64), lambda model: 1.0, rounds=1)
    assert costs["after"].file_bytes < 0.3 * costs["before"].file_bytes
    assert (
        costs["before"].held_bytes == 4 * 2 * (64 * 64 + 64)
        and costs["after"].held_bytes < 0.3 * costs["before"].held_bytes
    )
    assert costs["after"].parameters == costs["before"].parameters == 2 * (64 * 64 + 64)
    assert costs["before"].peak_bytes >= 4 * 64 * 4 and costs["before"].seconds > 0
    smaller = bench.before_after(
        before, pruning.drop_blocks(before, 0.0), torch.randn(4, 64), lambda model: 1.0, rounds=1
    )
    assert smaller["after"].file_bytes == smaller["before"].file_bytes


def test_the_table_is_written_row_by_row_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "TABLE", {name: bench.TABLE[name] for name in ("half of the heads", "merged tokens")})
    rows = []
    path = bench.run(quick=True, out=tmp_path, report=rows.append)
    assert [(row["model"], row["method"]) for row in rows] == [
        ("characters", "half of the heads"),
        ("digits", "half of the heads"),
        ("digits", "merged tokens"),
    ]
    names = {"file_bytes", "held_bytes", "parameters", "peak_bytes", "seconds", "quality"}
    for row in rows:
        assert set(row["before"]) == set(row["after"]) == names
    assert rows[0]["after"]["file_bytes"] < rows[0]["before"]["file_bytes"]
    assert rows[2]["after"]["file_bytes"] == rows[2]["before"]["file_bytes"]
    content = json.loads(path.read_text())
    content["tables"][0]["rows"] = rows[:2]  # as if it had been interrupted
    path.write_text(json.dumps(content))
    monkeypatch.setattr(environment, "commit", lambda: "another")
    more = []
    bench.run(quick=True, out=tmp_path, report=more.append)
    assert more[:2] == rows[:2] and more[2]["method"] == "merged tokens"
    assert [row["commit"] for row in more] == [rows[0]["commit"], rows[1]["commit"], "another"]
    assert json.loads(path.read_text())["tables"] == [{**content["tables"][0], "rows": more}]
    again = []
    bench.run(quick=True, out=tmp_path, again=True, report=again.append)
    assert [row["commit"] for row in again] == ["another"] * 3
    assert json.loads(path.read_text())["tables"][0]["rows"] == again


def test_tables_of_other_machines_and_sizes_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "TABLE", {"half of the heads": bench.TABLE["half of the heads"]})
    full = {"device": environment.device_name("cpu"), "quick": False, "updates": 40, "rows": []}
    others = [full, {**full, "device": "another", "quick": True}]
    (tmp_path / "compress.json").write_text(json.dumps({"tables": others}))
    path = bench.run(quick=True, out=tmp_path)
    found = json.loads(path.read_text())["tables"]
    assert found[:2] == others and len(found) == 3 and len(found[2]["rows"]) == 2
