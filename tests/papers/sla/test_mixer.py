import pytest
import torch

from everyformer import mixers


def test_with_all_blocks_critical_it_is_full_attention():
    full = mixers.create("full", 32)
    sla = mixers.create("sla", 32, critical=1.0, negligible=0.0, block=8)
    sla.load_state_dict(full.state_dict())
    x = torch.randn(2, 40, 32)
    torch.testing.assert_close(sla(x), full(x), rtol=1e-4, atol=1e-5)


def test_a_projection_that_is_there_is_loaded_and_half_of_one_is_refused():
    sla, other = (mixers.create("sla", 32, block=8) for _ in range(2))
    torch.nn.init.normal_(sla.attention.proj.weight)
    other.load_state_dict(sla.state_dict())
    assert torch.equal(other.attention.proj.weight, sla.attention.proj.weight)
    other.load_state_dict(mixers.create("full", 32).state_dict())
    assert not other.attention.proj.weight.any()
    state = sla.state_dict()
    del state["attention.proj.bias"]
    with pytest.raises(RuntimeError, match=r"attention\.proj\.bias"):
        other.load_state_dict(state)
