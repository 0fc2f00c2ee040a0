import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from everyformer.lab.measure import peak_extra_bytes
from everyformer.ops.nvfp4 import BACKENDS, GRID, Quantised, dequantise, pack, quantise, unpack, values


def generated(seed, rows, columns, spread, dtype=torch.float32):
    """Rows of very different sizes: some blocks are zero, and scales reach below what E4M3 holds."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * torch.exp(spread * torch.randn(rows, 1, generator=generator))
    x.view(-1, 16)[torch.rand(rows * columns // 16, generator=generator) < 0.2] = 0
    x.view(-1)[torch.rand(x.numel(), generator=generator) < 0.1] *= -0.0
    return x.to(dtype)


def equal(one, other):
    assert torch.equal(one.packed, other.packed)
    assert torch.equal(one.scales.view(torch.uint8), other.scales.view(torch.uint8))
    assert torch.equal(one.tensor_scale, other.tensor_scale)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 40),
    blocks=st.integers(1, 6),
    spread=st.sampled_from([0.0, 1.0, 5.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    size=st.sampled_from([1.0, 1e-30, 1e30]),
)
def test_rounding_to_nearest_is_torchaos_bit_for_bit(seed, rows, blocks, spread, dtype, size):
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

    x = generated(seed, rows, 16 * blocks, spread) * size
    x = x.to(dtype)
    x[0, 0] = size  # torchao divides by zero in a tensor of zeros
    scale = per_tensor_amax_to_scale(x.abs().amax())
    scales, packed = nvfp4_quantize(x, per_tensor_scale=scale)
    for backend in ("reference", "torch"):
        equal(quantise(x, backend=backend), Quantised(packed, scales.view(rows, blocks), scale))


def test_ties_and_signs_are_torchaos():
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

    # Under a tensor scale of 2^-6 and block scales of 64 these are the middles of the grid, and what lies beside them.
    middles = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    beside = torch.cat([middles, middles.nextafter(torch.tensor(9.0)), -middles, -middles.nextafter(torch.tensor(0.0))])
    x = torch.cat([beside.view(-1, 8), torch.full((4, 8), 6.0)], 1)
    x = torch.cat([x, torch.full((1, 16), 42.0)])  # 6 * 448 / 64
    expected = nvfp4_quantize(x, per_tensor_scale=per_tensor_amax_to_scale(x.abs().amax()))
    for backend in ("reference", "torch"):
        found = quantise(x, backend=backend)
        assert float(found.tensor_scale) == 2**-6
        assert torch.equal(found.packed, expected[1])
    magnitude = values(found)[0, :8] / 64
    assert magnitude.tolist() == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.sampled_from([16, 48]),
    blocks=st.integers(1, 5),
    tiled=st.booleans(),
    noisy=st.booleans(),
)
def test_the_fast_quantiser_is_the_reference_bit_for_bit(seed, rows, blocks, tiled, noisy):
    x = generated(seed, rows, 16 * blocks, 3.0)
    noise = torch.rand(x.shape) if noisy else None
    reference, fast = (quantise(x, two_dimensional=tiled, noise=noise, backend=b) for b in ("reference", "torch"))
    equal(fast, reference)
    assert fast.two_dimensional == tiled


def test_the_kernel_is_the_reference_bit_for_bit_in_tritons_interpreter():
    code = """
import torch
from everyformer.ops.nvfp4 import quantise
torch.manual_seed(0)
for rows, columns in ((1, 16), (16, 48), (48, 32), (21, 16)):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(rows, columns) * torch.exp(4 * torch.randn(rows, 1))
        x[0, :16] = 0
        x[-1, 3] = -0.0
        x = x.to(dtype)
        for tiled in {False, rows % 16 == 0}:
            for noise in (None, torch.rand(rows, columns)):
                one, other = (quantise(x, two_dimensional=tiled, noise=noise, backend=b) for b in ("triton", "reference"))
                assert torch.equal(one.packed, other.packed)
                assert torch.equal(one.scales.view(torch.uint8), other.scales.view(torch.uint8))
steps = torch.linspace(0.01, 7, 320).view(20, 16)  # on and beside the middles between neighbours
one, other = (quantise(steps, backend=b) for b in ("triton", "reference"))
assert torch.equal(one.packed, other.packed)
assert quantise(torch.zeros(0, 16), backend="triton").packed.shape == (0, 8)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})


def test_stochastic_rounding_is_unbiased():
    """A mean of 20,000 independent roundings per value: each is within 5.5 standard errors of the value.

    Were rounding unbiased, one of the 240 values would fail with a probability below 240 * 2 * Phi(-5.5) < 1e-5; a bias
    of a twentieth of the gap between neighbours is 14 standard errors or more, and rounding to nearest far more.
    """
    x = torch.cat([torch.linspace(-5.9, 5.9, 240).view(16, 15), torch.full((16, 1), 6.0)], 1)
    draws = 20_000
    # Block scales are 64 and the tensor's is 2^-6, by the value 42 = 6 * 448 / 64: exact, so that nothing saturates.
    many = torch.cat([x.repeat(draws, 1), torch.full((1, 16), 42.0)])
    rounded = dequantise(quantise(many, noise=torch.rand(many.shape)))[:-1].view(draws, 16, 16).double()
    gap = torch.where(x.abs() < 2, 0.5, torch.where(x.abs() < 4, 1.0, 2.0)).double()
    share = (x.abs().double() % gap) / gap
    error = (share * (1 - share) / draws).sqrt() * gap
    assert ((rounded.mean(0) - x.double()).abs() <= 5.5 * error + 1e-6).all()
    assert (rounded.var(0) > 0)[share > 0.01].all()


def test_values_on_the_grid_stay_whatever_the_noise():
    x = torch.tensor([[*GRID, *(-v for v in GRID)], [42.0] * 16])
    for noise in (torch.zeros_like(x), torch.full_like(x, 1 - 2**-24)):
        assert torch.equal(dequantise(quantise(x, noise=noise)), x)


@pytest.mark.parametrize("noisy", [False, True])
def test_tiles_are_the_same_for_the_transposed_matrix(noisy):
    x = generated(0, 48, 64, 2.0)
    noise = torch.rand(x.shape) if noisy else None
    straight = quantise(x, two_dimensional=True, noise=noise)
    turned = quantise(x.mT, two_dimensional=True, noise=None if noise is None else noise.mT)
    assert torch.equal(turned.scales.float(), straight.scales.float().mT)
    assert torch.equal(unpack(turned.packed), unpack(straight.packed).mT)
    assert not torch.equal(dequantise(quantise(x.mT)), dequantise(quantise(x)).mT)


@given(codes=st.lists(st.integers(0, 15), min_size=2, max_size=40).filter(lambda codes: len(codes) % 2 == 0))
def test_packing_round_trip(codes):
    codes = torch.tensor(codes, dtype=torch.uint8)
    packed = pack(codes)
    assert packed.tolist() == [int(low) + 16 * int(high) for low, high in codes.view(-1, 2)]
    assert torch.equal(unpack(packed), codes)


def test_error_is_that_of_the_grid():
    x = torch.randn(64, 256)
    error = (dequantise(quantise(x)) - x).abs().view(64, -1, 16).amax(-1)
    # Neighbours lie at most 2 apart, and a scale that was rounded down, by 1/16 at most, cuts off up to 6/16.
    scale = x.abs().view(64, -1, 16).amax(-1) / 6
    assert (error <= scale * 1.07).all()
    assert 0.05 < (dequantise(quantise(x)) - x).norm() / x.norm() < 0.12


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("tiled", [False, True])
def test_zeros_come_out_as_zeros(backend, tiled):
    x = torch.zeros(32, 32)
    assert torch.equal(dequantise(quantise(x, two_dimensional=tiled, backend=backend)), x)
    x[20, 20] = 42
    assert torch.equal(dequantise(quantise(x, two_dimensional=tiled, backend=backend)), x)


def test_products_of_values_are_exact_in_bf16():
    quantised = quantise(generated(1, 32, 64, 5.0))
    assert torch.equal(values(quantised, torch.bfloat16).float(), values(quantised))


def test_four_and_a_half_bits_in_memory_and_in_a_file(tmp_path):
    quantised = quantise(torch.randn(256, 512))
    assert quantised.nbytes == 256 * 512 * 4.5 / 8 + 4
    file = tmp_path / "weight.safetensors"
    save_file(quantised._asdict(), file)
    assert file.stat().st_size < quantised.nbytes + 400
    equal(Quantised(**load_file(file)), quantised)


@pytest.mark.parametrize("tiled", [False, True])
def test_compile_bf16_and_more_dims(tiled):
    x = torch.randn(3, 32, 48).bfloat16()
    noise = torch.rand(x.shape)
    compiled = torch.compile(quantise, backend="aot_eager", fullgraph=True)
    expected = quantise(x, two_dimensional=tiled, noise=noise)
    equal(compiled(x, two_dimensional=tiled, noise=noise, check=False), expected)
    assert dequantise(expected, torch.bfloat16).shape == x.shape
    equal(Quantised(expected.packed.flatten(0, 1), expected.scales.flatten(0, 1), expected.tensor_scale),
          quantise(x.flatten(0, 1), two_dimensional=tiled, noise=noise.flatten(0, 1)))  # fmt: skip


def test_no_rows():
    for backend in BACKENDS[:2]:
        assert dequantise(quantise(torch.zeros(0, 32), backend=backend)).shape == (0, 32)


def test_memory_is_a_few_times_the_tensor():
    x = torch.randn(256, 1024)
    assert peak_extra_bytes(lambda: quantise(x)) <= 3.5 * x.nbytes


def test_without_a_check_what_is_not_finite_is_seen_when_read():
    for bad in (float("inf"), float("nan")):
        x = torch.randn(16, 16)
        x[3, 3] = bad
        assert dequantise(quantise(x, check=False)).isnan().all()


def test_bad_input_is_named():
    for bad in (float("inf"), -float("inf"), float("nan")):
        x = torch.zeros(4, 16)
        x[1, 2] = bad
        for backend in BACKENDS[:2]:
            with pytest.raises(ValueError, match="x must be finite"):
                quantise(x, backend=backend)
    with pytest.raises(ValueError, match="x must have a multiple of 16 values along dim -1, got 24"):
        quantise(torch.zeros(2, 24))
    with pytest.raises(ValueError, match="x must have a multiple of 16 values along dim -2, got 2"):
        quantise(torch.zeros(2, 16), two_dimensional=True)
    with pytest.raises(ValueError, match="x must have at least 2 dims, got 1"):
        quantise(torch.zeros(16), two_dimensional=True)
    with pytest.raises(ValueError, match="noise must be of the shape of x"):
        quantise(torch.zeros(2, 16), noise=torch.zeros(16))
    with pytest.raises(ValueError, match="backend must be one of"):
        quantise(torch.zeros(2, 16), backend="cuda")
    with pytest.raises(TypeError, match="x must be float32"):
        quantise(torch.zeros(2, 16, dtype=torch.float64))
    with pytest.raises(ValueError, match="codes must come in pairs"):
        pack(torch.zeros(3, dtype=torch.uint8))
