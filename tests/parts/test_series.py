import numpy as np
import pytest
import torch

from everyformer.parts.series import Scaler, Windows, calendar_features, split


def test_windows_of_etth_are_as_many_as_in_the_paper():
    parts = split("etth1", torch.randn(17420, 7), 96, 96)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (8449, 2785, 2785)


@pytest.mark.parametrize(("name", "ends"), [("exchange_rate", (700, 800, 1000)), ("pems03", (600, 800, 1000))])
def test_the_first_target_of_a_part_is_its_first_step(name, ends):
    values = torch.arange(1000.0).unsqueeze(1)
    parts = split(name, values, 20, 10)
    for windows, start, end in ((parts.validation, ends[0], ends[1]), (parts.test, ends[1], ends[2])):
        _, first, _, _ = windows.gather(torch.tensor([0]))
        _, last, _, _ = windows.gather(torch.tensor([len(windows) - 1]))
        assert parts.scaler.unscale(first)[0, 0, 0].item() == pytest.approx(start, abs=1e-2)
        assert parts.scaler.unscale(last)[0, -1, 0].item() == pytest.approx(end - 1, abs=1e-2)


def test_scaler_knows_the_training_part_alone():
    values = torch.randn(1000, 3)
    values[700:] += 100
    parts = split("other", values, 20, 10)
    torch.testing.assert_close(parts.scaler.mean, values[:700].mean(0))


def test_scaling_undoes_itself_and_survives_a_constant():
    values = torch.randn(50, 2)
    values[:, 1] = 3.0
    scaler = Scaler.fit(values)
    torch.testing.assert_close(scaler.unscale(scaler.scale(values)), values)
    assert scaler.scale(values)[:, 1].abs().max() == 0


def test_history_and_target_follow_each_other():
    windows = Windows(torch.arange(20.0).unsqueeze(1), 4, 2, torch.arange(20.0).unsqueeze(1) * 10)
    past, target, past_marks, target_marks = windows.gather(torch.tensor([3]))
    assert past.flatten().tolist() == [3, 4, 5, 6]
    assert target.flatten().tolist() == [7, 8]
    assert past_marks.flatten().tolist() == [30, 40, 50, 60]
    assert target_marks.flatten().tolist() == [70, 80]


def test_shuffled_batches_are_full_differ_and_repeat_by_seed():
    windows = Windows(torch.arange(103.0).unsqueeze(1), 2, 1)
    first = torch.cat([batch[0] for batch in windows.shuffled(8, 1)])
    assert first.shape[0] == 96
    assert len(set(first[:, 0, 0].tolist())) == 96
    assert torch.equal(first, torch.cat([batch[0] for batch in windows.shuffled(8, 1)]))
    assert not torch.equal(first, torch.cat([batch[0] for batch in windows.shuffled(8, 2)]))


def test_calendar_features_of_a_known_hour():
    dates = np.array(["2016-07-01T13:30:00", "2020-12-31T00:00:00"], dtype="datetime64[s]")
    features = calendar_features(dates, "t")
    friday, thursday = 4, 3
    expected = torch.tensor(
        [[30 / 59, 13 / 23, friday / 6, 0 / 30, 182 / 365], [0, 0, thursday / 6, 30 / 30, 365 / 365]]
    )
    torch.testing.assert_close(features, expected - 0.5)
    assert torch.equal(calendar_features(dates, "h"), features[:, 1:])
    assert torch.equal(calendar_features(dates, "d"), features[:, 2:])


@pytest.mark.parametrize(
    ("lookback", "horizon", "message"),
    [
        (0, 1, "lookback must be at least 1"),
        (4, 0, "horizon must be at least 1"),
        (30, 5, "need 35 steps, the series has 20"),
    ],
)
def test_windows_that_cannot_be_are_refused(lookback, horizon, message):
    with pytest.raises(ValueError, match=message):
        Windows(torch.zeros(20, 1), lookback, horizon)


def test_unknown_frequency_is_refused():
    with pytest.raises(ValueError, match="frequency must be one of"):
        calendar_features(np.array(["2020-01-01"], dtype="datetime64[s]"), "week")
