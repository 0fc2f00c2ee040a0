"""The worker with real processes: a script stands in for the claim and does what claims do at their worst."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest
import sqlalchemy as sa

from everyformer import catalog
from everyformer.site import people, runs, worker
from everyformer.site.database import Database
from everyformer.site.models import Run
from everyformer.site.web import Site, utc_now
from everyformer.site.worker import Chore, Watched, Worker

# Its first argument is the run's folder; a file "go" there lets it end, a file "seed" stands for work already done.
CLAIM = """
import json, os, pathlib, signal, subprocess, sys, time
out = pathlib.Path(sys.argv[1])
with open(out / "starts", "a") as starts: starts.write(f"{os.getpid()}\\n")
kept = (out / "seed").exists()
print("goes on from its seed" if kept else "begins", flush=True)
(out / "seed").touch()
if (out / "stubborn").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(60)", str(out)])
    (out / "grandchild").write_text(str(child.pid))
while not (out / "go").exists(): time.sleep(0.02)
how = (out / "go").read_text()
if how == "break": sys.exit("ValueError: it broke")
if how == "nothing": sys.exit(0)
(out / "mesa.limit.smoke.json").write_text((out / "result").read_text())
"""


@pytest.fixture(scope="module")
def result():
    """A result as the program writes it."""
    found = catalog.recorded(catalog.shipped_results())
    return next(result for result in found.values() if result.paper == "mesa").to_json()


def queue(page, tmp_path, monkeypatch, result):
    """A site with four claims in its queue, whose time is the real one."""
    site = Site(page.site.settings, page.database)
    (tmp_path / "claim.py").write_text(CLAIM)
    monkeypatch.setattr(worker, "command", lambda run, out: [sys.executable, str(tmp_path / "claim.py"), str(out)])
    paper = page.add_paper("2309.05858", slug="mesa")
    for claim in ("limit", "conservation", "recovery", "limit_gaussian"):
        run, _ = runs.ask(site, paper, claim, "smoke", 1)
        folder = runs.folder(site, run.id)
        folder.mkdir(parents=True)
        (folder / "result").write_text(json.dumps(result))
    yield site
    with site.database.read() as session:
        left = [run.process for run in session.scalars(sa.select(Run).where(Run.state == "running")) if run.process]
    for group in left:
        Watched(None, group, 0, utc_now()).signal(signal.SIGKILL)


@pytest.fixture
def site(site_page, tmp_path, monkeypatch, result):
    yield from queue(site_page, tmp_path, monkeypatch, result)


@pytest.fixture
def any_site(any_page, tmp_path, monkeypatch, result):
    yield from queue(any_page, tmp_path, monkeypatch, result)


def run_of(site, number=1):
    with site.database.read() as session:
        return session.get(Run, number)


def wait_for(condition, seconds=15.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return found


def until(worker, condition):
    """Step by step until it is so."""

    def stepped():
        worker.step()
        return condition()

    return wait_for(stepped)


def begun(site, number=1):
    """A run whose process is known and has said something."""
    run = run_of(site, number)
    text, _ = runs.read_log(site, number)
    return run if run.process and run.state == "running" and "$" not in text.strip().splitlines()[-1] else None


def tell(site, how="", number=1):
    (runs.folder(site, number) / "go").write_text(how)


def forget(site, number=1):
    """Let the lease end now, as if the worker had been dead for a while."""
    with site.database.write() as session:
        session.execute(sa.update(Run).where(Run.id == number).values(lease_until=utc_now() - runs.LEASE))


def test_a_run_is_started_watched_and_its_result_kept(any_site, result):
    mine = Worker(any_site)
    until(mine, lambda: begun(any_site))
    assert run_of(any_site).started_at is not None
    tell(any_site)
    run = until(mine, lambda: run_of(any_site).state != "running" and run_of(any_site))
    assert (run.state, run.verdict, run.slot, run.process) == ("finished", result["verdict"], None, None)
    assert run.result == json.loads(json.dumps(result))
    assert run.finished_at > run.started_at
    assert "$ everyformer run mesa.limit --scale smoke --seeds 1\nbegins\n" in runs.read_log(any_site, 1)[0]
    mine.stop()


def test_two_workers_never_run_more_than_one(any_site):
    workers = [Worker(any_site), Worker(any_site)]
    most = 0
    done = threading.Event()

    def keep_stepping(worker):
        while not done.is_set():
            worker.step()

    threads = [threading.Thread(target=keep_stepping, args=[worker]) for worker in workers]
    for number in (1, 2):
        tell(any_site, number=number)
    for thread in threads:
        thread.start()

    def over():
        nonlocal most
        with any_site.database.read() as session:
            states = [state for (state,) in session.execute(sa.select(Run.state).order_by(Run.id))]
        most = max(most, states.count("running"))
        return states[:2] == ["finished", "failed"] or None

    try:
        wait_for(over)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.stop()
    assert most == 1
    assert all((runs.folder(any_site, number) / "starts").read_text().count("\n") == 1 for number in (1, 2))


@pytest.mark.parametrize(("how", "said"), [("break", "ValueError: it broke"), ("nothing", "begins")])
def test_a_run_without_a_result_failed_and_says_why(site, how, said):
    mine = Worker(site)
    tell(site, how)
    run = until(mine, lambda: run_of(site).state == "failed" and run_of(site))
    assert said in run.error
    mine.stop()


def test_a_result_that_cannot_be_read_is_a_failure(site):
    mine = Worker(site)
    (runs.folder(site, 1) / "result").write_text('{"paper": "mesa"}')
    tell(site)
    run = until(mine, lambda: run_of(site).state == "failed" and run_of(site))
    assert "The result cannot be read" in run.error
    mine.stop()


def test_cancelling_ends_the_whole_group(site, monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", 0.3)
    (runs.folder(site, 1) / "stubborn").touch()
    mine = Worker(site)
    grandchild = runs.folder(site, 1) / "grandchild"
    until(mine, lambda: begun(site) and grandchild.exists() and grandchild.read_text())
    leader, child = run_of(site).process, int(grandchild.read_text())
    runs.cancel(site, 1)
    assert run_of(site).state == "running"
    until(mine, lambda: run_of(site).state == "cancelled")
    for process in (leader, child):
        assert not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    assert run_of(site).finished_at is not None
    mine.stop()


def test_a_run_whose_worker_died_is_watched_to_its_end_by_the_next(site, tmp_path):
    alone = f"""
        import sys
        from everyformer.site import worker
        worker.command = lambda run, out: [sys.executable, {str(tmp_path / "claim.py")!r}, str(out)]
        worker.main()
    """
    settings = {"DATA": str(site.settings.data), "DATABASE": site.settings.database_url}
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(alone)],
        env=os.environ | {f"EVERYFORMER_SITE_{name}": value for name, value in settings.items()},
    )
    try:
        run = wait_for(lambda: begun(site))
    finally:
        first.kill()
        first.wait()
    next_one = Worker(site)
    next_one.step()
    assert next_one.watched == []  # the lease still holds
    forget(site)
    next_one.step()
    assert [watched.group for watched in next_one.watched] == [run.process]
    assert run_of(site).attempts == 1
    tell(site)
    until(next_one, lambda: run_of(site).state == "finished")
    assert (runs.folder(site, 1) / "starts").read_text() == f"{run.process}\n"
    next_one.stop()


def test_a_run_that_ended_while_nobody_watched_is_finished(site):
    dead = Worker(site)
    until(dead, lambda: begun(site))
    tell(site)
    dead.watched[0].child.wait()
    forget(site)
    next_one = Worker(site)
    next_one._adopt()
    assert run_of(site).state == "finished"


def test_a_lost_run_is_tried_again_and_given_up_after_three(any_site):
    for attempt in (1, 2, 3):
        dead = Worker(any_site)
        until(dead, lambda: begun(any_site))
        assert run_of(any_site).attempts == attempt
        dead.watched[0].signal(signal.SIGKILL)
        dead.watched[0].child.wait()
        forget(any_site)
        Worker(any_site)._adopt()
        assert run_of(any_site).state == ("queued" if attempt < 3 else "failed")
    assert run_of(any_site).error == "It was lost 3 times."
    assert "goes on from its seed" in runs.read_log(any_site, 1)[0]


def test_somebody_elses_process_of_the_same_number_is_left_alone(site):
    mine = Worker(site)
    run = runs.take(site, mine.host)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        with site.database.write() as session:
            values = {"process": other.pid, "process_started": time.time() - 1000}
            session.execute(sa.update(Run).where(Run.id == run.id).values(**values))
        forget(site)
        mine._adopt()
        assert run_of(site).state == "queued"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_worker_that_lost_its_lease_leaves_the_run_to_the_other(any_site):
    slow, quick = Worker(any_site), Worker(any_site)
    until(slow, lambda: begun(any_site))
    forget(any_site)
    quick._adopt()
    slow.step()
    assert slow.watched == []
    tell(any_site)
    until(quick, lambda: run_of(any_site).state == "finished")


def test_a_stopped_worker_puts_its_run_back_and_the_next_goes_on(site):
    mine = Worker(site)
    run = until(mine, lambda: begun(site))
    mine.stop()
    assert not psutil.pid_exists(run.process)
    back = run_of(site)
    assert (back.state, back.attempts, back.slot) == ("queued", 0, None)
    tell(site)
    next_one = Worker(site)
    until(next_one, lambda: run_of(site).state == "finished")
    assert "goes on from its seed" in runs.read_log(site, 1)[0]
    next_one.stop()


def test_no_run_starts_when_its_process_cannot_be_put_on_record(site, monkeypatch):
    mine = Worker(site)
    monkeypatch.setattr(mine, "_update", lambda *arguments, **values: False)
    mine._start(runs.take(site, mine.host))
    assert mine.watched == []
    assert not (runs.folder(site, 1) / "starts").exists()


def test_runs_know_nothing_of_the_pages_secrets(monkeypatch):
    monkeypatch.setenv("EVERYFORMER_SITE_SMTP_PASSWORD", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = worker.environment()
    assert not any(name.startswith("EVERYFORMER_SITE_") for name in given)
    assert given["OMP_NUM_THREADS"] == "1"


def test_a_command_names_the_claim_the_scale_and_the_folder(site_page, tmp_path):
    run = Run(paper=site_page.add_paper("2309.05858", slug="mesa"), claim="limit", scale="cpu", seeds=3)
    assert worker.command(run, tmp_path)[1:] == [
        "-m", "everyformer", "run", "mesa.limit", "--scale", "cpu", "--seeds", "3", "--out", str(tmp_path), "--resume",
    ]  # fmt: skip


def test_a_chore_that_fails_is_tried_again(site_page, monkeypatch, caplog):
    tried = []

    def fetch_water(site):
        tried.append(site)
        if len(tried) == 1:
            raise RuntimeError("the well is dry")

    monkeypatch.setattr(Chore, "AFTER_FAILURE", 0.0)
    stopping = threading.Event()
    chore = Chore(site_page.site, stopping, fetch_water, 0.0)
    chore.start()
    wait_for(lambda: len(tried) > 2)
    stopping.set()
    chore.join(5)
    assert not chore.is_alive()
    assert [record.getMessage() for record in caplog.records] == ["fetch_water failed"]


def test_the_worker_sends_mail_and_makes_the_index(site_page):
    site = Site(site_page.site.settings, site_page.database)
    for number, text in enumerate(("attention for graphs", "video diffusion", "attention for video")):
        site_page.add_paper(f"2401.0000{number}", title=text)
    people.send_link(site, "ada@example.org", "/")
    for chore in worker.CHORES:
        chore(site)
    assert len(list((site.settings.data / "mail").iterdir())) == 1
    with site.database.read() as session:
        assert site.semantic.answers(session, "graph attention", 1) == [1]


def test_a_worker_started_by_hand_on_an_empty_queue_ends_at_sigterm(tmp_path):
    Database(f"sqlite:///{tmp_path / 'site.db'}").migrate()
    alone = subprocess.Popen(
        [sys.executable, "-m", "everyformer.site.worker"], env=os.environ | {"EVERYFORMER_SITE_DATA": str(tmp_path)}
    )
    wait_for(lambda: len(psutil.Process(alone.pid).open_files()) > 0)
    alone.send_signal(signal.SIGTERM)
    assert alone.wait(10) in (0, -signal.SIGTERM)
