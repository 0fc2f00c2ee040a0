import numpy as np
import pytest
import torch

from everyformer.papers.predformer import taxibj, weatherbench


def written(path, **changes):
    arrays = {name: np.full((3, 4, 2, 32, 32), value, dtype=np.float32)
              for name, value in (("X_train", -1), ("Y_train", 1), ("X_test", 0), ("Y_test", 0.5))}  # fmt: skip
    np.savez(path, **{name: array for name, array in {**arrays, **changes}.items() if array is not None})
    return path


def test_taxibj_is_scaled_to_one(tmp_path):
    found = taxibj(written(tmp_path / "dataset.npz"))
    given, later = found.train[2]
    assert len(found.train) == len(found.test) == 3
    assert given.shape == later.shape == (4, 2, 32, 32)
    assert (given == 0).all() and (later == 1).all()
    assert (found.test[0][1] == 0.75).all()


def test_taxibj_that_is_missing_or_wrong_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fetch https://github.com/.*taxibj_dataset.zip"):
        taxibj(tmp_path / "dataset.npz")
    with pytest.raises(ValueError, match="lacks the array Y_test; it has X_train, Y_train, X_test"):
        taxibj(written(tmp_path / "a.npz", Y_test=None))
    with pytest.raises(ValueError, match=r"X_test of .* must be \(samples, 4, 2, 32, 32\), got \(1, 3\)"):
        taxibj(written(tmp_path / "b.npz", X_test=np.zeros((1, 3))))


def years(folder, hours):
    h5py = pytest.importorskip("h5py")
    for year, count in hours.items():
        with h5py.File(folder / f"2m_temperature_{year}_5.625deg.nc", "w") as held:
            held["t2m"] = np.random.default_rng(year).normal(280, 5, (count, 32, 64)).astype(np.float32)


def test_weatherbench_is_normalised_by_the_training_years(tmp_path):
    years(tmp_path, {2010: 40, 2011: 30, 2017: 50})
    found = weatherbench(tmp_path, train=[2010, 2011], test=[2017])
    # 69 hours without the last: windows of 24 that end before the last hour that is left.
    assert len(found.train) == 40 + 30 - 1 - 24
    given, later = found.train[5]
    assert given.shape == later.shape == (12, 1, 32, 64)
    assert torch.equal(later, found.train[17][0])
    assert found.train.maps.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert found.mean == pytest.approx(280, abs=0.2)
    assert float(found.test[0][0].std()) == pytest.approx(1, abs=0.05)


def test_weatherbench_that_is_missing_or_wrong_is_named(tmp_path):
    years(tmp_path, {2010: 30})
    with pytest.raises(FileNotFoundError, match=r"2m_temperature_2017_5.625deg.nc, got .* fetch .* https://dataserv"):
        weatherbench(tmp_path, train=[2010], test=[2017])
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "2m_temperature_2017_5.625deg.nc", "w") as held:
        held["temperature"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"must hold t2m \(time, latitude, longitude\), got temperature"):
        weatherbench(tmp_path, train=[2010], test=[2017])
