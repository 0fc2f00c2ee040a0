"""A folded network as an ONNX file (needs the extra ``onnx``)."""

from __future__ import annotations

from pathlib import Path

import torch
from timm.utils import reparameterize_model
from torch import nn


def to_onnx(model: nn.Module, path: str | Path, size: int | tuple[int, int] = 224) -> Path:
    """Write ``model``, folded and in evaluation, as ONNX; the model itself stays as it is.

    The file has one input, ``x`` of (batch, channels, height, width) with any batch, and one output, ``logits``.

    Args:
        model: an FMViT, folded or not.
        path: the file.
        size: height and width of the pictures.

    Returns:
        ``path``.
    """
    path = Path(path)
    height, width = (size, size) if isinstance(size, int) else size
    folded = reparameterize_model(model).eval()  # a copy
    like = next(folded.parameters())
    first = next(module for module in folded.modules() if isinstance(module, nn.Conv2d))
    # Two pictures: a batch of one would be taken for a constant.
    picture = torch.zeros(2, first.in_channels, height, width, dtype=like.dtype, device=like.device)
    torch.onnx.export(
        folded,
        (picture,),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["x"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    return path
