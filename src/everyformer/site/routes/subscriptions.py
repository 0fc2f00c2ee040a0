"""Digests by mail: asked for, confirmed, ended; and what one looks like."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from everyformer.site import digests, links
from everyformer.site.models import Subscription
from everyformer.site.routes.account import allow_mail
from everyformer.site.web import ASite, Visitor, page, see_other

router = APIRouter(include_in_schema=False)

Text = Annotated[str, Form()]


@router.get("/subscribe")
def subscribe(request: Request, visitor: Visitor, scope: str = "all", value: str = "") -> Response:
    """The form; ``scope`` and ``value`` say what it begins with."""
    email = visitor.email if visitor else ""
    return page(request, "subscribe.html", visitor, wrong={}, email=email, scope=scope, value=value[:400], period="day")


@router.post("/subscribe")
def ask(
    request: Request,
    site: ASite,
    visitor: Visitor,
    email: Text = "",
    scope: Text = "all",
    value: Text = "",
    period: Text = "day",
) -> Response:
    """Mail a link that confirms. The answer is the same for an address that is known and one that is not."""
    try:
        with site.database.read() as session:
            asked = digests.read(session, email, scope, value, period)
    except digests.Unwanted as error:
        return page(
            request,
            "subscribe.html",
            visitor,
            status=422,
            wrong={error.field: str(error)},
            email=email[:254],
            scope=scope,
            value=value[:400],
            period=period,
        )
    allow_mail(site, request, asked.email)
    digests.ask(site, asked)
    return see_other("/subscribe/sent")


@router.get("/subscribe/sent")
def link_sent(request: Request, visitor: Visitor) -> Response:
    """What to do next."""
    text = f"A link to confirm is on its way. It is good for {links.CONFIRM_DAYS} days."
    return page(request, "mail_sent.html", visitor, text=text, again="/subscribe")


@router.get("/subscribe/confirm/{token}")
def show_confirm(token: str, request: Request, site: ASite, visitor: Visitor) -> Response:
    """A page with a button: programs that look at links in mail must not confirm."""
    with site.database.read() as session:
        subscription, period = links.read_confirm(session, site, token) or (None, "")
    return page(
        request,
        "subscribe_confirm.html",
        visitor,
        status=200 if subscription else 410,
        subscription=subscription,
        period=period,
        done=False,
        days=links.CONFIRM_DAYS,
    )


@router.post("/subscribe/confirm/{token}")
def confirm(token: str, request: Request, site: ASite, visitor: Visitor) -> Response:
    """Begin the subscription; repeating it changes nothing."""
    subscription = digests.confirm(site, token)
    return page(
        request,
        "subscribe_confirm.html",
        visitor,
        status=200 if subscription else 410,
        subscription=subscription,
        period="",
        done=subscription is not None,
        days=links.CONFIRM_DAYS,
    )


@router.get("/unsubscribe/{token}")
def show_end(token: str, request: Request, site: ASite, visitor: Visitor) -> Response:
    """A page with one button."""
    return _end_page(token, request, site, visitor)


@router.post("/unsubscribe/{token}")
def end(token: str, request: Request, site: ASite, visitor: Visitor) -> Response:
    """End the subscription at once, for a person or for a mail program; repeating it changes nothing."""
    with site.database.read() as session:
        subscription = links.find(session, site, Subscription, token)
    if subscription:
        digests.end(site, subscription.id)
    return _end_page(token, request, site, visitor)


@router.get("/digest")
def digest(request: Request, site: ASite, visitor: Visitor) -> Response:
    """The latest daily digest."""
    with site.database.read() as session:
        period, papers = digests.latest(site, session)
    return page(request, "digest.html", visitor, period=period, papers=papers)


def _end_page(token: str, request: Request, site: ASite, visitor: Visitor) -> Response:
    known = links.is_signed(site, Subscription, token)
    with site.database.read() as session:
        subscription = links.find(session, site, Subscription, token)
    status = 200 if known else 404
    return page(request, "unsubscribe.html", visitor, status=status, known=known, subscription=subscription)
