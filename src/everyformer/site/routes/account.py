"""Signing in and out, and the account."""

from __future__ import annotations

import secrets
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Form, HTTPException, Request
from starlette.responses import JSONResponse, Response

from everyformer.site import digests, people
from everyformer.site.models import Comment, Paper, Saved, Subscription
from everyformer.site.web import (
    FORM_COOKIE,
    SESSION_COOKIE,
    SESSION_DAYS,
    APerson,
    ASite,
    Number,
    Site,
    Visitor,
    address_of,
    allow,
    hash_of,
    local_address,
    page,
    see_other,
)

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Form()]
LONGEST_ADDRESS = 2000


@router.get("/sign-in")
def sign_in(request: Request, visitor: Visitor, next: str = "/") -> Response:
    """Where the address is asked for; who is signed in goes on."""
    back = local_address(next[:LONGEST_ADDRESS], request)
    if visitor:
        return see_other(back)
    return page(request, "sign_in.html", next=back, email="", wrong="")


@router.post("/sign-in")
def send_link(request: Request, site: ASite, email: Text = "", next: Text = "/") -> Response:
    """Mail a link. The answer is the same for an address that is known and one that is not."""
    back = local_address(next[:LONGEST_ADDRESS], request)
    try:
        address = people.read_address(email)
    except ValueError as error:
        return page(request, "sign_in.html", status=422, next=back, email=email[:254], wrong=str(error))
    allow_mail(site, request, address)
    people.send_link(site, address, back)
    return see_other("/sign-in/sent")


@router.get("/sign-in/sent")
def link_sent(request: Request, visitor: Visitor) -> Response:
    """What to do next."""
    text = f"A link is on its way. It signs you in once, within {people.LINK_MINUTES} minutes."
    return page(request, "mail_sent.html", visitor, text=text, again="/sign-in")


@router.get("/sign-in/{token}")
def show_link(token: str, request: Request, site: ASite, visitor: Visitor) -> Response:
    """A page with a button: programs that look at links in mail must not use them up."""
    with site.database.read() as session:
        link = people.find_link(session, site, token)
    status = 200 if link else 410
    return page(request, "sign_in_link.html", visitor, status=status, link=link, minutes=people.LINK_MINUTES)


@router.post("/sign-in/{token}")
def use_link(token: str, request: Request, site: ASite, visitor: Visitor) -> Response:
    """Begin a session."""
    entered = people.enter(site, token, request.cookies.get(SESSION_COOKIE, ""))
    if entered is None:
        return page(request, "sign_in_link.html", visitor, status=410, link=None, minutes=people.LINK_MINUTES)
    response = see_other(local_address(entered.next, request), "welcome" if entered.is_new else "signed-in")
    _set_cookie(response, site, SESSION_COOKIE, entered.cookie, SESSION_DAYS * 86400)
    # Forms that were open before belonged to nobody, or to somebody else.
    _set_cookie(response, site, FORM_COOKIE, secrets.token_urlsafe(24))
    return response


@router.post("/sign-out")
def sign_out(request: Request, site: ASite) -> Response:
    """End this session."""
    people.leave(site, request.cookies.get(SESSION_COOKIE, ""))
    return _signed_out("signed-out")


@router.post("/sign-out/everywhere")
def sign_out_everywhere(person: APerson, site: ASite) -> Response:
    """End every session of the account."""
    people.leave_everywhere(site, person)
    return _signed_out("signed-out-everywhere")


@router.get("/account")
def account(request: Request, site: ASite, person: APerson) -> Response:
    """Name, saved papers, digests and comments."""
    return _account(request, site, person)


@router.post("/account")
def rename(request: Request, site: ASite, person: APerson, name: Text = "") -> Response:
    """Change the name that others see."""
    try:
        people.rename(site, person, people.read_name(name))
    except ValueError as error:
        return _account(request, site, person, name[:80], str(error))
    return see_other("/account", "renamed")


@router.post("/account/subscriptions/{number}/end")
def end_subscription(number: Number, site: ASite, person: APerson) -> Response:
    """End a digest that goes to the account's own address."""
    with site.database.read() as session:
        subscription = session.get(Subscription, number)
    if subscription is None or subscription.email != person.email:
        raise HTTPException(404, "There is no such digest.")
    digests.end(site, number)
    return see_other("/account", "digest-ended")


@router.get("/account/data.json")
def own_data(site: ASite, person: APerson) -> Response:
    """Everything that is kept about the person."""
    headers = {"content-disposition": 'attachment; filename="everyformer-account.json"'}
    return JSONResponse(people.own_data(site, person), headers=headers)


@router.get("/account/delete")
def ask_deletion(request: Request, person: APerson) -> Response:
    """What a deletion takes away."""
    return page(request, "account_delete.html", person)


@router.post("/account/delete")
def delete_account(site: ASite, person: APerson) -> Response:
    """Delete the account."""
    people.delete_account(site, person)
    return _signed_out("account-deleted")


def allow_mail(site: Site, request: Request, address: str) -> None:
    """Refuse to send ever more mail, for one visitor or to one mailbox. The address itself is not noted."""
    allow(site, "mail", address_of(request), 30, 3600)
    allow(site, "mail-to", hash_of(address), 5, 900)


def _account(request: Request, site: Site, person: APerson, name: str | None = None, wrong: str = "") -> Response:
    with site.database.read() as session:
        saved = session.scalars(
            sa.select(Paper)
            .join(Saved, Saved.paper_id == Paper.id)
            .where(Saved.person_id == person.id)
            .order_by(Saved.created_at.desc(), Paper.id)
        ).all()
        subscriptions = session.scalars(
            sa.select(Subscription)
            .where(
                Subscription.email == person.email,
                Subscription.confirmed_at.is_not(None),
                Subscription.ended_at.is_(None),
            )
            .order_by(Subscription.id)
        ).all()
        comments = session.execute(
            sa.select(Comment, Paper)
            .join(Paper, Comment.paper_id == Paper.id)
            .where(Comment.person_id == person.id, Comment.deleted_at.is_(None))
            .order_by(Comment.id.desc())
            .limit(100)
        ).all()
    return page(
        request,
        "account.html",
        person,
        status=422 if wrong else 200,
        name=person.name if name is None else name,
        wrong=wrong,
        saved=saved,
        subscriptions=subscriptions,
        comments=comments,
    )


def _set_cookie(response: Response, site: Site, name: str, value: str, seconds: int | None = None) -> None:
    secure = site.settings.public_url.startswith("https://")
    response.set_cookie(name, value, max_age=seconds, httponly=True, samesite="lax", secure=secure)


def _signed_out(said: str) -> Response:
    response = see_other("/", said)
    response.delete_cookie(SESSION_COOKIE)
    response.delete_cookie(FORM_COOKIE)
    return response
