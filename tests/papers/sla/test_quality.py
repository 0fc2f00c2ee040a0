import json
import math

import pytest
import torch

from everyformer.catalog import Job
from everyformer.papers.sla import PAPER, quality
from everyformer.papers.sla.layer import SparseLinearAttention
from everyformer.parts.dit import DiT


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    return folder, quality.run(Job("smoke", 0, "cpu", folder))


def trained_somewhat() -> DiT:
    model = DiT(image_size=32, patch=1, channels=1, dim=16, depth=2, heads=1, classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def some(model: DiT) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        return model(torch.randn(2, 1, 32, 32, generator=generator), torch.tensor([200.0, 800.0]))


def test_the_measurement_holds_every_variant_before_and_after(measured):
    _, measurement = measured
    for name in quality.VARIANTS:
        for when in ("before fine-tuning", "fine-tuned"):
            assert 0 < measurement.extras[f"loss, {name}, {when}"] < 10
    figures = {"method": measurement.method, "baseline": measurement.baseline, **measurement.extras}
    assert all(math.isfinite(value) for value in figures.values())
    json.dumps([vars(panel) for panel in measurement.series], allow_nan=False)


def test_shares_follow_from_the_losses_and_the_baseline_is_the_stronger_rival(measured):
    _, measurement = measured
    extras = measurement.extras
    start, goal = extras["loss, SLA, before fine-tuning"], extras["loss, full attention, fine-tuned"]
    shares = {
        name: 100 * (start - extras[f"loss, {name}, fine-tuned"]) / (start - goal)
        for name in ("SLA", "sparse only", "linear only")
    }
    assert measurement.method == pytest.approx(shares["SLA"])
    assert measurement.baseline == pytest.approx(max(shares["sparse only"], shares["linear only"]))


def test_before_fine_tuning_sla_is_its_sparse_branch(measured):
    extras = measured[1].extras
    assert extras["loss, SLA, before fine-tuning"] == pytest.approx(extras["loss, sparse only, before fine-tuning"])


def test_a_second_call_takes_what_the_folder_holds(measured, monkeypatch):
    folder, before = measured

    def no_more(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(quality, "loss", no_more)
    monkeypatch.setattr(
        quality, "held_out", lambda model, batch, device: sum(p.sum().item() for p in model.parameters())
    )
    again = quality.run(Job("smoke", 0, "cpu", folder))
    assert again.extras["pretraining loss"] == before.extras["pretraining loss"]
    assert again.series[2] == before.series[2]  # digits drawn with the same trained weights


def test_variants_start_from_the_same_weights_and_leave_the_original_alone():
    model = trained_somewhat()
    before = some(model)
    shared = model.state_dict()
    for name in quality.VARIANTS:
        variant = quality.with_attention(model, name)
        for key, value in variant.state_dict().items():
            assert ".attend." in key or torch.equal(value, shared[key])
        with torch.no_grad():
            for parameter in variant.parameters():
                parameter.add_(1.0)
    torch.testing.assert_close(some(model), before)


def test_rivals_are_the_two_branches_of_the_method():
    """Sparse and linear attention alone, of the same blocks: with a unit projection the two add up to SLA over all."""
    q, k, v = torch.randn(3, 2, 1, 1024, 16)
    sparse, linear = quality.sparse_only(16), quality.LinearOnly(16)
    both = SparseLinearAttention(16, **quality.SETTINGS, linear_over="all")
    torch.nn.init.eye_(both.proj.weight)
    torch.testing.assert_close(both(q, k, v), sparse(q, k, v) + linear(q, k, v), atol=1e-5, rtol=1e-4)
    features = (q.softmax(-1), k.softmax(-1))
    weights = features[0] @ features[1].transpose(-1, -2)
    torch.testing.assert_close(linear(q, k, v), weights / weights.sum(-1, keepdim=True) @ v, atol=1e-5, rtol=1e-4)


def test_sparse_only_never_learns_a_linear_branch():
    model = quality.with_attention(trained_somewhat(), "sparse only")
    some_loss = model(torch.randn(1, 1, 32, 32), torch.tensor([500.0])).square().mean()
    some_loss.backward()
    attention = model.blocks[0].attention
    assert attention.attend.proj.weight.grad is None and attention.qkv.weight.grad.abs().sum() > 0


def test_at_1024_tokens_five_per_cent_of_the_blocks_are_three_of_sixty_four():
    layer = SparseLinearAttention(8, **quality.SETTINGS)
    blocks = 1024 // layer.block
    assert (blocks, int(layer.critical * blocks)) == (64, 3)


def test_batches_are_a_function_of_the_seed_and_differ_between_seeds():
    images, labels = torch.randn(20, 1, 4, 4), torch.arange(20)
    first, again, other = (next(quality.batches(images, labels, 5, seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[2], other[2])
    for image, label in zip(first[0], first[1], strict=True):
        assert torch.equal(image, images[label])


def test_digits_are_padded_to_32_and_centred_on_black():
    images, labels = quality.digits("mnist_500")
    assert images.shape == (500, 1, 32, 32) and labels.shape == (500,)
    assert images.min() == -1 and images.max() == 1
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    assert (images[:, 0, border] == -1).all()


def test_the_card_names_this_study_and_its_rivals():
    claim = PAPER.claim("quality")
    assert claim.method in quality.VARIANTS
    assert "sparse only" in claim.baseline and "linear only" in claim.baseline
