"""The queue of runs: what may be asked for, who takes it, and what it wrote."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from everyformer import catalog
from everyformer.site.models import Paper, Person, Run
from everyformer.site.web import Site

SCALES = ("smoke", "cpu")
SEEDS = (1, 2, 3)
LONGEST_QUEUE = 20
UNDER_WAY = ("queued", "running")
LEASE = datetime.timedelta(seconds=5)
TAIL = 64 * 2**10

# Colours and cursor movements of a terminal, and other characters that are not text.
_CONTROL = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class Refused(ValueError):
    """A run that cannot be asked for; the message says why."""


class QueueFull(Refused):
    """As many runs wait as may."""


def check(slug: str | None, claim: str, scale: str, seeds: int) -> None:
    """Raise :class:`Refused` unless the catalogue has such a claim and this page runs it at that scale."""
    cards = {paper.slug: paper for paper in catalog.papers()}
    claims = {card.name: card for card in cards[slug].claims} if slug in cards else {}
    if claim not in claims:
        raise Refused("There is no such claim to run.")
    if not claims[claim].run:
        raise Refused(f"The claim {claim} is not built yet.")
    if scale == "paper":
        raise Refused("The paper's own size needs the paper's machines. Run it on yours, by the command line.")
    if scale not in SCALES:
        raise Refused(f"The scale is {' or '.join(SCALES)}.")
    if seeds not in SEEDS:
        raise Refused(f"The number of seeds is {SEEDS[0]} to {SEEDS[-1]}.")


def same(session: Session, paper: Paper, claim: str, scale: str, seeds: int) -> Run | None:
    """The run under way that was asked for in the same words."""
    return session.scalar(
        sa.select(Run)
        .where(Run.paper_id == paper.id, Run.claim == claim, Run.scale == scale, Run.seeds == seeds)
        .where(Run.state.in_(UNDER_WAY), Run.cancel_asked.is_(False))
        .limit(1)
    )


def ask(site: Site, paper: Paper, claim: str, scale: str, seeds: int, person: Person | None = None) -> tuple[Run, bool]:
    """Queue a run, or find the same one under way; the run, and whether it is new.

    Raises:
        Refused: nothing that this page runs, or (:class:`QueueFull`) too many wait.
    """
    check(paper.slug, claim, scale, seeds)
    with site.database.write() as session:
        session.get(Paper, paper.id, with_for_update=True)  # two askers at once get the same run
        if found := same(session, paper, claim, scale, seeds):
            return found, False
        if session.scalar(sa.select(sa.func.count()).where(Run.state == "queued")) >= LONGEST_QUEUE:  # type: ignore[operator]
            raise QueueFull(f"{LONGEST_QUEUE} runs are waiting. Try again when some have ended.")
        run = Run(
            paper_id=paper.id, claim=claim, scale=scale, seeds=seeds, created_at=site.now(),
            person_id=person.id if person else None,
        )  # fmt: skip
        session.add(run)
    return run, True


def cancel(site: Site, number: int) -> Run | None:
    """Take a queued run back, or ask the worker to end a running one; None when there is no such run."""
    with site.database.write() as session:
        run = session.get(Run, number, with_for_update={"of": Run})
        if run and run.state == "queued":
            run.state, run.cancel_asked, run.finished_at = "cancelled", True, site.now()
        elif run and run.state == "running":
            run.cancel_asked = True
    return run


def take(site: Site, host: str) -> Run | None:
    """The next run, now ours to start until its lease ends; None when none waits, every slot is busy or others take it.

    State and slot change in one transaction. Where two workers choose the same slot, the database refuses the second.
    Who finds the first run locked leaves it and does not take the second, which would go before it.
    """
    with site.database.read() as session:
        if session.scalar(sa.select(Run.id).where(Run.state == "queued").limit(1)) is None:
            return None
    try:
        with site.database.write() as session:
            busy = set(session.scalars(sa.select(Run.slot).where(Run.state == "running")))
            free = next((slot for slot in range(site.settings.runs_at_once) if slot not in busy), None)
            first = sa.select(sa.func.min(Run.id)).where(Run.state == "queued").scalar_subquery()
            run = session.scalar(
                sa.select(Run).where(Run.id == first, Run.state == "queued").with_for_update(of=Run, skip_locked=True)
            )
            if run is None or free is None:
                return None
            run.state, run.slot, run.host = "running", free, host
            run.process = run.process_started = None
            run.started_at, run.attempts = site.now(), run.attempts + 1
            run.lease_until = site.now() + LEASE
            return run
    except IntegrityError:
        return None


def place(session: Session, run: Run) -> int:
    """How many runs go before a queued one."""
    before = sa.or_(Run.state == "running", sa.and_(Run.state == "queued", Run.id < run.id))
    return session.scalar(sa.select(sa.func.count()).where(before)) or 0


def folder(site: Site, number: int) -> Path:
    """Where a run writes its log and its results."""
    return site.settings.data.resolve() / "runs" / str(number)


def log_file(site: Site, number: int) -> Path:
    """What a run said."""
    return folder(site, number) / "log.txt"


def clean(site: Site, raw: bytes) -> str:
    """A log as text for anybody: no control characters, and not where on the disk the page keeps its files."""
    # A progress bar writes over its own line; what it wrote last is the line.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in raw.decode("utf-8", "replace").split("\n")]
    return _CONTROL.sub("", "\n".join(lines)).replace(f"{site.settings.data.resolve()}/", "")


def read_log(site: Site, number: int, after: int | None = None, *, whole: bool = False) -> tuple[str, int]:
    """Whole lines of a log from byte ``after`` (the last 64 KiB for None), and the byte to go on from.

    At most 64 KiB come at once. A line without an end waits for it, unless the run is over (``whole``) or it alone
    fills all that.
    """
    try:
        with log_file(site, number).open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - TAIL) if after is None else min(after, size)
            file.seek(start)
            raw = file.read(TAIL)
    except FileNotFoundError:
        return "", 0
    if after is None and start:  # begin with a whole line
        cut = raw.find(b"\n") + 1
        raw, start = raw[cut:], start + cut
    is_last = whole and len(raw) < TAIL
    if not is_last and (b"\n" in raw or len(raw) < TAIL):
        raw = raw[: raw.rfind(b"\n") + 1]
    return clean(site, raw), start + len(raw)
