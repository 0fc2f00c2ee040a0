import gzip
import os

import numpy as np
import pytest

from everyformer.lab import data


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERYFORMER_DATA", str(tmp_path))
    monkeypatch.setattr(data, "cache", lambda: tmp_path / "cache")
    return tmp_path


def test_etth1_comes_with_the_package(folder):
    series = data.series("etth1")
    assert series.values.shape == (17420, 7)
    assert series.columns[-1] == "OT"
    assert series.dates is not None
    assert np.all(np.diff(series.dates) == np.timedelta64(1, "h"))


def test_the_first_digits_of_mnist_come_with_the_package(folder):
    images, labels = data.digits("mnist_500")
    assert images.shape == (500, 28, 28)
    assert sorted(set(labels.tolist())) == list(range(10))


def test_a_file_of_another_content_is_refused_with_both_hashes(folder):
    (folder / "ett").mkdir()
    (folder / "ett" / "ETTh2.csv").write_text("date,a\n2020-01-01,1\n")
    with pytest.raises(ValueError, match=r"ETTh2\.csv has sha256 .* expected a3dc2c59"):
        data.read("etth2")


def test_a_packed_file_is_judged_by_its_unpacked_content(folder):
    (folder / "mnist").mkdir()
    (folder / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"not the labels"))
    with pytest.raises(ValueError, match="expected ff7bcfd4"):
        data.read("mnist_test", 1)


def test_a_missing_set_without_an_address_says_what_and_where(folder):
    with pytest.raises(
        data.DataMissing, match=r"321 clients.*put it at electricity/electricity\.csv.*EVERYFORMER_DATA"
    ):
        data.read("ecl")


def test_a_missing_set_that_cannot_be_downloaded_says_what_and_where(folder, monkeypatch):
    import pooch

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(data.DataMissing, match=r"fetch https://.*ETTm1\.csv and put it at ett/ETTm1\.csv"):
        data.read("ettm1")


def test_a_download_goes_to_the_cache_and_is_used_from_there(folder, monkeypatch):
    import pooch

    calls = []

    def fetch(url, known_hash, fname, path, progressbar):
        calls.append((url, known_hash))
        path.mkdir(parents=True)
        (path / fname).write_bytes(gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x02\x07\x09"))

    monkeypatch.setattr(pooch, "retrieve", fetch)
    for _ in range(2):
        assert data._read_idx(data.read("mnist_train", 1)).tolist() == [7, 9]
    assert [known for _, known in calls] == ["md5:d53e105ee54ea40749a09fcbcd1e9432"]


def test_a_folder_variable_that_names_no_folder_is_refused(monkeypatch):
    monkeypatch.setenv("EVERYFORMER_DATA", "/nowhere/at/all")
    with pytest.raises(ValueError, match="EVERYFORMER_DATA must name a folder"):
        data.read("etth2")


def test_unknown_set_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean etth1"):
        data.series("eth1")


def test_gaps_are_filled_forward_then_backward():
    gaps = np.array([[np.nan, 1.0], [2.0, np.nan], [np.nan, 3.0]])
    assert data._filled(gaps).tolist() == [[2.0, 1.0], [2.0, 1.0], [2.0, 3.0]]


@pytest.mark.skipif("EVERYFORMER_DATA" not in os.environ, reason="the full sets are not embedded")
@pytest.mark.parametrize(
    ("name", "shape"), [("etth2", (17420, 7)), ("exchange_rate", (7588, 8)), ("illness", (966, 7))]
)
def test_sets_of_the_data_folder_are_read(name, shape):
    assert data.series(name).values.shape == shape
