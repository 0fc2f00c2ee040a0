import copy

import pytest
import torch

from everyformer import compressors
from everyformer.lab import compress_subjects as subjects
from everyformer.lab import data
from everyformer.parts.compress import pruning


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path_factory.getbasetemp() / "compress")


def test_digits_are_of_three_parts_without_overlap():
    found = subjects.digits("smoke")
    assert [len(labels) for _, labels in (found.train, found.validation, found.test)] == [400, 50, 50]
    assert found.train[0].shape[1:] == (3, 20, 20)
    seen = {picture.numpy().tobytes() for picture in found.train[0][:, 0]}
    assert not any(picture.numpy().tobytes() in seen for picture in found.test[0][:, 0])


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="subject must be characters or digits, got 'letters'"):
        subjects.subject("letters", scale="smoke", seed=0)


def test_a_compressed_model_heals_once_and_keeps_its_zeros():
    whole = subjects.subject("digits", scale="smoke", seed=0)
    steps = [("magnitude", {"sparsity": 0.5}), ("nvfp4", {})]
    healed = []
    for _ in range(2):
        made = compressors.compose(
            copy.deepcopy(whole.model), steps[:1], heal=lambda model: whole.heal(model, steps, 2)
        )
        healed.append(made)
    assert pruning.sparsity(healed[0]) == pytest.approx(0.5, abs=0.01)
    before, after = whole.model.state_dict(), healed[0].state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert all(torch.equal(tensor, healed[1].state_dict()[name]) for name, tensor in after.items())
