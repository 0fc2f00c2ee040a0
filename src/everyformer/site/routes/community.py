"""What people do on the page: vote, save, comment, submit."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, HTTPException, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from everyformer.site import comments, people
from everyformer.site.models import Comment, Paper, Person
from everyformer.site.routes.papers import find_paper
from everyformer.site.web import APerson, ASite, Number, allow, local_address, page, see_other

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Form()]


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
