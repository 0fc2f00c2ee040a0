"""Where a trajectory control meets the transformers it steers: diffusers' Wan and CogVideoX, and our VideoDiT.

It works at four places: before the transformer runs (which step is it, which texts), at its rotary embedding, and at its
self-attentions and cross-attentions (masks). Everything is undone by the ``undo`` that is handed around.

Nothing here imports diffusers: its classes are recognised by name.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyformer.papers.ditraj import method
from everyformer.papers.ditraj.steering import Steering
from everyformer.parts.dit import Attend

_MARK = "_trajectory_control"


def attach(target: Any, steering: Steering, undo: contextlib.ExitStack) -> None:
    """Put a pipeline or a transformer under control until ``undo``; raises as ``TrajectoryControl.on``."""
    for model in _transformers(target):
        if _MARK in model.__dict__:
            raise ValueError(f"target {type(target).__name__} is under trajectory control already")
        _swap(undo, model, _MARK, True)
        next(_FAMILIES[name] for name in _names(model) if name in _FAMILIES)(undo, model, steering)
    if hasattr(target, "encode_prompt"):
        _swap(undo, target, "encode_prompt", _encoding(target.encode_prompt, steering))
    elif steering.control.foreground_prompt is not None and not steering.embed(lambda text: None):
        raise ValueError("foreground_prompt and background_prompt must be embeddings for a bare transformer")


def _video_dit(undo: contextlib.ExitStack, model: Any, steering: Steering) -> None:
    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        given = _arguments(model, args, kwargs)
        steering.start(model.grid(given["video"]), given["timesteps"], given["video"].device)
        if given.get("words") is not None:
            given["words"] = steering.separate(given["words"])
        return (), given

    def attend(mask: str) -> Attend:
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=getattr(steering.now, mask))

    _hook(undo, model.register_forward_pre_hook(begin, with_kwargs=True))
    _hook(undo, model.rotary.register_forward_pre_hook(lambda _, args: (steering.moved(args[0]),)))
    for block in model.blocks:
        if block.attention.attend is F.scaled_dot_product_attention:
            _swap(undo, block.attention, "attend", attend("self_mask"))
        elif steering.control.self_mask != "none":
            raise ValueError("self_mask must be 'none' for a VideoDiT whose attention is not softmax attention")
        if model.text_dim:
            _swap(undo, block.cross, "attend", attend("cross_mask"))


def _wan(undo: contextlib.ExitStack, model: Any, steering: Steering) -> None:
    if any(block.attn2.add_k_proj is not None for block in model.blocks):
        raise ValueError("target must be a text-to-video Wan transformer, got one that is given an image too")

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        given = _arguments(model, args, kwargs)
        latents = given["hidden_states"]
        sizes = zip(latents.shape[2:], model.config.patch_size, strict=True)
        frames, rows, columns = (size // patch for size, patch in sizes)
        steering.start((frames, rows, columns), given["timestep"], latents.device)
        given["encoder_hidden_states"] = steering.separate(given["encoder_hidden_states"])
        return (), given

    def move(_: nn.Module, args: Any, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(steering.moved(table.squeeze(2)).unsqueeze(2) for table in tables)

    _hook(undo, model.register_forward_pre_hook(begin, with_kwargs=True))
    _hook(undo, model.rope.register_forward_hook(move))
    for block in model.blocks:
        _swap(undo, block.attn1, "processor", _WanProcessor(block.attn1.processor, steering, "self_mask"))
        _swap(undo, block.attn2, "processor", _WanProcessor(block.attn2.processor, steering, "cross_mask"))

    plain = model.cache_context

    @contextlib.contextmanager
    def named(name: str, **options: Any) -> Iterator[None]:
        """The pipeline calls its passes ``cond`` and ``uncond``."""
        with plain(name, **options), steering.unconditional() if name == "uncond" else contextlib.nullcontext():
            yield

    _swap(undo, model, "cache_context", named)


class _WanProcessor:
    """An attention processor of diffusers that is given the mask of the pass."""

    def __init__(self, inner: Any, steering: Steering, mask: str) -> None:
        self.inner, self.steering, self.mask = inner, steering, mask

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        mask = getattr(self.steering.now, self.mask)
        return self.inner(  # type: ignore[no-any-return]
            attn, hidden_states, encoder_hidden_states, attention_mask if mask is None else mask, rotary_emb
        )


def _cogvideox(undo: contextlib.ExitStack, model: Any, steering: Steering) -> None:
    config = model.config
    if not config.use_rotary_positional_embeddings or config.use_learned_positional_embeddings:
        raise ValueError(
            "target must be a text-to-video CogVideoX transformer with rotary embeddings alone, got another"
        )

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        given = _arguments(model, args, kwargs)
        latents, words = given["hidden_states"], given["encoder_hidden_states"]
        frames, rows, columns = latents.shape[1], *(size // config.patch_size for size in latents.shape[3:])
        steering.start((-(-frames // (config.patch_size_t or 1)), rows, columns), given["timestep"], latents.device)
        if given.get("image_rotary_emb") is None:
            raise ValueError("image_rotary_emb must be given to a CogVideoX transformer under trajectory control")
        given["image_rotary_emb"] = tuple(steering.moved(table) for table in given["image_rotary_emb"])
        given["encoder_hidden_states"] = _joined(steering, words)
        return (), given

    _hook(undo, model.register_forward_pre_hook(begin, with_kwargs=True))
    for block in model.transformer_blocks:
        attn = block.attn1
        _swap(undo, attn, "processor", _CogVideoXProcessor(attn.processor, steering))
        # The library would repeat the mask for every head.
        _swap(undo, attn, "prepare_attention_mask", _for_all_heads(attn.heads))


def _joined(steering: Steering, words: Tensor) -> Tensor:
    """The text of a pass in which text and video are one sequence; sets its mask.

    With guidance the first half of the batch is unconditional: it keeps its text, filled up with words that nothing sees.
    """
    rows, count, _ = words.shape
    plain = rows // 2 if steering.guided else 0
    both = steering.prompts(rows - plain, words)
    inside, among = steering.inside.long(), steering.now.self_mask
    if both is None:
        if among is not None:
            everything = torch.zeros(count, dtype=torch.long, device=words.device)
            steering.now.self_mask = method.joint_mask(everything, torch.zeros_like(inside), among)[None, None]
        return words
    separated = torch.cat(both, dim=1)
    total = max(count, separated.shape[1])
    unseen = -torch.ones(total, dtype=torch.long, device=words.device)
    whole, parts = unseen.clone(), unseen.clone()
    whole[:count] = 0
    parts[: separated.shape[1]] = 1
    parts[: both[0].shape[1]] = 0
    masks = [method.joint_mask(whole, torch.zeros_like(inside), among)] * plain
    masks += [method.joint_mask(parts, inside, among)] * (rows - plain)
    steering.now.self_mask = torch.stack(masks)[:, None]
    return torch.cat([F.pad(text, (0, 0, 0, total - text.shape[1])) for text in (words[:plain], separated)])


class _CogVideoXProcessor:
    """An attention processor of diffusers that is given the mask of the pass."""

    def __init__(self, inner: Any, steering: Steering) -> None:
        self.inner, self.steering = inner, steering

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        mask = self.steering.now.self_mask if attention_mask is None else attention_mask
        return self.inner(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)  # type: ignore[no-any-return]


def _for_all_heads(heads: int) -> Callable[[Tensor, int, int], Tensor]:
    return lambda mask, length, batch: mask.expand(batch, heads, -1, -1)


_FAMILIES: dict[str, Callable[[contextlib.ExitStack, Any, Steering], None]] = {
    "VideoDiT": _video_dit,
    "WanTransformer3DModel": _wan,
    "CogVideoXTransformer3DModel": _cogvideox,
}
_PIPELINES = ("WanPipeline", "CogVideoXPipeline")


def _names(target: Any) -> list[str]:
    return [kind.__name__ for kind in type(target).__mro__]


def _transformers(target: Any) -> list[Any]:
    """The transformers of a pipeline, or the transformer itself."""
    names = _names(target)
    if any(name in _FAMILIES for name in names):
        return [target]
    if any(name in _PIPELINES for name in names):
        models = (getattr(target, name, None) for name in ("transformer", "transformer_2"))
        return [model for model in models if model is not None]
    known = ", ".join((*_PIPELINES, *_FAMILIES))
    raise TypeError(f"target must be one of {known}, got {type(target).__name__}")


def _encoding(encode: Callable[..., Any], steering: Steering) -> Callable[..., Any]:
    """A pipeline's ``encode_prompt`` that encodes the two prompts as well, and notes whether there is guidance."""
    signature = inspect.signature(encode)

    def encoding(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        steering.guided = bool(given.arguments["do_classifier_free_guidance"])
        same = {name: given.arguments[name] for name in ("max_sequence_length", "device", "dtype")}
        alone = {"do_classifier_free_guidance": False, "num_videos_per_prompt": 1}
        if steering.control.foreground_prompt is not None:
            steering.embed(lambda text: encode(prompt=text, **alone, **same)[0])
        return encode(*args, **kwargs)

    return encoding


def _arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name."""
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _hook(undo: contextlib.ExitStack, handle: Any) -> None:
    undo.callback(handle.remove)


def _swap(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until ``undo``: then the owner has its own again, or none."""
    if name in owner.__dict__:
        undo.callback(setattr, owner, name, owner.__dict__[name])
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, value)
