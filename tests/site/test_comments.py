"""Comments: what Markdown may become, and threads."""

import html.parser
import time
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from everyformer.site import comments
from everyformer.site.models import Comment, Paper

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\nscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](%6aavascript:alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](vbscript:msgbox(1))",
    "[x](file:///etc/passwd)",
    "<javascript:alert(1)>",
    '[x](https://a.example "onmouseover=alert(1)")',
    '[x](https://a.example "&quot; onmouseover=&quot;alert(1)")',
    '[x](https://a.example" onmouseover="alert(1))',
    "[x]: javascript:alert(1)\n\n[x]",
    "![x](https://tracker.example/pixel.png)",
    '![x](x"onerror="alert(1))',
    "```<script>\n</code></pre><script>alert(1)</script>\n```",
    "`</code><script>alert(1)</script>`",
    "> <iframe src=//evil.example>",
    "| <b onclick=alert(1)> |\n|---|\n| <style>*{display:none}</style> |",
    "<style>@import url(//evil.example)</style>",
    "<form action=/account/delete method=post><button>x",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<math><mtext></table></math><img src=x onerror=alert(1)>",
    '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "# </h1><script>alert(1)</script>",
    "1. <details open ontoggle=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
]


class Reader(html.parser.HTMLParser):
    """Every tag and attribute of some HTML."""

    def __init__(self, text):
        super().__init__()
        self.seen = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))


@pytest.mark.parametrize("attack", ATTACKS)
def test_only_what_is_listed_comes_out(attack):
    for tag, attributes in Reader(comments.render(attack)).seen:
        assert tag in comments.TAGS
        assert set(attributes) <= {"href", "title", "rel", "start"}
        assert urlsplit(attributes.get("href", "")).scheme in ("", "http", "https")
        if tag == "a":
            assert attributes["rel"] == "nofollow ugc noopener"


def test_markdown_becomes_what_it_says():
    text = comments.render("*a* **b** `c` ~~d~~\n\n> e\n\n3. f\n\n- g\n\n[h](https://i.example)\n\n|j|\n|-|\n|k|")
    for part in ("<em>a</em>", "<strong>b</strong>", "<code>c</code>", "<s>d</s>", "<blockquote>", '<ol start="3">',
                 "<ul>", '<a href="https://i.example" rel="nofollow ugc noopener">h</a>', "<td>k</td>"):  # fmt: skip
        assert part in text
    assert "<h1" not in comments.render("# heading\n\nheading\n===")
    assert comments.render("@ada knows") == "<p>@ada knows</p>\n"


@pytest.mark.parametrize(
    "piece", ["[", "![", "*", "_a", "`", ">", "- ", "|", "<", "&", "[a](", "**a ", "~~", "\\", "((", "\t"]
)
def test_no_comment_takes_long_to_read(piece):
    begun = time.process_time()
    comments.render((piece * 10_000)[: comments.LONGEST])
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("text", ["", "  \n\t ", "\u200b", "\u00a0", "&nbsp;", "[a]: https://b.example", "\x00", "***"])
def test_a_comment_that_says_nothing_is_refused(text):
    with pytest.raises(comments.Unwritable, match="needs some words"):
        comments.read(text)


def test_a_comment_has_ten_thousand_characters_at_most():
    assert len(comments.read("é" * 10_000)) == 10_000
    with pytest.raises(comments.Unwritable, match="10,001"):
        comments.read("é" * 10_001)


def post(page, text, client=None, key="2502.10389", **fields):
    client = client or page.client
    return client.post(f"/papers/{key}/comments", data=page.form(client, text=text, **fields))


def test_a_comment_stands_on_the_paper_and_counts_half(any_page):
    paper = any_page.add_paper()
    any_page.sign_in()
    answer = post(any_page, "It **runs**\r\nhere\x00")
    assert answer.headers["location"] == "/papers/2502.10389#comment-1"
    text = any_page.client.get(f"/papers/{paper.key}").text
    assert "It <strong>runs</strong>" in text
    assert "1 comment" in text
    with any_page.database.read() as session:
        kept = session.scalars(sa.select(Paper)).one()
        assert (kept.comments, kept.points) == (1, 0.5)
        assert session.scalars(sa.select(Comment.markdown)).one() == "It **runs**\nhere"


def test_a_refused_comment_comes_back_with_its_text(site_page):
    site_page.add_paper()
    site_page.sign_in()
    long = "x" * 10_001 + "<end>"
    answer = post(site_page, long)
    assert answer.status_code == 422
    assert "10,006" in answer.text
    assert "x&lt;end&gt;" in answer.text
    assert post(site_page, "   ").status_code == 422


def test_a_preview_shows_and_keeps_nothing(site_page):
    site_page.add_paper()
    site_page.sign_in()
    answer = post(site_page, "**so**", action="preview")
    assert "<strong>so</strong>" in answer.text
    assert ">**so**</textarea>" in answer.text
    with site_page.database.read() as session:
        assert session.scalars(sa.select(Comment.id)).all() == []


def test_replies_stand_in_two_levels(site_page):
    site_page.add_paper()
    site_page.sign_in()
    post(site_page, "first")
    post(site_page, "second")
    post(site_page, "to the first", parent="1")
    post(site_page, "to the reply", parent="3")
    assert "first" in site_page.client.get("/comments/1/reply").text
    with site_page.database.read() as session:
        threads = comments.thread(session, 1)
        said = [(one.comment.markdown, [reply.markdown for reply in one.replies]) for one in threads]
    assert said == [("first", ["to the first", "to the reply"]), ("second", [])]


def test_a_reply_needs_a_comment_on_the_same_paper(site_page):
    site_page.add_paper("2502.10389")
    site_page.add_paper("2502.10390")
    site_page.sign_in()
    post(site_page, "first")
    assert post(site_page, "reply", key="2502.10390", parent="1").status_code == 422
    assert post(site_page, "reply", parent="99").status_code == 404
    for parent in ("x", "0", "9" * 5000):
        assert post(site_page, "reply", parent=parent).status_code == 422
    site_page.client.post("/comments/1/delete", data=site_page.form())
    assert post(site_page, "reply", parent="1").status_code == 404


def test_own_comments_are_changed_and_deleted_others_are_not(any_page):
    paper = any_page.add_paper()
    ada, bob, curator = any_page.client, any_page.visitor(), any_page.visitor()
    any_page.sign_in("ada@example.org")
    any_page.sign_in("bob@example.org", client=bob)
    any_page.sign_in("cleo@example.org", role="curator", client=curator)
    post(any_page, "first")
    post(any_page, "a reply", client=bob, parent="1")
    for client in (bob, curator):
        assert client.get("/comments/1/edit").status_code == 403
        assert client.post("/comments/1/edit", data=any_page.form(client, text="x")).status_code == 403
    assert bob.post("/comments/1/delete", data=any_page.form(bob)).status_code == 403
    assert ada.post("/comments/1/edit", data=any_page.form(text=" ")).status_code == 422
    assert ada.post("/comments/1/edit", data=any_page.form(text="changed")).status_code == 303
    text = ada.get(f"/papers/{paper.key}").text
    assert "changed" in text and "edited" in text
    assert ada.post("/comments/1/delete", data=any_page.form()).status_code == 303
    text = ada.get(f"/papers/{paper.key}").text
    assert "changed" not in text and "This comment was deleted" in text and "a reply" in text
    assert ada.get("/comments/1/edit").status_code == 404
    assert curator.post("/comments/2/delete", data=any_page.form(curator)).status_code == 303
    assert "This comment was deleted" not in ada.get(f"/papers/{paper.key}").text
    with any_page.database.read() as session:
        assert session.scalars(sa.select(Paper.comments)).one() == 0
        assert set(session.scalars(sa.select(Comment.markdown))) == {""}


def test_comments_are_limited(site_page):
    site_page.add_paper()
    site_page.sign_in()
    states = [post(site_page, f"comment {number}").status_code for number in range(62)]
    assert states == [303] * 60 + [429] * 2


def test_a_name_is_never_markup(site_page):
    site_page.add_paper()
    site_page.sign_in()
    site_page.client.post("/account", data=site_page.form(name="<script>x</script>"))
    post(site_page, "hello")
    assert "<script>x" not in site_page.client.get("/papers/2502.10389").text
