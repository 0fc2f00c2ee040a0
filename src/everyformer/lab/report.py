"""Reporting: a plot per result and one self-contained HTML page per run, both in light and dark."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everyformer.catalog import Claim, Panel, Paper, Result, Spread
from everyformer.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe and Ito), the same order in both themes so that a line keeps its colour.
_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c"]
_THEMES = {"light": ("#ffffff", "#1f2328", "#d8dee4"), "dark": ("#15181d", "#e6e8eb", "#363c45")}
PANEL = (4.1, 3.3)  # inches
_VERDICT_CLASS = {"reproduced": "yes", "direction only": "partly", "not reproduced": "no"}


def number(value: float | None) -> str:
    """A figure with four significant digits, as tables show it."""
    if value is None:
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.3e}"


def interval(spread: Spread) -> str:
    """A mean with its interval, or alone where a single seed gives none."""
    if spread.low is None or spread.high is None:
        return number(spread.mean)
    return f"{number(spread.mean)} [{number(spread.low)}, {number(spread.high)}]"


def metric(source: Claim | Result) -> str:
    """The metric with its unit."""
    return f"{source.metric} ({source.unit})" if source.unit else source.metric


def reported(source: Claim | Result) -> str:
    """The paper's own figure, and its baseline's where there is one."""
    if source.paper_value is None:
        return "–"
    against = f" vs {number(source.paper_baseline)}" if source.paper_baseline is not None else ""
    return f"{number(source.paper_value)}{against}"


def wanted(result: Result) -> str:
    """The declared threshold in words."""
    size = number(result.threshold.size)
    if result.threshold.kind == "bound":
        return f"{'≥' if result.better == 'higher' else '≤'} {size}"
    return {"ratio": f"≥ {size}×", "relative": f"≥ {100 * result.threshold.size:.3g}% better"}.get(
        result.threshold.kind, f"≥ {size} {result.unit} better".replace("  ", " ")
    )


def effect(result: Result) -> str:
    """The measured effect in the threshold's terms."""
    if result.threshold.kind == "ratio":
        return f"{number(result.effect.mean)}×"
    if result.threshold.kind == "relative":
        return f"{100 * result.effect.mean:+.3g}%"
    if result.threshold.kind == "bound":
        return f"{abs(result.effect.mean):.3g} {'to spare' if result.effect.mean >= 0 else 'short'}"
    return f"{result.effect.mean:+.4g} {result.unit}".strip()


def grid_of(panels: int) -> tuple[int, int]:
    """Columns and rows of a figure with so many panels."""
    columns = 2 if panels == 4 else min(3, panels)
    return columns, -(-panels // columns)


def figure(result: Result, claim: Claim) -> Figure:
    """Method beside baseline with every seed's value and the paper's figure, then the panels of the first seed."""
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ground, ink, grid = _THEMES["light"]
    style: Any = {
        "axes.edgecolor": grid, "axes.facecolor": ground, "axes.labelcolor": ink, "axes.titlecolor": ink,
        "figure.facecolor": ground, "savefig.facecolor": ground, "grid.color": grid, "text.color": ink,
        "xtick.color": ink, "ytick.color": ink, "font.size": 9.0, "axes.titlesize": 9.5, "legend.fontsize": 8.0,
        "legend.facecolor": ground, "legend.edgecolor": "none", "legend.framealpha": 0.75,
        "axes.prop_cycle": cycler(color=_COLOURS), "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with rc_context(style):
        columns, rows = grid_of(1 + len(result.series))
        plot = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
        axes = [plot.add_subplot(rows, columns, index + 1) for index in range(1 + len(result.series))]
        _summary(axes[0], result, claim, ink)
        for axis, panel in zip(axes[1:], result.series, strict=True):
            _panel(axis, panel)
    return plot


def _summary(axis: Axes, result: Result, claim: Claim, ink: str) -> None:
    for place, (spread, colour) in enumerate(((result.method, _COLOURS[0]), (result.baseline, _COLOURS[6]))):
        error = None
        if spread.low is not None and spread.high is not None:
            error = [[spread.mean - spread.low], [spread.high - spread.mean]]
        axis.bar(place, spread.mean, 0.55, color=colour, yerr=error, ecolor=ink, capsize=4, alpha=0.85)
        axis.plot([place] * len(spread.values), spread.values, "o", color=ink, markersize=3)
    for place, value in enumerate((result.paper_value, result.paper_baseline)):
        if value is not None:
            axis.plot([place - 0.36, place + 0.36], [value, value], color=ink, linewidth=1.2, linestyle="--",
                      label="paper, in its own setting" if place == 0 else None)  # fmt: skip
    if result.threshold.kind == "bound":
        axis.axhline(result.threshold.size, color=_COLOURS[1], linewidth=1.2, linestyle=":", label="declared bound")
    names = (claim.method or "method", claim.baseline or "baseline")
    axis.set_xticks([0, 1], [textwrap.fill(name, 24, break_long_words=False) for name in names])
    axis.set_xlim(-0.6, 1.6)
    axis.set_ylabel(textwrap.fill(metric(result), 36))
    axis.set_title(f"{result.paper}.{result.claim}: {result.verdict}")
    if axis.get_legend_handles_labels()[0]:
        axis.legend()


def _panel(axis: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(textwrap.fill(panel.title, 48))
    axis.set_xlabel(panel.x_label)
    axis.set_ylabel(panel.y_label)
    if panel.kind == "heat":
        axis.imshow(panel.grid, cmap="viridis", aspect="auto")
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(integer=True))
        return
    if panel.kind == "bar":
        width = 0.8 / max(1, len(panel.lines))
        for index, (name, (places, values)) in enumerate(panel.lines.items()):
            axis.bar([x + (index - (len(panel.lines) - 1) / 2) * width for x in places], values, width, label=name)
        if len(panel.lines) > 1:
            axis.margins(y=0.08 + 0.09 * len(panel.lines))  # room for the legend above the bars
        if panel.ticks:
            many = len(panel.ticks) > 10
            longest = max(map(len, panel.ticks))
            crowded = many or longest > 9 or len(panel.ticks) * longest > 50
            slanted = {"rotation": 60 if many else 20, "ha": "right"} if crowded else {}
            axis.set_xticks(range(len(panel.ticks)), panel.ticks, **slanted)  # type: ignore[arg-type]
    else:
        for name, (xs, ys) in panel.lines.items():
            axis.plot(xs, ys, label=name, linewidth=1.6, marker="o" if len(xs) <= 12 else None, markersize=3.5)
    if panel.log_x:
        axis.set_xscale("log", base=2)
    if panel.log_y:
        axis.set_yscale("log")
    axis.grid(True, linewidth=0.6, axis="y" if panel.kind == "bar" else "both")
    axis.set_axisbelow(True)
    if len(panel.lines) > 5:  # more than fit among the lines
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, borderaxespad=1.0)
    elif len(panel.lines) > 1:
        axis.legend()


def save_plots(result: Result, claim: Claim, folder: Path) -> None:
    """Write ``<stem>.png`` and ``<stem>.svg`` beside the result's JSON."""
    plot = figure(result, claim)
    for kind in ("png", "svg"):
        write_atomic(folder / f"{result.stem}.{kind}", _image(plot, kind))


def _image(plot: Figure, kind: str) -> bytes:
    """The figure as a file's content; an SVG keeps its text as text and is the same bytes every time."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "everyformer"}):
        plot.savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    return (
        buffer.getvalue().replace(b"</style>", _dark_rules() + b"</style>", 1) if kind == "svg" else buffer.getvalue()
    )


def _dark_rules() -> bytes:
    """Rules that turn a light SVG dark where the reader's system is; whoever knows no CSS keeps the light one."""
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}: {dark} !important}}'
        for light, dark in zip(_THEMES["light"], _THEMES["dark"], strict=True)
        for what in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme: dark) {{{rules}}}".encode()


_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --card: #f6f8fa }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15181d; --ink: #e6e8eb; --soft: #9aa4af; --line: #363c45; --card: #1c2026 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem } p { max-width: 46rem }
.soft { color: var(--soft); font-size: .9rem } a { color: inherit }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .45rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-size: .85rem; color: var(--soft) } .figure { white-space: nowrap }
.verdict { white-space: nowrap; font-weight: 600 } .verdict::before { margin-right: .4em }
.yes::before { content: "●"; color: #2a8a4a } .partly::before { content: "◐"; color: #c98a00 }
.no::before { content: "○"; color: #cc4b37 }
img { max-width: 100%; height: auto; display: block; margin: .75rem 0; border: 1px solid var(--line);
  border-radius: 6px }
"""


def html_report(runs: Sequence[tuple[Paper, Claim, Result]], title: str, folder: Path) -> str:
    """One self-contained page: the claims table, then each claim with its plot; no script, no outside file.

    Plots are those that :func:`save_plots` wrote to ``folder``.
    """
    rows = "".join(_row(paper, claim, result) for paper, claim, result in runs)
    sections = "".join(_section(paper, claim, result, folder) for paper, claim, result in runs)
    device = runs[0][2].device if runs else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f'<p class="soft">Measured on {html.escape(device)}. Figures are means over seeds with 95% intervals; '
        "a verdict follows from a threshold that the claim declared before it was run. The paper's figures belong to "
        "the paper's own setting, given below each claim.</p>"
        '<div class="scroll"><table><thead><tr><th>Claim</th><th>Verdict</th><th>Effect</th><th>Method</th>'
        "<th>Baseline</th><th>Paper</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{sections}</body></html>\n"
    )


def _row(paper: Paper, claim: Claim, result: Result) -> str:
    def figure(value: str, what: str) -> str:
        value = value.replace(" [", '</span> <span class="figure">[')  # an interval may stand on a line of its own
        return f'<td><span class="figure">{value}</span><br><span class="soft">{html.escape(what)}</span></td>'

    return (
        f'<tr><td><a href="#{result.stem}">{paper.slug}.{claim.name}</a><br>'
        f'<span class="soft">{html.escape(metric(result))}, {result.better} is better</span></td>'
        f'<td><span class="verdict {_VERDICT_CLASS[result.verdict]}">{result.verdict}</span></td>'
        + figure(effect(result), f"declared {wanted(result)}")
        + figure(interval(result.method), claim.method)
        + figure(interval(result.baseline), claim.baseline)
        + f"<td>{reported(result)}</td></tr>"
    )


def _section(paper: Paper, claim: Claim, result: Result, folder: Path) -> str:
    picture = base64.b64encode((folder / f"{result.stem}.svg").read_bytes()).decode("ascii")
    text = (
        f"{claim.method or 'method'}: {interval(result.method)}; {claim.baseline or 'baseline'}: "
        f"{interval(result.baseline)} {result.unit}; verdict: {result.verdict}"
    )
    extras = ""
    if result.extras:
        items = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{interval(spread)}</td></tr>"
            for name, spread in result.extras.items()
        )
        extras = (
            f'<details><summary>Further figures</summary><div class="scroll"><table>{items}</table></div></details>'
        )
    return (
        f'<section id="{result.stem}"><h2>{html.escape(paper.title)}: {html.escape(claim.name)}</h2>'
        f'<p>{html.escape(claim.statement)}</p><p class="soft">Paper: {html.escape(claim.setting)} '
        f'<a href="{paper.url}">arXiv {paper.arxiv}</a></p>'
        f'<img alt="{html.escape(text)}" src="data:image/svg+xml;base64,{picture}">{extras}'
        f'<p class="soft">{len(result.seeds)} seed{"s" if len(result.seeds) > 1 else ""}, {result.scale} scale, '
        f"{result.seconds:.0f} s, peak {result.peak_mb:.0f} MB, commit {result.commit}, {result.created}</p></section>"
    )


def save_report(runs: Sequence[tuple[Paper, Claim, Result]], title: str, folder: Path) -> Path:
    """Write :func:`html_report` beside the plots in ``folder``, as ``report.html``."""
    return write_atomic(folder / "report.html", html_report(runs, title, folder))
