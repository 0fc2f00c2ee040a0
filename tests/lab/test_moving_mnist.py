import math

import numpy as np
import pytest
import torch

from everyformer.lab import moving_mnist
from everyformer.lab.moving_mnist import MovingMNIST, corners, render


def slow_path(x, y, angle, frames, room):
    """One digit, frame by frame, in plain arithmetic."""
    found, across, down = [], math.cos(angle), math.sin(angle)
    for _ in range(frames):
        x, y = x + 0.1 * across, y + 0.1 * down
        if x <= 0 or x >= 1:
            x, across = min(max(x, 0.0), 1.0), -across
        if y <= 0 or y >= 1:
            y, down = min(max(y, 0.0), 1.0), -down
        found.append([int(room * x), int(room * y)])
    return found


def test_paths_are_those_of_plain_arithmetic():
    start, angle = torch.rand(200, 2, dtype=torch.float64), 2 * torch.pi * torch.rand(200, dtype=torch.float64)
    found = corners(start, angle, 20, 36)
    for path in range(200):
        assert found[path].tolist() == slow_path(*start[path].tolist(), float(angle[path]), 20, 36)
    assert found.min() == 0 and found.max() == 36


def test_frames_are_the_brighter_of_digits_pasted_at_their_edges():
    images = torch.rand(3, 2, 5, 5)
    edges = torch.randint(8, (3, 2, 4, 2))
    expected = torch.zeros(3, 4, 1, 12, 12)
    for batch in range(3):
        for digit in range(2):
            for frame in range(4):
                left, top = edges[batch, digit, frame].tolist()
                part = expected[batch, frame, 0, top : top + 5, left : left + 5]
                part.copy_(torch.maximum(part, images[batch, digit]))
    assert torch.equal(render(images, edges, 12), expected)


def test_sequences_come_from_the_generator_alone():
    sequences = MovingMNIST(torch.rand(5, 28, 28))
    first = sequences.draw(3, torch.Generator().manual_seed(1))
    assert first.shape == (3, 20, 1, 64, 64)
    assert torch.equal(sequences.draw(3, torch.Generator().manual_seed(1)), first)
    assert not torch.equal(sequences.draw(3, torch.Generator().manual_seed(2)), first)
    # A digit moves by a tenth of 36 pixels a frame and by no more.
    bright = MovingMNIST(torch.ones(1, 28, 28), number=1).draw(50, torch.Generator().manual_seed(1))
    lefts = bright[:, :, 0].amax(2).argmax(-1)
    assert 3 <= lefts.diff(dim=1).abs().max() <= 4


def test_new_sequences_of_the_training_digits_are_like_those_trained_on():
    sequences = MovingMNIST(moving_mnist.digits("smoke", "train"))
    means = [float(sequences.draw(400, torch.Generator().manual_seed(seed)).mean()) for seed in (1, 2)]
    held = MovingMNIST(moving_mnist.digits("smoke", "test"))
    assert means[0] == pytest.approx(means[1], rel=0.03)
    assert float(held.draw(400, torch.Generator().manual_seed(3)).mean()) == pytest.approx(means[0], rel=0.1)


def test_digits_to_train_and_to_test_on_are_apart_and_halved_by_means():
    train, test = (moving_mnist.digits("smoke", part) for part in ("train", "test"))
    assert (len(train), len(test)) == (400, 100)
    assert not (train.flatten(1)[:, None] == test.flatten(1)).all(-1).any()
    small = moving_mnist.halved(train)
    assert small.shape == (400, 14, 14)
    assert float(small[7, 5, 6]) == pytest.approx(float(train[7, 10:12, 12:14].mean()))


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(2, 28, 28), {"size": 28}, "size must be larger than the digits' side of 28, got 28"),
        (torch.zeros(2, 28, 14), {}, r"images must be \(samples, side, side\)"),
        (torch.zeros(0, 28, 28), {}, "at least one digit"),
        (torch.zeros(2, 28, 28), {"frames": 0}, "frames must be at least 1, got 0"),
        (torch.zeros(2, 28, 28), {"number": 0}, "number must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_named(images, options, message):
    with pytest.raises(ValueError, match=message):
        MovingMNIST(images, **options)


def test_the_standard_test_file_is_read_or_named(tmp_path):
    path = tmp_path / "mnist_test_seq.npy"
    with pytest.raises(FileNotFoundError, match=r"fetch http://www.cs.toronto.edu/\S+mnist_test_seq.npy"):
        moving_mnist.standard_test(path)
    held = np.random.default_rng(0).integers(0, 256, (20, 3, 64, 64), dtype=np.uint8)
    np.save(path, held)
    found = moving_mnist.standard_test(path)
    assert found.shape == (3, 20, 1, 64, 64)
    assert float(found[2, 7, 0, 5, 6]) == pytest.approx(held[7, 2, 5, 6] / 255)
    np.save(path, held[:10])
    with pytest.raises(ValueError, match=r"must hold bytes \(20, sequences, 64, 64\), got uint8 \(10, 3, 64, 64\)"):
        moving_mnist.standard_test(path)
