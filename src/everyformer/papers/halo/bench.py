"""Speed of HALO's parts beside what they replace: rotation, product, layer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from everyformer.lab.bench import Case
from everyformer.ops.hadamard import hadamard, hadamard_matrix
from everyformer.ops.scaled_matmul import quantise, scaled_matmul
from everyformer.papers.halo.method import convert


def cases(quick: bool, device: str) -> Iterator[Case]:
    """A rotation at 4,096, a product and a training step of a layer; ``quick`` takes fewer rows and a narrower layer."""
    rows, width = (128, 512) if quick else (512, 2048)
    x = torch.randn(rows, 4096, device=device)
    matrix = hadamard_matrix(4096).to(x)
    yield Case(
        "Hadamard transform, 4096",
        lambda: hadamard(x),
        {"dense product": lambda: x @ matrix},
        3.0,
        f"{rows} rows, float32",
    )

    a, b = torch.randn(rows, width, device=device), torch.randn(width, width, device=device)
    a16, b16 = a.bfloat16(), b.bfloat16()
    for format in ("int8", "fp8"):
        rounded = (*quantise(a, format), *quantise(b, format))
        yield Case(
            f"product, {format}",
            functools.partial(product, *rounded),
            {"bf16": lambda: a16 @ b16.mT, "float32": lambda: a @ b.mT},
            None,
            f"{rows} x {width} x {width}, both sides rounded before",
        )

    half = nn.Linear(width, width, bias=False, device=device, dtype=torch.bfloat16)
    peers = {"bf16": training(half, rows), "float32": training(copy.deepcopy(half).float(), rows)}
    for level in (0, 1, 2):
        layer = convert(copy.deepcopy(half), level=level, format="int8")
        yield Case(f"layer, int8, level {level}", training(layer, rows), peers, None, "forward and backward")
    if not quick:
        peers = {"torchao int8 mixed precision": training(_torchao(half), rows), **peers}
        layer = convert(copy.deepcopy(half), level=0, format="int8")
        yield Case("layer, int8, level 0, beside torchao", training(layer, rows), peers, None, "forward and backward")


def product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    """a b^T of rounded matrices."""
    return scaled_matmul(a, a_scale, b.mT, b_scale)


def training(layer: nn.Module, rows: int) -> Callable[[], None]:
    """The layer's output and both gradients."""
    weight = next(layer.parameters())
    x = torch.randn(rows, weight.shape[1], device=weight.device, dtype=weight.dtype, requires_grad=True)
    errors = torch.randn(rows, weight.shape[0], device=weight.device, dtype=weight.dtype)

    def run() -> None:
        torch.autograd.grad(layer(x), [x, weight], errors)

    return run


def _torchao(layer: nn.Linear) -> nn.Module:
    from torchao.prototype.quantized_training import int8_mixed_precision_training
    from torchao.quantization import quantize_

    peer = nn.Sequential(copy.deepcopy(layer))
    quantize_(peer, int8_mixed_precision_training())
    return peer
