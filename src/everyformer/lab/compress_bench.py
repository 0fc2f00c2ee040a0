"""Compressors side by side: file, memory, latency and quality before and after, on two small models trained once.

The table is written after each row, so that an interrupted run goes on where it was, whatever the commit.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from everyformer import compressors
from everyformer.catalog import Scale
from everyformer.files import write_atomic
from everyformer.lab import measure
from everyformer.lab.compress_subjects import Steps, Subject, logits_of, plain, subject
from everyformer.lab.environment import describe
from everyformer.parts.compress import quantise, storage

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs, and what it is worth.

    Attributes:
        file_bytes, held_bytes: of its file, and of its tensors in memory.
        peak_bytes, seconds: of a pass, the bytes beyond what is held.
        quality: per cent right.
    """

    file_bytes: int
    held_bytes: int
    parameters: int
    peak_bytes: int
    seconds: float
    quality: float


def count_numbers(model: nn.Module) -> int:
    """Numbers that make up a model, those in four bits included, shared ones once."""
    packed = [module for module in model.modules() if isinstance(module, quantise.NVFP4Linear)]
    return measure.count_parameters(model) + sum(layer.in_features * layer.out_features for layer in packed)


def forward(model: nn.Module, inputs: Tensor) -> Callable[[], Any]:
    """A pass in evaluation, to be timed."""
    return measure.forward_pass(logits_of, model.eval(), inputs)


def before_after(
    before: nn.Module,
    after: nn.Module,
    inputs: Tensor,
    quality: Callable[[nn.Module], float],
    *,
    rounds: int = 9,
    device: str = "cpu",
) -> dict[str, Cost]:
    """What both models cost, under ``before`` and ``after``; times are medians of passes taken alternately."""
    models = {"before": before.to(device), "after": after.to(device)}
    runs = {name: forward(model, inputs.to(device)) for name, model in models.items()}
    times = measure.side_by_side(runs, rounds=rounds, device=device)
    return {
        name: Cost(
            len(storage.to_bytes(model)), storage.held_bytes(model), count_numbers(model),
            measure.peak_extra_bytes(runs[name], device),
            measure.median(times[name]), quality(model),
        )
        for name, model in models.items()
    }  # fmt: skip


TABLE: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "int8": (("int8", {}),),
    "int8, inputs too": (("int8_dynamic", {}),),
    "int4": (("int4", {}),),
    "NVFP4": (("nvfp4", {}),),
    "half of the weights": (("magnitude", {"sparsity": 0.5}),),
    "2 of 4 weights": (("n_of_m", {}),),
    "half of the heads": (("heads", {"ratio": 0.5}),),
    "half of the blocks": (("blocks", {"ratio": 0.5}),),
    "factors": (("low_rank", {"ratio": 0.5}),),
    "blocks shared by two": (("sharing", {"every": 2}),),
    "merged tokens": (("merging", {"per_block": 8}),),
    "half of the weights, int8": (("magnitude", {"sparsity": 0.5}), ("int8", {})),
}


def run(
    *,
    quick: bool = False,
    device: str = "cpu",
    out: Path = Path("benchmarks"),
    updates: int = 40,
    again: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Path:
    """The table of every method on both models, in ``<out>/compress.json``; rows that are there are kept.

    The file keeps a table for each machine, size and number of updates; rows say which commit and versions made them.

    Args:
        quick: tiny models and few rounds.
        updates: training steps after what removes weights.
        again: make the rows that are there too, and replace them.
        report: called with each row, those from an earlier run included.

    Raises:
        ValueError: the file is there and holds no table.
    """
    scale: Scale = "smoke" if quick else "cpu"
    path = out / "compress.json"
    made = describe(device)
    tables = _tables(path)
    known = tables.setdefault((made.pop("device"), quick, updates), {})
    for name in ("characters", "digits"):
        whole: Subject | None = None
        for method, steps in TABLE.items():
            if name == "characters" and method == "merged tokens":
                continue
            if again or (name, method) not in known:
                whole = whole or subject(name, scale=scale, seed=0, device=device)
                known[name, method] = {
                    "model": name,
                    "method": method,
                    "steps": plain(steps),
                    **_row(whole, steps, updates, quick, device),
                    **made,
                }
                content = [
                    {**dict(zip(IDENTITY, key, strict=True)), "rows": [*rows.values()]} for key, rows in tables.items()
                ]
                write_atomic(path, json.dumps({"tables": content}, indent=1) + "\n")
            report(known[name, method])
    return path


IDENTITY = ("device", "quick", "updates")  # what no two tables share
Rows = dict[tuple[str, str], dict[str, Any]]  # by model and method


def _tables(path: Path) -> dict[tuple[str, bool, int], Rows]:
    """What earlier runs have left, by :data:`IDENTITY`."""
    if not path.is_file():
        return {}
    try:
        return {
            tuple(table[name] for name in IDENTITY): {(row["model"], row["method"]): row for row in table["rows"]}
            for table in json.loads(path.read_text(encoding="utf-8"))["tables"]
        }
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no table of compressors: {error!r}") from error


def rich_table(rows: list[dict[str, Any]]) -> Table:
    """The table at the terminal: what a model was, and what it became."""
    from rich.table import Table

    shown = Table(title="Compressed models, before → after", title_justify="left")
    for name in (
        "Model",
        "Method",
        "File (kB)",
        "Weights in memory (kB)",
        "Peak of a pass (kB)",
        "Pass (ms)",
        "Right (%)",
    ):
        shown.add_column(name)
    for row in rows:
        before, after = row["before"], row["after"]
        figures = (("file_bytes", 1e3), ("held_bytes", 1e3), ("peak_bytes", 1e3), ("seconds", 1e-3), ("quality", 1.0))
        shown.add_row(
            row["model"], row["method"], *(f"{before[key] / unit:.4g} → {after[key] / unit:.4g}" for key, unit in figures)
        )  # fmt: skip
    return shown


def _row(whole: Subject, steps: Steps, updates: int, quick: bool, device: str) -> dict[str, Any]:
    made = compressors.compose(
        copy.deepcopy(whole.model), steps, heal=lambda model: whole.heal(model, steps, 2 if quick else updates)
    )
    costs = before_after(
        whole.model, made, whole.inputs, lambda model: whole.quality(model, "test"),
        rounds=3 if quick else 9, device=device,
    )  # fmt: skip
    return {name: dataclasses.asdict(cost) for name, cost in costs.items()}
