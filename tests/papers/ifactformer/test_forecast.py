import numpy as np
import pytest
import torch

from everyformer.papers.ifactformer import Forecaster, IFactFormer, pairs, read_flow, relative_error, rollout


def flow(*shape):
    return torch.randn(shape) * torch.tensor([1.0, 10.0]) + torch.tensor([5.0, -3.0])


def test_a_network_sees_scaled_fields_and_its_own_are_scaled_back():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, window):
            seen.append(window)
            return window[:, -1]

    fields = flow(3, 20, 6, 5, 2)
    model = Forecaster(Spy(), fields)
    windows, targets = pairs(fields)
    made = model(windows)
    values = seen[0].flatten(0, -2)
    torch.testing.assert_close(values.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(0), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.flatten(0, -2).mean(0), targets.flatten(0, -2).mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.flatten(0, -2).std(0), targets.flatten(0, -2).std(0), atol=1e-4, rtol=1e-4)


def test_coordinates_and_scales_belong_to_the_state():
    fields, axes = flow(2, 4, 5, 6, 2), [torch.rand(5), torch.rand(6)]

    def built(fields, axes):
        network = IFactFormer(in_channels=2, out_channels=2, dim=8, heads=1, head_dim=4, iterations=1, dims=2)
        return Forecaster(network, fields, axes)

    model, again = built(fields, axes), built(fields * 2, [2 * where for where in axes])
    again.load_state_dict(model.state_dict())
    assert torch.equal(model(fields[:, :1]), again(fields[:, :1]))


def test_pairs_are_windows_and_what_follows_each():
    fields = torch.arange(2 * 5).view(2, 5, 1, 1, 1).float()
    windows, targets = pairs(fields, 2)
    assert windows.flatten(1).tolist() == [[0, 1], [1, 2], [2, 3], [5, 6], [6, 7], [7, 8]]
    assert targets.flatten().tolist() == [2, 3, 4, 7, 8, 9]
    with pytest.raises(ValueError, match="window must be from 1 to 4 for a flow of 5, got 5"):
        pairs(fields, 5)
    with pytest.raises(ValueError, match="window must be from 1 to 4"):
        pairs(fields, 0)


def test_the_loss_is_relative_over_the_whole_field():
    truth, made = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 2.0]]]]), torch.tensor([[[[3.0, 9.0]]], [[[0.0, 1.0]]]])
    assert relative_error(made, truth).tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match="made must have the shape of truth"):
        relative_error(made[:1], truth)


def test_a_rollout_feeds_back_the_window_and_gives_every_so_many():
    def sum_of_two(window):
        return window.sum(1)

    start = torch.ones(1, 2, 1, 1, 1)
    assert [int(field) for field in rollout(sum_of_two, start, 6)] == [2, 3, 5, 8, 13, 21]
    assert [int(field) for field in rollout(sum_of_two, start, 6, every=3)] == [5, 21]
    assert start.tolist() == torch.ones(1, 2, 1, 1, 1).tolist()


def test_a_rollout_that_breaks_names_its_step_or_stops():
    def doubled(window):
        return window[:, -1] ** 2

    start = torch.full((1, 1, 2, 2, 1), 1e10)
    with pytest.raises(FloatingPointError, match="the field is not finite after step 2 of 9"):
        list(rollout(doubled, start, 9))
    assert len(list(rollout(doubled, start, 9, broken="stop"))) == 1
    with pytest.raises(FloatingPointError, match="step 2"):  # also when that field would not have been given
        list(rollout(doubled, start, 9, every=3))


def test_a_rollout_keeps_no_graph_and_does_not_turn_gradients_off_for_its_reader():
    layer = torch.nn.Linear(2, 2)
    for field in rollout(lambda window: layer(window[:, -1]), torch.randn(1, 1, 2, 2, 2), 2):
        assert not field.requires_grad
        assert layer(field).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps and every must be at least 1, got 0 and 1"),
        ({"steps": 2, "every": 0}, "steps and every must be at least 1, got 2 and 0"),
        ({"steps": 2, "broken": "ignore"}, "broken must be 'raise' or 'stop', got 'ignore'"),
        ({"steps": 2, "window": torch.zeros(1, 2, 2)}, r"window must be \(batch, time, grid, channels\)"),
    ],
)
def test_bad_rollouts_are_refused_before_they_start(options, message):
    with pytest.raises(ValueError, match=message):
        rollout(lambda window: window[:, -1], **{"window": torch.zeros(1, 1, 2, 2, 1), **options})


def test_a_flow_of_one_snapshot_has_no_scale():
    with pytest.raises(ValueError, match="flow must be"):
        Forecaster(torch.nn.Identity(), torch.zeros(3, 1, 4, 4, 2))


def test_the_authors_files_are_read_without_their_fourth_channel(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 3, 4))
    np.save(tmp_path / "flow.npy", array)
    found = read_flow(tmp_path / "flow.npy")
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), array[..., :3], rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4, 5, 3)), r"must hold numbers \(trajectory, time, nx, ny, nz, channel\)"),
        (np.zeros((2, 3, 4, 5, 3, 2)), "must have at least 3 channels, got 2"),
        (np.array([{"a": 1}], dtype=object), "Python objects"),
    ],
)
def test_files_of_another_layout_are_refused(array, message, tmp_path):
    np.save(tmp_path / "flow.npy", array)
    with pytest.raises(ValueError, match=message):
        read_flow(tmp_path / "flow.npy")
    with pytest.raises(ValueError, match=r"path must be a \.npy file"):
        read_flow(tmp_path / "none.npy")
