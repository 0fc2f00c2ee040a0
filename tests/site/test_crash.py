"""The server is killed while many people vote and comment: what it said yes to is there, and it all adds up."""

import random
import threading
import time

import httpx
import sqlalchemy as sa

from everyformer.site.models import Comment, Paper, Person, Vote

CLIENTS = 20
ENOUGH, SECONDS = 400, 60.0  # answers after which the server is killed, and the longest wait for them


class Someone(threading.Thread):
    """Votes, takes votes back and comments as fast as the server answers, and remembers what it said yes to."""

    def __init__(self, server, number, papers):
        super().__init__()
        self.number, self.papers = number, papers
        self.client = server.visitor(f"someone-{number}@example.org")
        self.fields = server.form(self.client)
        self.votes: dict[str, bool] = {}
        self.comments: list[str] = []
        self.open: str | None = None  # the paper of a vote that was never answered

    def run(self):
        chance = random.Random(self.number)
        for count in range(100_000):
            paper = chance.choice(self.papers)
            try:
                if count % 3 == 2:
                    text = f"comment {count} of {self.number}"
                    answer = self.client.post(f"/papers/{paper}/comments", data=self.fields | {"text": text})
                    if answer.status_code == 303:
                        self.comments.append(text)
                else:
                    up = not self.votes.get(paper, False)
                    self.open = paper
                    vote = "up" if up else "none"
                    answer = self.client.post(f"/papers/{paper}/vote", data=self.fields | {"vote": vote})
                    assert answer.status_code == 303
                    self.votes[paper], self.open = up, None
            except httpx.TransportError:
                return


def answered(people):
    """Votes and comments that the server said yes to."""
    return sum(len(someone.votes) + len(someone.comments) for someone in people)


def test_nothing_that_was_acknowledged_is_lost_when_the_server_is_killed(serve):
    server = serve("--no-worker")
    with server.database.read() as session:
        papers = list(session.scalars(sa.select(Paper.slug).where(Paper.slug.is_not(None))))
    people = [Someone(server, number, papers) for number in range(CLIENTS)]
    for someone in people:
        someone.start()
    deadline = time.monotonic() + SECONDS
    while answered(people) < ENOUGH and time.monotonic() < deadline:
        time.sleep(0.1)
    server.process.kill()
    for someone in people:
        someone.join(20)
        assert not someone.is_alive()
    server.process.wait()
    assert answered(people) > 5 * CLIENTS

    server = serve("--no-worker")
    with server.database.read() as session:
        for someone in people:
            me = session.scalar(sa.select(Person.id).where(Person.email == f"someone-{someone.number}@example.org"))
            votes = set(session.scalars(sa.select(Paper.slug).join(Vote).where(Vote.person_id == me)))
            for paper, up in someone.votes.items():
                assert paper == someone.open or (paper in votes) == up
            kept = session.scalars(sa.select(Comment.markdown).where(Comment.person_id == me)).all()
            assert len(kept) == len(set(kept))
            assert set(someone.comments) <= set(kept)
            assert len(kept) - len(someone.comments) <= 1  # the one that was not answered
        for paper in session.scalars(sa.select(Paper)):
            count = sa.select(sa.func.count())
            assert paper.votes == session.scalar(count.where(Vote.paper_id == paper.id))
            assert paper.comments == session.scalar(count.where(Comment.paper_id == paper.id))
            assert paper.points == paper.votes + paper.comments / 2
    assert server.visitor().get("/").status_code == 200
