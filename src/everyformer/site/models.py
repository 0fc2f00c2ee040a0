"""The tables: papers and what was measured of them, people and what they did, runs, mail."""

from __future__ import annotations

import datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, ForeignKey, Index, MetaData, String, Text, UniqueConstraint, text
from sqlalchemy import DateTime as SqlDateTime
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator


class Moment(TypeDecorator[datetime.datetime]):
    """A moment in UTC, stored without a zone so that both databases order it alike."""

    impl = SqlDateTime
    cache_ok = True

    def process_bind_param(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"a moment needs a time zone, got {value!r}")
        return value.astimezone(datetime.timezone.utc).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:
        return value.replace(tzinfo=datetime.timezone.utc) if value else None


class Base(DeclarativeBase):
    """What every table shares: names of constraints that are the same on each database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime.datetime: Moment,
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON,
    }


class Paper(Base):
    """A paper on the page. ``slug`` is there for papers of the catalogue; ``key`` is what addresses name it by.

    ``published_on`` is a fact, or unknown; ``ordered_on`` is that day, or the first of the month in the arXiv
    identifier. ``points`` is votes plus half the comments, kept beside the counts for the index that trending uses.
    ``comments_elsewhere`` is what the feed counted that the paper was imported from.
    """

    __tablename__ = "paper"
    __table_args__ = (
        Index("ix_paper_submitted_on", "submitted_on", "points", "runs_here", "ordered_on", "id"),
        Index("ix_paper_ordered_on", "ordered_on", "id"),
        Index("ix_paper_points", "points", "submitted_at", "ordered_on", "id"),
        Index("ix_paper_runs_here", "runs_here", "ordered_on", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    arxiv: Mapped[str] = mapped_column(String(32), unique=True)
    slug: Mapped[str | None] = mapped_column(String(64), unique=True)
    title: Mapped[str] = mapped_column(Text)
    summary: Mapped[str] = mapped_column(Text, default="")
    abstract: Mapped[str] = mapped_column(Text, default="")
    authors: Mapped[str] = mapped_column(Text, default="", doc="A name a line.")
    author_count: Mapped[int | None]
    organisation: Mapped[str | None] = mapped_column(Text)
    published_on: Mapped[datetime.date | None]
    ordered_on: Mapped[datetime.date]
    submitted_at: Mapped[datetime.datetime]
    submitted_on: Mapped[datetime.date]
    submitted_by: Mapped[int | None] = mapped_column(ForeignKey("person.id", ondelete="SET NULL"))
    code_url: Mapped[str | None] = mapped_column(Text)
    project_url: Mapped[str | None] = mapped_column(Text)
    licence: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[list[str]] = mapped_column(default=list)
    runs_here: Mapped[bool] = mapped_column(default=False)
    verdicts: Mapped[dict[str, Any]] = mapped_column(default=dict, doc="Claim to verdict, where one was measured.")
    headline: Mapped[dict[str, Any] | None] = mapped_column(doc="The figures of the claim that the feed shows.")
    votes: Mapped[int] = mapped_column(default=0)
    comments: Mapped[int] = mapped_column(default=0)
    comments_elsewhere: Mapped[int] = mapped_column(default=0)
    points: Mapped[float] = mapped_column(default=0.0)

    @property
    def key(self) -> str:
        """What addresses name the paper by: its slug, or its arXiv identifier."""
        return self.slug or self.arxiv

    @property
    def names(self) -> list[str]:
        """The authors' names, as far as they are known."""
        return self.authors.split("\n") if self.authors else []


class PaperTag(Base):
    """A tag of a paper, for filters."""

    __tablename__ = "paper_tag"
    tag: Mapped[str] = mapped_column(String(64), primary_key=True)
    paper_id: Mapped[int] = mapped_column(ForeignKey("paper.id", ondelete="CASCADE"), primary_key=True, index=True)


class ClaimRow(Base):
    """A claim of a catalogue paper with its recorded result, both as the catalogue writes them."""

    __tablename__ = "claim"
    __table_args__ = (UniqueConstraint("paper_id", "name"), Index("ix_claim_verdict", "verdict", "paper_id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    paper_id: Mapped[int] = mapped_column(ForeignKey("paper.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(64))
    position: Mapped[int]
    card: Mapped[dict[str, Any]]
    runnable: Mapped[bool] = mapped_column(default=False)
    verdict: Mapped[str | None] = mapped_column(String(32))
    result: Mapped[dict[str, Any] | None]


class PaperVector(Base):
    """A paper's place in the semantic index, as float32 bytes; ``model`` names the fit it belongs to."""

    __tablename__ = "paper_vector"
    paper_id: Mapped[int] = mapped_column(ForeignKey("paper.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[str] = mapped_column(String(64), index=True)
    vector: Mapped[bytes]


class SemanticModel(Base):
    """A fitted embedder: its state as arrays (npz, never pickled) and how many papers it has seen."""

    __tablename__ = "semantic_model"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    embedder: Mapped[str] = mapped_column(Text)
    papers: Mapped[int]
    fitted_at: Mapped[datetime.datetime]
    state: Mapped[bytes]


class Person(Base):
    """Somebody who signed in; ``role`` is reader or curator."""

    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    name: Mapped[str] = mapped_column(String(80))
    role: Mapped[str] = mapped_column(String(16), default="reader")
    created_at: Mapped[datetime.datetime]


class SignInLink(Base):
    """A link sent by mail: good once, until it expires. The address holds a signature that the database does not."""

    __tablename__ = "sign_in_link"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(254), index=True)
    next: Mapped[str] = mapped_column(Text, default="/")
    created_at: Mapped[datetime.datetime]
    expires_at: Mapped[datetime.datetime]
    used_at: Mapped[datetime.datetime | None]


class SignedIn(Base):
    """A session: the SHA-256 of the cookie's value, whose it is and until when."""

    __tablename__ = "signed_in"
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime.datetime]
    expires_at: Mapped[datetime.datetime]
    person: Mapped[Person] = relationship(lazy="joined")


class Vote(Base):
    """One person's vote for one paper."""

    __tablename__ = "vote"
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id", ondelete="CASCADE"), primary_key=True)
    paper_id: Mapped[int] = mapped_column(ForeignKey("paper.id", ondelete="CASCADE"), primary_key=True, index=True)
    created_at: Mapped[datetime.datetime]


class Saved(Base):
    """A paper on somebody's list."""

    __tablename__ = "saved"
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id", ondelete="CASCADE"), primary_key=True)
    paper_id: Mapped[int] = mapped_column(ForeignKey("paper.id", ondelete="CASCADE"), primary_key=True, index=True)
    created_at: Mapped[datetime.datetime]


class Comment(Base):
    """A comment: the Markdown as written and the sanitised HTML. A deleted one keeps its place and loses its text.

    It stays without a person when the account is deleted, because others may have replied.
    """

    __tablename__ = "comment"
    __table_args__ = (Index("ix_comment_paper_id", "paper_id", "created_at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    paper_id: Mapped[int] = mapped_column(ForeignKey("paper.id", ondelete="CASCADE"))
    person_id: Mapped[int | None] = mapped_column(ForeignKey("person.id", ondelete="SET NULL"), index=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("comment.id", ondelete="CASCADE"))
    markdown: Mapped[str] = mapped_column(Text)
    html: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime.datetime]
    edited_at: Mapped[datetime.datetime | None]
    deleted_at: Mapped[datetime.datetime | None]
    person: Mapped[Person | None] = relationship(lazy="joined")


class Subscription(Base):
    """A digest somebody asked for. ``scope`` is all, tag or query; ``value`` the tag or the query; ``period`` day or week.

    It is active between ``confirmed_at`` and ``ended_at``.
    """

    __tablename__ = "subscription"
    __table_args__ = (UniqueConstraint("email", "scope", "value"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(254))
    scope: Mapped[str] = mapped_column(String(8))
    value: Mapped[str] = mapped_column(String(400), default="")
    period: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[datetime.datetime]
    confirmed_at: Mapped[datetime.datetime | None]
    ended_at: Mapped[datetime.datetime | None]

    @property
    def active(self) -> bool:
        """Whether digests are sent."""
        return self.confirmed_at is not None and self.ended_at is None

    @property
    def title(self) -> str:
        """Which papers it is about, in words."""
        if self.scope == "tag":
            return f"papers tagged {self.value}"
        return f"papers found by “{self.value}”" if self.scope == "query" else "all papers"


class Digest(Base):
    """One digest of one subscription; the pair with its period is unique, so that nothing is sent twice."""

    __tablename__ = "digest"
    __table_args__ = (UniqueConstraint("subscription_id", "period"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    subscription_id: Mapped[int] = mapped_column(ForeignKey("subscription.id", ondelete="CASCADE"))
    period: Mapped[str] = mapped_column(String(10), doc="2026-11-25 or 2026-W48")
    papers: Mapped[int]
    created_at: Mapped[datetime.datetime]


class Mail(Base):
    """A mail to send: ``kind`` names its templates and ``context`` fills them. A sent one keeps neither link nor text."""

    __tablename__ = "mail"
    __table_args__ = (Index("ix_mail_due", "sent_at", "not_before"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    recipient: Mapped[str] = mapped_column(String(254))
    kind: Mapped[str] = mapped_column(String(16))
    context: Mapped[dict[str, Any]]
    created_at: Mapped[datetime.datetime]
    not_before: Mapped[datetime.datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    sent_at: Mapped[datetime.datetime | None]
    error: Mapped[str] = mapped_column(Text, default="")


class Run(Base):
    """A claim being checked here. ``state``: queued, running, finished, failed or cancelled.

    ``slot`` is a place to run in; the database itself allows one running run for each, so that two workers cannot start
    the same. ``process`` and ``process_started`` identify the process group on ``host``; ``lease_until`` says how long
    the worker that looks after it has promised to be there.
    """

    __tablename__ = "run"
    __table_args__ = (
        Index(
            "uq_run_slot", "slot", unique=True, sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
        Index("ix_run_state", "state", "id"),
        Index("ix_run_paper_id", "paper_id", "id"),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(primary_key=True)
    paper_id: Mapped[int] = mapped_column(ForeignKey("paper.id", ondelete="CASCADE"))
    claim: Mapped[str] = mapped_column(String(64))
    scale: Mapped[str] = mapped_column(String(8))
    seeds: Mapped[int]
    person_id: Mapped[int | None] = mapped_column(ForeignKey("person.id", ondelete="SET NULL"))
    state: Mapped[str] = mapped_column(String(16), default="queued")
    cancel_asked: Mapped[bool] = mapped_column(default=False)
    slot: Mapped[int | None]
    host: Mapped[str | None] = mapped_column(String(255))
    process: Mapped[int | None]
    process_started: Mapped[float | None]
    lease_until: Mapped[datetime.datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime.datetime]
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]
    verdict: Mapped[str | None] = mapped_column(String(32))
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str] = mapped_column(Text, default="")
    paper: Mapped[Paper] = relationship(lazy="joined")
    person: Mapped[Person | None] = relationship(lazy="joined")


class Spent(Base):
    """How often ``key`` (an action by an address or an account) happened in the window that began at ``since``."""

    __tablename__ = "spent"
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    since: Mapped[datetime.datetime]
    count: Mapped[int]
