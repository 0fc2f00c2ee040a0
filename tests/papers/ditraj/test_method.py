import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.ditraj import Trajectory, cross_mask, picture, self_mask, separate, std_rope
from everyformer.papers.ditraj.method import foreground, joint_mask, sources
from everyformer.parts.video_dit import Rotary3D, coordinates

MOVING = [(0, 0.0, 0.5, 0.0, 0.5), (8, 0.5, 1.0, 0.5, 1.0)]


@st.composite
def scenes(draw):
    """A grid, and a box in each of its frames."""
    frames, rows, columns = draw(st.integers(1, 4)), draw(st.integers(2, 6)), draw(st.integers(2, 6))
    boxes = []
    for _ in range(frames):
        top, left = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
        boxes.append([top, draw(st.integers(top + 1, rows)), left, draw(st.integers(left + 1, columns))])
    return (frames, rows, columns), torch.tensor(boxes)


@settings(max_examples=40, deadline=None)
@given(scene=scenes())
def test_the_foreground_has_one_box_of_positions_in_all_frames_and_the_background_its_own(scene):
    grid, boxes = scene
    where = coordinates(grid)
    moved = std_rope(where, boxes, grid)
    inside = foreground(boxes, grid)
    assert inside.sum() == ((boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])).sum()
    assert torch.equal(moved[~inside], where[~inside])
    assert torch.equal(moved[:, 0], where[:, 0])  # time is left alone
    areas = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    top, bottom, left, right = boxes[areas.argmin()].tolist()
    inner = moved[inside]
    assert ((inner[:, 1] >= top) & (inner[:, 1] < bottom) & (inner[:, 2] >= left) & (inner[:, 2] < right)).all()
    for frame, (y0, y1, x0, x1) in enumerate(boxes.tolist()):
        rows = moved.reshape(*grid, 3)[frame, y0:y1, x0:x1, 1]
        assert (rows.diff(dim=0) >= 0).all() and rows.min() == top
        if y1 - y0 > 1:
            assert rows.max() == bottom - 1


@settings(max_examples=20, deadline=None)
@given(scene=scenes())
def test_boxes_that_do_not_move_change_nothing_bit_for_bit(scene):
    grid, boxes = scene
    still = boxes[:1].expand(grid[0], 4)
    cos, sin = Rotary3D(12)(coordinates(grid))
    assert torch.equal(std_rope(cos, still, grid), cos) and torch.equal(std_rope(sin, still, grid), sin)
    assert self_mask(still, grid, "redundant").all()


def test_a_moved_box_of_equal_size_is_the_first_one_shifted():
    grid, boxes = (2, 4, 5), torch.tensor([[0, 2, 0, 3], [2, 4, 1, 4]])
    moved = std_rope(coordinates(grid), boxes, grid).reshape(*grid, 3)
    assert torch.equal(moved[1, 2:4, 1:4, 1:], moved[0, 0:2, 0:3, 1:])
    assert moved[1, 2, 1].tolist() == [1, 0, 0]


def test_a_larger_box_is_denser():
    """Twice the side, the same positions: every one is used by four tokens."""
    grid, boxes = (2, 4, 4), torch.tensor([[0, 4, 0, 4], [1, 3, 1, 3]])
    moved = std_rope(coordinates(grid), boxes, grid).reshape(*grid, 3)
    assert moved[0, :, 0, 1].tolist() == [1, 1, 2, 2]
    assert torch.equal(moved[1], coordinates(grid).reshape(*grid, 3)[1])


def test_trim_leaves_out_the_last_row_and_column():
    grid, boxes = (2, 5, 5), torch.tensor([[0, 3, 0, 3], [2, 5, 2, 5]])
    taken = sources(boxes, grid, trim=1).reshape(grid)
    own = torch.arange(50).reshape(grid)
    changed = taken != own
    assert changed.sum() == 4 and changed[1, 2:4, 2:4].all()


@settings(max_examples=30, deadline=None)
@given(scene=scenes())
def test_redundant_tokens_are_those_of_the_background_that_share_a_position(scene):
    grid, boxes = scene
    moved = std_rope(coordinates(grid), boxes, grid)
    inside = foreground(boxes, grid)
    same = (moved[:, None] == moved[None]).all(-1) & ~torch.eye(len(moved), dtype=torch.bool)
    redundant = same.any(1) & ~inside
    expected = ~((inside[:, None] & redundant) | (inside & redundant[:, None]))
    assert torch.equal(self_mask(boxes, grid, "redundant"), expected)
    apart = self_mask(boxes, grid, "separate")
    assert torch.equal(apart, inside[:, None] == inside)
    assert self_mask(boxes, grid, "none") is None


def test_words_are_seen_inside_or_outside():
    inside = torch.tensor([True, False])
    assert cross_mask(inside, 2, 3).int().tolist() == [[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]]
    joint = joint_mask(torch.tensor([0, 1, -1]), inside.long(), None)
    assert joint.int().tolist() == [
        [1, 0, 0, 0, 1],
        [0, 1, 0, 1, 0],
        [0, 0, 1, 0, 0],
        [0, 1, 0, 1, 1],
        [1, 0, 0, 1, 1],
    ]


def test_compiled_equals_eager():
    grid, boxes = (2, 4, 4), torch.tensor([[0, 4, 0, 4], [1, 3, 1, 3]])
    x = torch.randn(3, 32, 6)
    compiled = torch.compile(lambda positions: std_rope(positions, boxes, grid).square(), backend="aot_eager")
    torch.testing.assert_close(compiled(x), std_rope(x, boxes, grid).square())


@pytest.mark.parametrize(
    ("boxes", "options", "message"),
    [
        ([[0, 2, 0, 2]], {}, r"boxes must be whole numbers \(frames, 4\) = \(2, 4\)"),
        ([[0.0, 2, 0, 2]] * 2, {}, "whole numbers"),
        ([[0, 5, 0, 2]] * 2, {}, "must lie inside 4 rows and 4 columns, got rows 0 to 5"),
        ([[0, 2, -1, 2]] * 2, {}, "columns -1 to 2 in frame 0"),
        ([[0, 2, 0, 2], [1, 1, 0, 2]], {}, "must not be empty .* in frame 1"),
        ([[0, 1, 0, 2]] * 2, {"trim": 1}, r"empty \(trim=1\)"),
        ([[0, 2, 0, 2]] * 2, {"trim": -1}, "trim must be 0 or more"),
    ],
)
def test_boxes_that_do_not_fit_are_named(boxes, options, message):
    with pytest.raises(ValueError, match=message):
        std_rope(torch.zeros(32, 2), torch.tensor(boxes), (2, 4, 4), **options)


def test_other_bad_input_is_named():
    boxes = torch.tensor([[0, 2, 0, 2]] * 2)
    with pytest.raises(ValueError, match="the 32 tokens of grid"):
        std_rope(torch.zeros(31, 2), boxes, (2, 4, 4))
    with pytest.raises(ValueError, match=r"self_mask must be one of .* got 'all'"):
        self_mask(boxes, (2, 4, 4), "all")


def test_a_path_is_straight_between_keyframes_and_goes_on_beyond_them():
    path = Trajectory([(2, 0.2, 0.4, 0.2, 0.4), (4, 0.4, 0.8, 0.3, 0.5)], frames=6).path()
    tops, bottoms, lefts, rights = path.T.tolist()
    assert tops == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert bottoms == pytest.approx([0.2, 0.3, 0.4, 0.6, 0.8, 0.9])  # grows between keyframes only
    assert lefts == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
    assert rights == pytest.approx([0.3, 0.35, 0.4, 0.45, 0.5, 0.55])
    still = Trajectory([(1, 0.1, 0.2, 0.3, 0.4)], frames=3).path()
    assert torch.equal(still, still[:1].expand(3, 4)) and still[0].tolist() == [0.1, 0.2, 0.3, 0.4]


def test_tokens_take_frames_evenly_and_round_edges_down():
    trajectory = Trajectory([(0, 0.3, 0.7, 0.1, 0.4), (80, 0.3, 0.7, 0.7, 1.0)], frames=81)
    boxes = trajectory.tokens((21, 30, 52))
    assert boxes.shape == (21, 4)
    assert boxes[0].tolist() == [9, 21, 5, 20] and boxes[-1].tolist() == [9, 21, 36, 52]
    middle = trajectory.path()[40]
    assert boxes[10].tolist() == [9, 21, int(middle[2] * 52), int(middle[3] * 52)]
    with pytest.raises(ValueError, match="82 frames of tokens, more than the trajectory's 81"):
        trajectory.tokens((82, 30, 52))
    with pytest.raises(ValueError, match="box without tokens in frame 0 of 21"):
        trajectory.tokens((21, 2, 2))


def test_a_trajectory_survives_its_file(tmp_path):
    trajectory = Trajectory(MOVING, frames=9)
    file = trajectory.write(tmp_path / "boxes.json")
    assert json.loads(file.read_text())["frames"] == 9
    assert Trajectory.read(file) == trajectory
    for content in ("{}", "no JSON", '{"frames": 3, "keyframes": 5}'):
        file.write_text(content)
        with pytest.raises(ValueError, match="must be a JSON file with frames and keyframes"):
            Trajectory.read(file)
    with pytest.raises(ValueError, match="nowhere"):
        Trajectory.read(tmp_path / "nowhere.json")
    file.write_text('{"frames": 9, "keyframes": [[0, 0.5, 0.5, 0, 1]]}')
    with pytest.raises(ValueError, match="empty box"):
        Trajectory.read(file)


def test_a_picture_shows_the_boxes_over_the_frames(tmp_path):
    trajectory = Trajectory([(0, 0.0, 0.5, 0.0, 0.5), (1, 0.5, 1.0, 0.5, 1.0)], frames=2)
    sheet = picture(torch.full((2, 1, 8, 8), -1.0), trajectory, tmp_path / "boxes.png", zoom=2)
    assert sheet.size == (32, 16) and (tmp_path / "boxes.png").is_file()
    green, black = (127, 255, 127), (0, 0, 0)
    assert sheet.getpixel((0, 0)) == green and sheet.getpixel((7, 7)) == green and sheet.getpixel((3, 3)) == black
    assert sheet.getpixel((8, 8)) == black and sheet.getpixel((24, 8)) == green and sheet.getpixel((16, 0)) == black
    colours = picture(torch.ones(2, 3, 8, 8), trajectory)
    assert colours.size == (16, 8) and colours.getpixel((2, 2)) == (255, 255, 255)
    for shape in ((3, 1, 8, 8), (2, 2, 8, 8), (2, 8, 8)):
        with pytest.raises(ValueError, match="video must be"):
            picture(torch.zeros(shape), trajectory)


@pytest.mark.parametrize(
    ("keyframes", "frames", "message"),
    [
        ([], 4, "at least one box"),
        ([(0, 0.0, 0.5, 0.0)], 4, r"must be \(frame, top, bottom, left, right\) each, got \(0, 0.0, 0.5, 0.0\)"),
        ([(0.5, 0.0, 0.5, 0.0, 1.0)], 4, "must be .frame, top"),
        ([(0, 0.0, 0.5, 0.0, 1.2)], 4, "inside the frame .* right 1.2 in frame 0"),
        ([(0, -0.1, 0.5, 0.0, 1.0)], 4, "inside the frame"),
        ([(0, 0.5, 0.5, 0.0, 1.0)], 4, "empty box"),
        ([(0, 0.5, float("nan"), 0.0, 1.0)], 4, "empty box"),
        ([(0, 0.0, 0.5, 0.0, 1.0), (1, 0.0, 0.5, 0.0, 1.0)], 1, "at least the number of keyframes, got frames=1 for 2"),
        ([(7, 0.0, 0.5, 0.0, 1.0)], 4, "frames 0 to 3, got frame 7"),
        ([(2, 0.0, 0.5, 0.0, 1.0), (2, 0.0, 0.5, 0.0, 1.0)], 4, "rising order of frames, got 2 after 2"),
        ([(0, 0.0, 0.5, 0.0, 0.5), (1, 0.5, 1.0, 0.0, 0.5)], 4, "inside the frame .* in frame 2"),
    ],
)
def test_trajectories_that_cannot_be_are_named(keyframes, frames, message):
    with pytest.raises(ValueError, match=message):
        Trajectory(keyframes, frames=frames)


def test_a_prompt_is_split_by_any_language_model():
    asked = []

    def llm(text):
        asked.append(text)
        return "foreground_prompt: A dog,\nclose up.\nbackground_prompt: A garden. \n"

    assert separate(" A dog in a garden. ", llm) == ("A dog,\nclose up.", "A garden.")
    assert asked[0].endswith("Prompt: A dog in a garden.")
    for answer in ("A dog.", "foreground_prompt: A dog.", "foreground_prompt: background_prompt: A garden."):
        with pytest.raises(ValueError, match="llm must answer"):
            separate("A dog in a garden.", lambda text, answer=answer: answer)
    with pytest.raises(ValueError, match="prompt must not be empty"):
        separate("  ", llm)
