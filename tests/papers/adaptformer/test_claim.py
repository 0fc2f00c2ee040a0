import pytest
import torch

from everyformer.catalog import Job
from everyformer.papers.adaptformer import claim


@pytest.mark.parametrize("name", ["ssv2", "prompts"])
def test_smoke_runs_of_the_trained_claims(name, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "RATES", (1e-3,))
    found = getattr(claim, name)(Job("smoke", 0, "cpu", tmp_path))
    accuracies = [value for key, value in found.extras.items() if key.startswith("accuracy")]
    assert len(accuracies) == (2 if name == "ssv2" else len(claim.METHODS))
    assert all(0 <= value <= 100 for value in accuracies)


def test_the_start_is_the_frozen_network_to_the_bit(tmp_path):
    found = claim.start(Job("smoke", 0, "cpu", tmp_path))
    assert found.method == 0.0
    assert found.baseline > 0


def test_counts_on_the_full_network(tmp_path):
    found = claim.fraction(Job("smoke", 0, "cpu", tmp_path))
    head = 768 * 100 + 100
    assert found.extras["trained parameters, AdaptFormer-64"] == 12 * (2 * 768 * 64 + 64 + 768) + head
    assert found.extras["trained parameters, AdaptFormer-1"] == 12 * (2 * 768 + 1 + 768) + head
    assert found.extras["trained parameters, VPT"] == 12 * 8 * 768 + head
    assert found.extras["trained parameters, linear probing"] == head
    assert found.method == pytest.approx(1.47, abs=0.01)


def test_a_step_takes_less_memory_than_full_fine_tuning(tmp_path):
    found = claim.memory(Job("smoke", 0, "cpu", tmp_path))
    assert found.method < found.baseline


def test_the_autoencoder_scores_masked_patches_only():
    torch.manual_seed(0)
    model = claim.MaskedAutoencoder(claim.ViT(num_classes=5, **claim.SMALL))
    loss = model(torch.randn(4, 3, 32, 32))
    loss.backward()
    assert 0.5 < float(loss.detach()) < 3
    assert model.encoder.blocks[0].attn.qkv.weight.grad.any()


def test_plans_build_the_published_network():
    for plan in (claim.plan_ssv2, claim.plan_hmdb51, claim.plan_prompts, claim.plan_start, claim.plan_memory):
        assert plan().parameters == 85_798_656 + 12 * (2 * 768 * 64 + 64 + 768) + 2 * (768 * 174 + 174)
    assert claim.plan_ssv2().flops > 5 * claim.plan_fraction().flops
