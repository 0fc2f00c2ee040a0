"""Which token mixer fits: the adviser of the command line as a page, by what was measured."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Request
from starlette.responses import Response

from everyformer.lab import adviser, adviser_display, mixer_table
from everyformer.lab.adviser import Advice, Wish
from everyformer.lab.mixer_table import Table
from everyformer.site.web import PLOT_POLICY, ASite, Site, Visitor, its_turn, page

router = APIRouter(include_in_schema=False)

FIELDS = {
    "tokens": "8192",
    "memory": "",
    "latency": "",
    "causal": "",
    "step": "forward",
    "by": "accuracy",
    "machine": "0",
}
LONGEST = 40
TABLES_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was asked for, and what is advised."""

    wish: Wish
    table: Table
    advice: list[Advice]


def tables(site: Site) -> list[Table]:
    """What was measured at full size, as it was a minute ago at most.

    Raises:
        ValueError: a file that is no table; visitors are not told where it lies.
    """
    try:
        found: list[Table] = site.remembered("mixers", TABLES_SECONDS, mixer_table.load)
    except ValueError as error:
        raise ValueError("What was measured here cannot be read; `everyformer advise` says why") from error
    return adviser.usable(found)


def answer(known: list[Table], fields: Mapping[str, str]) -> Answer:
    """The advice for a form.

    Raises:
        ValueError: a field that cannot be read, or nothing measured.
    """
    if not known:
        raise ValueError(f"Nothing was measured here yet. Measure with: {mixer_table.MEASURE}")
    for name in ("tokens", "machine"):
        if not fields[name].isascii() or not fields[name].strip().isdigit():
            raise ValueError(f"{name} must be a whole number, got {fields[name]!r}")
    if int(fields["machine"]) >= len(known):
        raise ValueError(f"machine must be below {len(known)}, got {fields['machine']}")
    wish = Wish(
        int(fields["tokens"]),
        adviser.parse_bytes(fields["memory"]) if fields["memory"].strip() else None,
        adviser.parse_seconds(fields["latency"]) if fields["latency"].strip() else None,
        bool(fields["causal"]),
        fields["step"],  # type: ignore[arg-type]
        fields["by"],  # type: ignore[arg-type]
    )
    table = known[int(fields["machine"])]
    return Answer(wish, table, adviser.advise(table, wish))


def _fields(request: Request) -> dict[str, str]:
    return {name: request.query_params.get(name, known)[:LONGEST] for name, known in FIELDS.items()}


@router.get("/advise")
def advise_page(request: Request, site: ASite, visitor: Visitor) -> Response:
    """The form, the table and the plot."""
    fields, wrong, found = _fields(request), "", None
    known: list[Table] = []
    try:
        known = tables(site)
        found = answer(known, fields)
    except ValueError as error:
        wrong = str(error)
    return page(
        request,
        "advise.html",
        visitor,
        status=422 if wrong and known else 200,
        fields=fields,
        machines=[f"{table.device}, dim {table.dim}, {table.heads} heads" for table in known],
        orders=adviser.ORDERS,
        wrong=wrong,
        found=found,
        shown=adviser_display,
        plot=f"/advise.svg?{urlencode(fields)}",
    )


@router.get("/advise.svg", dependencies=[Depends(its_turn)])
def advise_plot(request: Request, site: ASite) -> Response:
    """The Pareto plot of the same form."""
    fields = _fields(request)
    try:
        made: bytes = site.remembered(("advise", *fields.values()), TABLES_SECONDS, lambda: _drawn(site, fields))
    except ValueError as error:
        raise HTTPException(404, "There is no such plot.") from error
    headers = {"content-security-policy": PLOT_POLICY, "cache-control": "public, max-age=60"}
    return Response(made, media_type="image/svg+xml", headers=headers)


def _drawn(site: Site, fields: Mapping[str, str]) -> bytes:
    found = answer(tables(site), fields)
    drawn = io.BytesIO()
    adviser_display.plot(found.advice, found.wish, found.table).savefig(drawn, format="svg")
    return drawn.getvalue()
