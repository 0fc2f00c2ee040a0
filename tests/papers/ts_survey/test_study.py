import dataclasses

import numpy as np
import pytest
import torch

from everyformer.catalog import Job
from everyformer.lab import data
from everyformer.papers.ts_survey import checkpoint, claim, create, harness, study
from everyformer.papers.ts_survey.harness import Budget, Cell
from everyformer.papers.ts_survey.model import MODELS
from everyformer.papers.ts_survey.taxonomy import ENTRIES, catalogue, table

TINY = Budget(steps=3, batch=4, dim=8, ff=8, heads=2, dropout=0.0, stride=500)


@pytest.fixture(autouse=True)
def waves(monkeypatch, cache):
    """A short series of daily waves under the name of a set, and a cache of its own."""
    hours = np.arange(2000)
    values = np.stack([np.sin(2 * np.pi * hours / 24), np.cos(2 * np.pi * hours / 24)], 1).astype(np.float32)
    dates = np.datetime64("2020-01-01T00", "s") + hours * np.timedelta64(3600, "s")
    harness._read.cache_clear()
    monkeypatch.setattr(data, "series", lambda name: data.Series(values, ("a", "b"), dates))
    yield
    harness._read.cache_clear()


WAVES = dataclasses.replace(TINY, data="waves")


def test_a_sweep_has_every_model_and_the_simple_forecasts():
    found = study(["patchtst"], horizons=[12, 24], lookback=48, variants=("without", "with"), budget=WAVES)
    assert found.axis == "horizon"
    assert len(found.rows) == 2 * (2 + 1 + 2)
    assert found.at("last day", 24).mse < 1e-9  # of waves that repeat every day
    assert found.at("last value", 24).mse > 0.5
    assert found.at("patchtst", 12, "with").parameters == found.at("patchtst", 12, "without").parameters + 12 * 49
    assert set(found.frame().columns) >= {"model", "variant", "mse", "mae"}
    assert len(found.plot().axes[0].lines) == 5
    with pytest.raises(ValueError, match="there is no row of 'vanilla'"):
        found.at("vanilla", 12)


def test_what_was_trained_before_is_not_trained_again(monkeypatch):
    first = harness.scored(Cell("dlinear", 48, 12), WAVES, seed=5, device="cpu")
    monkeypatch.setattr(harness, "fit_drawn", lambda *_, **__: pytest.fail("trained again"))
    assert harness.scored(Cell("dlinear", 48, 12, layers=7), WAVES, seed=5, device="cpu") == first
    assert Cell("vanilla", 48, 12).key == Cell("vanilla", 48, 12, variant="without").key
    assert Cell("autoformer", 48, 12).key == Cell("autoformer", 48, 12, variant="with").key
    assert Cell("autoformer", 48, 12).key != Cell("autoformer", 48, 12, variant="without").key


def test_training_learns_the_waves():
    better = dataclasses.replace(WAVES, steps=120, rate=1e-2, batch=16, stride=10)
    before = harness.scored(Cell("itransformer", 48, 12), WAVES, seed=0, device="cpu")
    after = harness.scored(Cell("itransformer", 48, 12), better, seed=0, device="cpu")
    assert after.mse < 0.3 * before.mse


def test_a_training_that_diverges_is_a_gap_and_no_crash():
    wild = dataclasses.replace(WAVES, rate=1e36, steps=12)
    found = study(["vanilla"], layers=[1], lookback=48, horizon=12, budget=wild)
    assert found.at("vanilla", 1).mse != found.at("vanilla", 1).mse
    assert "vanilla" not in found.lines()
    assert claim._cells(found)["diverged"] >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of lengths, layers and horizons"),
        ({"lengths": [48], "layers": [1]}, "exactly one of lengths, layers and horizons"),
        ({"lengths": []}, "exactly one of lengths, layers and horizons"),
        ({"lengths": [1800]}, "lookback 1800 and horizon 96 need 1896 steps, the training part of waves has 1400"),
        ({"horizons": [300]}, "the validation part of waves has 296"),
        ({"lengths": [48], "variants": ["some"]}, "variants must be some of published"),
        ({"lengths": [48], "models": ["rnn"]}, r"models must be some of vanilla.*got \['rnn'\]"),
    ],
)
def test_studies_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        study(**{"models": ["dlinear"], "budget": WAVES, **options})


def test_dates_must_increase():
    days = np.array(["2020-01-01", "2020-01-02", "2020-01-02", "2020-01-03"], dtype="datetime64[s]")
    with pytest.raises(ValueError, match="dates must increase, 2020-01-02T00:00:00 comes twice"):
        harness.check_dates(days)
    with pytest.raises(ValueError, match="2020-01-01T00:00:00 comes after a later one"):
        harness.check_dates(days[[1, 0, 3]])


def test_the_control_of_decomposition_shares_its_trainings(monkeypatch, tmp_path):
    monkeypatch.setattr(claim, "BUDGETS", {"smoke": WAVES})
    job = Job("smoke", 0, "cpu", tmp_path)
    first = claim.decomposition(job)
    monkeypatch.setattr(harness, "fit_drawn", lambda *_, **__: pytest.fail("trained again"))
    control = claim.confound(job)
    assert control.method == first.method
    gains = [value for name, value in control.extras.items() if name.startswith("promotion (%), normalised")]
    assert control.baseline == pytest.approx(1 - sum(gains) / len(gains) / 100)
    assert claim.horizon(job).extras == first.extras


def test_another_set_stands_beside_the_table(monkeypatch, tmp_path):
    monkeypatch.setattr(claim, "BUDGETS", {"smoke": WAVES})
    monkeypatch.setattr(claim, "BESIDE", {"smoke": ("tides",)})
    extras = claim.decomposition(Job("smoke", 0, "cpu", tmp_path)).extras
    gains = []
    for model in claim.SEPARATED["smoke"]:
        errors = [extras[f"tides: MSE, {model}, {variant}, horizon 24"] for variant in ("with", "without")]
        gains.append(1 - errors[0] / errors[1])
    assert extras["tides: mean promotion (%), with, 24"] == pytest.approx(50 * sum(gains))
    assert {f"tides: MSE, {name}, horizon 24" for name in ("last value", "last day", "dlinear")} <= set(extras)


@pytest.mark.parametrize("wild", [False, True])
def test_depth_is_three_layers_beside_the_most_and_diverging_costs_twice(monkeypatch, tmp_path, wild):
    monkeypatch.setattr(claim, "BUDGETS", {"smoke": WAVES})
    monkeypatch.setattr(claim, "DEEPENED_ON", {"smoke": "waves"})
    scored = claim.study

    def diverging(*args, **options):
        found = scored(*args, **options)
        deep = [row.layers == 4 and wild for row in found.rows]
        rows = [
            dataclasses.replace(row, mse=float("nan")) if bad else row
            for row, bad in zip(found.rows, deep, strict=True)
        ]
        return dataclasses.replace(found, rows=tuple(rows))

    monkeypatch.setattr(claim, "study", diverging)
    found = claim.size(Job("smoke", 0, "cpu", tmp_path))
    ratios = [found.extras[f"MSE with 4 layers / with 3, {name}"] for name in claim.DEEPENED]
    assert found.method == sorted(ratios)[2] and found.baseline == 1
    assert (ratios == [2.0] * 5) == wild
    assert len(found.series[1].lines) == len(claim.DEEPENED)


def test_the_catalogue_filters_and_knows_what_is_here():
    assert {entry.here for entry in catalogue(here=True)} == set(MODELS)
    quick = catalogue("series", cost="L log L", task="forecasting")
    assert {entry.name for entry in quick} == {"LogSparse", "Reformer", "Informer", "Autoformer"}
    assert table(quick).count("\n") == 5
    assert len(catalogue()) == len(ENTRIES) == len({entry.name for entry in ENTRIES})
    for wrong in ({"subject": "vision"}, {"group": "none"}, {"cost": "L^9"}, {"task": "cooking"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be one of"):
            catalogue(**wrong)


def test_checkpoints_that_cannot_be_read_are_named():
    state = checkpoint.export(create("dlinear", 30, 4, 3))
    prefixed = {f"module.{key}": value for key, value in state.items()}
    loaded = checkpoint.load(prefixed, {"seq_len": 30, "pred_len": 4})
    torch.testing.assert_close(loaded.trend.weight, state["Linear_Trend.weight"])
    for config, message in (
        ({}, "config must give seq_len, pred_len for DLinear"),
        ({"model": "TimesNet"}, "must be one of Autoformer, DLinear, PatchTST, got 'TimesNet'"),
        ({"seq_len": 30, "pred_len": 4, "task_name": "imputation"}, "must be a forecast"),
    ):
        with pytest.raises(ValueError, match=message):
            checkpoint.load(state, config)
    with pytest.raises(TypeError, match="model must be an Autoformer, a PatchTST or a DLinear"):
        checkpoint.export(create("informer", 30, 4, 3))
    with pytest.raises(TypeError, match="with decomposition and auto-correlation"):
        checkpoint.export(create("autoformer", 30, 20, 3, decomposition=False))
