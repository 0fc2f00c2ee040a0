"""Both databases: the same tables from nothing, and what was there stays."""

import datetime

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from everyformer.site.database import Database
from everyformer.site.models import Base, Paper

NOW = datetime.datetime(2026, 11, 25, tzinfo=datetime.timezone.utc)
# Full text is each database's own affair: the migration makes it, the models do not know it.
OWN = ("paper_fts", "document")


def test_migrations_give_the_tables_of_the_models(database_url):
    database = Database(database_url)
    database.migrate()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        different = [step for step in compare_metadata(context, Base.metadata) if not any(o in str(step) for o in OWN)]
    assert different == []
    database.close()


def test_migrating_again_keeps_what_is_there(database_url):
    database = Database(database_url)
    database.migrate()
    with database.write() as session:
        session.add(
            Paper(arxiv="2502.10389", title="Kept", ordered_on=NOW.date(), submitted_at=NOW, submitted_on=NOW.date())
        )
    database.migrate()
    with database.read() as session:
        assert session.scalars(sa.select(Paper.title)).all() == ["Kept"]
        assert session.scalars(sa.select(Paper.submitted_at)).one() == NOW
    database.close()


def test_a_failed_write_leaves_nothing(database_url):
    database = Database(database_url)
    database.migrate()
    with pytest.raises(RuntimeError), database.write() as session:
        session.add(Paper(arxiv="1", title="x", ordered_on=NOW.date(), submitted_at=NOW, submitted_on=NOW.date()))
        session.flush()
        raise RuntimeError
    with database.read() as session:
        assert session.scalars(sa.select(Paper.id)).all() == []
    database.close()


def test_a_moment_without_a_zone_is_refused(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'site.db'}")
    database.migrate()
    with pytest.raises(sa.exc.StatementError, match="needs a time zone"), database.write() as session:
        session.add(
            Paper(
                arxiv="1",
                title="x",
                ordered_on=NOW.date(),
                submitted_at=NOW.replace(tzinfo=None),
                submitted_on=NOW.date(),
            )
        )
