import pytest
import torch

from everyformer.papers.itransformer import ITransformer, checkpoint


def state():
    torch.manual_seed(0)
    return checkpoint.export(ITransformer(24, 8, dim=16, heads=4, layers=2, ff=20))


def test_a_prefix_of_data_parallel_is_accepted():
    plain = state()
    wrapped = {f"module.{key}": value for key, value in plain.items()}
    x = torch.randn(2, 24, 3)
    a, b = (checkpoint.load(s, {"n_heads": 4}).eval() for s in (plain, wrapped))
    torch.testing.assert_close(a(x), b(x))


def test_the_number_of_heads_must_be_given():
    with pytest.raises(ValueError, match="config must give n_heads"):
        checkpoint.load(state(), {})


def test_both_layouts_go_there_and_back():
    model = checkpoint.load(state(), {"n_heads": 4})
    library = checkpoint.export(model, layout="library")
    assert "projection.weight" in library
    again = checkpoint.load(library, {"n_heads": 4})
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
