"""A page of its own for each test: a fresh database, a clock that stands still until it is moved, mail into a folder."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import email
import email.policy
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient

from everyformer.site import mail, models
from everyformer.site.app import create_app
from everyformer.site.database import Database
from everyformer.site.settings import Settings
from everyformer.site.web import FORM_COOKIE, SESSION_COOKIE, Site, hash_of, utc_now

TODAY = datetime.datetime(2026, 11, 25, 12, 0, tzinfo=datetime.timezone.utc)


@dataclasses.dataclass
class Clock:
    """A clock that tests move."""

    at: datetime.datetime = TODAY

    def __call__(self) -> datetime.datetime:
        return self.at

    def forward(self, **time: float) -> None:
        self.at += datetime.timedelta(**time)


@dataclasses.dataclass
class Page:
    """The page under test: ``client`` is a visitor without JavaScript who follows no redirect by himself."""

    site: Site
    client: TestClient
    clock: Clock

    @property
    def database(self) -> Database:
        return self.site.database

    def visitor(self) -> TestClient:
        """Somebody else, with cookies of their own."""
        return TestClient(self.client.app, base_url="http://127.0.0.1:8000", follow_redirects=False)

    def add_paper(self, arxiv: str = "2502.10389", **facts: object) -> models.Paper:
        day = self.clock().date()
        known = {
            "title": f"Paper {arxiv}", "summary": "", "ordered_on": day, "submitted_on": day, "submitted_at": self.clock(),
        } | facts  # fmt: skip
        with self.database.write() as session:
            paper = models.Paper(arxiv=arxiv, **known)
            session.add(paper)
            session.flush()
            session.add_all(models.PaperTag(tag=tag, paper_id=paper.id) for tag in paper.tags)
        return paper

    def sign_in(self, email: str = "ada@example.org", role: str = "reader", client: TestClient | None = None) -> int:
        """Sign ``client`` in without the way through the mail; the account's number."""
        with self.database.write() as session:
            person = session.query(models.Person).filter_by(email=email).one_or_none()
            if person is None:
                person = models.Person(email=email, name=email.split("@")[0], role=role, created_at=self.clock())
                session.add(person)
                session.flush()
            cookie = f"cookie-of-{email}"
            if session.get(models.SignedIn, hash_of(cookie)) is None:
                until = self.clock() + datetime.timedelta(days=30)
                session.add(
                    models.SignedIn(
                        hash=hash_of(cookie), person_id=person.id, created_at=self.clock(), expires_at=until
                    )
                )
        (client or self.client).cookies.set(SESSION_COOKIE, cookie)
        return person.id

    def letters(self) -> list[EmailMessage]:
        """Send what is due; every message so far, the oldest first."""
        asyncio.run(mail.send_due(self.site))
        files = sorted((self.site.settings.data / "mail").glob("*.eml"), key=lambda file: int(file.name.split(".")[0]))
        return [email.message_from_bytes(file.read_bytes(), policy=email.policy.default) for file in files]

    def form(self, client: TestClient | None = None, **fields: str) -> dict[str, str]:
        """``fields`` with what a form of ours carries."""
        client = client or self.client
        cookie = next((one.value for one in client.cookies.jar if one.name == FORM_COOKIE), None)
        if cookie is None:
            cookie = "form-cookie"
            client.cookies.set(FORM_COOKIE, cookie)
        return {"form": self.site.signer("form").dumps(cookie), **fields}


def _postgresql_tools() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server started for these tests; skips where Debian's package is not installed."""
    tools = _postgresql_tools()
    if tools is None:
        pytest.skip("PostgreSQL is not installed")
    # Not below pytest's own folder, which another session closes to all users but its own while this one runs.
    home = Path(tempfile.mkdtemp(prefix="everyformer-postgresql-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The server refuses to run as root, as tests do in a container.
    as_user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(home, "postgres", "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    data = home / "data"
    run = lambda *words: subprocess.run([*as_user, *map(str, words)], check=True, capture_output=True, cwd=home)  # noqa: E731
    run(tools / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home} -c fsync=off"
    run(tools / "pg_ctl", "-D", data, "-o", options, "-l", home / "log", "-w", "start")
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}"
    finally:
        run(tools / "pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(home)


@pytest.fixture
def empty_postgresql(postgresql: str) -> str:
    """The URL of an empty PostgreSQL database."""
    server = Database(f"{postgresql}/postgres")
    with server.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("DROP DATABASE IF EXISTS page WITH (FORCE)")
        connection.exec_driver_sql("CREATE DATABASE page")
    server.close()
    return f"{postgresql}/page"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each database in turn, empty."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'site.db'}"
    url: str = request.getfixturevalue("empty_postgresql")
    return url


@pytest.fixture
def clock() -> Clock:
    return Clock()


def open_page(settings: Settings, clock: Clock) -> Iterator[Page]:
    app = create_app(settings, now=clock)
    app.state.site.database.migrate()
    with TestClient(app, base_url="http://127.0.0.1:8000", follow_redirects=False) as client:
        yield Page(app.state.site, client, clock)


def plain_settings(data: Path, **more: object) -> Settings:
    return Settings(_env_file=None, data=data, cache_seconds=0, requests_per_minute=0, **more)  # type: ignore[call-arg, arg-type]


@pytest.fixture
def site_page(tmp_path: Path, clock: Clock) -> Iterator[Page]:
    """The page on SQLite."""
    yield from open_page(plain_settings(tmp_path / "data"), clock)


@pytest.fixture
def any_page(tmp_path: Path, clock: Clock, database_url: str) -> Iterator[Page]:
    """The page on SQLite, then on PostgreSQL."""
    yield from open_page(plain_settings(tmp_path / "data", database=database_url), clock)


@dataclasses.dataclass
class Server:
    """``everyformer serve`` as people start it: ``url`` is where it said it is."""

    data: Path
    process: subprocess.Popen[str]
    url: str
    site: Site

    @property
    def database(self) -> Database:
        return self.site.database

    def visitor(self, email: str = "", role: str = "reader") -> httpx.Client:
        """Somebody with a browser, signed in when there is an ``email``."""
        client = httpx.Client(base_url=self.url, timeout=20)
        if email:
            Page(self.site, client, Clock(utc_now())).sign_in(email, role)  # type: ignore[arg-type]
        return client

    def form(self, client: httpx.Client, **fields: str) -> dict[str, str]:
        return Page(self.site, client, Clock()).form(**fields)  # type: ignore[arg-type]

    def helpers(self, module: str) -> list[int]:
        """The processes beside it that run ``module``."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [child.pid] if module in child.cmdline() else []
        return found

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers on one folder; what is left of them, runs included, is killed at the end."""
    started: list[Server] = []

    def start(*words: str, data: Path = folder / "data", **settings: str) -> Server:
        given = {"PROCESSES": "1", "REQUESTS_PER_MINUTE": "0", "SECRET": "of the tests"} | settings
        process = subprocess.Popen(
            [sys.executable, "-m", "everyformer", "serve", "--port", "0", "--data", str(data), *words],
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {f"EVERYFORMER_SITE_{name}": value for name, value in given.items()},
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("everyformer is at http://127.0.0.1:"), line
        kept = plain_settings(data, secret=given["SECRET"], database=given.get("DATABASE", ""))
        server = Server(data, process, line.split()[-1], Site(kept, Database(kept.database_url)))
        started.append(server)
        return server

    try:
        yield start
    finally:
        for server in started:
            server.database.close()
            if server.process.poll() is None:
                server.end()
        for process in psutil.process_iter(["cmdline"]):
            if str(folder) in " ".join(process.info["cmdline"] or ()):
                process.kill()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers on the test's own folder."""
    with serving(tmp_path) as start:
        yield start
