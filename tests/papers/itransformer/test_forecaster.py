import numpy as np
import pandas as pd
import pytest
import torch

from everyformer.papers.itransformer import DLinear, Forecaster, ITransformer, VanillaTransformer


def waves(steps=300, variates=3, seed=0):
    noise = 0.05 * np.random.default_rng(seed).standard_normal((steps, variates))
    return np.sin(np.arange(steps)[:, None] / (2 + np.arange(variates))) * 10 + 50 + noise


def linear():
    torch.manual_seed(0)
    return DLinear(24, 8)


def small(marks=0):
    return ITransformer(24, 8, dim=16, heads=2, layers=1, ff=16, marks=marks, dropout=0.0)


def wide(**options):
    index = pd.date_range("2024-01-01", periods=300, freq="h")
    return pd.DataFrame(waves(**options), index=index, columns=["a", "b", "c"])


def test_it_learns_and_answers_in_the_datas_units():
    values = waves()
    forecast = Forecaster(small(), epochs=10, rate=1e-2, batch=8).fit(values[:-8]).predict()
    assert forecast.shape == (8, 3)
    persistence = np.abs(values[-9] - values[-8:]).mean()
    assert np.abs(forecast - values[-8:]).mean() < 0.5 * persistence


def test_a_wide_frame_comes_back_with_the_dates_that_follow():
    forecast = Forecaster(small(marks=4), epochs=1).fit(wide()).predict(horizon=5)
    assert list(forecast.columns) == ["a", "b", "c"]
    assert forecast.index[0] == pd.Timestamp("2024-01-13 12:00")
    assert len(forecast) == 5


def test_a_long_table_with_several_models_comes_back_long():
    table = wide().rename_axis("ds").reset_index().melt("ds", var_name="unique_id", value_name="y")
    models = {"inverted": small(), "linear": linear()}
    forecast = Forecaster(models, epochs=1).fit(table).predict()
    assert list(forecast.columns) == ["unique_id", "ds", "inverted", "linear"]
    assert len(forecast) == 3 * 8
    alone = Forecaster(linear(), epochs=1).fit(wide()).predict()
    assert forecast[forecast.unique_id == "b"]["linear"].to_numpy() == pytest.approx(alone["b"].to_numpy(), rel=1e-5)


def test_cross_validation_moves_the_cutoff_and_shows_no_future():
    table = wide()
    found = Forecaster(linear(), epochs=1).cross_validation(table, windows=3)
    assert list(found.columns) == ["unique_id", "ds", "cutoff", "y", "DLinear"]
    assert found.cutoff.nunique() == 3
    assert (found.ds > found.cutoff).all()
    changed = table.copy()
    changed.iloc[-8:] += 1000.0
    again = Forecaster(linear(), epochs=1).cross_validation(changed, windows=3)
    assert np.allclose(found["DLinear"], again["DLinear"])


def test_variates_never_seen_are_forecast():
    forecaster = Forecaster(small(), epochs=2, variates=2).fit(waves(variates=4))
    assert forecaster.predict(data=waves(variates=7, seed=1)).shape == (8, 7)


def test_a_model_that_needs_future_marks_gets_them():
    model = VanillaTransformer(24, 8, 3, dim=16, heads=2, layers=1, ff=16, marks=4, label=12)
    assert Forecaster(model, epochs=1).fit(wide()).predict().shape == (8, 3)


def test_the_attention_plot_names_the_variates():
    figure = Forecaster(small(marks=4), epochs=1).fit(wide()).plot_attention()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["a", "b", "c", "mark 0", "mark 1", "mark 2", "mark 3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:20], "need 32 steps"),
        (lambda t: t.assign(b=t.b.where(t.index != t.index[5])), "missing values in b"),
        (lambda t: t.assign(c=1.0), "constant variates: c"),
        (lambda t: t.iloc[::-1], "dates must increase"),
        (lambda t: pd.concat([t.iloc[:50], t.iloc[49:]]), "twice"),
        (lambda t: t.to_numpy()[:, 0], r"data must be \(time, variates\)"),
    ],
)
def test_data_that_cannot_be_used_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Forecaster(small(), epochs=1).fit(change(wide()))


def test_settings_and_calls_out_of_order_are_named():
    with pytest.raises(ValueError, match="fit must be called before predict"):
        Forecaster(small()).predict()
    with pytest.raises(ValueError, match="must agree in lookback and horizon"):
        Forecaster({"a": DLinear(24, 8), "b": DLinear(12, 8)})
    with pytest.raises(ValueError, match="data must have dates"):
        Forecaster(small(marks=4)).fit(waves())
    fitted = Forecaster(DLinear(24, 8), epochs=1).fit(waves())
    for horizon in (0, 9):
        with pytest.raises(ValueError, match="horizon must be between 1 and the models' 8"):
            fitted.predict(horizon=horizon)
    with pytest.raises(TypeError, match="data must be an array"):
        fitted.fit("text")
