import sys

import pytest
import torch

from everyformer.lab import data
from everyformer.lab.simulated import load_or_make


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path)
    return tmp_path


def simulated(stop_at=None, parts=3, **settings):
    calls = []

    def make(part):
        if part == stop_at:
            raise KeyboardInterrupt
        calls.append(part)
        return {"flow": torch.full((2, 4), float(part)), "time": torch.full((1,), part)}

    options = {"seed": 0, **settings}
    return load_or_make("waves", make, parts=parts, settings=options, code=[sys.modules[__name__]]), calls


def test_parts_follow_each_other_and_are_made_once(cache):
    first, calls = simulated()
    again, none = simulated()
    assert calls == [0, 1, 2]
    assert none == []
    assert first["flow"].shape == (6, 4)
    assert first["flow"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert again["time"].tolist() == [0, 1, 2]
    assert [path.name.split("-")[0] for path in (cache / "simulated").iterdir()] == ["waves"]


def test_an_interrupted_run_keeps_what_was_made():
    with pytest.raises(KeyboardInterrupt):
        simulated(stop_at=2)
    made, calls = simulated()
    assert calls == [2]
    assert len(made["flow"]) == 6


def test_other_settings_are_other_data_and_more_parts_are_added():
    simulated()
    assert simulated(seed=1)[1] == [0, 1, 2]
    assert simulated(parts=4)[1] == [3]


def test_no_parts_are_refused():
    with pytest.raises(ValueError, match="parts must be at least 1, got 0"):
        simulated(parts=0)
