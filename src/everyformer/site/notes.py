"""A paper's README as the page shows it: the first piece of code, and the sections that follow."""

from __future__ import annotations

import nh3
from markdown_it import MarkdownIt

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_TAGS = {
    "h3", "h4", "p", "ul", "ol", "li", "code", "pre", "em", "strong", "a", "blockquote", "table", "thead", "tbody", "tr",
    "th", "td",
}  # fmt: skip


def first_python(markdown: str) -> str:
    """The first fenced block of Python, or nothing."""
    blocks = (token.content for token in _MARKDOWN.parse(markdown) if token.type == "fence" and token.info == "python")
    return next(blocks, "")


def sections(markdown: str) -> str:
    """HTML of everything from the first heading of the second level on, its headings one level lower."""
    begin = markdown.find("\n## ")
    if begin < 0:
        return ""
    tokens = _MARKDOWN.parse(markdown[begin:])
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(4, int(token.tag[1]) + 1)}"
    html = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    return nh3.clean(html, tags=_TAGS, attributes={"a": {"href"}}, attribute_filter=_outside)


def _outside(_tag: str, _name: str, address: str) -> str | None:
    """A link's address, unless it leads into the checkout, which is not on the page: then its text stays."""
    return address if address.startswith("https://") else None
