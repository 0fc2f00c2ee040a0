"""Dense heads and what their output means."""

import pytest
import torch

from everyformer.papers.feedforward_3d.blocks import grid_positions, rotary_table, rotate
from everyformer.papers.feedforward_3d.heads import DPT, LinearHead, Residual, place_codes, pointmap, signed_expm1


def test_points_have_the_direction_of_the_output_and_an_exponential_length():
    raw = torch.zeros(1, 4, 1, 2)
    raw[0, :, 0, 0] = torch.tensor([3.0, 0.0, 4.0, -1.0])
    found = pointmap(raw.requires_grad_())
    length = torch.tensor(5.0).expm1()
    torch.testing.assert_close(found.points[0, 0, 0], length * torch.tensor([0.6, 0.0, 0.8]))
    torch.testing.assert_close(found.points[0, 0, 1], torch.zeros(3))
    torch.testing.assert_close(found.confidence[0, 0], torch.tensor([1 + torch.e**-1.0, 2.0]))
    (gradient,) = torch.autograd.grad(found.points.sum(), raw)
    assert torch.isfinite(gradient).all()  # at zero too


def test_signed_exponentials_keep_signs():
    torch.testing.assert_close(signed_expm1(torch.tensor([-1.0, 0.0, 2.0])), torch.tensor([-1.7182818, 0.0, 6.3890561]))


def test_the_linear_head_puts_each_token_into_its_patch():
    head = LinearHead(4, patch=2, channels=3)
    tokens = torch.randn(1, 6, 4)
    found = head([tokens], (2, 3))
    assert found.shape == (1, 3, 4, 6)
    expected = head.proj(tokens)[0, 4].view(3, 2, 2)  # second row, second column
    torch.testing.assert_close(found[0, :, 2:4, 2:4], expected)


@pytest.mark.parametrize("multi_view", [False, True])
@pytest.mark.parametrize("grid", [(1, 1), (2, 4), (3, 5)])
def test_dpt_makes_a_map_of_the_images_size(multi_view, grid):
    head = DPT([8] * 4, patch=14, channels=2, features=8, layer_dims=(4, 4, 8, 8), last=4, multi_view=multi_view)
    levels = [torch.randn(2, grid[0] * grid[1], 8, requires_grad=True) for _ in range(4)]
    found = head(levels, grid)
    assert found.shape == (2, 2, 14 * grid[0], 14 * grid[1])
    assert all(gradient.any() for gradient in torch.autograd.grad(found.square().sum(), levels))


def test_only_the_skip_that_dust3r_never_uses_is_frozen():
    head = DPT([8] * 4, patch=16, features=8, layer_dims=(4, 4, 8, 8), last=4)
    frozen = {name for name, parameter in head.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"fuse.3.skip.conv{k}.{part}" for k in (1, 2) for part in ("weight", "bias")}
    head([torch.randn(1, 4, 8) for _ in range(4)], (2, 2)).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters() if parameter.requires_grad)


def test_a_rectified_skip_carries_only_what_is_positive():
    x = torch.randn(1, 4, 3, 3)
    for rectified, expected in ((False, x), (True, x.relu())):
        unit = Residual(4, rectified=rectified)
        torch.nn.init.zeros_(unit.conv2.weight)
        torch.nn.init.zeros_(unit.conv2.bias)
        torch.testing.assert_close(unit(x), expected)


def test_codes_of_places_are_those_of_a_loop():
    height, width, channels, size = 2, 3, 8, (28, 42)
    aspect = size[1] / size[0]
    expected = torch.empty(channels, height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            x = aspect / (aspect**2 + 1) ** 0.5 * (2 * column / (width - 1) - 1) * (width - 1) / width
            y = 1 / (aspect**2 + 1) ** 0.5 * (2 * row / (height - 1) - 1) * (height - 1) / height
            speeds = torch.tensor([100.0 ** -(j / 2) for j in range(2)], dtype=torch.float64)
            waves = [(x * speeds).sin(), (x * speeds).cos(), (y * speeds).sin(), (y * speeds).cos()]
            expected[:, row, column] = torch.cat(waves)
    torch.testing.assert_close(place_codes(height, width, channels, size), expected.float())


def test_rotary_positions_turn_pairs_by_row_and_column():
    positions = torch.tensor([[2.0, 5.0]])
    x = torch.randn(1, 8)
    found = rotate(x, rotary_table(positions, 8))
    for half, place in enumerate((2.0, 5.0)):
        for j in range(2):
            angle = torch.tensor(place * 100.0 ** -(j / 2))
            a, b = x[0, 4 * half + j], x[0, 4 * half + j + 2]
            torch.testing.assert_close(found[0, 4 * half + j], a * angle.cos() - b * angle.sin())
            torch.testing.assert_close(found[0, 4 * half + j + 2], b * angle.cos() + a * angle.sin())


def test_attention_depends_on_the_way_between_two_patches_only():
    q, k = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def score(a, b):
        return float((rotate(q, rotary_table(a[None], 16)) * rotate(k, rotary_table(b[None], 16))).sum())

    a, b, shift = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.0]), torch.tensor([7.0, 3.0])
    assert score(a, b) == pytest.approx(score(a + shift, b + shift), abs=1e-4)
    assert score(a, b) != pytest.approx(score(a, b + shift), abs=1e-3)


def test_extra_tokens_stand_at_zero_and_patches_from_one():
    assert grid_positions(1, 2).tolist() == [[0, 0], [0, 1]]
    assert grid_positions(1, 2, extra=2).tolist() == [[0, 0], [0, 0], [1, 1], [1, 2]]


def test_dpt_takes_four_levels():
    with pytest.raises(
        ValueError, match=r"dims and layer_dims must have four entries, got \(8, 8\) and \(96, 192, 384"
    ):
        DPT([8, 8], patch=16)
