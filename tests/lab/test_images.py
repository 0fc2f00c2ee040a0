"""Pictures and the recipe: what is loaded, how it is shifted, what it costs, and that it learns the same after a kill."""

import numpy as np
import pytest
import torch
from torch import nn

from everyformer.catalog import Job
from everyformer.lab import images
from everyformer.lab.data import DataMissing
from everyformer.lab.images import Pictures


@pytest.fixture(scope="module")
def cifar():
    try:
        return images.cifar10()
    except DataMissing:
        pytest.skip("the pictures are not here")


def made_up(train=256, test=128, classes=2):
    """Pictures whose class is their brightness."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for count in (train, test):
        labels = torch.randint(classes, (count,), generator=generator)
        noise = torch.randint(60, (count, 3, 32, 32), generator=generator)
        sets.append(((noise + 120 * labels[:, None, None, None]).to(torch.uint8), labels))
    return Pictures(*sets)


def test_the_subset_is_balanced_and_mixed(cifar):
    assert cifar.train[0].shape == (15000, 3, 32, 32) and cifar.test[0].shape == (3000, 3, 32, 32)
    assert cifar.train[1].bincount().tolist() == [1500] * 10
    assert cifar.train[1][:1000].bincount().min() > 60
    pixels = images.normalised(cifar.train[0][:2000])
    assert pixels.mean().abs() < 0.05 and (pixels.std() - 1).abs() < 0.05


def test_the_full_set_is_read_from_its_binary_form(tmp_path, monkeypatch):
    import io
    import tarfile

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, first in (("data_batch_2", 2), ("data_batch_1", 1), ("test_batch", 9)):
            row = np.full((1, 3073), 7, np.uint8)
            row[:, 0], row[:, 1] = first, 200
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = row.nbytes
            archive.addfile(member, io.BytesIO(row.tobytes()))
    monkeypatch.setattr(images.data, "read", lambda name: packed.getvalue())
    pictures = images.cifar10(full=True)
    assert sorted(pictures.train[1].tolist()) == [1, 2] and pictures.test[1].tolist() == [9]
    assert pictures.test[0][0, 0, 0, :2].tolist() == [200, 7]  # red first, row by row


def test_augmentation_shifts_and_mirrors_whole_pictures():
    ramp = torch.arange(32 * 32).reshape(1, 1, 32, 32).expand(64, 3, 32, 32) % 251
    out = images.augmented(ramp.to(torch.uint8), torch.Generator().manual_seed(1))
    assert out.shape == (64, 3, 32, 32) and out.dtype == torch.uint8
    padded = torch.nn.functional.pad(ramp[0].to(torch.uint8), (4, 4, 4, 4))
    crops = [padded[:, d : d + 32, r : r + 32] for d in range(9) for r in range(9)]
    crops += [crop.flip(2) for crop in crops]
    assert all(any(torch.equal(picture, crop) for crop in crops) for picture in out)
    assert len({picture.numpy().tobytes() for picture in out}) > 20


def test_the_recipe_learns_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    def run(folder):
        model = network()
        job = Job("smoke", 0, "cpu", folder)
        score, history = images.train_classifier(model, made_up(), job, name="net", epochs=6, learning_rate=0.05)
        return score, history, model

    whole, history, model = run(tmp_path / "whole")
    assert whole > 95 and history.steps == 12
    stopped = iter([False] * 7 + [True])
    normalised = images.normalised

    def interrupted(pictures):
        if next(stopped, False):
            raise KeyboardInterrupt
        return normalised(pictures)

    monkeypatch.setattr(images, "normalised", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    monkeypatch.setattr(images, "normalised", normalised)
    again, _, resumed = run(tmp_path / "cut")
    assert again == whole
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["deit", "swin", "convnext", "resnet"])
def test_baselines_of_equal_cost(kind):
    target = 30_000_000
    model = images.baseline(kind, target)
    assert abs(images.macs(model, 32) / target - 1) < 0.25
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_multiply_adds_are_counted_as_papers_count_them():
    layer = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    assert images.macs(layer, 8) == 3 * 8 * 8 * 10


def test_the_products_of_attention_are_counted():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)[:, None] * self.scale  # (batch, 1 head, 64 tokens, 3)
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert images.macs(Attention(), 8) == 2 * 64 * 64 * 3


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="kind"):
        images.baseline("vgg", 10)
    with pytest.raises(ValueError, match="pictures"):
        images.train_classifier(nn.Linear(1, 1), made_up(10), Job("smoke", 0, "cpu", None), name="x", epochs=1)
