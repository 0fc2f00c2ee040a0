"""What people do on the page: vote, save, comment, submit."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Form, HTTPException, Request, UploadFile
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.responses import Response

from everyformer.site import comments, importers, people
from everyformer.site.arxiv import arxiv_id
from everyformer.site.models import Comment, Paper, Person
from everyformer.site.routes.papers import find_paper
from everyformer.site.web import APerson, ASite, Number, Site, allow, local_address, page, see_other

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Form()]
LARGEST_UPLOAD = 2**20
MOST_PAPERS = 100


@router.post("/papers/{key:path}/vote")
def vote(key: str, request: Request, site: ASite, person: APerson, vote: Text = "") -> Response:
    """Vote, or take the vote back; repeating it changes nothing."""
    if vote not in ("up", "none"):
        raise HTTPException(422, "A vote is up or none.")
    with site.database.read() as session:
        paper = find_paper(session, key)
    people.set_vote(site, person, paper.id, vote == "up")
    return _button(request, site, person, paper.id, "vote", vote == "up")


@router.post("/papers/{key:path}/save")
def save(key: str, request: Request, site: ASite, person: APerson, save: Text = "") -> Response:
    """Put a paper on the own list, or take it off; repeating it changes nothing."""
    if save not in ("yes", "none"):
        raise HTTPException(422, "A paper is saved by yes, and not by none.")
    with site.database.read() as session:
        paper = find_paper(session, key)
    people.set_saved(site, person, paper.id, save == "yes")
    return _button(request, site, person, paper.id, "save", save == "yes")


def _button(request: Request, site: ASite, person: Person, number: int, which: str, there: bool) -> Response:
    """The button as it is now for htmx; else back to where the form was."""
    if "hx-request" not in request.headers:
        back = local_address(request.headers.get("referer", ""), request)
        return see_other(f"{back}#p-{number}")
    with site.database.read() as session:
        paper = session.get(Paper, number)
    return page(request, "button.html", person, which=which, paper=paper, there=there)


@router.post("/papers/{key:path}/comments")
def add_comment(
    key: str,
    request: Request,
    site: ASite,
    person: APerson,
    text: Text = "",
    action: Text = "send",
    parent: Annotated[int | None, Form(ge=1, lt=2**31)] = None,
) -> Response:
    """Say something about a paper, or reply to somebody; or see first what it will look like."""
    with site.database.read() as session:
        paper = find_paper(session, key)
        quoted = _comment(session, parent) if parent else None
    preview, wrong = "", ""
    try:
        if action == "preview":
            preview = comments.render(comments.read(text))
        else:
            allow(site, "comment", str(person.id), 60, 3600)
            number = comments.add(site, person, paper.id, text, quoted.id if quoted else None)
            return see_other(f"/papers/{paper.key}#comment-{number}")
    except comments.Unwritable as error:
        wrong = str(error)
    return _comment_page(request, person, paper, text, preview=preview, wrong=wrong, quoted=quoted)


@router.get("/submit")
def submit(request: Request, person: APerson) -> Response:
    """The form for a paper that is not here yet."""
    return _submit_page(request, person)


@router.post("/submit")
def take_submission(
    request: Request, site: ASite, person: APerson, arxiv: Text = "", file: UploadFile | None = None
) -> Response:
    """Put a paper on the page, from arXiv or from a file; who names one that is here is led to it."""
    allow(site, "submit", str(person.id), 50, 86400)
    upload = file.file.read(LARGEST_UPLOAD + 1) if file else b""
    try:
        if upload:
            found = _uploaded(upload, person)
        else:
            identifier = _identifier(arxiv)
            with site.database.read() as session:
                known = session.scalar(sa.select(Paper).where(Paper.arxiv == identifier))
            if known:
                return see_other(f"/papers/{known.key}", "known")
            if not site.settings.network:
                raise ValueError("This paper is new here, and this page does not ask arXiv: add arXiv's file about it")
            found = importers.fetch(site, [identifier])
        added = _add(site, person, found)
    except ValueError as error:
        return _submit_page(request, person, arxiv[:200], f"{error}.")
    except IntegrityError:
        return _submit_page(request, person, arxiv[:200], "Somebody submitted the same just now. Send it once more.")
    with site.database.read() as session:
        keys = [find_paper(session, paper.arxiv).key for paper in found[:2]]
    return see_other(f"/papers/{keys[0]}" if len(keys) == 1 else "/?view=newest", "submitted" if added else "known")


def _identifier(text: str) -> str:
    try:
        return arxiv_id(text)
    except ValueError as error:
        raise ValueError(f"The paper {error}" if text.strip() else "Name a paper, or choose a file") from None


def _uploaded(data: bytes, person: Person) -> list[importers.Found]:
    """The papers of a file. What only this page or its curators may say is left out for others."""
    if len(data) > LARGEST_UPLOAD:
        raise ValueError("The file may have 1 MB")
    found = importers.read(data)
    if not 0 < len(found) <= MOST_PAPERS:
        raise ValueError(f"The file must hold 1 to {MOST_PAPERS} papers, this one has {len(found)}")
    if person.role == "curator":
        return found
    return [dataclasses.replace(paper, summary="", submitted_at=None, comments=0, tags=[]) for paper in found]


def _add(site: Site, person: Person, found: list[importers.Found]) -> int:
    """Add what is new, the number of papers; those that are here are changed by curators only."""
    with site.database.write() as session:
        if person.role != "curator":
            wanted = [paper.arxiv for paper in found]
            known = set(session.scalars(sa.select(Paper.arxiv).where(Paper.arxiv.in_(wanted))))
            found = [paper for paper in found if paper.arxiv not in known]
        return importers.store(site, session, found, submitted_by=person.id).added


def _submit_page(request: Request, person: Person, arxiv: str = "", wrong: str = "") -> Response:
    status = 422 if wrong else 200
    return page(request, "submit.html", person, status=status, arxiv=arxiv, wrong=wrong, most=MOST_PAPERS)


@router.get("/comments/{number}/reply")
def reply(number: Number, request: Request, site: ASite, person: APerson) -> Response:
    """The form for a reply."""
    with site.database.read() as session:
        comment = _comment(session, number)
        paper = session.get_one(Paper, comment.paper_id)
    return _comment_page(request, person, paper, "", quoted=comment)


@router.get("/comments/{number}/edit")
def edit(number: Number, request: Request, site: ASite, person: APerson) -> Response:
    """The form to change an own comment."""
    with site.database.read() as session:
        comment = _comment(session, number)
        paper = session.get_one(Paper, comment.paper_id)
    if not comments.may_edit(comment, person):
        raise HTTPException(403, "Only who wrote a comment may change it.")
    return _comment_page(request, person, paper, comment.markdown, edited=comment)


@router.post("/comments/{number}/edit")
def change(
    number: Number, request: Request, site: ASite, person: APerson, text: Text = "", action: Text = "send"
) -> Response:
    """Change an own comment."""
    with site.database.read() as session:
        comment = _comment(session, number)
        paper = session.get_one(Paper, comment.paper_id)
    if not comments.may_edit(comment, person):
        raise HTTPException(403, "Only who wrote a comment may change it.")
    preview, wrong = "", ""
    try:
        if action == "preview":
            preview = comments.render(comments.read(text))
        else:
            comments.edit(site, person, number, text)
            return see_other(f"/papers/{paper.key}#comment-{number}")
    except comments.Unwritable as error:
        wrong = str(error)
    return _comment_page(request, person, paper, text, preview=preview, wrong=wrong, edited=comment)


@router.get("/comments/{number}/delete")
def ask_deletion(number: Number, request: Request, site: ASite, person: APerson) -> Response:
    """Ask once more before a text is gone."""
    with site.database.read() as session:
        comment = _comment(session, number)
        paper = session.get_one(Paper, comment.paper_id)
    if not comments.may_delete(comment, person):
        raise HTTPException(403, "Only who wrote a comment, or a curator, may delete it.")
    return page(request, "comment_delete.html", person, comment=comment, paper=paper)


@router.post("/comments/{number}/delete")
def delete(number: Number, site: ASite, person: APerson) -> Response:
    """Delete an own comment; curators may delete any."""
    with site.database.read() as session:
        comment = _comment(session, number)
        paper = session.get_one(Paper, comment.paper_id)
    if not comments.may_delete(comment, person):
        raise HTTPException(403, "Only who wrote a comment, or a curator, may delete it.")
    comments.delete(site, person, number)
    return see_other(f"/papers/{paper.key}#comments", "comment-deleted")


def _comment(session: Session, number: int) -> Comment:
    """The comment of this number that is still there; 404 else."""
    comment = session.get(Comment, number)
    if comment is None or comment.deleted_at:
        raise HTTPException(404, "There is no such comment.")
    return comment


def _comment_page(
    request: Request,
    person: Person,
    paper: Paper,
    text: str,
    *,
    preview: str = "",
    wrong: str = "",
    quoted: Comment | None = None,
    edited: Comment | None = None,
) -> Response:
    heading = "Change your comment" if edited else "Reply" if quoted else "Your comment"
    return page(
        request,
        "comment.html",
        person,
        status=422 if wrong else 200,
        heading=heading,
        button="Change" if edited else "Reply" if quoted else "Comment",
        action=f"/comments/{edited.id}/edit" if edited else f"/papers/{paper.key}/comments",
        paper=paper,
        text=text,
        preview=preview,
        wrong=wrong,
        quoted=quoted,
    )
