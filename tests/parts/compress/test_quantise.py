import pytest
import torch
from torch import nn

from everyformer.parts.compress import anatomy, factors, pruning, quantise, storage

METHODS = {
    "int8_weights": (quantise.int8_weights, 0.02, 0.3),
    "int8_dynamic": (quantise.int8_dynamic, 0.05, 0.3),
    "int4_weights": (lambda model: quantise.int4_weights(model, group=16), 0.3, 0.3),
    "nvfp4_weights": (quantise.nvfp4_weights, 0.3, 0.2),
}


def blocks_only():
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Linear(64, 64), nn.GELU())  # noqa: E731
    return nn.Sequential(block(), block())


@pytest.mark.parametrize("name", METHODS)
def test_fewer_bits_are_near_and_the_file_is_small_and_comes_back(name, tmp_path):
    treat, error, share = METHODS[name]
    model, x = blocks_only().eval(), torch.randn(8, 64)
    expected, size = model(x), len(storage.to_bytes(model))
    with torch.no_grad():
        out = treat(model)(x)
        assert (out - expected).norm() < error * expected.norm()
        assert (out - expected).norm() > 0
        written = storage.to_bytes(model)
        assert len(written) < share * size + 1500  # names and shapes take the rest
        file = tmp_path / "model.safetensors"
        file.write_bytes(written)
        torch.manual_seed(1)
        other = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(2))).eval()
        other = treat(other)
        assert not torch.allclose(other(x), out)
        torch.testing.assert_close(storage.load(other, file)(x), out, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["ours", "gpt2", "vit"])
@pytest.mark.parametrize("name", METHODS)
def test_models_of_any_origin_are_treated_in_their_blocks_only(models, kind, name):
    model, inputs = models.build(kind)
    expected = models.logits(anatomy.prepare(model), inputs)
    untouched = {id(layer) for layer in model.modules() if isinstance(layer, nn.Linear)}
    untouched -= {id(layer) for layer in anatomy.linears(model).values()}
    METHODS[name][0](model)
    out = models.logits(model, inputs)
    assert 0 < (out - expected).norm() < 0.5 * expected.norm()
    for layer in model.modules():
        if id(layer) in untouched:
            assert type(layer.weight) is nn.Parameter


@pytest.mark.parametrize("name", ["int8_weights", "nvfp4_weights"])
def test_shared_blocks_are_held_and_written_once(models, name):
    model, inputs = models.build("ours")
    sizes = [len(storage.to_bytes(METHODS[name][0](models.build("ours")[0])))]
    factors.share_blocks(model, 2)
    METHODS[name][0](model)
    sizes.append(len(storage.to_bytes(model)))
    assert sizes[1] < 0.75 * sizes[0]
    assert models.logits(model, inputs).isfinite().all()


def test_nvfp4_layers_run_in_bfloat16_and_compiled():
    model, x = quantise.nvfp4_weights(blocks_only()), torch.randn(4, 64)
    low = model.bfloat16()
    assert low(x.bfloat16()).dtype == torch.bfloat16
    model = quantise.nvfp4_weights(blocks_only())
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_what_does_not_divide_or_was_treated_is_refused():
    odd = nn.Sequential(nn.Linear(20, 20), nn.GELU())
    with pytest.raises(ValueError, match="multiple of 16, got 20 in '0'"):
        quantise.nvfp4_weights(odd)
    with pytest.raises(ValueError, match="group must divide a layer's inputs, got 32 for 20"):
        quantise.int4_weights(odd)
    done = quantise.int8_weights(blocks_only())
    assert "out_features=64, bias=True, weight=Int8Tensor" in repr(done) and done[0][0].weight.shape == (64, 64)
    for again in (quantise.int8_weights, quantise.int4_weights, quantise.nvfp4_weights):
        with pytest.raises(ValueError, match="plain numbers to compress, got Int8Tensor"):
            again(done)


def test_zeros_of_four_bit_weights_take_a_bit_too(tmp_path):
    treat = METHODS["int4_weights"][0]
    whole, half = treat(blocks_only()), treat(pruning.magnitude(blocks_only(), 0.6))
    assert len(storage.to_bytes(half)) < 0.9 * len(storage.to_bytes(whole))
    file = tmp_path / "model.safetensors"
    file.write_bytes(storage.to_bytes(half))
    x = torch.randn(3, 64)
    with torch.no_grad():
        torch.testing.assert_close(storage.load(whole, file)(x), half(x), rtol=0, atol=0)


def test_zeros_take_a_bit_in_the_file_and_come_back(tmp_path):
    model = pruning.magnitude(blocks_only(), 0.75)
    dense, written = len(storage.to_bytes(blocks_only())), storage.to_bytes(model)
    assert len(written) < 0.33 * dense
    file = tmp_path / "model.safetensors"
    file.write_bytes(written)
    other = storage.load(nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(2))), file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_a_file_of_another_model_is_refused_by_the_tensors_name(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(storage.to_bytes(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))))
    with pytest.raises(ValueError, match=r"got '1\.bias'"):
        storage.load(nn.Sequential(nn.Linear(4, 4)), file)
    with pytest.raises(ValueError, match=r"must hold '2\.weight'"):
        storage.load(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), file)
    with pytest.raises(ValueError, match=r"'0.weight' must be of shape \(4, 3\), got \(4, 4\)"):
        storage.load(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)), file)
