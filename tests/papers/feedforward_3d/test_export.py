import numpy as np
import pytest
import torch

from everyformer.papers.feedforward_3d.export import picture, write_ply


def read_ply(path):
    header, body = path.read_bytes().split(b"end_header\n")
    lines = header.decode().splitlines()
    count = int(next(line for line in lines if line.startswith("element vertex")).split()[-1])
    rows = np.frombuffer(body, dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert len(rows) == count
    return rows


def test_a_cloud_comes_back_from_its_file(tmp_path):
    points, colours = torch.randn(4, 5, 3), torch.rand(4, 5, 3)
    rows = read_ply(write_ply(tmp_path / "cloud.ply", points, colours))
    assert np.array_equal(rows["xyz"], points.view(-1, 3).numpy())
    assert np.abs(rows["rgb"] / 255 - colours.view(-1, 3).numpy()).max() < 1 / 500


def test_what_is_not_kept_or_not_finite_is_left_out(tmp_path):
    points = torch.randn(10, 3)
    points[0] = torch.nan
    rows = read_ply(write_ply(tmp_path / "cloud.ply", points, keep=torch.arange(10) < 4))
    assert np.array_equal(rows["xyz"], points[1:4].numpy())
    assert (rows["rgb"] == 255).all()


def test_a_picture_shows_what_is_in_front():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 60), torch.linspace(-1, 1, 60), indexing="ij")
    near, far = (torch.stack([x, y, torch.full_like(x, z)], -1) for z in (3.0, 5.0))
    red, blue = torch.tensor([1.0, 0, 0]).expand_as(near), torch.tensor([0, 0, 1.0]).expand_as(near)
    points, colours = torch.stack([near, far]), torch.stack([red, blue])
    image = picture(points, colours, size=32)
    assert torch.equal(image[:, 18, 16], torch.tensor([1.0, 0, 0]))
    behind = picture(points, colours, degrees=180.0, size=32)
    assert torch.equal(behind[:, 14, 16], torch.tensor([0, 0, 1.0]))
    assert (image == 1).all(0).any()  # white around it


def test_bad_input_is_named(tmp_path):
    points = torch.randn(5, 3)
    with pytest.raises(ValueError, match="points and colours must be"):
        write_ply(tmp_path / "a.ply", points, torch.rand(4, 3))
    with pytest.raises(ValueError, match="points and colours must be"):
        picture(points[:, :2], points[:, :2])
    with pytest.raises(ValueError, match=r"keep must be \(5,\), got \(4,\)"):
        write_ply(tmp_path / "a.ply", points, keep=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="got none of 5"):
        write_ply(tmp_path / "a.ply", points, keep=torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        picture(points, points, size=0)
    assert not list(tmp_path.iterdir())
