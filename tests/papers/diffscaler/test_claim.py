import pytest
import torch
from torch import nn

from everyformer.catalog import Job
from everyformer.lab import generation
from everyformer.papers.diffscaler import claim, quality


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("everyformer.lab.data.cache", lambda: tmp_path_factory.getbasetemp() / "cache")


@pytest.mark.parametrize("name", ["one_model", "lora", "bitfit"])
def test_smoke_runs_of_the_trained_claims(name, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "RATES", (1e-3,))
    found = getattr(claim, name)(Job("smoke", 0, "cpu", tmp_path))
    distances = [value for key, value in found.extras.items() if key.startswith("Fréchet distance")]
    assert len(distances) == 2
    ours = found.method * distances[1] if name == "one_model" else found.method
    assert ours == pytest.approx(distances[0])
    assert distances[0] != distances[1]


def test_a_rate_is_chosen_on_digits_that_were_not_trained_on(tmp_path, monkeypatch):
    seen, judged = [], []
    monkeypatch.setattr(quality, "_fit", lambda model, shown, **_: seen.append(shown[0]))
    monkeypatch.setattr(quality, "_loss", lambda model, digits, device: judged.append(digits[0]) or 0.0)
    quality.outcome(quality.BITFIT, quality.network(quality.SIZES["smoke"]), Job("smoke", 0, "cpu", tmp_path))
    assert len(seen) == len(judged) == len(quality.RATES)
    whole = torch.cat([seen[0], judged[0]])
    assert torch.equal(whole, quality.part(generation.digits("smoke").train, new=True)[0])


def test_the_new_digits_are_none_of_the_old():
    digits = generation.digits("smoke").train
    old, new = (quality.part(digits, new=new) for new in (False, True))
    assert len(old[0]) + len(new[0]) == len(digits[0])
    assert set(old[1].tolist()) == set(new[1].tolist()) == set(range(5))
    assert torch.equal(new[0][0], digits[0][(digits[1] >= 5).nonzero()[0, 0]])


def test_what_each_method_trains():
    base = quality.network(quality.SIZES["cpu"])
    label = base.label.weight.numel()
    counts = {method: quality.trained(quality.tuned(method, base)) for method in quality.METHODS}
    biases = sum(p.numel() for name, p in base.named_parameters() if name.endswith("bias"))
    assert counts[quality.FULL] == sum(parameter.numel() for parameter in base.parameters())
    assert counts[quality.BITFIT] == biases + label
    layers = [module for module in base.modules() if isinstance(module, nn.Linear)]
    assert counts[quality.DIFFSCALER] == label + sum(6 * layer.out_features + 4 * layer.in_features for layer in layers)
    one_rank = sum(layer.in_features + layer.out_features for layer in layers)
    assert counts[quality.DIFFSCALER] <= counts[quality.LORA] < counts[quality.DIFFSCALER] + one_rank


def test_every_method_starts_as_the_network():
    base = quality.network(quality.SIZES["smoke"])
    for parameter in base.parameters():
        nn.init.normal_(parameter, std=0.2)
    inputs = torch.randn(5, 1, 16, 16), torch.rand(5) * 1000, torch.arange(5)
    for method in quality.METHODS:
        assert torch.equal(quality.tuned(method, base).eval()(*inputs), base(*inputs)), method


def test_pretraining_leaves_new_rows_for_new_classes():
    weight = quality.pretrained("smoke").label.weight
    assert torch.equal(weight, weight[-1:].expand_as(weight))


def test_counts_on_the_full_network(tmp_path):
    found = claim.fraction(Job("smoke", 0, "cpu", tmp_path))
    assert found.extras["trained parameters, full fine-tuning"] == pytest.approx(674e6, rel=0.01)
    assert found.method == pytest.approx(100 * found.extras["trained parameters, Diffscaler"] / found.extras[
        "trained parameters, full fine-tuning"])  # fmt: skip
    assert 0.1 < found.method < 1


def test_a_batch_of_tasks_is_the_tasks_apart(tmp_path):
    found = claim.together(Job("smoke", 0, "cpu", tmp_path))
    assert found.method < 1e-5
    assert found.baseline > 0.1


def test_a_plan_builds_the_published_network():
    plan = claim.plan_together()
    assert plan.parameters == pytest.approx(678e6, rel=0.01)
    assert plan.flops == pytest.approx(2 * 32 * 237e9, rel=0.05)
    assert "diffscaler.together" in plan.launch
