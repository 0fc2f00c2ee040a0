import math

import numpy as np
import pytest
import torch

from everyformer.lab import video_metrics


def pair(*shape):
    return torch.rand(shape) * 1.4 - 0.2, torch.rand(shape)


def slow_ssim(a, b, data_range):
    """One channel, window by window, with numpy's own means and covariances."""
    values = []
    for top in range(a.shape[0] - 6):
        for left in range(a.shape[1] - 6):
            x, y = (image[top : top + 7, left : left + 7].ravel() for image in (a, b))
            covariance = np.cov(x, y)
            c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
            likeness = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
            values.append(likeness * (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2))
    return np.mean(values)


def test_errors_are_summed_over_pixels_and_averaged_over_frames():
    ours, theirs = pair(3, 4, 2, 8, 9)
    found = video_metrics.video(ours, theirs, ["mse", "mae", "rmse", "psnr"])
    frames = [(ours[b, f].double().numpy(), theirs[b, f].double().numpy()) for b in range(3) for f in range(4)]
    assert found["mse"] == pytest.approx(np.mean([((a - b) ** 2).sum() for a, b in frames]))
    assert found["mae"] == pytest.approx(np.mean([abs(a - b).sum() for a, b in frames]))
    assert found["rmse"] == pytest.approx(math.sqrt(found["mse"]))
    decibels = [20 * np.log10(1 / np.sqrt(((a.clip(0, 1) - b) ** 2).mean())) for a, b in frames]
    assert found["psnr"] == pytest.approx(np.mean(decibels))


def test_errors_of_normalised_data_are_of_a_pixel_in_its_unit():
    ours, theirs = pair(3, 4, 1, 8, 8)
    found = video_metrics.video(ours, theirs, ["mse", "mae"], spatial_norm=True, mean=280.0, std=5.0)
    assert found["mse"] == pytest.approx(25 * float((ours - theirs).square().mean()), rel=1e-5)
    assert found["mae"] == pytest.approx(5 * float((ours - theirs).abs().mean()), rel=1e-5)


@pytest.mark.parametrize("data_range", [1.0, video_metrics.LITERATURE_RANGE])
def test_ssim_is_that_of_plain_windows(data_range):
    ours, theirs = pair(2, 2, 2, 12, 10)
    found = video_metrics.video(ours, theirs, ["ssim"], data_range=data_range)["ssim"]
    a, b = ours.clamp(0, 1).double().numpy(), theirs.double().numpy()
    expected = np.mean(
        [slow_ssim(a[i, j, c], b[i, j, c], data_range) for i in range(2) for j in range(2) for c in (0, 1)]
    )
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_is_that_of_scikit_image(data_range):
    metrics = pytest.importorskip("skimage.metrics")
    ours, theirs = (x.clamp(0, 1) for x in pair(1, 3, 2, 32, 32))
    expected = np.mean([metrics.structural_similarity(ours[0, f].numpy(), theirs[0, f].numpy(), channel_axis=0,
                                                      data_range=data_range) for f in range(3)])  # fmt: skip
    assert video_metrics.video(ours, theirs, ["ssim"], data_range=data_range)["ssim"] == pytest.approx(
        expected, abs=1e-5
    )


def test_the_range_of_the_literature_gives_higher_figures():
    theirs = torch.rand(1, 2, 1, 16, 16)
    ours = theirs + 0.1 * torch.randn_like(theirs)
    honest, usual = (video_metrics.video(ours, theirs, ["ssim"], data_range=r)["ssim"] for r in (1.0, 2.0))
    assert honest < usual < 1


def test_a_perfect_prediction_has_no_error():
    _, theirs = pair(1, 2, 1, 8, 8)
    assert video_metrics.video(theirs, theirs) == {
        "mse": 0, "mae": 0, "rmse": 0, "psnr": math.inf, "ssim": pytest.approx(1)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "message"),
    [
        ((1, 2, 1, 8, 8), (1, 2, 1, 8, 9), {}, r"got \(1, 2, 1, 8, 8\) and \(1, 2, 1, 8, 9\)"),
        ((2, 1, 8, 8), (2, 1, 8, 8), {}, "must be .batch, frames, channels, height, width. of one shape"),
        ((1, 2, 1, 8, 8), (1, 2, 1, 8, 8), {"names": ["mse", "fvd"]}, "names must be of mse, .*got 'fvd'"),
        ((1, 2, 1, 8, 8), (1, 2, 1, 8, 8), {"data_range": 0}, "data_range must be above 0, got 0"),
        ((1, 2, 1, 6, 8), (1, 2, 1, 6, 8), {}, r"frames must be at least 7 x 7 for ssim, got \(6, 8\)"),
    ],
)
def test_videos_and_names_that_cannot_be_are_named(ours, theirs, options, message):
    with pytest.raises(ValueError, match=message):
        video_metrics.video(torch.zeros(ours), torch.zeros(theirs), **options)
