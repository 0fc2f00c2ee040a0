import os

import pytest
import torch

# Tests run two at a time on small machines; more threads each would only make them wait for one another.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
