import os
import tempfile

# A cache of its own: one shared with other processes can hold a file that a kill left half written.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="everyformer-inductor-")

import pytest
import torch

# Tests run two at a time on small machines; more threads each would only make them wait for one another.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
