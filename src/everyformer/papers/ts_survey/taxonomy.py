"""The survey's taxonomy as a table to filter: what attention costs, how positions are coded, what is built in here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

GROUPS = ("sparsity bias", "low rank or selection", "architecture", "full attention", "no attention")
TASKS = ("forecasting", "spatio-temporal", "event", "anomaly", "classification")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model: where it is from, what its attention costs for L steps and N variates, and its name in ``MODELS``.

    ``cost`` is of time, ``memory`` of memory; both ``""`` where the source does not say.
    """

    name: str
    venue: str
    year: int
    group: str
    task: str = "forecasting"
    cost: str = ""
    memory: str = ""
    positions: str = ""
    decomposition: bool = False
    covariates: bool = False
    code: str = ""
    here: str = ""


_GIT = "https://github.com/"
ENTRIES = (
    Entry("Transformer", "NeurIPS", 2017, "full attention", cost="L^2", memory="L^2", positions="sinusoid + time",
          covariates=True, here="vanilla"),
    Entry("LogSparse", "NeurIPS", 2019, "sparsity bias", cost="L log L", memory="L log L",
          positions="learnable + time", covariates=True, here="logsparse"),
    Entry("Reformer", "ICLR", 2020, "low rank or selection", cost="L log L", memory="L log L", covariates=True,
          code=_GIT + "google/trax", here="reformer"),
    Entry("Informer", "AAAI", 2021, "low rank or selection", cost="L log L", memory="L log L",
          positions="sinusoid + time", covariates=True, code=_GIT + "zhouhaoyi/Informer2020", here="informer"),
    Entry("Autoformer", "NeurIPS", 2021, "low rank or selection", cost="L log L", memory="L log L", positions="time",
          decomposition=True, covariates=True, code=_GIT + "thuml/Autoformer", here="autoformer"),
    Entry("Pyraformer", "ICLR", 2022, "sparsity bias", cost="L", memory="L", positions="time", covariates=True,
          code=_GIT + "ant-research/Pyraformer"),
    Entry("FEDformer", "ICML", 2022, "low rank or selection", cost="L", memory="L", positions="time",
          decomposition=True, covariates=True, code=_GIT + "MAZiqing/FEDformer", here="fedformer_lite"),
    Entry("Non-stationary Transformer", "NeurIPS", 2022, "full attention", cost="L^2", memory="L^2",
          positions="sinusoid + time", covariates=True, code=_GIT + "thuml/Nonstationary_Transformers"),
    Entry("PatchTST", "ICLR", 2023, "architecture", cost="(L/8)^2", memory="(L/8)^2", positions="learnable",
          code=_GIT + "yuqinie98/PatchTST", here="patchtst"),
    Entry("Crossformer", "ICLR", 2023, "architecture", cost="(L/p)^2 + N", memory="(L/p)^2 + N",
          positions="learnable", code=_GIT + "Thinklab-SJTU/Crossformer"),
    Entry("iTransformer", "ICLR", 2024, "architecture", cost="N^2", memory="N^2", positions="none", covariates=True,
          code=_GIT + "thuml/iTransformer", here="itransformer"),
    Entry("DLinear", "AAAI", 2023, "no attention", cost="L", memory="L", positions="none", decomposition=True,
          code=_GIT + "cure-lab/LTSF-Linear", here="dlinear"),
    Entry("Anomaly Transformer", "ICLR", 2022, "full attention", "anomaly", cost="L^2", memory="L^2",
          code=_GIT + "thuml/Anomaly-Transformer"),
    Entry("TranAD", "VLDB", 2022, "full attention", "anomaly", cost="L^2", memory="L^2",
          code=_GIT + "imperial-qore/TranAD"),
    Entry("MEMTO", "NeurIPS", 2023, "full attention", "anomaly"),
    Entry("Gated Transformer Networks", "arXiv", 2021, "full attention", "classification"),
    Entry("TST", "KDD", 2021, "full attention", "classification", cost="L^2", memory="L^2", positions="learnable",
          code=_GIT + "gzerveas/mvts_transformer"),
    Entry("TARNet", "KDD", 2022, "full attention", "classification"),
    Entry("AirFormer", "AAAI", 2023, "architecture", "spatio-temporal", code=_GIT + "yoshall/AirFormer"),
    Entry("Earthformer", "NeurIPS", 2022, "architecture", "spatio-temporal",
          code=_GIT + "amazon-science/earth-forecasting-transformer"),
    Entry("Transformer Hawkes Process", "ICML", 2020, "full attention", "event", cost="L^2", memory="L^2",
          code=_GIT + "SimiaoZuo/Transformer-Hawkes-Process"),
    Entry("HYPRO", "NeurIPS", 2022, "full attention", "event"),
)  # fmt: skip


def catalogue(
    subject: str = "series",
    *,
    group: str | None = None,
    cost: str | None = None,
    task: str | None = None,
    here: bool | None = None,
) -> tuple[Entry, ...]:
    """The entries of the survey that have all that is asked for (arXiv 2202.07125, and models since).

    Args:
        subject: ``"series"``, the only one of this survey.
        group: one of ``GROUPS``.
        cost: of attention in time, such as ``"L log L"``.
        task: one of ``TASKS``.
        here: whether the model can be built by :func:`~.model.create`.

    Raises:
        ValueError: a value that no entry can have.
    """
    known = {"subject": ("series",), "group": GROUPS, "task": TASKS, "cost": sorted({e.cost for e in ENTRIES} - {""})}
    for name, value in (("subject", subject), ("group", group), ("task", task), ("cost", cost)):
        if value is not None and value not in known[name]:
            raise ValueError(f"{name} must be one of {', '.join(known[name])}, got {value!r}")
    asked = {name: value for name, value in (("group", group), ("cost", cost), ("task", task)) if value is not None}
    return tuple(
        entry
        for entry in ENTRIES
        if all(getattr(entry, name) == value for name, value in asked.items())
        and (here is None or bool(entry.here) == here)
    )


def table(entries: Iterable[Entry]) -> str:
    """Entries as a Markdown table."""
    names = ("name", "venue", "year", "group", "task", "cost", "memory", "positions", "decomposition", "covariates")
    lines = ["| " + " | ".join(names) + " | here |", "|" + " --- |" * (len(names) + 1)]
    for entry in entries:
        cells = (getattr(entry, name) for name in names)
        shown = ("yes" if cell is True else "no" if cell is False else str(cell) or "–" for cell in cells)
        lines.append("| " + " | ".join(shown) + f" | {f'`{entry.here}`' if entry.here else '–'} |")
    return "\n".join(lines)
