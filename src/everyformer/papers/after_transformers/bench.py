"""Mixers beside transformers' modules of the same kind in plain PyTorch, forward and in a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from everyformer.lab.bench import Case
from everyformer.lab.measure import forward_pass, gradient_pass
from everyformer.parts.mixers.full import FullAttention
from everyformer.parts.mixers.retention import Retention
from everyformer.parts.mixers.rwkv import RWKV
from everyformer.parts.mixers.ssd import SSD


def cases(quick: bool, device: str) -> Iterator[Case]:
    """Width 256, 2,048 tokens (``quick``: 64 and 128); both Mamba-2 modules have the same sizes and give the same."""
    import transformers
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
    from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

    dim, tokens = (64, 128) if quick else (256, 2048)
    x = torch.randn(1, tokens, dim, device=device)
    mamba2 = transformers.Mamba2Config(
        hidden_size=dim, num_heads=8, head_dim=dim // 4, state_size=64, n_groups=1, expand=2, chunk_size=64
    )
    rwkv4 = transformers.RwkvConfig(
        hidden_size=dim, attention_hidden_size=dim, context_length=tokens, num_hidden_layers=1
    )
    full, theirs, older = FullAttention(dim, causal=True), Mamba2Mixer(mamba2, layer_idx=0), RwkvSelfAttention(rwkv4, 0)
    kinds: dict[str, tuple[nn.Module, dict[str, nn.Module]]] = {
        "Mamba-2": (SSD(dim, heads=8), {"transformers": theirs, "full attention": full}),
        "RWKV-6": (RWKV(dim), {"transformers' RWKV-4": older, "full attention": full}),
        "retention": (Retention(dim), {"full attention": full}),
    }
    for way, timed in (("forward", forward_pass), ("training step", _training)):
        for name, (ours, peers) in kinds.items():
            modules = {peer: timed(module.to(device), x) for peer, module in peers.items()}
            yield Case(f"{name}, {way}", timed(ours.to(device), x), modules, 1.0, f"{tokens} tokens of width {dim}")


def _training(module: nn.Module, x: Tensor) -> Callable[[], None]:
    def loss() -> Tensor:
        found = module(x)
        return (found[0] if isinstance(found, tuple) else found).square().mean()  # type: ignore[no-any-return]

    return gradient_pass(module, loss)
