"""``everyformer serve``: the page and its worker, until Ctrl-C.

This process serves pages. Beside it run the worker and, when more are asked for, further processes that serve from the
same socket. Each of them is started again when it ends, and ends by itself when this process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from everyformer.site import people
from everyformer.site.app import create_app
from everyformer.site.catalogue import import_catalogue
from everyformer.site.database import Database
from everyformer.site.settings import Settings
from everyformer.site.web import Site

LOOPBACK = ("127.0.0.1", "::1", "localhost")
LONGEST_PAUSE = 30.0


def serve(*, worker: bool = True, **given: object) -> None:
    """Serve until SIGINT or SIGTERM. ``given`` are settings that go before those of the environment.

    Raises:
        OSError: the port is taken, or nothing can be written in the data folder.
    """
    settings = Settings(**given)  # type: ignore[arg-type]
    listener = listen(settings.host, settings.port)
    settings = Settings(**given | {"port": listener.getsockname()[1]})  # type: ignore[arg-type]
    database = Database(settings.database_url)
    database.migrate()
    site = Site(settings, database)
    import_catalogue(site)
    settings.signing_key()  # made before several processes want it
    is_local = settings.host in LOOPBACK and not settings.smtp_host
    invitation = people.curator_link(site) if is_local else ""
    database.close()

    shared = os.environ | {
        "EVERYFORMER_SITE_DATA": str(settings.data.resolve()),
        "EVERYFORMER_SITE_HOST": settings.host,
        "EVERYFORMER_SITE_PORT": str(settings.port),
        "EVERYFORMER_SITE_PUBLIC_URL": settings.public_url,
    }
    of_us = ["--child-of", str(os.getpid())]
    helpers = [
        Helper(
            "web process", [sys.executable, "-m", __name__, str(listener.fileno()), *of_us], shared, [listener.fileno()]
        )
        for _ in range(settings.processes - 1)
    ]
    if worker:
        helpers.append(Helper("worker", [sys.executable, "-m", "everyformer.site.worker", *of_us], shared))

    def stopped() -> None:
        for helper in helpers:
            helper.stop()

    def started() -> None:
        print(f"everyformer is at {settings.public_url}", flush=True)
        if invitation:
            print(f"Sign in as a curator, once: {invitation}", flush=True)
        for helper in helpers:
            helper.start()

    try:
        answer(settings, listener, started=started, stopped=stopped)
    finally:
        stopped()
        for helper in helpers:
            helper.join()


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections at ``host:port``; raises ``OSError`` that says what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} on {host} is taken; name another with --port, or 0 for a free one") from error
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def answer(
    settings: Settings,
    listener: socket.socket,
    *,
    started: Callable[[], None] = lambda: None,
    stopped: Callable[[], None] = lambda: None,
) -> None:
    """Serve pages from ``listener`` in this process until SIGINT or SIGTERM."""
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=3,
    )

    def stop() -> None:
        app.state.site.closing = True
        stopped()

    # uvicorn raises the signal once more when it has stopped; then there is nothing left to interrupt.
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            Server(config, started, stop).run([listener])
    finally:
        signal.signal(signal.SIGTERM, before)


class Server(uvicorn.Server):
    """uvicorn's server, which tells when it answers and when it was asked to stop."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self.on_start, self.on_stop = on_start, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As the parent's, then ``on_start``."""
        await super().startup(sockets)
        await asyncio.to_thread(self.on_start)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """``on_stop``, then as the parent's."""
        self.on_stop()
        super().handle_exit(sig, frame)


class Helper:
    """A process beside this one, started again when it ends by itself; the pause doubles while it keeps ending."""

    def __init__(
        self, name: str, command: Sequence[str], environment: dict[str, str], keep: Sequence[int] = ()
    ) -> None:
        self.name, self.command, self.environment, self.keep = name, command, environment, keep
        self.stopping = threading.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.RLock()  # a second signal may find the first one's handler inside
        self.thread = threading.Thread(target=self._keep_alive, daemon=True, name=name)

    def start(self) -> None:
        """Start it."""
        self.thread.start()

    def stop(self) -> None:
        """Ask it to end; may be called in a signal handler, and again."""
        self.stopping.set()
        with self.lock:
            if self.process is not None:
                self.process.terminate()

    def join(self) -> None:
        """Wait until it has ended, which the worker takes its time for: its runs may say their last words."""
        if self.thread.ident is not None:
            self.thread.join()

    def _keep_alive(self) -> None:
        pause = 0.5
        while True:
            with self.lock:
                if self.stopping.is_set():
                    return
                self.process = subprocess.Popen(
                    self.command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    pass_fds=self.keep,
                    start_new_session=True,  # Ctrl-C reaches this process only, which tells the others
                )
            began = time.monotonic()
            status = self.process.wait()
            if self.stopping.is_set():
                return
            pause = 0.5 if time.monotonic() - began > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
            print(f"the {self.name} ended with status {status}; it starts again in {pause:.0f} s", file=sys.stderr)
            self.stopping.wait(pause)


def _further_process(listener: int, parent: int) -> None:
    """Another process that serves pages, until its parent is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    answer(Settings(), socket.socket(fileno=listener))


if __name__ == "__main__":
    _further_process(int(sys.argv[1]), int(sys.argv[3]))
