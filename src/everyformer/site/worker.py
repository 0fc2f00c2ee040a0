"""The worker: starts queued runs, looks after them, and sends what is due. ``python -m everyformer.site.worker``.

A run is a process group of its own. It lives on when the worker or the page dies; the next worker finds it by number
and starting time. Whoever looks after a run holds a lease on it and renews it; a lease that ran out may be taken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import datetime
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from everyformer.catalog import Result
from everyformer.site import digests, mail, people, runs, semantic
from everyformer.site.database import Database, changed
from everyformer.site.models import Run
from everyformer.site.settings import Settings
from everyformer.site.web import Site

log = logging.getLogger("everyformer.worker")

EVERY = 0.5
MOST_ATTEMPTS = 3
PATIENCE = 5.0  # seconds from SIGTERM to SIGKILL for a run that was cancelled
LAST_WORDS = 10.0  # seconds a run has to stop by itself when the worker is stopped
# What a run needs to know of the machine; nothing of the page's settings, least of all its secrets.
KEPT = (
    "PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH", "XDG_CACHE_HOME",
    "EVERYFORMER_DATA",
)  # fmt: skip
KEPT_PREFIXES = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "TORCH_", "CUDA_", "NVIDIA_")


def command(run: Run, out: Path) -> list[str]:
    """What checks the claim of ``run``; every word is the catalogue's or a number."""
    return [
        sys.executable, "-m", "everyformer", "run", f"{run.paper.slug}.{run.claim}", "--scale", run.scale,
        "--seeds", str(run.seeds), "--out", str(out), "--resume",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """The environment of a run."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    return kept | {"PYTHONUNBUFFERED": "1", "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "100"}


@dataclasses.dataclass
class Watched:
    """A run that this worker looks after. ``child`` is its process when this worker started it."""

    run: Run
    group: int
    started: float
    lease: datetime.datetime
    child: subprocess.Popen[bytes] | None = None
    cancelled: bool = False
    ended_at: float | None = None

    def alive(self) -> bool:
        """Whether the process that leads the group still runs."""
        if self.child is not None:
            return self.child.poll() is None
        return is_alive(self.group, self.started)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of the run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, number)

    def is_empty(self) -> bool:
        """Whether nothing of the run is left, its children included."""
        if self.alive():  # asked first: a child that ended counts as a member until it is asked for its status
            return False
        try:
            os.killpg(self.group, 0)
        except ProcessLookupError:
            return True
        return False


def is_alive(process: int, started: float) -> bool:
    """Whether ``process`` is the one that began at ``started``; numbers are given out again after a while."""
    try:
        found = psutil.Process(process)
        # The moment is counted from the boot, whose own moment is known to a second.
        return bool(abs(found.create_time() - started) < 2 and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Worker:
    """Looks after the runs of a site, in steps; :meth:`work` takes them until it is stopped."""

    def __init__(self, site: Site, parent: int | None = None) -> None:
        self.site, self.parent = site, parent
        self.host = socket.gethostname()
        self.watched: list[Watched] = []
        self.stopping = threading.Event()

    def work(self) -> None:
        """Until stopped: a step every half second. Runs are left alone when the parent is gone."""
        pause = EVERY
        while not self.stopping.wait(pause):
            if self.parent is not None and os.getppid() != self.parent:
                log.info("the page is gone; runs go on and wait for the next worker")
                return
            try:
                self.step()
                pause = EVERY
            except SQLAlchemyError as error:
                log.error("database: %s", error)
                pause = 10 * EVERY
        self.stop()

    def step(self) -> None:
        """Look after what runs, take over what nobody looks after, and start what waits."""
        for watched in list(self.watched):
            self._look_after(watched)
        self._adopt()
        while len(self.watched) < self.site.settings.runs_at_once and (run := runs.take(self.site, self.host)):
            self._start(run)

    def stop(self) -> None:
        """Interrupt every run, and put it back into the queue to go on from where it was."""
        for watched in list(self.watched):
            self._renew(watched, datetime.timedelta(seconds=LAST_WORDS + 5))
        began, said = time.monotonic(), 0
        while left := [watched for watched in self.watched if not watched.is_empty()]:
            waited = time.monotonic() - began
            if waited > LAST_WORDS:
                break
            if waited >= 2 * said:  # again and again: Python drops an interrupt that comes at a bad moment
                said += 1
                for watched in left:
                    watched.signal(signal.SIGINT)
            time.sleep(0.05)
        for watched in list(self.watched):
            self._close(watched, interrupted=True)

    def _start(self, run: Run) -> None:
        home = runs.folder(self.site, run.id)
        home.mkdir(parents=True, exist_ok=True)
        words = command(run, home)
        with runs.log_file(self.site, run.id).open("ab") as said:
            claim = f"{run.paper.slug}.{run.claim}"
            said.write(f"$ everyformer run {claim} --scale {run.scale} --seeds {run.seeds}\n".encode())
            said.flush()
            # The shell waits for a word before it becomes the run. Should this worker die before the process is on
            # record, the word never comes, and no run goes on that nobody knows of.
            child = subprocess.Popen(
                ["nice", "-n", "10", "sh", "-c", 'read -r go && exec "$@" </dev/null', "run", *words],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                cwd=home,
                env=environment(),
                start_new_session=True,
            )
        started = psutil.Process(child.pid).create_time()
        lease = self.site.now() + runs.LEASE
        values = {"process": child.pid, "process_started": started, "lease_until": lease}
        assert child.stdin is not None and run.lease_until is not None
        if not self._update(run.id, run.lease_until, **values):
            child.stdin.close()
            child.wait()
            return
        child.stdin.write(b"go\n")
        child.stdin.close()
        self.watched.append(Watched(run, child.pid, started, lease, child))
        log.info("run %d: %s.%s, %s scale, started", run.id, run.paper.slug, run.claim, run.scale)

    def _look_after(self, watched: Watched) -> None:
        if not watched.alive() and (not watched.cancelled or watched.is_empty()):
            self._close(watched)
            return
        with self.site.database.read() as session:
            run = session.get(Run, watched.run.id)
        if run is None or run.lease_until != watched.lease:
            self.watched.remove(watched)  # another worker thought us dead
            return
        if run.cancel_asked and not watched.cancelled:
            watched.cancelled, watched.ended_at = True, time.monotonic()
            watched.signal(signal.SIGTERM)
        if watched.ended_at is not None and time.monotonic() - watched.ended_at > PATIENCE:
            watched.signal(signal.SIGKILL)
        if watched.lease - self.site.now() < runs.LEASE / 2:
            self._renew(watched, runs.LEASE)

    def _renew(self, watched: Watched, span: datetime.timedelta) -> bool:
        lease = self.site.now() + span
        if self._update(watched.run.id, watched.lease, lease_until=lease):
            watched.lease = lease
            return True
        self.watched.remove(watched)
        return False

    def _update(self, number: int, lease: datetime.datetime, **values: object) -> bool:
        """Change a run that is still ours: its lease is the one we gave it."""
        ours = sa.update(Run).where(Run.id == number, Run.state == "running", Run.lease_until == lease)
        with self.site.database.write() as session:
            return changed(session, ours.values(**values)) == 1

    def _adopt(self) -> None:
        """Take over runs whose lease ran out. What ran on another machine counts as gone: it cannot be seen from here."""
        now = self.site.now()
        with self.site.database.read() as session:
            orphans = session.scalars(sa.select(Run).where(Run.state == "running", Run.lease_until < now)).all()
        for run in orphans:
            lease = now + runs.LEASE
            assert run.lease_until is not None
            if not self._update(run.id, run.lease_until, lease_until=lease, host=self.host):
                continue
            watched = Watched(run, run.process or 0, run.process_started or 0.0, lease)
            self.watched.append(watched)
            if run.host == self.host and run.process and is_alive(run.process, watched.started):
                log.info("run %d: goes on; this worker looks after it now", run.id)
            else:
                watched.group = 0  # the number may be somebody else's by now
                self._close(watched)

    def _close(self, watched: Watched, *, interrupted: bool = False) -> None:
        """Write down how a run ended; one that was lost or interrupted goes back into the queue."""
        self.watched.remove(watched)
        if watched.group:
            watched.signal(signal.SIGKILL)  # nothing of a run outlives it
        code = watched.child.wait() if watched.child else None
        run, home = watched.run, runs.folder(self.site, watched.run.id)
        result, problem = read_result(home / f"{run.paper.slug}.{run.claim}.{run.scale}.json")
        with self.site.database.read() as session:
            cancelled = session.scalar(sa.select(Run.cancel_asked).where(Run.id == run.id))
        values: dict[str, object] = {"slot": None, "process": None, "process_started": None, "lease_until": None}
        if result:
            values |= {"state": "finished", "verdict": result.verdict, "result": result.to_json(), "error": ""}
        elif cancelled:
            values |= {"state": "cancelled"}
        elif interrupted:
            values |= {"state": "queued", "attempts": run.attempts - 1}
        elif code is not None and code >= 0:
            values |= {
                "state": "failed",
                "error": problem or last_lines(self.site, run.id) or f"It ended with status {code}.",
            }
        elif run.attempts < MOST_ATTEMPTS:
            values |= {"state": "queued"}
        else:
            values |= {"state": "failed", "error": f"It was lost {run.attempts} times."}
        if values["state"] != "queued":
            values["finished_at"] = self.site.now()
            shutil.rmtree(home / ".runs", ignore_errors=True)
        if self._update(run.id, watched.lease, **values):
            log.info("run %d: %s", run.id, values["state"])


def read_result(file: Path) -> tuple[Result | None, str]:
    """The result in ``file``, or why there is none."""
    try:
        return Result.from_json(json.loads(file.read_text(encoding="utf-8"))), ""
    except FileNotFoundError:
        return None, ""
    except (ValueError, TypeError, KeyError) as error:
        return None, f"The result cannot be read: {error}"


def last_lines(site: Site, number: int) -> str:
    """The end of a run's log."""
    text, _ = runs.read_log(site, number, whole=True)
    return "\n".join(text.strip().splitlines()[-20:])[-4000:]


class Chore(threading.Thread):
    """Something that is due every so many seconds, beside the runs; a failure is logged and tried again in a minute.

    Each has its own thread: a mail does not wait until an index of a hundred thousand papers is made.
    """

    AFTER_FAILURE = 60.0

    def __init__(self, site: Site, stopping: threading.Event, do: Callable[[Site], object], seconds: float) -> None:
        super().__init__(daemon=True, name=do.__name__)
        self.site, self.stopping, self.do, self.seconds = site, stopping, do, seconds

    def run(self) -> None:
        """Until stopped."""
        pause = 0.0
        while not self.stopping.wait(pause):
            try:
                self.do(self.site)
                pause = self.seconds
            except Exception:
                log.exception("%s failed", self.name)
                pause = self.AFTER_FAILURE


def send_mail(site: Site) -> None:
    """Send what is in the outbox."""
    asyncio.run(mail.send_due(site))


CHORES: dict[Callable[[Site], object], float] = {
    send_mail: 1.0,
    digests.queue_due: 60.0,
    semantic.refit: 10.0,
    people.tidy: 3600.0,
}


def main() -> None:
    """Work until SIGTERM or Ctrl-C, or until the process given by ``--child-of`` is no longer the parent."""
    arguments = argparse.ArgumentParser(prog="everyformer.site.worker")
    arguments.add_argument("--child-of", type=int, help="End when this process is gone.")
    parent: int | None = arguments.parse_args().child_of
    logging.basicConfig(format="worker: %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)
    settings = Settings()
    site = Site(settings, Database(settings.database_url))
    worker = Worker(site, parent)

    def stop(number: int, frame: FrameType | None) -> None:
        worker.stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for chore, seconds in CHORES.items():
        Chore(site, worker.stopping, chore, seconds).start()
    worker.work()
    site.database.close()


if __name__ == "__main__":
    main()
