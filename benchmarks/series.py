"""The time-series survey's three studies with all seven forecasters on both hourly ETT sets.

`python benchmarks/series.py` trains each under the budget of the claims, one seed, and writes `series.json`, `series.svg`
and the tables as `series.md` here. What is trained is kept, so that a run goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from everyformer.files import write_atomic
from everyformer.lab.environment import describe
from everyformer.papers.ts_survey import study
from everyformer.papers.ts_survey.claim import BUDGETS, DEPTHS, HORIZONS, LENGTHS
from everyformer.papers.ts_survey.harness import NAIVE
from everyformer.papers.ts_survey.sweep import AXES, Study

SETS = {"etth1": "ETTh1", "etth2": "ETTh2"}
MODELS = ("vanilla", "informer", "autoformer", "fedformer_lite", "patchtst", "itransformer")  # DLinear comes with each
STUDIES: dict[str, dict[str, Any]] = {  # name to what is swept at a scale
    "Longer input": {"sweep": LENGTHS, "axis": "lengths"},
    "More layers": {"sweep": DEPTHS, "axis": "layers"},
    "Decomposition": {"sweep": HORIZONS, "axis": "horizons", "variants": ("without", "with")},
}


def studies(scale: str) -> dict[tuple[str, str], Study]:
    """Every study on every set."""
    found = {}
    for name, options in STUDIES.items():
        for data in SETS:
            budget = dataclasses.replace(BUDGETS[scale], data=data)
            short = {"lookback": 48, "horizon": 24} if scale == "smoke" else {}
            values = {options["axis"]: options["sweep"][scale]}
            variants = options.get("variants", ("published",))
            found[name, data] = study(
                MODELS, budget=budget, variants=variants, **values, **short,
                progress=lambda line, where=f"{name}, {data}": print(f"{where}: {line}", flush=True),
            )  # fmt: skip
    return found


def table(found: Study) -> str:
    """Test MSE, a row for each model and a column for each value, as Markdown."""
    values = list(dict.fromkeys(getattr(row, found.axis) for row in found.rows if row.model != "dlinear"))
    lines = [
        f"| {AXES[found.axis]} | " + " | ".join(f"{value:,}" for value in values) + " |",
        "| --- " * (len(values) + 1) + "|",
    ]
    for name in dict.fromkeys(row.name for row in found.rows):
        errors = [row.mse for row in found.rows if row.name == name]
        lines.append(f"| {name} | " + " | ".join(f"{error:.3f}" for error in errors) + " |")
    return "\n".join(lines)


def plot(found: dict[tuple[str, str], Study]) -> Figure:
    """A column for each study, a row for each set; with decomposition a drawn line, without a dotted one."""
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    axes = figure.subplots(len(SETS), len(STUDIES), squeeze=False)
    names = (*MODELS, "dlinear", *NAIVE)
    for (name, data), one in found.items():
        axis = axes[list(SETS).index(data)][list(STUDIES).index(name)]
        for label, (xs, ys) in one.lines().items():
            model, _, variant = label.partition(", ")
            style = "--" if model in NAIVE else ":" if variant == "without" else "-"
            colour = f"C{names.index(model)}"
            axis.plot(
                xs, ys, style, marker="o", markersize=4, color=colour, label="" if variant == "without" else model
            )
        axis.set(
            title=f"{name}, {SETS[data]}" + (", dotted: without" if "variants" in STUDIES[name] else ""),
            xlabel=AXES[one.axis],
            ylabel="test MSE",
            yscale="log",
        )
        axis.grid(True, which="both", linewidth=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=tuple(BUDGETS), default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    found = studies(arguments.scale)
    rows = [
        {"study": name, "data": data, **dataclasses.asdict(row)}
        for (name, data), one in found.items()
        for row in one.rows
    ]
    content = {**describe("cpu"), "budget": dataclasses.asdict(BUDGETS[arguments.scale]), "rows": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.out / "series.json", json.dumps(content, indent=1) + "\n")
    text = "\n\n".join(f"**{name}, {SETS[data]}**, test MSE\n\n{table(one)}" for (name, data), one in found.items())
    write_atomic(arguments.out / "series.md", text + "\n")
    plot(found).savefig(arguments.out / "series.svg")
