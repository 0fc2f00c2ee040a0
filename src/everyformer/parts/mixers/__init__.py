"""Token mixers with one signature, ``mixer(x, mask=None, cache=None) -> x``; :mod:`everyformer.mixers` lists them."""

from everyformer.parts.mixers.base import Mixer, join_heads, split_heads

__all__ = ["Mixer", "join_heads", "split_heads"]
