"""Papers from elsewhere: arXiv's Atom files, JSON of this site or of ``/api/daily_papers``, and identifiers.

A file is read whole before anything is written, and all files are one transaction: one that is cut off applies nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import time
import unicodedata
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from xml.parsers import expat

import sqlalchemy as sa
from sqlalchemy.orm import Session

from everyformer.site.arxiv import arxiv_id
from everyformer.site.catalogue import first_of_month, set_tags
from everyformer.site.models import Paper
from everyformer.site.web import Site

LARGEST_FILE = 256 * 2**20
LARGEST_ANSWER = 8 * 2**20
ARXIV = "https://export.arxiv.org/api/query"
AT_ONCE = 100  # identifiers in one question to arXiv, which asks for three seconds between two
PAUSE = 3.0
TIMEOUT = 20.0
FOLDED = (
    500  # so many new papers can be searched by meaning at once; more are left to the worker, who keeps nobody waiting
)

_ATOM = "{http://www.w3.org/2005/Atom}"
_ARXIV = "{http://arxiv.org/schemas/atom}"


class ImportRefused(ValueError):
    """Something that cannot be imported; the message says what and why."""


@dataclasses.dataclass
class Found:
    """What a source says of a paper; empty where it says nothing. ``summary`` is in this site's words."""

    arxiv: str
    title: str = ""
    summary: str = ""
    abstract: str = ""
    authors: list[str] = dataclasses.field(default_factory=list)
    author_count: int | None = None
    organisation: str = ""
    published_on: datetime.date | None = None
    submitted_at: datetime.datetime | None = None
    code_url: str = ""
    project_url: str = ""
    licence: str = ""
    comments: int = 0
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Summary:
    """What an import did: papers that are new, that were told something new of, and that were known so."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0


def import_files(site: Site, paths: Sequence[Path]) -> Summary:
    """Import ``paths``, all or nothing; raises :class:`ImportRefused` that names the file, ``OSError`` where unreadable."""
    found: list[Found] = []
    for path in paths:
        if path.stat().st_size > LARGEST_FILE:
            raise ImportRefused(f"{path}: larger than {LARGEST_FILE // 2**20} MiB")
        try:
            told = read(path.read_bytes())
            missing = [paper.arxiv for paper in told if not paper.title]
            fetched = {paper.arxiv: paper for paper in fetch(site, missing)} if missing else {}
        except ImportRefused as error:
            raise ImportRefused(f"{path}: {error}") from None
        found += [fetched.get(paper.arxiv, paper) for paper in told]
    with site.database.write() as session:
        return store(site, session, found)


def store(site: Site, session: Session, found: Iterable[Found], submitted_by: int | None = None) -> Summary:
    """Write what was found; a paper that is there already is told only what it did not know.

    What a catalogue card says stays; for other papers a newer fact replaces an older one, and nothing replaces a fact.
    """
    merged: dict[str, Found] = {}
    for paper in found:
        merged[paper.arxiv] = _merged(merged[paper.arxiv], paper) if paper.arxiv in merged else paper
    summary = Summary()
    changed: list[Paper] = []
    identifiers = list(merged)
    for start in range(0, len(identifiers), 500):
        some = identifiers[start : start + 500]
        rows = {row.arxiv: row for row in session.scalars(sa.select(Paper).where(Paper.arxiv.in_(some)))}
        for identifier in some:
            row = rows.get(identifier)
            if row is None:
                row = _new(site, merged[identifier], submitted_by)
                session.add(row)
                summary.added += 1
            elif _told(row, merged[identifier]):
                summary.updated += 1
            else:
                summary.unchanged += 1
                continue
            changed.append(row)
        session.flush()
    for row in changed:
        set_tags(session, row, row.tags)
    if len(changed) <= FOLDED:
        site.semantic.add(session, changed)
    return summary


def _new(site: Site, found: Found, submitted_by: int | None) -> Paper:
    if not found.title:
        raise ImportRefused(f"{found.arxiv} has no title")
    now = site.now()
    at = min(found.submitted_at or now, now)
    row = Paper(
        arxiv=found.arxiv, title=found.title, summary="", abstract="", authors="", tags=[], submitted_at=at,
        submitted_on=at.date(), submitted_by=submitted_by, ordered_on=first_of_month(found.arxiv), runs_here=False,
        verdicts={}, votes=0, comments=0, comments_elsewhere=0, points=0.0,
    )  # fmt: skip
    _told(row, found)
    return row


def _told(row: Paper, found: Found) -> bool:
    """Write into ``row`` what it did not know; whether there was something."""
    facts: dict[str, Any] = {
        "title": found.title,
        "summary": found.summary,
        "abstract": found.abstract,
        "authors": "\n".join(found.authors),
        "author_count": found.author_count or len(found.authors) or None,
        "organisation": found.organisation,
        "published_on": found.published_on,
        "code_url": found.code_url,
        "project_url": found.project_url,
        "licence": found.licence,
        "tags": found.tags,
    }
    new = {
        name: value
        for name, value in facts.items()
        if value and value != getattr(row, name) and not (row.slug and getattr(row, name))
    }
    if "published_on" in new:
        new["ordered_on"] = new["published_on"]
    if found.comments > row.comments_elsewhere:
        new["comments_elsewhere"] = found.comments
    for name, value in new.items():
        setattr(row, name, value)
    return bool(new)


def _merged(first: Found, second: Found) -> Found:
    """Two accounts of one paper: the second's facts, and the first's where it has none."""
    told = {name: value for name, value in vars(second).items() if value}
    return Found(**vars(first) | told | {"comments": max(first.comments, second.comments)})


# Reading.


def read(data: bytes) -> list[Found]:
    """The papers in a file, by what it begins with: ``<`` Atom, ``[`` or ``{`` JSON, else an identifier a line."""
    data = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not data:
        raise ImportRefused("the file is empty")
    if data[:1] == b"<":
        return read_atom(data)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ImportRefused("the file is neither arXiv's Atom, nor JSON, nor a list of identifiers") from None
    if text[0] in "[{":
        return read_json(text)
    with _naming("line") as at:
        found = []
        for at[0], line in enumerate(text.splitlines(), 1):
            if line.strip():
                found.append(Found(arxiv_id(line)))
        return found


def read_atom(data: bytes) -> list[Found]:
    """The papers of an Atom file of arXiv's API; raises :class:`ImportRefused` when it is cut off or no such file."""
    root = _parsed(data)
    if root.tag != f"{_ATOM}feed":
        raise ImportRefused("not an Atom feed")
    with _naming("entry") as at:
        found = []
        for at[0], entry in enumerate(root.iter(f"{_ATOM}entry"), 1):
            found.append(_from_atom(entry))
        return found


def _from_atom(entry: ElementTree.Element) -> Found:
    def text(name: str) -> str:
        return _plain(entry.findtext(name) or "")

    identifier = text(f"{_ATOM}id")
    if "/api/errors" in identifier:
        raise ValueError(f"arXiv says: {text(f'{_ATOM}summary') or 'error'}")
    authors = [_plain(name.text or "") for name in entry.iterfind(f"{_ATOM}author/{_ATOM}name")]
    return Found(
        arxiv=arxiv_id(identifier),
        title=_required(text(f"{_ATOM}title"), "title"),
        abstract=text(f"{_ATOM}summary"),
        authors=[name for name in authors if name],
        organisation=text(f"{_ATOM}author/{_ARXIV}affiliation"),
        published_on=_moment(text(f"{_ATOM}published"), "published").date() if text(f"{_ATOM}published") else None,
    )


def _parsed(data: bytes) -> ElementTree.Element:
    """XML as a tree. A document type is refused: with it come entities that grow or read files."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")

    def named(name: str) -> str:
        return "{" + name if "}" in name else name

    def refuse(*_: object) -> None:
        raise ImportRefused("the file declares a document type, which a feed does not need")

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: builder.start(named(name), attributes)
    parser.EndElementHandler = lambda name: builder.end(named(name))
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ImportRefused(f"the file is cut off or no XML: {error}") from None
    return builder.close()


def read_json(text: str) -> list[Found]:
    """The papers of a JSON list, or of ``{"papers": [...]}``: entries of this site, of the daily list, identifiers."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"the file is cut off or no JSON: {error}") from None
    entries = whole.get("papers") if isinstance(whole, dict) else whole
    if not isinstance(entries, list):
        raise ImportRefused('expected a list of papers, or {"papers": [...]}')
    with _naming("entry") as at:
        found = []
        for at[0], entry in enumerate(entries, 1):
            found.append(Found(arxiv_id(entry)) if isinstance(entry, str) else _from_json(entry))
        return found


def _from_json(entry: Any) -> Found:
    if not isinstance(entry, dict) or not isinstance(entry.get("paper", {}), dict):
        raise ValueError("must be an object")
    inner = entry.get("paper", {})

    def field(name: str, kind: type, *, outer_first: bool = False) -> Any:
        places = (entry, inner) if outer_first else (inner, entry)
        value = next((place[name] for place in places if place.get(name) is not None), None)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f"{name} must be a {kind.__name__}, got {value!r:.80}")
        return value

    authors = field("authors", list) or []
    names: list[Any] = [author.get("name") if isinstance(author, dict) else author for author in authors]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("authors must be names or objects with a name")
    summary, ours = _plain(field("summary", str) or ""), "abstract" in inner or "abstract" in entry
    abstract = _plain(field("abstract", str) or "") if ours else summary
    organisation = field("organization", dict) or {}
    published = field("publishedAt", str)
    # In the daily list the entry's own date is the day of the list, the paper's that of publication.
    listed = entry.get("publishedAt") if inner else None
    listed = listed or field("submittedOnDailyAt", str)
    tags = field("tags", list) if ours else None
    if not all(isinstance(tag, str) and 0 < len(tag) <= 64 for tag in tags or []):
        raise ValueError("tags must be words of 64 characters at most")
    count = field("authorCount", int)
    if count is not None and not 0 < count < 100_000:
        raise ValueError(f"authorCount must be a number of people, got {count}")
    return Found(
        arxiv=arxiv_id(field("id", str) or ""),
        title=_required(_plain(field("title", str) or ""), "title"),
        summary=summary if ours and summary != abstract else "",
        abstract=abstract,
        authors=[name for name in map(_plain, names) if name],
        author_count=count,
        organisation=_plain(str(organisation.get("fullname") or organisation.get("name") or "")),
        published_on=_moment(published, "publishedAt").date() if published else None,
        submitted_at=_moment(listed, "submittedOnDailyAt") if listed else None,
        code_url=_address(field("githubRepo", str) or ""),
        project_url=_address(field("projectPage", str) or ""),
        licence=_plain(field("licence", str) or ""),
        comments=max(0, min(field("numComments", int, outer_first=True) or 0, 1_000_000)),
        tags=[tag.lower() for tag in tags or []],
    )


@contextlib.contextmanager
def _naming(what: str) -> Iterator[list[int]]:
    """Says at which number of ``what`` a ``ValueError`` happened."""
    at = [0]
    try:
        yield at
    except ValueError as error:
        raise ImportRefused(f"{what} {at[0]}: {error}") from None


def _plain(text: str) -> str:
    """One line without control characters, composed."""
    text = "".join(
        c for c in unicodedata.normalize("NFC", text) if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs")
    )
    return " ".join(text.split())


def _required(value: str, name: str) -> str:
    if not value:
        raise ValueError(f"{name} is missing")
    return value


def _moment(text: Any, name: str) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
        return moment.replace(tzinfo=moment.tzinfo or datetime.timezone.utc).astimezone(datetime.timezone.utc)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must be a date and time like 2025-02-14T12:00:00Z, got {text!r:.80}") from None


def _address(text: str) -> str:
    """An address that may stand on a page as a link, else nothing."""
    text = _plain(text)
    return text if text.startswith(("https://", "http://")) and len(text) <= 2000 else ""


# Asking arXiv.


def fetch(site: Site, identifiers: Sequence[str]) -> list[Found]:
    """What arXiv says of papers; raises :class:`ImportRefused` without network, or when it does not know one of them.

    Asked is export.arxiv.org and nobody else; an answer that leads elsewhere is not followed.
    """
    wanted = list(dict.fromkeys(map(arxiv_id, identifiers)))
    if not wanted:
        return []
    if not site.settings.network:
        raise ImportRefused(
            f"{wanted[0]}: only arXiv knows more than the identifier, and this site does not ask it "
            "(EVERYFORMER_SITE_NETWORK=true allows that)"
        )
    found: dict[str, Found] = {}
    for start in range(0, len(wanted), AT_ONCE):
        if start:
            time.sleep(PAUSE)
        some = wanted[start : start + AT_ONCE]
        found |= {paper.arxiv: paper for paper in read_atom(_ask(some))}
    if unknown := [identifier for identifier in wanted if identifier not in found]:
        raise ImportRefused(f"arXiv knows no paper {', '.join(unknown[:5])}")
    return [found[identifier] for identifier in wanted]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None


def _ask(identifiers: Sequence[str]) -> bytes:
    address = f"{ARXIV}?{urlencode({'id_list': ','.join(identifiers), 'max_results': len(identifiers)})}"
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(
            urllib.request.Request(address, headers={"User-Agent": "everyformer"}), timeout=TIMEOUT
        ) as answer:
            data: bytes = answer.read(LARGEST_ANSWER + 1)
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise ImportRefused(f"arXiv did not answer: {getattr(error, 'reason', error)}") from None
    if len(data) > LARGEST_ANSWER:
        raise ImportRefused("arXiv's answer is larger than expected")
    return data
