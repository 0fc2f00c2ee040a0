"""Comments: Markdown in, a narrow part of HTML out, in a thread of two levels."""

from __future__ import annotations

import dataclasses
import functools
import html
import unicodedata

import nh3
import sqlalchemy as sa
from markdown_it import MarkdownIt
from sqlalchemy.orm import Session

from everyformer.site import people
from everyformer.site.models import Comment, Person
from everyformer.site.web import Site

LONGEST = 10_000
# Neither pictures, which would tell their host who reads here, nor headings, which would break the page's own.
TAGS = {
    "p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}


class Unwritable(ValueError):
    """A comment that cannot be kept, or not here; the message is for the one who wrote it."""


def render(markdown: str) -> str:
    """The HTML of ``markdown``: first no HTML is let in, then only what is listed is let out."""
    return nh3.clean(
        _markdown().render(markdown),
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https"},
        link_rel="nofollow ugc noopener",
    )


@functools.cache
def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False})
    return parser.enable(["strikethrough", "table"]).disable(["heading", "lheading", "image"])


def read(text: str) -> str:
    """The text of a comment as it is kept; raises :class:`Unwritable` when it is too long or says nothing."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    text = "".join(letter for letter in text if unicodedata.category(letter) not in ("Cc", "Cs") or letter in "\n\t")
    if len(text) > LONGEST:
        raise Unwritable(f"A comment may have {LONGEST:,} characters, this one has {len(text):,}.")
    seen = html.unescape(nh3.clean(render(text), tags=set()))
    if all(letter.isspace() or unicodedata.category(letter) == "Cf" for letter in seen):
        raise Unwritable("A comment needs some words.")
    return text


@dataclasses.dataclass
class Thread:
    """A comment on the paper itself, and every reply below it, the oldest first."""

    comment: Comment
    replies: list[Comment]


def thread(session: Session, paper: int) -> list[Thread]:
    """The comments on ``paper``; a reply to a reply stands beside it. Deleted ones stay where others replied."""
    found = session.scalars(sa.select(Comment).where(Comment.paper_id == paper).order_by(Comment.id))
    threads: list[Thread] = []
    by_comment: dict[int, Thread] = {}
    for comment in found:
        if comment.parent_id is None:
            by_comment[comment.id] = Thread(comment, [])
            threads.append(by_comment[comment.id])
        else:
            by_comment[comment.id] = by_comment[comment.parent_id]
            by_comment[comment.parent_id].replies.append(comment)
    return [one for one in threads if not one.comment.deleted_at or any(not r.deleted_at for r in one.replies)]


def add(site: Site, person: Person, paper: int, text: str, parent: int | None) -> int:
    """Keep a comment, or a reply to ``parent``; its number. Raises :class:`Unwritable`."""
    text = read(text)
    with site.database.write() as session:
        people.lock(session, [paper])
        if parent is not None:
            above = session.get(Comment, parent)
            if above is None or above.paper_id != paper or above.deleted_at:
                raise Unwritable("The comment that you reply to is no longer there.")
        comment = Comment(
            paper_id=paper,
            person_id=person.id,
            parent_id=parent,
            markdown=text,
            html=render(text),
            created_at=site.now(),
        )
        session.add(comment)
        people.recount(session, [paper])
        return comment.id


def edit(site: Site, person: Person, number: int, text: str) -> Comment:
    """Change an own comment. Raises :class:`Unwritable`."""
    text = read(text)
    with site.database.write() as session:
        comment = session.get(Comment, number, with_for_update={"of": Comment})
        if comment is None or comment.deleted_at or not may_edit(comment, person):
            raise Unwritable("This comment is no longer there.")
        if text != comment.markdown:
            comment.markdown, comment.html, comment.edited_at = text, render(text), site.now()
        return comment


def delete(site: Site, person: Person, number: int) -> None:
    """Take the text of a comment away and leave its place; does nothing when it is gone already."""
    with site.database.write() as session:
        comment = session.get(Comment, number)
        if comment is None or not may_delete(comment, person):
            return
        people.lock(session, [comment.paper_id])
        comment.markdown = comment.html = ""
        comment.deleted_at = comment.deleted_at or site.now()
        people.recount(session, [comment.paper_id])


def may_edit(comment: Comment, person: Person | None) -> bool:
    """Whether it is the person's own and still there."""
    return person is not None and comment.deleted_at is None and comment.person_id == person.id


def may_delete(comment: Comment, person: Person | None) -> bool:
    """Whether it is the person's own, or the person is a curator."""
    own = may_edit(comment, person)
    return own or (person is not None and person.role == "curator" and comment.deleted_at is None)
