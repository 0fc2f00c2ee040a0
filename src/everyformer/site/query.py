"""What somebody typed into the search box, read: words, phrases, what must not be there, and filters."""

from __future__ import annotations

import dataclasses
import datetime
import re
import unicodedata

from everyformer.catalog import VERDICTS

LONGEST = 400
FIELDS = ("tag", "author", "org", "after", "before", "runs", "verdict")
# English words that say nothing about a paper; the same that PostgreSQL's full text leaves out.
_STOP_WORDS = """i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her
    hers herself it its itself they them their theirs themselves what which who whom this that these
    those am is are was were be been being have has had having do does did doing a an the and but if
    or because as until while of at by for with about against between into through during before
    after above below to from up down in out on off over under again further then once here there
    when where why how all any both each few more most other some such no nor not only own same so
    than too very s t can will just don should now"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_PART = re.compile(rf"(?P<minus>-?)(?:(?P<field>{'|'.join(FIELDS)}):)?(?P<value>\"[^\"]*\"|[^\s\"]*)", re.IGNORECASE)


class Malformed(ValueError):
    """A query that cannot be read; the message says what is expected instead."""


@dataclasses.dataclass(frozen=True)
class Query:
    """A query that was read. ``phrases`` and ``without`` are tuples of words that stand side by side."""

    text: str
    words: tuple[str, ...] = ()
    phrases: tuple[tuple[str, ...], ...] = ()
    without: tuple[tuple[str, ...], ...] = ()
    tags: tuple[str, ...] = ()
    authors: tuple[tuple[str, ...], ...] = ()
    organisations: tuple[tuple[str, ...], ...] = ()
    after: datetime.date | None = None
    before: datetime.date | None = None
    runs: bool | None = None
    verdict: str = ""

    @property
    def terms(self) -> tuple[str, ...]:
        """The words that say something."""
        return tuple(word for word in self.words if word not in STOP_WORDS)

    @property
    def sentence(self) -> str:
        """What is looked for, as running text; filters and exclusions left out."""
        return " ".join([*self.words, *(word for phrase in self.phrases for word in phrase)])

    @property
    def filtered(self) -> bool:
        """Whether anything but words narrows the result."""
        return self != Query(self.text, self.words)

    @property
    def only_stop_words(self) -> bool:
        """Whether there is nothing to look for: words, but none that says something, and no filter."""
        return bool(self.words) and not self.terms and not self.filtered


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text in lower case; punctuation separates them, as it does in the index."""
    return tuple(re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text).lower()))


def parse(text: str) -> Query:
    """Read a query; raises :class:`Malformed` with a message for whoever typed it.

    ``"a phrase"``, ``-word``, ``-"a phrase"``, ``tag:``, ``author:``, ``org:``, ``after:`` and ``before:`` (a day, a
    month or a year), ``runs:yes`` or ``runs:no``, ``verdict:"direction only"``. All else is words.
    """
    if len(text) > LONGEST:
        raise Malformed(f"A search may have {LONGEST} characters, this one has {len(text)}.")
    if any(unicodedata.category(character) in ("Cc", "Cs") and not character.isspace() for character in text):
        raise Malformed("A search may not hold control characters.")
    text = " ".join(text.split())
    many: dict[str, list[tuple[str, ...]]] = {"words": [], "phrases": [], "without": [], "author": [], "org": []}
    one: dict[str, str] = {}
    tags: list[str] = []
    at = 0
    while at < len(text):
        if text[at] == " ":
            at += 1
            continue
        part = _PART.match(text, at)
        if part is None or part.end() == at or (part["value"] == "" and text[part.end() : part.end() + 1] == '"'):
            raise Malformed('A quotation mark is not closed: write "both of them".')
        at = part.end()
        field, value = (part["field"] or "").lower(), part["value"].strip('"').strip()
        if not field:
            name = "without" if part["minus"] else "phrases" if part["value"].startswith('"') else "words"
            if found := words_of(value):
                many[name].append(found)
            continue
        if part["minus"]:
            raise Malformed(f"A minus goes before a word or a phrase, not before {field}:.")
        if not value:
            raise Malformed(f"{field}: needs something after the colon, without a space.")
        if field == "tag":
            tags.append(value.lower())
        elif field in many:
            found = words_of(value)
            if not found:
                raise Malformed(f"{field}: needs a name, got {value!r}.")
            many[field].append(found)
        elif one.setdefault(field, value) != value:
            raise Malformed(f"{field}: can be given once.")
    after, before = _day(one, "after"), _day(one, "before")
    if after and before and after >= before:
        raise Malformed("after: must be earlier than before:.")
    return Query(
        text=text,
        words=tuple(word for found in many["words"] for word in found),
        phrases=tuple(many["phrases"]),
        without=tuple(many["without"]),
        tags=tuple(tags),
        authors=tuple(many["author"]),
        organisations=tuple(many["org"]),
        after=after,
        before=before,
        runs=_runs(one.get("runs", "")),
        verdict=_verdict(one.get("verdict", "")),
    )


def _day(values: dict[str, str], field: str) -> datetime.date | None:
    """The first day of what is named: a year, a month or a day."""
    value = values.get(field)
    if value is None:
        return None
    if re.fullmatch(r"\d{4}(-\d{2}){0,2}", value, re.ASCII):
        try:
            return datetime.date.fromisoformat(value + "-01-01"[: 10 - len(value)])
        except ValueError:
            pass
    raise Malformed(f"{field}: needs a day like 2025-03-14, a month like 2025-03 or a year, got {value!r}.")


def _runs(value: str) -> bool | None:
    if value.lower() not in ("", "yes", "no"):
        raise Malformed(f"runs: is followed by yes or no, got {value!r}.")
    return {"yes": True, "no": False}.get(value.lower())


def _verdict(value: str) -> str:
    known = ", ".join(f'"{verdict}"' if " " in verdict else verdict for verdict in VERDICTS)
    if value and value.lower() not in VERDICTS:
        raise Malformed(f"verdict: is followed by one of {known}, got {value!r}.")
    return value.lower()
