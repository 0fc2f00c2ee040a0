"""The command line: everyformer list | show | run | verify | bench | advise | new | table | serve | import."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from everyformer import catalog

if TYPE_CHECKING:
    from everyformer.catalog import Claim, Paper, Result

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Transformer papers that work: list them, run their claims here, time them beside their peers.",
)
console = Console()
errors = Console(stderr=True)

# Which extra brings a module that a paper's room may need.
EXTRAS = {
    "transformers": "language", "tokenizers": "language", "peft": "language", "diffusers": "diffusion",
    "timm": "vision", "torchvision": "vision", "pandas": "series", "torch_geometric": "graph",
    "maze_dataset": "maze", "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx", "ray": "ray",
    "torchao": "quant", "optuna": "quant", "cmaes": "quant",
    "gymnasium": "control", "mujoco": "control", "stable_baselines3": "control", "minari": "control",
    "neuralop": "flow", "cv2": "scenes",
    "aiosmtplib": "site", "alembic": "site", "fastapi": "site", "feedgen": "site", "itsdangerous": "site",
    "jinja2": "site", "markdown_it": "site", "multipart": "site", "nh3": "site", "psutil": "site", "psycopg": "site",
    "pydantic_settings": "site", "sklearn": "site", "sqlalchemy": "site", "starlette": "site", "uvicorn": "site",
}  # fmt: skip

Out = Annotated[Path, typer.Option(help="Folder for results.", file_okay=False)]
Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1, 2, ...")]
ScaleName = Annotated[str, typer.Option(help="smoke: seconds; cpu: minutes, real data; paper: the paper's own size.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:0, mps ...")]
Resume = Annotated[bool, typer.Option("--resume", help="Keep what an interrupted run finished, and go on from there.")]
Tag = Annotated[str, typer.Option(help="Only papers with one of these tags, separated by commas.")]


def main() -> None:
    """Entry point: expected errors become one line and an exit status, Ctrl-C becomes 130."""
    # Notices of torch to the libraries that call it; the person at the terminal can do nothing about them.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except typer.Abort:
        fail("interrupted", 130)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        fail(f'{error.name} is not installed; install it with: pip install "everyformer[{extra}]"', 2)
    except (ValueError, ImportError, OSError) as error:
        fail(str(error), 2)
    except Exception as error:
        # Click's usage errors know how to show themselves; anything else is a bug and keeps its traceback.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 1))
    sys.exit(code or 0)


def fail(message: str, code: int) -> NoReturn:
    """Print an error to stderr and exit."""
    # Not as markup: install lines have brackets.
    errors.print(message if code == 130 else f"error: {message}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def results_here(out: Path = Path("results")) -> dict[str, Result]:
    """Recorded results: those in ``out`` first, then those that come with the library."""
    return catalog.recorded(out, catalog.shipped_results())


def papers_with(tags: str) -> list[Paper]:
    """Papers that carry one of ``tags`` (comma-separated; empty for all)."""
    wanted = {tag.strip() for tag in tags.split(",") if tag.strip()}
    for tag in sorted(wanted):
        catalog.lookup(tag, dict.fromkeys(catalog.TAGS), "tag")
    return [paper for paper in catalog.papers() if not wanted or wanted & set(paper.tags)]


@app.command("list")
def list_papers(
    tag: Tag = "",
    built: Annotated[bool | None, typer.Option("--built/--not-built", help="Only papers (not) built.")] = None,
    verdict: Annotated[str, typer.Option(help="Only papers with a claim of this verdict.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="An array of objects instead of a table.")] = False,
) -> None:
    """List the papers: what is built and which claims hold."""
    from everyformer.lab import tables

    if verdict:
        catalog.lookup(verdict, dict.fromkeys(catalog.VERDICTS), "verdict")
    results = results_here()
    chosen = [
        paper
        for paper in papers_with(tag)
        if (built is None or paper.built == built)
        and (not verdict or verdict in tables.best_verdict(paper, results).values())
    ]
    if as_json:
        print(json.dumps([_summary(paper, tables.best_verdict(paper, results)) for paper in chosen], indent=1))
    else:
        console.print(tables.papers_table(chosen, results))


def _summary(paper: Paper, verdicts: dict[str, str]) -> dict[str, Any]:
    return {
        "slug": paper.slug,
        "title": paper.title,
        "arxiv": paper.arxiv,
        "tags": list(paper.tags),
        "built": paper.built,
        "claims": [
            {"name": claim.name, "statement": claim.statement, "verdict": verdicts.get(claim.name)}
            for claim in paper.claims
        ],
    }


@app.command()
def show(paper: str) -> None:
    """Show a paper's card: what it is, its claims, and what was measured."""
    from everyformer.lab import tables

    card = catalog.paper(paper)
    facts = [f"arXiv {card.arxiv}"]
    if card.published:
        facts.append(card.published)
    if card.authors:
        facts.append(f"{card.authors} author{'s' if card.authors > 1 else ''}")
    if card.organisation:
        facts.append(card.organisation)
    console.print(f"[bold]{card.title}[/]\n[dim]{', '.join(facts)}[/]\n\n{card.summary}\n", highlight=False)
    console.print(f"Authors' code: {card.code or 'none known'}\nLicence: {card.licence}", highlight=False)
    state = (
        f"built; `everyformer run {card.slug}`, or `import everyformer.papers.{card.slug}`"
        if card.built
        else "not built yet"
    )
    console.print(f"Here: {state}\n", highlight=False)
    console.print(tables.claims_table(card, results_here()))


@app.command()
def run(
    targets: Annotated[list[str], typer.Argument(metavar="PAPER[.CLAIM]...", help="sla, or sla.speed")],
    scale: ScaleName = "cpu",
    seeds: Seeds = 3,
    device: Device = "cpu",
    out: Out = Path("results"),
    resume: Resume = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost, and run nothing.")] = False,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or bf16-true.")] = "32-true",
    strategy: Annotated[str, typer.Option(help="auto, ddp or fsdp.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Processes to start, one per GPU; torchrun does the same.")] = 1,
) -> None:
    """Check papers' claims on this machine; writes results, plots and a report."""
    from everyformer.lab import runner

    pairs = runner.select(targets, catalog.paper)
    if dry_run:
        _print_plans(pairs)
        return
    if devices > 1 and "RANK" not in os.environ:
        raise typer.Exit(_torchrun(devices))
    options = {"resume": resume, "precision": precision, "strategy": strategy}
    runs, failures = _measure(pairs, scale, seeds, device, out, stop_at_failure=True, **options)
    _finish(runs, failures, out, f"everyformer run {' '.join(targets)}")


@app.command()
def verify(
    scale: ScaleName = "smoke",
    seeds: Seeds = 1,
    device: Device = "cpu",
    out: Out = Path("results"),
    resume: Resume = False,
    tags: Tag = "",
) -> None:
    """Check every claim of every paper that is built.

    Exit status 1 when a claim cannot be measured, or its verdict is worse than the one recorded at this scale.
    """
    from everyformer.lab import runner

    pairs = runner.select([paper.slug for paper in papers_with(tags) if paper.built], catalog.paper)
    before = catalog.recorded(catalog.shipped_results())
    runs, failures = _measure(pairs, scale, seeds, device, out, stop_at_failure=False, resume=resume)
    for paper, claim, result in runs:
        known = before.get(result.stem)
        if known and catalog.VERDICTS.index(result.verdict) > catalog.VERDICTS.index(known.verdict):
            failures[f"{paper.slug}.{claim.name}"] = f"{result.verdict}, recorded before as {known.verdict}"
    _finish(runs, failures, out, f"everyformer verify, {scale} scale")
    if failures:
        raise typer.Exit(1)


def _measure(
    pairs: list[tuple[Paper, Claim]],
    scale: str,
    seeds: int,
    device: str,
    out: Path,
    *,
    stop_at_failure: bool,
    **options: Any,
) -> tuple[list[tuple[Paper, Claim, Result]], dict[str, str]]:
    from everyformer.lab import report, runner

    runner.check_scale(scale)
    runs: list[tuple[Paper, Claim, Result]] = []
    failures: dict[str, str] = {}
    say = (
        (lambda line: console.print(f"[dim]·[/] {line}", highlight=False))
        if runner.is_main_process()
        else (lambda line: None)
    )
    try:
        for paper, claim in pairs:
            try:
                result = runner.run_claim(
                    paper, claim, scale=scale, seeds=range(seeds), device=device, out=out, progress=say, **options
                )
            except Exception as error:
                if stop_at_failure:
                    raise
                failures[f"{paper.slug}.{claim.name}"] = f"{type(error).__name__}: {error}"
                continue
            if runner.is_main_process():
                report.save_plots(result, claim, out)
            runs.append((paper, claim, result))
    except KeyboardInterrupt:
        again = [argument for argument in sys.argv[1:] if argument != "--resume"]
        fail(f"interrupted; go on with: everyformer {shlex.join(again)} --resume", 130)
    return runs, failures


def _finish(runs: list[tuple[Paper, Claim, Result]], failures: dict[str, str], out: Path, title: str) -> None:
    from everyformer.lab import report, runner, tables

    if not runner.is_main_process():
        return
    console.print(tables.results_table(runs, failures))
    if runs:
        page = report.save_report(runs, title, out)
        console.print(f"Report: {page.resolve().as_uri()}", highlight=False, soft_wrap=True)


def _torchrun(processes: int) -> int:
    """This same command on several processes of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run([*launcher, "-m", "everyformer", *sys.argv[1:]]).returncode


def _print_plans(pairs: list[tuple[Paper, Claim]]) -> None:
    from everyformer.lab.report import number

    for paper, claim in pairs:
        console.print(f"[bold]{paper.slug}.{claim.name}[/] at the paper's size: {claim.setting}", highlight=False)
        if not claim.plan:
            console.print("  not planned for this claim\n")
            continue
        plan = getattr(paper.room("claim"), claim.plan)()
        # Claims that share a plan share its launch too, which names one of them or the whole paper.
        launch = re.sub(rf"run {paper.slug}(\.\w+)?", f"run {paper.slug}.{claim.name}", plan.launch)
        console.print(
            f"  parameters  {plan.parameters:,}\n  FLOPs       {number(plan.flops)}\n"
            f"  memory      {plan.memory_bytes / 2**30:.3g} GiB\n  launch      {launch}",
            highlight=False,
            soft_wrap=True,
        )
        console.print(f"  {plan.notes}\n" if plan.notes else "", highlight=False)


@app.command()
def bench(
    paper: Annotated[
        str, typer.Argument(help="A paper, or `mixers` for all token mixers, or `compress` for all compressors.")
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few rounds.")] = False,
    device: Device = "cpu",
    peer: Annotated[Path | None, typer.Option(help="A Python file with peers(case_name) -> {name: callable}.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results: ./benchmarks; for mixers the checkout's, or the cache.", file_okay=False
        ),
    ] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="mixers: width of a token, 128 unless told.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="mixers: heads, 4 unless told.")] = None,
    only: Annotated[str, typer.Option(help="mixers: these alone, separated by commas.")] = "",
    speed: Annotated[
        bool, typer.Option(" /--no-speed", help="mixers: without time and memory.", show_default=False)
    ] = True,
    tasks: Annotated[
        bool, typer.Option(" /--no-tasks", help="mixers: without the accuracy on tasks.", show_default=False)
    ] = True,
    again: Annotated[
        bool, typer.Option("--again", help="mixers, compress: measure what is known too, and replace it.")
    ] = False,
) -> None:
    """Time a paper's parts side by side with its peers, in one run; ratios are recorded in OUT.

    `everyformer bench mixers` measures what `everyformer advise` goes by: time, memory and accuracy of token mixers.

    `everyformer bench compress` measures every compressor: size, memory, latency and quality before and after.

    What these two have measured is kept, so that they can be interrupted and gone on with.
    """
    if paper in ("mixers", "compress") and peer is not None:
        raise ValueError(f"peer must not be given for {paper}: they are one another's peers")
    if paper == "mixers":
        told = {"dim": dim, "heads": heads}
        return _bench_mixers(quick, device, out, told, only, speed=speed, tasks=tasks, again=again)
    if dim is not None or heads is not None or only or not speed or not tasks:
        raise ValueError(
            f"dim, heads, only, no-speed and no-tasks are for `everyformer bench mixers`, got paper {paper!r}"
        )
    if paper == "compress":
        return _bench_compress(quick, device, out or Path("benchmarks"), again=again)
    if again:
        raise ValueError(
            f"again is for `everyformer bench mixers` and `compress`, which keep what is known, got paper {paper!r}"
        )
    _bench_paper(paper, quick, device, peer, out or Path("benchmarks"))


def _bench_compress(quick: bool, device: str, out: Path, *, again: bool) -> None:
    from everyformer.lab import compress_bench, environment, runner

    environment.check_device(device)
    runner.check_writable(out)
    rows: list[dict[str, Any]] = []

    def note(row: dict[str, Any]) -> None:
        rows.append(row)
        console.print(f"[dim]·[/] {row['model']}, {row['method']}", highlight=False)

    file = compress_bench.run(quick=quick, device=device, out=out, again=again, report=note)
    console.print(compress_bench.rich_table(rows))
    console.print(f"Recorded: {file}", highlight=False, soft_wrap=True)


def _bench_mixers(
    quick: bool,
    device: str,
    out: Path | None,
    width: dict[str, int | None],
    only: str,
    *,
    speed: bool,
    tasks: bool,
    again: bool,
) -> None:
    import dataclasses

    from everyformer.lab import adviser_display, environment, mixer_bench, mixer_table, runner

    if not speed and not tasks:
        raise ValueError("no-speed and no-tasks must not both be given: nothing is left to measure")
    environment.check_device(device)
    file = out / "mixers.json" if out else mixer_table.file_to_fill()
    runner.check_writable(file.parent)
    told: dict[str, Any] = {name: value for name, value in width.items() if value is not None}
    if not speed:
        told["lengths"] = ()
    settings = dataclasses.replace(mixer_bench.QUICK if quick else mixer_bench.Settings(), tasks=tasks, **told)
    names = tuple(part.strip() for part in only.split(",") if part.strip())
    found = mixer_bench.measure(
        file,
        settings=settings,
        names=names,
        device=device,
        again=again,
        progress=lambda line: console.print(f"[dim]·[/] {line}", highlight=False),
    )
    for line in adviser_display.exponents_in_words(found):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"{len(found.speed)} timings and {len(found.accuracy)} accuracies of {found.device}", highlight=False)
    console.print(f"Recorded: {file}", highlight=False, soft_wrap=True)


def _bench_paper(paper: str, quick: bool, device: str, peer: Path | None, out: Path) -> None:
    from rich.table import Table

    from everyformer.lab import bench as benching
    from everyformer.lab import environment, runner

    card = catalog.paper(paper)
    if not (card.folder / "bench.py").is_file():
        raise ValueError(f"{paper} has no benchmark: papers/{paper}/bench.py is not there")
    environment.check_device(device)
    runner.check_writable(out)
    extra = benching.load_peers(peer) if peer else None
    cases = card.room("bench").cases(quick=quick, device=device)
    rows = benching.run_cases(
        cases,
        rounds=3 if quick else 9,
        device=device,
        extra=extra,
        report=lambda row: console.print(f"[dim]·[/] {row.name}", highlight=False),
    )
    table = Table(
        title=f"{paper}: time of a peer as a multiple of ours (median of alternating rounds)", title_justify="left"
    )
    for name in ("Case", "Ours (s)", "Peer", "Peer (s)", "Ratio", "Aim"):
        table.add_column(name)
    for row in rows:
        for index, (name, ratio) in enumerate(row.ratios.items()):
            first = index == 0
            table.add_row(
                row.name if first else "",
                f"{row.seconds['everyformer']:.4g}" if first else "",
                name,
                f"{row.seconds[name]:.4g}",
                f"{ratio:.2f}×",
                f"≥ {row.target:g}×" if first and row.target else "",
            )
    console.print(table)
    console.print(f"Recorded: {benching.record(paper, rows, device, out)}", highlight=False)


@app.command()
def advise(
    tokens: Annotated[int, typer.Option(help="Tokens in a sequence.")],
    memory: Annotated[str, typer.Option(help="Most that a mixer may take, such as 4GB or 512MiB.")] = "",
    latency: Annotated[str, typer.Option(help="Most time of one step of a mixer, such as 50ms.")] = "",
    causal: Annotated[bool, typer.Option("--causal", help="No token may see later ones.")] = False,
    step: Annotated[
        str, typer.Option(help="forward, training (with the backward pass) or token (with a cache).")
    ] = "forward",
    by: Annotated[str, typer.Option(help="Order of those that fit: accuracy, latency or memory.")] = "accuracy",
    device: Device = "cpu",
    dim: Annotated[int | None, typer.Option(min=1, help="Width of a token: one that was measured.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Heads: a number that was measured.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the Pareto plot to this .png, .svg or .pdf.")] = None,
) -> None:
    """Which token mixer fits: ranked by what `everyformer bench mixers` measured, one mixer and one sequence at a time."""
    from everyformer.lab import adviser, adviser_display, environment, mixer_table

    environment.check_device(device)
    wish = adviser.Wish(
        tokens,
        adviser.parse_bytes(memory) if memory else None,
        adviser.parse_seconds(latency) if latency else None,
        causal,
        step,  # type: ignore[arg-type]
        by,  # type: ignore[arg-type]
    )
    name = environment.device_name(device)
    table, here = adviser.choose(mixer_table.load(), device=name, kind=device.partition(":")[0], dim=dim, heads=heads)
    advice = adviser.advise(table, wish)
    console.print(adviser_display.rich_table(advice, wish, table))
    said = adviser_display.notes(advice, wish, table, name if not here else "")
    chosen = filter(None, adviser_display.choice(advice, wish, table))
    for line in [*adviser_display.against_in_words(advice), *said, *chosen]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if plot is not None:
        console.print(f"Plot: {adviser_display.save_plot(advice, wish, table, plot)}", highlight=False, soft_wrap=True)


@app.command()
def new(
    slug: Annotated[str, typer.Argument(help="Folder name: lower case, digits and underscores.")],
    arxiv: Annotated[str, typer.Option(help="arXiv id, e.g. 2310.06625.")],
    title: Annotated[str, typer.Option(help="The paper's title.")],
    tag: Annotated[str, typer.Option(help="One to four tags, separated by commas.")],
) -> None:
    """Lay out the rooms of a new paper in a checkout: card, model, claim, README and tests."""
    from everyformer.scaffold import lay_out

    for file in lay_out(slug, arxiv=arxiv, title=title, tags=tuple(part.strip() for part in tag.split(","))):
        console.print(f"wrote {file}", highlight=False, soft_wrap=True)


@app.command()
def table(
    write: Annotated[
        Path | None, typer.Option(help="A Markdown file whose tables (between their marks) are renewed.")
    ] = None,
) -> None:
    """Print the table of papers and results in Markdown, or renew it in a file."""
    from everyformer.files import write_atomic
    from everyformer.lab import tables

    papers, results = catalog.papers(), catalog.recorded(catalog.shipped_results())
    if write is None:
        print(tables.markdown_table(papers, results), end="")
        return
    try:
        write_atomic(write, tables.renewed(write.read_text(encoding="utf-8"), papers, results))
    except ValueError as error:
        raise ValueError(f"{write}: {error}") from error


@app.command()
def serve(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="8000 unless told; 0 takes a free one.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; 127.0.0.1 unless told.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of everything that is kept; ./everyformer-site unless told.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, max=64, help="Processes that serve pages.")] = None,
    worker: Annotated[bool, typer.Option(" /--no-worker", help="Without the worker: no runs, no mail.")] = True,
) -> None:
    """Serve the page of the papers and their measured claims; runs are started from it.

    What is not told here comes from the environment: EVERYFORMER_SITE_PORT and so on, or a .env file.
    """
    from everyformer.site import serve as serving

    told = {"port": port, "host": host, "data": data, "processes": processes}
    serving.serve(worker=worker, **{name: value for name, value in told.items() if value is not None})


@app.command("import")
def import_papers(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False)],
    data: Annotated[Path | None, typer.Option(help="The folder of the page, as for serve.")] = None,
) -> None:
    """Put papers on the page: arXiv's Atom, the JSON of /api/daily_papers or /api/papers, or identifiers, a line each.

    All of the files or, when one cannot be read, none.
    """
    from everyformer.site import importers
    from everyformer.site.database import Database
    from everyformer.site.settings import Settings
    from everyformer.site.web import Site

    settings = Settings(data=data) if data else Settings()
    database = Database(settings.database_url)
    database.migrate()
    done = importers.import_files(Site(settings, database), files)
    console.print(f"{done.added} new, {done.updated} told something new, {done.unchanged} known", highlight=False)


if __name__ == "__main__":
    main()
