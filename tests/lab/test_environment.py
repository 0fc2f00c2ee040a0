import pytest
import torch

from everyformer.lab import environment


@pytest.mark.parametrize(("threads", "words"), [(1, "1 thread"), (4, "4 threads")])
def test_a_cpu_is_named_with_the_threads_in_use(threads, words, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model, _, said = environment.device_name("cpu").rpartition(", ")
    assert model and said == words


def test_a_device_that_is_not_here_is_refused_with_those_that_are():
    assert environment.check_device("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"device must be one of cpu.*, got 'abacus'"):
        environment.check_device("abacus")
