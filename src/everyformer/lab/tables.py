"""Tables of papers and results, for the terminal and for Markdown. Imports neither torch nor matplotlib."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from everyformer.catalog import VERDICTS, Claim, Paper, Result
from everyformer.lab import report

# What stands between such marks in a Markdown file is written by the program.
_PAPERS = re.compile(r"(<!-- papers -->\n).*?(<!-- /papers -->)", re.DOTALL)
_FIGURES = re.compile(r"(<!-- figures ([\w.]+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
_SPEED = re.compile(r"(<!-- speed ([\w ]+) -->\n).*?(<!-- /speed -->)", re.DOTALL)
_MARKS = {"reproduced": ("●", "green"), "direction only": ("◐", "yellow"), "not reproduced": ("○", "red")}


def verdict_text(verdict: str) -> Text:
    """A verdict with its mark, coloured."""
    mark, colour = _MARKS[verdict]
    return Text(f"{mark} {verdict}", style=colour)


def results_table(runs: Sequence[tuple[Paper, Claim, Result]], failures: Mapping[str, str]) -> Table:
    """The claims of a run with their verdicts; ``failures`` are claims that could not be measured, with the reason."""
    table = Table(title="Claims", title_justify="left", show_lines=True)
    table.add_column("Claim", overflow="fold")
    table.add_column("Verdict", no_wrap=True)
    for name in ("Effect", "Method", "Baseline"):
        table.add_column(name, overflow="fold")
    for paper, claim, result in runs:
        unit = "" if result.unit in ("", "x") else f" ({result.unit})"
        table.add_row(
            Text.assemble(
                (f"{paper.slug}.{claim.name}", "bold"), f"\n{result.metric}{unit}, {result.better} is better"
            ),
            verdict_text(result.verdict),
            f"{report.effect(result)}\ndeclared {report.wanted(result)}",
            f"{report.interval(result.method)}\n{claim.method}",
            f"{report.interval(result.baseline)}\n{claim.baseline}",
        )
    for name, reason in failures.items():
        table.add_row(Text.assemble((name, "bold"), f"\n{reason}"), Text("✗ failed", style="bold red"), "", "", "")
    return table


def best_verdict(paper: Paper, results: Mapping[str, Result]) -> dict[str, str]:
    """Claim name to the verdict of its largest recorded scale."""
    found = {}
    for claim in paper.claims:
        for scale in ("paper", "cpu", "smoke"):
            result = results.get(f"{paper.slug}.{claim.name}.{scale}")
            if result is not None:
                found[claim.name] = result.verdict
                break
    return found


def papers_table(papers: Sequence[Paper], results: Mapping[str, Result]) -> Table:
    """Papers with what is built and which claims hold here."""
    built = sum(paper.built for paper in papers)
    table = Table(title=f"{len(papers)} papers, {built} built", title_justify="left")
    for name, options in (("Paper", {"no_wrap": True}), ("Title", {}), ("Tags", {}), ("Built", {}), ("Claims", {})):
        table.add_column(name, **options)  # type: ignore[arg-type]
    for paper in papers:
        table.add_row(
            Text(paper.slug, style="bold" if paper.built else "dim"),
            paper.title,
            ", ".join(paper.tags),
            Text("yes", style="green") if paper.built else Text("not yet", style="dim"),
            _verdict_counts(paper, results),
        )
    return table


def _verdict_counts(paper: Paper, results: Mapping[str, Result]) -> Text:
    verdicts = best_verdict(paper, results)
    if not verdicts:
        return Text(f"{len(paper.claims)} stated", style="dim")
    parts: list[Text] = []
    for verdict in VERDICTS:
        count = list(verdicts.values()).count(verdict)
        if count:
            mark, colour = _MARKS[verdict]
            parts.append(Text(f"{mark} {count} {verdict}", style=colour))
    return Text("\n").join(parts)


def claims_table(paper: Paper, results: Mapping[str, Result]) -> Table:
    """A paper's claims: what the paper reports, and what was measured."""
    table = Table(title="Claims", title_justify="left")
    for name in ("Claim", "Statement", "Metric", "Paper", "Measured", "Verdict"):
        table.add_column(name, overflow="fold")
    for claim in paper.claims:
        known = [results[stem] for scale in ("paper", "cpu", "smoke")
                 if (stem := f"{paper.slug}.{claim.name}.{scale}") in results]  # fmt: skip
        table.add_row(
            claim.name,
            claim.statement,
            report.metric(claim),
            report.reported(claim),
            "\n".join(f"{r.scale}: {report.interval(r.method)} vs {report.interval(r.baseline)}" for r in known) or "–",
            Text("\n").join(verdict_text(r.verdict) for r in known) if known else Text("not run", style="dim"),
        )
    return table


def markdown_table(papers: Iterable[Paper], results: Mapping[str, Result]) -> str:
    """The README's table: every paper, and for those built each claim's figures and verdict."""
    lines = [
        "| Paper | Tags | Claim | Paper reports | Measured here | Verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for paper in sorted(papers, key=lambda paper: (not paper.built, paper.slug)):
        title = f"[{paper.title}]({paper.url}) `{paper.slug}`"
        tags = ", ".join(paper.tags)
        if not paper.built:
            lines.append(f"| {title} | {tags} | | | | not built yet |")
            continue
        for claim in paper.claims:
            result = next(
                (
                    results[stem]
                    for scale in ("paper", "cpu")
                    if (stem := f"{paper.slug}.{claim.name}.{scale}") in results
                ),
                None,
            )
            unit = f" {claim.unit}" if claim.unit else ""
            figures, verdict = "", "not run"
            if result is not None:
                figures = f"{report.interval(result.method)}{unit} vs {report.number(result.baseline.mean)}{unit}"
                verdict = f"{_MARKS[result.verdict][0]} {result.verdict}"
            reported = report.reported(claim) + (unit if claim.paper_value is not None else "")
            lines.append(f"| {title} | {tags} | {claim.name}: {claim.metric} | {reported} | {figures} | {verdict} |")
            title = tags = ""
    return "\n".join(lines) + "\n"


def figures_table(result: Result) -> str:
    """All further figures of a result, with their intervals, in Markdown."""
    seeds = len(result.seeds)
    lines = [f"| `{result.paper}.{result.claim}`, {result.scale} scale, {seeds} seeds | mean | 95% interval |",
             "| --- | --- | --- |"]  # fmt: skip
    for name, spread in result.extras.items():
        numbers = (report.number(value) for value in (spread.mean, spread.low, spread.high))
        lines.append("| {} | {} | {} to {} |".format(name, *numbers))
    return "\n".join(lines) + "\n"


def speed_table(benchmarks: Iterable[Path]) -> str:
    """Every timed case of some files that ``everyformer bench`` wrote, a peer's time over ours, in Markdown."""
    lines = ["| Timed | everyformer | Beside | Its time over ours |", "| --- | --- | --- | --- |"]
    for path in benchmarks:
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            name, ours = f"`{path.stem}`: {case['name']}", f"{report.number(1000 * case['seconds']['everyformer'])} ms"
            for peer, ratio in case["ratios"].items():
                lines.append(f"| {name} | {ours} | {peer} | {report.number(ratio)} |")
                name = ours = ""
    return "\n".join(lines) + "\n"


def renewed(
    content: str, papers: Sequence[Paper], results: Mapping[str, Result], benchmarks: Path = Path("benchmarks")
) -> str:
    """Markdown with its tables as they are today.

    The table of papers stands between ``<!-- papers -->`` and ``<!-- /papers -->``, the figures of a result between
    ``<!-- figures paper.claim.scale -->`` and ``<!-- /figures -->``, the timings of papers from the folder
    ``benchmarks`` between ``<!-- speed paper paper -->`` and ``<!-- /speed -->``.

    Raises:
        ValueError: there are no such marks, or what they name is not recorded.
    """
    if not any(mark.search(content) for mark in (_PAPERS, _FIGURES, _SPEED)):
        raise ValueError("the marks <!-- papers --> and <!-- /papers -->, or those of figures or speed, are not there")

    def figures(match: re.Match[str]) -> str:
        if match[2] not in results:
            raise ValueError(f"figures of {match[2]} are wanted, but it is not recorded")
        return f"{match[1]}\n{figures_table(results[match[2]])}\n{match[3]}"

    def speed(match: re.Match[str]) -> str:
        files = [benchmarks / f"{slug}.json" for slug in match[2].split()]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise ValueError(f"timings in {', '.join(missing)} are wanted, but not there")
        return f"{match[1]}\n{speed_table(files)}\n{match[3]}"

    content = _SPEED.sub(speed, content)
    content = _PAPERS.sub(lambda match: f"{match[1]}\n{markdown_table(papers, results)}\n{match[2]}", content)
    return _FIGURES.sub(figures, content)
