"""What the page can be told by its environment; every name has the prefix ``EVERYFORMER_SITE_``."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of the page, its worker and its mail; from ``EVERYFORMER_SITE_<NAME>`` or a ``.env`` file.

    ``data`` is the folder of everything that is kept: the database file, runs, mail that had nowhere to go.
    ``database`` is an SQLAlchemy URL; empty for SQLite in ``data``. ``public_url`` is what links in mail begin with.
    ``smtp_host`` empty means that mail is written to ``data/mail`` instead of being sent.
    ``curators`` are the addresses that may start runs, separated by commas.
    ``network`` allows the importer to ask arXiv, and nobody else, for papers submitted by identifier.
    """

    model_config = SettingsConfigDict(env_prefix="EVERYFORMER_SITE_", env_file=".env", extra="ignore")

    data: Path = Path("everyformer-site")
    database: str = ""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    processes: int = Field(default=1, ge=1, le=64, description="Web processes; each serves every page.")
    public_url: str = ""
    trusted_proxies: str = Field(default="127.0.0.1", description="Addresses whose X-Forwarded-For is believed.")
    secret: SecretStr = Field(
        default=SecretStr(""), description="Signs links and forms; made and kept in DATA when empty."
    )

    smtp_host: str = ""
    smtp_port: int = Field(default=587, ge=1, le=65535)
    smtp_user: str = ""
    smtp_password: SecretStr = SecretStr("")
    smtp_security: str = Field(default="starttls", pattern="^(starttls|tls|none)$")
    mail_from: str = "everyformer <papers@localhost>"

    curators: str = ""
    network: bool = False
    embedder: str = "everyformer.site.semantic:LSA"
    runs_at_once: int = Field(default=1, ge=1, le=16)
    cache_seconds: float = Field(
        default=1.0, ge=0, description="How old a page for readers who are not signed in may be."
    )
    requests_per_minute: int = Field(default=600, ge=0, description="Pages for one address; 0 for no limit.")
    results: Path | None = Field(default=None, description="Recorded results that go before those of the library.")

    @field_validator("public_url")
    @classmethod
    def _plain_origin(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"public_url must begin with http:// or https://, got {value!r}")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _origin_of_the_address(self) -> Settings:
        if not self.public_url:
            host = f"[{self.host}]" if ":" in self.host else self.host
            self.public_url = f"http://{host}:{self.port}"
        return self

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the database."""
        return self.database or f"sqlite:///{self.data.resolve() / 'site.db'}"

    @property
    def hosts(self) -> list[str]:
        """Names that requests may give as their host: no other site's name can be made to point here and be believed."""
        public = urlsplit(self.public_url).hostname or ""
        return ["*"] if public == "0.0.0.0" else sorted({public, self.host, "127.0.0.1", "localhost"})

    @property
    def curator_addresses(self) -> frozenset[str]:
        """Addresses with the role of a curator, in lower case."""
        return frozenset(part.strip().lower() for part in self.curators.split(",") if part.strip())

    def signing_key(self) -> str:
        """The secret, or one made on first use and kept in ``data`` for the owner's eyes only."""
        if self.secret.get_secret_value():
            return self.secret.get_secret_value()
        file = self.data / "secret"
        self.data.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(handle, "w", encoding="ascii") as new:
                new.write(secrets.token_urlsafe(32))
        return file.read_text(encoding="ascii").strip()
