import pytest

from everyformer.lab import data


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of its own, so that training is part of the test."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "cache", lambda: folder)
        yield folder
