"""How fast the page is with 100,000 papers: `python benchmarks/site.py`, figures in benchmarks/site.json.

It makes the papers from a seeded grammar over the catalogue's own words, starts the real server on the loopback
interface, and asks from a process of its own, on the same two cores:

- feed: 500 requests a second, sent when they are due whether or not earlier ones were answered; a request's time counts
  from when it was due;
- search: 50 clients, no question twice, in two ways: each asks its next question a second after the last one was
  answered, as people do at their quickest; and each asks at once, which is as much as two cores can do;
- one search beside a peer's, in this process (`--peer`);
- first byte: from the start of `everyformer serve` on an empty folder to the first answer;
- weight: what a browser loads for the front page and for the heaviest paper, compressed as it comes.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import gzip
import itertools
import json
import os
import random
import re
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import sqlalchemy as sa

from everyformer import catalog
from everyformer.files import write_atomic
from everyformer.lab import environment
from everyformer.site import query, search, semantic
from everyformer.site.catalogue import import_catalogue
from everyformer.site.database import Database
from everyformer.site.models import Paper, PaperTag
from everyformer.site.settings import Settings
from everyformer.site.web import Site

AIMS = {"feed p50": 10.0, "feed p99": 50.0, "search p99": 150.0, "first byte": 3000.0, "page weight": 150.0}
FEED_RATE, FEED_SECONDS = 500, 20
SEARCH_CLIENTS, SEARCHES = 50, 2000


class Grammar:
    """Titles and abstracts in the catalogue's words: frequent ones stay frequent, neighbours stay neighbours."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        texts = [
            f"{paper.title}. {paper.summary} " + " ".join(c.statement for c in paper.claims)
            for paper in catalog.papers()
        ]
        self.follow: dict[str, list[str]] = {}
        self.words: list[str] = []
        for text in texts:
            words = re.findall(r"[A-Za-z][A-Za-z-]+", text)
            self.words += words
            for first, second in itertools.pairwise(words):
                self.follow.setdefault(first, []).append(second)
        # Words that hardly any paper has, as real corpora are full of: names of methods, data sets, people.
        syllables = [
            "ka",
            "lo",
            "mi",
            "ra",
            "ten",
            "vor",
            "sil",
            "qua",
            "net",
            "for",
            "mer",
            "dio",
            "lan",
            "pix",
            "gra",
        ]
        self.rare = ["".join(self.random.choices(syllables, k=self.random.randint(2, 4))) for _ in range(30_000)]

    def sentence(self, length: int) -> str:
        word = self.random.choice(self.words)
        said = [word]
        for _ in range(length - 1):
            if self.random.random() < 0.06:
                said.append(self.random.choice(self.rare))
            elif self.random.random() < 0.15:
                word = self.random.choice(self.words)
                said.append(word)
            else:
                word = self.random.choice(self.follow.get(word) or self.words)
                said.append(word)
        return " ".join(said)


def fill(database: Database, papers: int, seed: int = 0) -> None:
    """``papers`` made-up papers over the last ten years, a tenth of them with votes."""
    grammar = Grammar(seed)
    rng = grammar.random
    now = datetime.datetime.now(datetime.timezone.utc)
    rows, tags = [], []
    with database.write() as session:
        first = (session.scalar(sa.select(sa.func.max(Paper.id))) or 0) + 1
    for index in range(papers):
        at = now - datetime.timedelta(days=rng.random() * 3650)
        chosen = rng.sample(catalog.TAGS, rng.randint(1, 3))
        votes = int(rng.paretovariate(1.2)) - 1 if rng.random() < 0.1 else 0
        comments = votes // 3
        rows.append(
            {
                "id": first + index, "arxiv": f"{at:%y%m}.{index:05}", "title": grammar.sentence(9).capitalize(),
                "summary": "", "abstract": ". ".join(grammar.sentence(16).capitalize() for _ in range(8)) + ".",
"authors": "\n".join(" ".join(rng.sample(grammar.rare, 2)).title() for _ in range(4)),
                "author_count": 4, "published_on": at.date(), "ordered_on": at.date(), "submitted_at": at,
                "submitted_on": at.date(), "tags": chosen, "runs_here": False, "verdicts": {}, "votes": votes,
                "comments": comments, "comments_elsewhere": 0, "points": votes + comments / 2,
            }
        )  # fmt: skip
        tags += [{"tag": tag, "paper_id": first + index} for tag in chosen]
    with database.write() as session:
        for start in range(0, len(rows), 5000):
            session.execute(sa.insert(Paper), rows[start : start + 5000])
        for start in range(0, len(tags), 20000):
            session.execute(sa.insert(PaperTag), tags[start : start + 20000])


class Server:
    """`everyformer serve` in a process of its own."""

    def __init__(self, data: Path, *more: str) -> None:
        environment_ = os.environ | {
            "EVERYFORMER_SITE_REQUESTS_PER_MINUTE": "0", "PYTHONUNBUFFERED": "1", "EVERYFORMER_SITE_DATA": str(data),
        }  # fmt: skip
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "everyformer", "serve", "--port", "0", *more],
            env=environment_, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout
        for line in self.process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise RuntimeError("the server did not start")
        self.get("/")
        self.first_byte = time.perf_counter() - began

    def get(self, path: str) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


class Client:
    """One kept-alive connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None

    async def get(self, path: str) -> None:
        if self.reader is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAccept-Encoding: gzip\r\n\r\n".encode()
        )
        head = await self.reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{path}: {head[:100]!r}")
        length = re.search(rb"content-length: (\d+)", head)
        if length is None:
            raise RuntimeError(f"{path}: no content-length")
        await self.reader.readexactly(int(length[1]))


async def open_loop(port: int, paths: list[str], rate: int) -> list[float]:
    """Milliseconds of each request, from when it was due."""
    free: asyncio.Queue[Client] = asyncio.Queue()
    for _ in range(64):
        free.put_nowait(Client(port))
    times: list[float] = []
    began = time.perf_counter() + 0.1

    async def one(index: int, path: str) -> None:
        client = await free.get()
        await client.get(path)
        times.append(1000 * (time.perf_counter() - began - index / rate))
        free.put_nowait(client)

    tasks = []
    for index, path in enumerate(paths):
        wait = began + index / rate - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(index, path)))
    await asyncio.gather(*tasks)
    return times


async def closed_loop(port: int, paths: list[str], clients: int, pause: float = 0.0) -> list[float]:
    """Milliseconds of each request by ``clients`` that wait for an answer, and then ``pause`` seconds, before the next."""
    times: list[float] = []
    left = iter(paths)

    async def one(wait: float) -> None:
        client = Client(port)
        await asyncio.sleep(wait)
        for path in left:
            began = time.perf_counter()
            await client.get(path)
            times.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(pause)

    began = time.perf_counter()
    await asyncio.gather(*(one(pause * number / clients) for number in range(clients)))
    print(f"  {len(times) / (time.perf_counter() - began):.0f} requests/s", file=sys.stderr)
    return times


def feed_paths(count: int) -> list[str]:
    """Half of the readers on the front page, the others anywhere in the feed's views, tags and first ten pages."""
    rng = random.Random(1)
    views = ["day", "week", "month", "newest", "trending"]
    paths = []
    for _ in range(count):
        if rng.random() < 0.5:
            paths.append("/")
            continue
        query = f"view={rng.choice(views)}"
        if rng.random() < 0.3:
            query += f"&tag={rng.choice(catalog.TAGS)}"
        if (page := min(9, int(rng.expovariate(0.6)))) > 0:
            query += f"&p={page}"
        paths.append(f"/?{query}")
    return paths


def search_paths(count: int) -> list[str]:
    """Questions of one to five words, all different."""
    grammar = Grammar(2)
    asked: set[str] = set()
    while len(asked) < count:
        asked.add(grammar.sentence(grammar.random.randint(1, 5)))
    return [f"/search?q={words.replace(' ', '+')}" for words in sorted(asked, key=lambda _: grammar.random.random())]


def weight(server: Server, path: str) -> float:
    """Kilobytes of a page with its style, scripts and pictures, as they are sent."""
    page = server.get(path)
    text = gzip.decompress(page).decode() if page[:2] == b"\x1f\x8b" else page.decode()
    parts = set(re.findall(r'(?:src|href)="(/static/[^"]+|/papers/[^"]+\.svg)"', text))
    return (len(page) + sum(len(server.get(part)) for part in parts)) / 1000


def spread(times: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    ordered = sorted(times)
    at = lambda share: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)  # noqa: E731
    return {
        "requests": len(times),
        "p50 ms": at(0.5),
        "p90 ms": at(0.9),
        "p99 ms": at(0.99),
        "max ms": round(ordered[-1], 2),
    }


def beside_peer(site: Site, file: Path) -> dict[str, object]:
    """Milliseconds of a search, ours and a peer's in turn, in this process, over the same papers."""
    peer = runpy.run_path(str(file))
    with site.database.read() as session:
        papers = [
            {
                "arxiv": paper.arxiv,
                "title": paper.title,
                "summary": paper.abstract or paper.summary,
                "authors": paper.names,
            }
            for paper in session.scalars(sa.select(Paper))
        ]
    theirs = peer["prepare"](papers)
    times: dict[str, list[float]] = {"everyformer": [], peer["NAME"]: []}
    for path in search_paths(60):
        words = urllib.parse.unquote_plus(path.partition("q=")[2])
        for name, ask in (("everyformer", lambda words: _ask(site, words)), (peer["NAME"], theirs)):
            began = time.perf_counter()
            ask(words)
            times[name].append(1000 * (time.perf_counter() - began))
    median = {name: statistics.median(values[10:]) for name, values in times.items()}
    return {"median ms": median, "ratio": median[peer["NAME"]] / median["everyformer"], "peer's commit": peer["COMMIT"]}


def _ask(site: Site, words: str) -> list[Paper]:
    with site.database.read() as session:
        return search.search(site, session, query.parse(words)).papers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--papers", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--data", type=Path, help="keep the papers here, and use those that are here")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--seconds", type=int, default=FEED_SECONDS)
    parser.add_argument("--searches", type=int, default=SEARCHES)
    parser.add_argument("--peer", type=Path, help="a file with NAME, COMMIT and prepare(papers) -> search(words)")
    arguments = parser.parse_args()
    data = arguments.data or Path(tempfile.mkdtemp(prefix="everyformer-site-"))
    empty = Path(tempfile.mkdtemp(prefix="everyformer-site-"))

    server = Server(empty, "--no-worker")
    first_byte = server.first_byte
    weights = {path: round(weight(server, path), 1) for path in ("/", "/papers/icl_gd", "/papers/sla")}
    server.stop()
    shutil.rmtree(empty)

    settings = Settings(_env_file=None, data=data)
    database = Database(settings.database_url)
    database.migrate()
    site = Site(settings, database)
    import_catalogue(site)
    with database.read() as session:
        papers = session.scalar(sa.select(sa.func.count()).select_from(Paper)) or 0
    began = time.perf_counter()
    if papers < arguments.papers:
        print(f"making {arguments.papers - papers:,} papers", file=sys.stderr)
        fill(database, arguments.papers - papers)
        print(f"  {time.perf_counter() - began:.0f} s", file=sys.stderr)
    began = time.perf_counter()
    semantic.refit(site)
    fit = time.perf_counter() - began
    print(f"semantic index: {fit:.0f} s", file=sys.stderr)
    with database.read() as session:
        papers = session.scalar(sa.select(sa.func.count()).select_from(Paper)) or 0
    peer = beside_peer(site, arguments.peer) if arguments.peer else None
    database.close()

    server = Server(data, "--no-worker", "--processes", str(arguments.processes))
    try:
        questions = search_paths(2 * arguments.searches + 100)
        asyncio.run(closed_loop(server.port, questions[:100], 4))  # warm
        asyncio.run(open_loop(server.port, feed_paths(500), 100))
        feed_times = asyncio.run(open_loop(server.port, feed_paths(FEED_RATE * arguments.seconds), FEED_RATE))
        print("feed", spread(feed_times), file=sys.stderr)
        half = 100 + arguments.searches
        paced = asyncio.run(closed_loop(server.port, questions[100:half], SEARCH_CLIENTS, pause=1.0))
        print("search, a second between", spread(paced), file=sys.stderr)
        search_times = asyncio.run(closed_loop(server.port, questions[half:], SEARCH_CLIENTS))
        print("search, at once", spread(search_times), file=sys.stderr)
    finally:
        server.stop()
    if arguments.data is None:
        shutil.rmtree(data)
    record = {
        "device": environment.describe("cpu")["device"],
        "versions": environment.describe("cpu")["versions"],
        "commit": environment.describe("cpu")["commit"],
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "papers": papers,
        "processes": arguments.processes,
        "feed": {"rate per second": FEED_RATE, **spread(feed_times)},
        "search, a second between questions": {"clients": SEARCH_CLIENTS, **spread(paced)},
        "search, at once": {"clients": SEARCH_CLIENTS, **spread(search_times)},
        "one search beside a peer": peer,
        "first byte ms": round(1000 * first_byte),
        "weight kB": weights,
        "aims": AIMS,
    }
    print(json.dumps(record, indent=1))
    write_atomic(arguments.out / "site.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
