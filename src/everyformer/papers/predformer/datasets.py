"""TaxiBJ and WeatherBench as OpenSTL (arXiv 2306.11249) reads them, from files in the form in which they are published."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

TAXIBJ = "https://github.com/chengtan9907/OpenSTL/releases/download/v0.1.0/taxibj_dataset.zip"
WEATHERBENCH = "https://dataserv.ub.tum.de/s/m1524895/download?path=%2F5.625deg%2F2m_temperature"


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Pairs (given, later), each (frames, channels, height, width): ``starts`` says where in ``maps`` a pair begins."""

    def __init__(
        self, maps: Float[Tensor, "time channels height width"], starts: range, given: int, later: int
    ) -> None:
        self.maps, self.starts, self.given, self.later = maps, starts, given, later

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = self.starts[index]
        middle = start + self.given
        return self.maps[start:middle], self.maps[middle : middle + self.later]


@dataclasses.dataclass(frozen=True)
class Split:
    """Training and test pairs, and what to multiply by and add to bring values back to the data's unit."""

    train: Dataset[tuple[Tensor, Tensor]]
    test: Dataset[tuple[Tensor, Tensor]]
    mean: float
    std: float


def taxibj(path: str | Path) -> Split:
    """TaxiBJ (arXiv 1610.00081): in- and outflow of Beijing's 32 x 32 districts, four half hours to the next four.

    Values are scaled to [0, 1]. ``path`` is OpenSTL's ``dataset.npz``.

    Raises:
        FileNotFoundError: there is no such file; the message says where it is published.
        ValueError: the file lacks an array, or one is not (samples, 4, 2, 32, 32).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be TaxiBJ's dataset.npz, got {path}: fetch {TAXIBJ} and unpack it there")
    found: dict[str, Tensor] = {}
    with np.load(path, allow_pickle=False) as held:
        for name in ("X_train", "Y_train", "X_test", "Y_test"):
            if name not in held:
                raise ValueError(f"{path} lacks the array {name}; it has {', '.join(held)}")
            values = held[name]
            if values.shape[1:] != (4, 2, 32, 32):
                raise ValueError(f"{name} of {path} must be (samples, 4, 2, 32, 32), got {values.shape}")
            found[name] = (torch.from_numpy(values).float() + 1) / 2
    pairs = {part: torch.utils.data.TensorDataset(found[f"X_{part}"], found[f"Y_{part}"]) for part in ("train", "test")}
    return Split(pairs["train"], pairs["test"], 0.0, 1.0)  # type: ignore[arg-type]


def weatherbench(
    folder: str | Path, *, train: Sequence[int] = range(2010, 2016), test: Sequence[int] = (2017, 2018)
) -> Split:
    """WeatherBench's temperature at two metres (arXiv 2002.00469), hourly at 5.625 degrees, twelve hours to the next.

    Both parts are normalised by mean and deviation of the training years. ``folder`` holds the published yearly files
    ``2m_temperature_<year>_5.625deg.nc``. As in OpenSTL the last hour of the years is left out, and the last window.

    Raises:
        FileNotFoundError: a year is missing; the message says where it is published.
        ImportError: h5py, which reads the files, is not installed.
        ValueError: a file without the variable ``t2m`` of (time, latitude, longitude).
    """
    parts = [np.concatenate([_year(Path(folder), year) for year in years])[:-1] for years in (train, test)]
    mean, std = float(parts[0].mean()), float(parts[0].std())
    made = []
    for values in parts:
        maps = torch.from_numpy((values - mean) / std)[:, None]
        made.append(Windows(maps, range(len(maps) - 24), 12, 12))
    return Split(made[0], made[1], mean, std)


def _year(folder: Path, year: int) -> NDArray[np.float32]:
    path = folder / f"2m_temperature_{year}_5.625deg.nc"
    if not path.is_file():
        raise FileNotFoundError(
            f"folder must hold {path.name}, got {folder}: fetch 2m_temperature_5.625deg.zip from {WEATHERBENCH} "
            "and unpack it there"
        )
    try:
        import h5py
    except ImportError as error:
        raise ImportError("weatherbench reads netCDF files with h5py: pip install h5py") from error
    with h5py.File(path) as held:
        if "t2m" not in held or held["t2m"].ndim != 3:
            raise ValueError(f"{path} must hold t2m (time, latitude, longitude), got {', '.join(held)}")
        return np.asarray(held["t2m"], dtype=np.float32)
