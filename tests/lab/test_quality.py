import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from everyformer.lab.quality import frechet_distance, likeness


def test_frechet_distance_of_gaussians_is_the_formula():
    features = torch.randn(50_000, 3, dtype=torch.float64)
    scaled = 2 * features + torch.tensor([1.0, 0.0, 0.0])
    expected = (scaled.mean(0) - features.mean(0)).square().sum() + torch.cov(features.T).trace()
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, scaled) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match="at least two samples"):
        frechet_distance(features[:1], features)


def test_frechet_distance_is_that_of_torchmetrics():
    class Features(nn.Module):
        num_features = 12

        def forward(self, images):
            return images.flatten(1)

    ours, theirs = torch.rand(40, 3, 2, 2), torch.rand(60, 3, 2, 2) ** 2
    metric = FrechetInceptionDistance(Features(), normalize=True, input_img_size=(3, 2, 2))
    metric.set_dtype(torch.float64)
    metric.update(theirs, real=True)
    metric.update(ours, real=False)
    assert frechet_distance(ours.flatten(1), theirs.flatten(1)) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_likeness_of_images():
    truth = torch.rand(2, 3, 1, 32, 32) * 2 - 1
    same = likeness(truth, truth)
    assert same["mse"] == 0 and same["ssim"] == pytest.approx(1)
    grey = likeness(torch.zeros_like(truth), truth)
    error = float((truth / 2).square().mean())
    assert grey["mse"] == pytest.approx(error, rel=1e-5)
    assert grey["psnr"] == pytest.approx(-10 * torch.tensor(error).log10().item(), rel=1e-4)
    assert grey["ssim"] < 0.1
    with pytest.raises(ValueError, match="one shape"):
        likeness(truth, truth[:1])
