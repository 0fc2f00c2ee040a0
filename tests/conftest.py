import os
import signal
import sys
import tempfile
from collections.abc import Iterator

# A cache of its own: one shared with other processes can hold a file that a kill left half written.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="everyformer-inductor-")

import pytest
import torch

# Tests run two at a time on small machines; more threads each would only make them wait for one another.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# Jobs in a shell's background ignore Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _compiled_afresh() -> Iterator[None]:
    """What one test compiled would count against the recompilations that torch allows the next."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
