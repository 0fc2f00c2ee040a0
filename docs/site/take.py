"""Takes the pictures of this folder: `python docs/site/take.py`, with Chromium installed.

It fills a page with the catalogue, a few votes and comments by made-up people, and the digest of the day before, starts
the real server on it and photographs what a visitor and a subscriber see.
"""

from __future__ import annotations

import asyncio
import datetime
import email
import email.policy
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from everyformer.site import comments, digests, mail, people, semantic
from everyformer.site.catalogue import import_catalogue
from everyformer.site.database import Database
from everyformer.site.models import Paper, Person, Subscription
from everyformer.site.settings import Settings
from everyformer.site.web import Site, utc_now

HERE = Path(__file__).parent
VOTES = {"sla": 5, "itransformer": 4, "mpnn_gt": 3, "bytetransformer": 3, "icl_gd": 2, "nvfp4": 2, "uat": 1}
SAID = [
    ("sla", "Ada", "Swapped it into a small DiT with `replace_attention`: **9x** at 8,192 tokens here as well."),
    ("sla", "Alan", "Below 1,000 tokens I see no gain on two cores, as the plot says."),
    ("itransformer", "Grace", "The `Forecaster` took our frames as they were."),
]


def fill(data: Path) -> None:
    """Papers that came this morning, people, and a digest that is in the mail."""
    settings = Settings(_env_file=None, data=data)
    database = Database(settings.database_url)
    database.migrate()
    now = utc_now()
    site = Site(settings, database)
    import_catalogue(site)
    semantic.refit(site)
    names = ["Ada", "Alan", "Grace", "Barbara", "Edsger"]
    with database.write() as session:
        someone = {name: Person(email=f"{name}@example.org", name=name, created_at=now) for name in names}
        session.add_all(someone.values())
        session.flush()
        papers = {paper.slug: paper.id for paper in session.scalars(sa.select(Paper))}
    for slug, votes in VOTES.items():
        for name in names[:votes]:
            people.set_vote(site, someone[name], papers[slug], up=True)
    for slug, name, text in SAID:
        comments.add(site, someone[name], papers[slug], text, None)
    # The digest tells of a day that is over: for its sake the papers came yesterday.
    with database.write() as session:
        ago = now - datetime.timedelta(days=2)
        session.add(Subscription(email="ada@example.org", scope="all", period="day", created_at=ago, confirmed_at=ago))
        yesterday = (now - datetime.timedelta(hours=digests.HOUR, days=1)).date()
        session.execute(sa.update(Paper).values(submitted_on=yesterday))
    digests.queue_due(site)
    asyncio.run(mail.send_due(site))
    with database.write() as session:
        session.execute(sa.update(Paper).values(submitted_on=now.date()))
    database.close()


def photograph(browser: Browser, url: str, name: str, height: int) -> None:
    """Light, dark and on a phone; few colours, so that the files stay small."""
    for kind, width, tall, scheme in (
        ("light", 1100, height, "light"), ("dark", 1100, height, "dark"), ("phone", 390, 844, "light"),
    ):  # fmt: skip
        context = browser.new_context(
            viewport={"width": width, "height": tall}, color_scheme=scheme, device_scale_factor=2 if width < 500 else 1
        )
        tab = context.new_page()
        tab.goto(url)
        tab.wait_for_load_state("networkidle")
        file = HERE / f"{name}-{kind}.png"
        tab.screenshot(path=file)
        Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
        context.close()
        print(file, file.stat().st_size // 1000, "kB")


def main() -> None:
    data = Path(tempfile.mkdtemp(prefix="everyformer-site-"))
    fill(data)
    server = subprocess.Popen(
        [sys.executable, "-m", "everyformer", "serve", "--port", "0", "--data", str(data)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"EVERYFORMER_SITE_REQUESTS_PER_MINUTE": "0"},
    )  # fmt: skip
    try:
        assert server.stdout
        url = re.search(r"http://\S+", server.stdout.readline())[0]  # type: ignore[index]
        letter = next(data.glob("mail/*.eml"))
        message = email.message_from_bytes(letter.read_bytes(), policy=email.policy.default)
        digest = data / "digest.html"
        digest.write_text(message.get_body(("html",)).get_content(), encoding="utf-8")
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or "chromium"
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-quic"])
            photograph(browser, url, "feed", 1000)
            photograph(browser, f"{url}/papers/sla", "paper", 1000)
            photograph(browser, f"{url}/search?q=faster+attention+for+video", "search", 1000)
            photograph(browser, digest.as_uri(), "digest", 1000)
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)
        shutil.rmtree(data)


if __name__ == "__main__":
    main()
