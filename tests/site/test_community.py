"""Votes, saved papers and their counts."""

import threading

import pytest
import sqlalchemy as sa

from everyformer.site import comments, people
from everyformer.site.models import Paper, Person, Vote


def count_of(page):
    with page.database.read() as session:
        paper = session.scalars(sa.select(Paper)).one()
        return paper.votes, paper.comments, paper.points


def test_a_vote_counts_once_and_is_taken_back_once(any_page):
    paper = any_page.add_paper()
    any_page.sign_in()
    for vote, expected in (("up", 1), ("up", 1), ("none", 0), ("none", 0), ("up", 1)):
        answer = any_page.client.post(f"/papers/{paper.key}/vote", data=any_page.form(vote=vote))
        assert answer.status_code == 303
        assert count_of(any_page) == (expected, 0, expected)


def test_without_javascript_the_form_leads_back_to_its_place(site_page):
    paper = site_page.add_paper()
    site_page.sign_in()
    for referer, place in (
        ("http://127.0.0.1:8000/?view=newest&p=1", f"/?view=newest&p=1#p-{paper.id}"),
        ("http://127.0.0.1:8000/?view=newest&said=signed-in", f"/?view=newest#p-{paper.id}"),
        ("https://evil.example/x", f"/#p-{paper.id}"),
    ):
        answer = site_page.client.post(
            f"/papers/{paper.key}/vote", data=site_page.form(vote="up"), headers={"referer": referer}
        )
        assert answer.headers["location"] == place


def test_htmx_gets_the_new_button(site_page):
    paper = site_page.add_paper()
    site_page.sign_in()
    headers = {"hx-request": "true"}
    voted = site_page.client.post(f"/papers/{paper.key}/vote", data=site_page.form(vote="up"), headers=headers)
    assert 'aria-pressed="true"' in voted.text and 'value="none"' in voted.text and "<html" not in voted.text
    saved = site_page.client.post(f"/papers/{paper.key}/save", data=site_page.form(save="yes"), headers=headers)
    assert "Saved" in saved.text


def test_a_saved_paper_is_on_the_list_until_it_is_taken_off(site_page):
    paper = site_page.add_paper()
    site_page.sign_in()
    for save, there in (("yes", True), ("yes", True), ("none", False), ("none", False)):
        site_page.client.post(f"/papers/{paper.key}/save", data=site_page.form(save=save))
        assert (paper.title in site_page.client.get("/account").text) is there


@pytest.mark.parametrize("arxiv", ["2502.10389", "hep-th/9901001"])
def test_papers_are_found_by_either_form_of_identifier(site_page, arxiv):
    site_page.add_paper(arxiv)
    site_page.sign_in()
    assert site_page.client.post(f"/papers/{arxiv}/vote", data=site_page.form(vote="up")).status_code == 303
    assert count_of(site_page)[0] == 1


def test_wrong_votes_and_unknown_papers_are_refused(site_page):
    paper = site_page.add_paper()
    site_page.sign_in()
    assert site_page.client.post("/papers/none/vote", data=site_page.form(vote="up")).status_code == 404
    for which in ("vote", "save"):
        for value in ("", "2", "up up"):
            answer = site_page.client.post(f"/papers/{paper.key}/{which}", data=site_page.form(**{which: value}))
            assert answer.status_code == 422
    assert count_of(site_page) == (0, 0, 0)


def test_who_is_not_signed_in_gets_no_vote(site_page):
    paper = site_page.add_paper()
    page = f"http://127.0.0.1:8000/papers/{paper.key}"
    answer = site_page.client.post(
        f"/papers/{paper.key}/vote", data=site_page.form(vote="up"), headers={"referer": page}
    )
    assert answer.headers["location"] == "/sign-in?next=%2Fpapers%2F2502.10389"
    answer = site_page.client.post(
        f"/papers/{paper.key}/vote", data=site_page.form(vote="up"), headers={"referer": page, "hx-request": "true"}
    )
    assert answer.headers["hx-redirect"] == "/sign-in?next=%2Fpapers%2F2502.10389"
    assert count_of(site_page) == (0, 0, 0)


def test_votes_and_comments_at_once_leave_right_counts(any_page):
    paper = any_page.add_paper()
    with any_page.database.write() as session:
        everybody = [Person(email=f"p{n}@example.org", name=f"p{n}", created_at=any_page.clock()) for n in range(20)]
        session.add_all(everybody)
    start = threading.Barrier(20)
    failures = []

    def act(number, person):
        try:
            start.wait()
            people.set_vote(any_page.site, person, paper.id, True)
            comments.add(any_page.site, person, paper.id, "Well", None)
            people.set_vote(any_page.site, person, paper.id, number % 4 != 0)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=act, args=pair) for pair in enumerate(everybody)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert count_of(any_page) == (15, 20, 25.0)
    with any_page.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Vote)) == 15
