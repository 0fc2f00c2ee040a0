import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.vdt import random_masks, task_mask
from everyformer.papers.vdt.masks import TASKS


def frames_of(task, frames=16, **options):
    """The frames that are generated, where a frame is so altogether or not at all."""
    mask = task_mask(task, frames, 4, 6, **options)
    assert mask.dtype == torch.bool
    assert mask.shape == (frames, 4, 6)
    whole = mask.flatten(1)
    assert torch.equal(whole.all(1), whole.any(1))
    return whole.all(1).nonzero()[:, 0].tolist()


def test_the_authors_masks_of_sixteen_frames():
    assert frames_of("prediction") == list(range(8, 16))
    assert frames_of("backward") == list(range(8))
    assert frames_of("interpolation") == [frame for frame in range(16) if frame % 4]
    assert frames_of("unconditional") == list(range(16))


def test_other_sizes():
    assert frames_of("prediction", 5, given=1) == [1, 2, 3, 4]
    assert frames_of("backward", 5) == [0, 1, 2]
    assert frames_of("backward", 5, given=0) == [0, 1, 2, 3, 4]
    assert frames_of("interpolation", 5, stride=2) == [1, 3]


@given(frames=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_animation_gives_one_frame(frames, seed):
    assert len(frames_of("animation", frames, generator=torch.Generator().manual_seed(seed))) == frames - 1


def test_arbitrary_gives_a_fifth_of_the_frames():
    generator = torch.Generator().manual_seed(0)
    generated = [len(frames_of("arbitrary", generator=generator)) for _ in range(400)]
    assert sum(generated) / (400 * 16) == pytest.approx(0.8, abs=0.02)
    assert frames_of("arbitrary", kept=0.0) == list(range(16))


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 10**6))
def test_completion_asks_for_blocks_in_the_middle_frames(frames, height, width, covered, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = task_mask("completion", frames, height, width, covered=covered, generator=generator)
    shown = mask.flatten(1).any(1)
    blocks = mask[shown]
    assert all(torch.equal(frame, blocks[0]) for frame in blocks)
    if len(blocks):
        first, last = shown.nonzero()[0].item(), shown.nonzero()[-1].item()
        assert shown[first : last + 1].all()
        assert first <= 3
        assert frames - 1 - last <= 3
        assert 0 < blocks[0].sum() <= covered * height * width


def test_completion_covers_about_half_of_a_frame_and_reaches_the_last_one():
    generator = torch.Generator().manual_seed(0)
    masks = [task_mask("completion", 16, 16, 16, generator=generator) for _ in range(100)]
    assert all(mask.any() for mask in masks)
    assert 0.4 < sum(float(mask[8].float().mean()) for mask in masks) / 100 <= 0.5
    assert any(mask[-1].any() for mask in masks)


def test_random_masks_are_a_mixture_that_the_generator_settles():
    masks = random_masks(300, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(masks, random_masks(300, 16, 8, 8, generator=torch.Generator().manual_seed(3)))
    assert masks.flatten(1).any(1).all()
    for task in ("prediction", "backward", "interpolation", "unconditional"):
        same = (masks == task_mask(task, 16, 8, 8)).flatten(1).all(1)
        assert float(same.float().mean()) == pytest.approx(0.8 / 6, abs=0.06)
    partial = masks.flatten(2).any(2) != masks.flatten(2).all(2)
    assert float(partial.any(1).float().mean()) == pytest.approx(0.2, abs=0.07)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "inpainting"}, r"task must be one of \('prediction', .*\), got 'inpainting'"),
        ({"given": 4}, "given must be at least 0 and below frames=4, got 4"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"kept": 1.5}, r"kept must be in \[0, 1\], got 1.5"),
        ({"covered": -0.1}, r"covered must be in \[0, 1\], got -0.1"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        task_mask(**{"task": TASKS[0], "frames": 4, "height": 2, "width": 2, "given": 2, **arguments})


def test_a_batch_of_none_is_refused():
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        random_masks(0, 4, 2, 2)
