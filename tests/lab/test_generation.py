import pytest
import torch
from diffusers import LCMScheduler, TCDScheduler

from everyformer.lab import data, generation


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "cache", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("scheduler", [LCMScheduler, TCDScheduler])
def test_the_noise_schedule_is_that_of_diffusers(scheduler):
    torch.testing.assert_close(generation.alphas_cumprod(), scheduler().alphas_cumprod)


def test_digits_are_small_and_apart():
    found = generation.digits("smoke")
    assert found.train[0].shape == (400, 1, 16, 16) and found.test[0].shape == (100, 1, 16, 16)
    assert found.train[0].min() == -1 and found.train[0].max() <= 1
    assert len(found.train[1]) == 400


def test_a_model_is_trained_once(cache):
    first = generation.few_step_digits("smoke")
    weights = list(cache.glob("models/*/model.safetensors"))
    assert len(weights) == 1
    changed = weights[0].stat().st_mtime_ns
    again = generation.few_step_digits("smoke")
    assert weights[0].stat().st_mtime_ns == changed
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_judges_of_different_seeds_differ_and_learn(cache):
    judges = [generation.judge("smoke", seed=seed) for seed in (1, 2)]
    images, labels = generation.digits("smoke").train
    logits = [judge(images) for judge in judges]
    assert not torch.allclose(*logits)
    assert (logits[0].argmax(-1) == labels).float().mean() > 0.2
    assert judges[0].features(images).shape == (400, 48)


def test_drawing_takes_the_scheduler_steps(cache):
    calls = []

    def model(images, timesteps, labels):
        calls.append(timesteps)
        return -images

    labels = torch.tensor([1, 2, 3])
    scheduler = LCMScheduler(prediction_type="v_prediction")
    drawn = [generation.draw(model, labels, scheduler, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert len(calls) == 12 and calls[0].shape == (3,)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == (3, 1, 16, 16) and drawn[0].abs().max() <= 1
