import sys

import pytest
import torch
from torch import nn

from everyformer.lab import data
from everyformer.lab.pretrained import load_or_train


class Tied(nn.Module):
    """Two names for one weight, a buffer, and a buffer that is not kept."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("table", torch.zeros(3), persistent=False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path)
    return tmp_path


def trained(value, **changed):
    model, folders = Tied(), []

    def fit(folder):
        folders.append(folder)
        with torch.no_grad():
            for tensor in (*model.parameters(), model.count):
                tensor.fill_(value)

    options = {"recipe": {"steps": 1}, "samples": [torch.arange(3)], "code": [sys.modules[__name__]]}
    load_or_train(model, fit, **{**options, **changed})
    return model, folders


def test_weights_and_buffers_come_back_without_training():
    _, folders = trained(3.0)
    assert len(folders) == 1
    again, folders = trained(4.0)
    assert not folders
    assert all((tensor == 3).all() for tensor in (*again.parameters(), again.count))
    assert again.second.weight is again.first.weight


@pytest.mark.parametrize(
    "changed",
    [{"recipe": {"steps": 2}}, {"samples": [torch.arange(4)]}, {"code": [sys.modules["everyformer.lab.data"]]}],
)
def test_what_comes_from_something_else_is_another_model(changed):
    trained(3.0)
    model, folders = trained(4.0, **changed)
    assert folders and (model.first.weight == 4).all()


def test_an_interrupted_training_leaves_no_weights(cache):
    def fail(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_or_train(Tied(), fail, recipe={"steps": 1}, samples=[], code=[])
    assert not list(cache.rglob("*.safetensors"))
