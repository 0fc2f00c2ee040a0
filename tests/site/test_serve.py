"""``everyformer serve`` as people start it: where it is, a claim run from the page, and what outlives what."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
import sqlalchemy as sa

from everyformer.site import runs
from everyformer.site.models import Paper, Run

# The quickest of the claims: half a second of measuring.
CLAIM = {"claim": "limit", "scale": "smoke", "seeds": "1"}


def wait_for(condition, seconds=25.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return found


def run_of(server, number=1):
    with server.database.read() as session:
        return session.get(Run, number)


def running(server):
    run = run_of(server)
    return run if run.state == "running" and run.process else None


def listen(client, address, **options):
    """The events of a run, as (id, name, data)."""
    found = {}
    with client.stream("GET", address, timeout=30, **options) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                found[name] = f"{found[name]}\n{value}" if name in found else value
            elif "event" in found:
                yield found["id"], found["event"], found["data"]
                found = {}
            else:
                found = {}


def test_the_first_page_comes_and_control_c_ends_everything(serve):
    server = serve()
    answer = server.visitor().get("/runs")
    assert answer.status_code == 200
    assert "server" not in answer.headers
    with server.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).where(Paper.slug.is_not(None))) == 34
    said = server.process.stdout.readline()
    assert said.startswith(f"Sign in as a curator, once: {server.url}/sign-in/")
    me = server.visitor()
    link = said.split()[-1]
    assert me.get(link).status_code == 200
    assert me.post(link, data=server.form(me)).status_code == 303
    assert me.post("/papers/mesa/runs", data=server.form(me, **CLAIM | {"scale": "paper"})).status_code == 422
    other = server.visitor()
    assert other.post(link, data=server.form(other)).status_code == 410  # it was good once
    worker = wait_for(lambda: server.helpers("everyformer.site.worker"))[0]
    assert server.end() == 0
    assert not psutil.pid_exists(worker)


def test_a_taken_port_is_an_error_of_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = subprocess.run(
            [sys.executable, "-m", "everyformer", "serve", "--port", str(port), "--data", str(tmp_path)],
            capture_output=True,
            text=True,
        )
    assert told.returncode == 2
    assert told.stdout == ""
    assert told.stderr == f"error: port {port} on 127.0.0.1 is taken; name another with --port, or 0 for a free one\n"


def test_a_curator_runs_a_claim_from_the_page_and_watches_it_to_its_end(serve):
    server = serve()
    curator = server.visitor("ada@example.org", "curator")
    answer = curator.post("/papers/mesa/runs", data=server.form(curator, **CLAIM))
    assert answer.headers["location"] == "/runs/1?said=run-queued"
    heard = list(listen(server.visitor(), "/runs/1/events"))
    run = run_of(server)
    assert run.state == "finished", run.error
    assert run.result["paper"] == "mesa"
    assert heard[-1][1:] == ("done", "finished")
    assert [name for _, name, _ in heard].count("done") == 1
    said = "\n".join(text for _, name, text in heard if name == "log")
    assert said + "\n" == server.visitor().get("/runs/1/log.txt").text
    assert "mesa.limit (smoke, seed 0)" in said
    assert str(server.data) not in said
    # Who lost the connection goes on from the byte he had.
    first = next(number for number, name, _ in heard if name == "log")
    rest = list(listen(server.visitor(), "/runs/1/events", headers={"Last-Event-ID": first}))
    assert "\n".join(text for _, name, text in rest if name == "log") == said.partition("\n")[2]
    assert run.verdict in server.visitor().get("/runs/1").text


def test_a_run_survives_a_stop_and_a_kill(serve):
    server = serve()
    curator = server.visitor("ada@example.org", "curator")
    curator.post("/papers/mesa/runs", data=server.form(curator, **CLAIM))
    process = wait_for(lambda: running(server)).process
    heard = []
    listener = threading.Thread(target=lambda: heard.extend(listen(server.visitor(), "/runs/1/events")))
    listener.start()
    wait_for(lambda: heard)
    # Asked to stop, the server puts the run back into the queue; who listens is no reason to wait.
    assert server.end(signal.SIGTERM) == 0
    listener.join(5)
    assert not listener.is_alive()
    assert not psutil.pid_exists(process)
    assert (run_of(server).state, run_of(server).attempts) == ("queued", 0)

    server = serve()
    process = wait_for(lambda: running(server)).process
    worker = server.helpers("everyformer.site.worker")[0]
    # Killed, it leaves the run alone; the worker goes too, and the next one takes the run over.
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)
    assert run_of(server).process == process

    server = serve()
    run = wait_for(lambda: run_of(server).state != "running" and run_of(server))
    assert (run.state, run.attempts) == ("finished", 1)
    assert server.visitor().get("/runs/1/log.txt").text.count("$ everyformer run") == 2


def test_a_worker_that_dies_is_started_again(serve):
    server = serve()
    first = wait_for(lambda: server.helpers("everyformer.site.worker"))[0]
    os.kill(first, signal.SIGKILL)
    second = wait_for(lambda: [pid for pid in server.helpers("everyformer.site.worker") if pid != first])[0]
    assert second != first


def test_without_a_worker_nothing_runs(serve):
    server = serve("--no-worker")
    assert server.helpers("everyformer.site.worker") == []


def test_several_processes_serve_from_one_socket_and_end_with_the_first(serve):
    server = serve("--processes", "2", "--no-worker")
    other = wait_for(lambda: server.helpers("everyformer.site.serve"))[0]

    def both_read():
        with server.visitor() as client:
            client.get("/runs")
        opened = [{file.path for file in psutil.Process(pid).open_files()} for pid in (server.process.pid, other)]
        return all(str(server.data / "site.db") in files for files in opened)

    # Stopped, the first process answers nothing; the other one does. Not before both have the database open: whoever
    # is stopped while opening it holds the lock that the other waits for.
    wait_for(both_read)
    server.process.send_signal(signal.SIGSTOP)
    try:
        answered = 0
        for _ in range(20):
            with contextlib.suppress(Exception), server.visitor() as client:
                answered += client.get("/runs", timeout=0.5).status_code == 200
        assert answered > 0
    finally:
        server.process.send_signal(signal.SIGCONT)
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not psutil.pid_exists(other) or psutil.Process(other).status() == psutil.STATUS_ZOMBIE)


def test_listeners_are_counted_and_leave_their_place(serve):
    server = serve("--no-worker")
    with server.database.write() as session:
        paper = session.scalar(sa.select(Paper).where(Paper.slug == "mesa"))
    runs.ask(server.site, paper, **(CLAIM | {"seeds": 1}))

    with contextlib.ExitStack() as open_streams:
        visitors = [open_streams.enter_context(server.visitor()) for _ in range(6)]
        for visitor in visitors:
            answer = open_streams.enter_context(visitor.stream("GET", "/runs/1/events"))
            assert answer.status_code == 200
        late = open_streams.enter_context(server.visitor())

        def is_let_in():
            with late.stream("GET", "/runs/1/events") as answer:
                return answer.status_code == 200

        assert not is_let_in()
        visitors[0].close()
        wait_for(is_let_in)
    assert server.end() == 0


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_page_starts_without_what_only_runs_need():
    heavy = "import sys, everyformer.site.serve; print({'torch', 'sklearn', 'matplotlib', 'pandas'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"
