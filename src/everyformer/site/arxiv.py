"""arXiv identifiers."""

from __future__ import annotations

import re

# New: 2502.10389 (0704.0001 before 2015). Old: cs/0112017, math.GT/0309136. Either may say a version.
_NEW = r"\d{2}(?:0[1-9]|1[0-2])\.\d{4,5}"
_OLD = r"[a-z-]+(?:\.[A-Z]{2})?/\d{2}(?:0[1-9]|1[0-2])\d{3}"
_ADDRESS = r"(?:https?://)?(?:www\.|export\.)?arxiv\.org/(?:abs|pdf|html)/"
_PATTERN = re.compile(
    rf"(?:{_ADDRESS}|arxiv:)?(?P<id>{_NEW}|{_OLD})(?:v\d+)?(?:\.pdf)?(?:[?#].*)?/?", re.IGNORECASE | re.ASCII
)


def arxiv_id(text: str) -> str:
    """The identifier in what somebody wrote, without its version; raises ``ValueError`` that says what is accepted."""
    found = _PATTERN.fullmatch(text.strip())
    if found is None:
        shown = text.strip()[:80]
        raise ValueError(
            f"must be an arXiv identifier like 2502.10389, 2502.10389v2 or cs/0112017, or the address of its "
            f"arxiv.org/abs or arxiv.org/pdf page, got {shown!r}"
        )
    archive, slash, number = found["id"].rpartition("/")
    # The subject class of an old identifier is no part of it: math.GT/0309136 is math/0309136.
    return f"{archive.partition('.')[0].lower()}{slash}{number}"
