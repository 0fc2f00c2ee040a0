import pytest
import torch

from everyformer.lab import moving_digits as md


@pytest.fixture(scope="module")
def source():
    return md.digits("smoke", "train")


def test_videos_are_told_apart_by_the_seed_alone(source):
    one, same, other = (md.videos(source, 3, 5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.frames.shape == (3, 5, 1, 32, 32) and one.boxes.shape == (3, 5, 1, 4) and one.labels.shape == (3, 1)
    assert torch.equal(one.frames, same.frames) and not torch.equal(one.frames, other.frames)
    assert one.frames.min() >= -1 and one.frames.max() <= 1


def test_train_and_test_digits_are_different_ones(source):
    held_out = md.digits("smoke", "test")
    assert len(source.images) == 400 and len(held_out.images) == 100
    assert source.images.min() == 0 and source.images.max() <= 1


def test_a_digit_is_where_its_box_says(source):
    made = md.videos(source, 4, 16, torch.Generator().manual_seed(0), number=2)
    ink = made.frames[:, :, 0] > -0.9
    pixel = torch.arange(32) + 0.5
    x, y = pixel[None, :], pixel[:, None]
    left, top, right, bottom = (made.boxes[..., side, None, None] for side in range(4))
    # Half a pixel outside the box: between pixels a digit is drawn by interpolation.
    inside = ((x > left - 0.5) & (x < right + 0.5) & (y > top - 0.5) & (y < bottom + 0.5)).any(2)
    assert ink.any() and not (ink & ~inside).any()
    assert made.boxes.min() >= 0 and made.boxes.max() <= 32


def test_paths_are_straight_between_the_walls():
    path = md.paths(200, 16, torch.Generator().manual_seed(0), speed=(2.0, 2.0))
    steps = path.diff(dim=1)
    pace = steps.norm(dim=-1)
    assert path.min() >= 0 and path.max() <= 16
    assert pace.max() == pytest.approx(2, rel=1e-4)
    straight = torch.isclose(steps[:, 1:], steps[:, :-1], atol=1e-4).all(-1)
    assert straight.float().mean() > 0.6


def test_a_digit_on_whole_pixels_is_drawn_as_it_is(source):
    corners = torch.tensor([[[[3.0, 5.0]], [[4.0, 5.0]]]])
    made = md.render(source.images[None, :1], corners)
    torch.testing.assert_close(made.frames[0, 0, 0, 5:21, 3:19], 2 * source.images[0] - 1, atol=1e-4, rtol=0)
    torch.testing.assert_close(made.frames[0, 1, 0, 5:21, 4:20], 2 * source.images[0] - 1, atol=1e-4, rtol=0)
