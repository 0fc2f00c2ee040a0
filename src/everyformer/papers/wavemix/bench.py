"""Speed of the transform beside PyWavelets and a grouped convolution, and of networks beside timm's of equal parameters."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everyformer.lab.bench import Case
from everyformer.lab.images import inference, training_step
from everyformer.lab.measure import count_parameters
from everyformer.ops.dwt import dwt2d, haar2d, ihaar2d
from everyformer.papers.wavemix.claim import LITE, resnet, vit
from everyformer.papers.wavemix.model import WaveMix


def cases(quick: bool, device: str) -> Iterator[Case]:
    """One and several levels of Haar, its inverse, Daubechies; a training step and inference of small networks."""
    x = torch.randn(4 if quick else 16, 64, 64, 64, device=device)
    note = f"{tuple(x.shape)}, float32"
    for levels in (1, 4):
        peers: dict[str, Callable[[], Any]] = {}
        if importlib.util.find_spec("pywt") is not None and device == "cpu":
            peers["PyWavelets"] = _pywavelets(x, "haar", levels)
        peers["grouped convolution"] = functools.partial(grouped, x, levels)
        yield Case(f"haar, {levels} levels", functools.partial(haar2d, x, levels), peers, 3.0, note)
    low, highs = haar2d(x)
    yield Case("haar, inverse of 1 level", lambda: ihaar2d(low, highs), {}, None, note)
    if importlib.util.find_spec("pywt") is not None and device == "cpu":
        yield Case("db4, 1 level", lambda: dwt2d(x, "db4"), {"PyWavelets": _pywavelets(x, "db4", 1)}, None, note)

    pictures = torch.randn(16 if quick else 64, 3, 32, 32, device=device)
    ours = WaveMix(10, **LITE).to(device)
    size = count_parameters(ours)
    peers_of_size = {
        "ViT, patches of 2": vit(size, 2).to(device),
        "ViT, patches of 4": vit(size, 4).to(device),
        "ResNet": resnet(size).to(device),
    }
    note = f"{len(pictures)} pictures of 32 x 32, about {size} parameters"
    for name, work in (("training step", training_step), ("inference", inference)):
        peers = {peer: work(model, pictures) for peer, model in peers_of_size.items()}
        yield Case(name, work(ours, pictures), peers, None, note)
    if not quick:
        compiled = inference(ours, pictures, compiled=True)
        yield Case("inference, compiled", compiled, {"eager": inference(ours, pictures)}, 1.0, note)


def grouped(x: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
    """Haar as wavelet packages for torch compute it: a convolution with four fixed filters per channel."""
    signs = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], device=x.device) / 2
    weight = signs.view(4, 1, 2, 2).repeat(x.shape[1], 1, 1, 1)
    highs = []
    for _ in range(levels):
        bands = F.conv2d(x, weight, stride=2, groups=x.shape[1]).unflatten(1, (-1, 4))
        x = bands[:, :, 0]
        highs.append(bands[:, :, 1:])
    return x, highs


def _pywavelets(x: Tensor, wavelet: str, levels: int) -> Callable[[], Any]:
    import pywt

    array = x.cpu().numpy()
    return lambda: pywt.wavedec2(array, wavelet, mode="periodization", level=levels)
