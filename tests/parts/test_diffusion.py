import pytest
import torch
from torch import nn

from everyformer.parts.diffusion import Point, consistency_loss, noised, path_end, velocity_loss, weights

TABLE = torch.linspace(0.999, 0.01, 100)


def test_a_point_holds_its_image_and_its_noise():
    images, noise = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 3, 3)
    point = noised(images, noise, torch.tensor([-1, 0, 50, 99]), TABLE)
    assert torch.equal(point.noisy[0], images[0])
    velocity = point.signal * noise - point.spread * images
    torch.testing.assert_close(point.image(velocity), images)
    torch.testing.assert_close(point.noise(velocity), noise)


def test_the_velocity_loss_of_the_right_velocity_is_zero():
    images, noise = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    signal, spread = weights(torch.tensor([10, 90]), images, TABLE)

    def model(noisy, timesteps, labels):
        assert timesteps.tolist() == [10.0, 90.0] and labels == "labels"
        return signal * noise - spread * images + 0.5

    options = {"noise": noise, "timesteps": torch.tensor([10, 90]), "alphas_cumprod": TABLE}
    assert velocity_loss(model, images, "labels", **options) == pytest.approx(0.25, rel=1e-5)


def knows(image):
    """A model whose every velocity points at ``image``."""

    def model(noisy, timesteps, labels=None):
        signal, spread = weights(timesteps.long(), noisy, TABLE)
        return (signal * noisy - image) / spread

    return model


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_path_ends_at_the_image_the_model_points_at(steps):
    image, noisy = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    end = path_end(knows(image), noisy, timesteps=torch.tensor([9, 55, 99]), alphas_cumprod=TABLE, steps=steps)
    torch.testing.assert_close(end, image, atol=1e-5, rtol=1e-5)


def test_a_path_of_a_gaussian_ends_where_its_flow_does():
    """For data of variance 1 the flow leaves a point where it is, and the steps come nearer the more there are."""

    def gaussian(noisy, timesteps, labels=None):
        return torch.zeros_like(noisy)  # image sqrt(a) x, noise sqrt(1 - a) x: the posterior means of unit variance

    noisy = torch.randn(2, 1, 2, 2)
    errors = []
    for steps in (2, 8, 32):
        end = path_end(gaussian, noisy, timesteps=torch.tensor([99, 60]), alphas_cumprod=TABLE, steps=steps)
        errors.append((end - noisy).abs().max())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.2


def test_a_consistent_student_has_no_loss_and_teaches_no_teacher():
    images, noise = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    options = {"noise": noise, "timesteps": torch.tensor([30, 99]), "alphas_cumprod": TABLE}
    goal = torch.randn(2, 1, 2, 2)
    assert consistency_loss(knows(goal), knows(goal), images, **options) == pytest.approx(0, abs=1e-9)
    assert consistency_loss(knows(goal + 1), knows(goal), images, **options) == pytest.approx(1, rel=1e-4)

    teacher, student = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    consistency_loss(lambda x, t, y: student(x), lambda x, t, y: teacher(x), images, **options).backward()
    assert student.weight.grad is not None and teacher.weight.grad is None


def test_shapes_that_disagree_are_named():
    images = torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match="noise must have the shape of images"):
        noised(images, torch.zeros(2, 1, 2, 3), torch.tensor([1, 2]), TABLE)
    with pytest.raises(ValueError, match=r"timesteps must be \(batch,\) = \(2,\), got \(3,\)"):
        noised(images, images, torch.tensor([1, 2, 3]), TABLE)


def test_a_point_broadcasts_over_images():
    assert Point(torch.ones(2, 3), torch.ones(2, 1), torch.zeros(2, 1)).image(torch.ones(2, 3)).shape == (2, 3)
