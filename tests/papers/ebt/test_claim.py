import math

import pytest
import torch

from everyformer.catalog import Job
from everyformer.lab.measure import count_parameters
from everyformer.papers.ebt import claim, training
from everyformer.papers.ebt.training import SIZES


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("everyformer.lab.data.cache", lambda: tmp_path / "cache")


def job(tmp_path):
    return Job("smoke", 0, "cpu", tmp_path)


def test_symbols_are_six_bits():
    text = torch.tensor(list("Ab~9\n é".encode()))
    assert [chr(32 + code) for code in training.symbols(text).tolist()] == list("AB 9\\   ")


def test_models_of_both_methods_are_of_equal_size():
    for width in SIZES["cpu"].widths:
        ebt, transformer = (training.build(method, width, SIZES["cpu"]) for method in ("EBT", "Transformer++"))
        ratio = count_parameters(ebt) / count_parameters(transformer)
        assert 1 <= ratio < 1.02


def test_every_width_has_a_rate():
    for size in SIZES.values():
        assert all(width in rates for rates in training.RATES.values() for width in size.widths)


def test_scaling(tmp_path):
    found = claim.scaling(job(tmp_path))
    a, b = (found.extras[f"data exponent, {method}"] for method in ("EBT", "Transformer++"))
    assert found.method == pytest.approx(100 * (a / b - 1)) and found.baseline == 0.0
    (panel,) = found.series
    assert len(panel.lines) == 6
    assert all(len(x) == len(y) == 3 and all(map(math.isfinite, y)) for x, y in panel.lines.values())


def test_exponents_of_a_known_law(tmp_path, monkeypatch):
    class Sized(torch.nn.Module):
        def __init__(self, method, width, steps):
            super().__init__()
            self.weights = torch.nn.Parameter(torch.zeros(width))
            self.method, self.steps = method, steps

    def loss(model, pieces, seed):
        data, parameters = (0.2, 0.1) if model.method == "EBT" else (0.16, 0.3)
        return 9 * model.steps**-data * len(model.weights) ** -parameters

    monkeypatch.setattr(training, "language_model", lambda method, width, steps, job: Sized(method, width, steps))
    monkeypatch.setattr(training, "test_loss", loss)
    found = claim.scaling(job(tmp_path))
    assert found.method == pytest.approx(25.0)
    assert found.extras["parameter exponent, Transformer++"] == pytest.approx(0.3)


def test_thinking_is_flat_for_a_transformer(tmp_path):
    found = claim.thinking(job(tmp_path))
    assert found.baseline == 0.0
    (panel,) = found.series
    assert len(set(panel.lines["Transformer++"][1])) == 1
    assert len(set(panel.lines["EBT, S2"][1])) > 1


def test_uncertainty(tmp_path):
    found = claim.uncertainty(job(tmp_path))
    assert 0 <= found.method <= 1 and 0 <= found.baseline <= 1


def test_rank_correlation():
    x = torch.randn(50)
    assert claim._rank_correlation(x, x.exp()) == pytest.approx(1)
    assert claim._rank_correlation(x, -x) == pytest.approx(-1)


def test_denoising(tmp_path):
    found = claim.denoising(job(tmp_path))
    assert found.extras["passes, DiT"] in claim.PASSES["DiT"]
    ebt, dit = (count_parameters(training.build_denoiser(name, SIZES["cpu"])) for name in ("EBT", "DiT"))
    assert 0.8 < ebt / dit <= 1
    assert [len(panel.lines) for panel in found.series] == [2, 2]


def test_a_training_is_taken_from_the_cache(tmp_path, monkeypatch):
    first = training.language_model("EBT, S2", 8, 2, job(tmp_path))
    monkeypatch.setattr("everyformer.lab.train.fit", lambda *a, **k: pytest.fail("trained again"))
    second = training.language_model("EBT, S2", 8, 2, job(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_plans():
    plan = claim.plan_scaling()
    assert plan.parameters == 2 * 50_277 * 384 + 6 * (7 * 384**2 + 2 * 384) + 384 * 2 + 2 * 384 + 1
    assert plan.flops > 6 * 256 * 256 * 6 * 7 * 384**2
    assert claim.plan_denoising().parameters > 24 * 12 * 1536**2
