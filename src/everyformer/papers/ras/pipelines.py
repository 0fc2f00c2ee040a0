"""Region-adaptive sampling around models that exist: diffusers' Stable Diffusion 3 and Lumina-Next, and our DiT.

Everything is done by hooks: the tokens are gathered where they enter the blocks and put back where they leave them, the
projections to keys and values answer with those of all tokens, and the scheduler's ``step`` fills in the predictions of
the tokens that did not run. Attention processors and forward passes stay the model's own. Nothing here imports diffusers.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor, nn

from everyformer.papers.ras.method import Metric, RegionSelector, Sampling, Schedule, TokenCache, gathered
from everyformer.parts.dit import DiT


def accelerate(
    pipe: Any,
    *,
    sample_ratio: float | tuple[float, float] = 0.5,
    dense_steps: int = 4,
    reset_steps: Sequence[int] = (),
    metric: Metric = "std",
    starvation: float = 0.1,
    high_ratio: float = 0.0,
    scheduler: Any = None,
) -> AbstractContextManager[Sampling]:
    """Sample region-adaptively inside a ``with`` block; afterwards ``pipe`` is as it was, also after an exception.

    At ratio 1 the samples are bit for bit the plain ones. Batches and classifier-free guidance work as ever: each image
    has tokens of its own, the same for all of its guidance branches. Sample without gradients.

    Args:
        pipe: diffusers' ``StableDiffusion3Pipeline`` or ``LuminaPipeline``, or our :class:`~everyformer.parts.dit.DiT`.
        sample_ratio, dense_steps, reset_steps: see :class:`Schedule`.
        metric, starvation, high_ratio: see :class:`RegionSelector`.
        scheduler: with a DiT, the diffusers scheduler it is sampled with; a pipeline has its own.

    Returns:
        A context manager that gives the :class:`Sampling`, whose ``updates`` show what ran.

    Raises:
        ValueError: an argument out of its range, or a model that was compiled before: compile it inside the block.
            While sampling: a reset step outside the schedule, timesteps that were set before the block began, or a
            transformer that runs more than once per step (skip-layer guidance).
        TypeError: another pipeline (the message lists the known), or a DiT without a scheduler.
    """
    schedule = Schedule(sample_ratio, dense_steps, tuple(reset_steps))
    selector = RegionSelector(metric=metric, starvation=starvation, high_ratio=high_ratio)
    attach = next((_KNOWN[c.__name__] for c in type(pipe).__mro__ if c.__name__ in _KNOWN), None)
    if attach is None:
        raise TypeError(f"pipe must be one of {', '.join(_KNOWN)}, got {type(pipe).__name__}")
    model = pipe if isinstance(pipe, DiT) else pipe.transformer
    scheduler = getattr(pipe, "scheduler", None) if scheduler is None else scheduler
    if not hasattr(scheduler, "set_timesteps"):
        raise TypeError(f"scheduler must be a scheduler of diffusers, got {type(scheduler).__name__}")
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError("pipe must not be compiled before the with block, whose hooks it would not see")
    if hasattr(scheduler.step, "region_adaptive"):
        raise ValueError("pipe samples region-adaptively already; leave that with block first")
    patch = model.patch if isinstance(model, DiT) else model.config.patch_size
    return _accelerated(model, scheduler, Sampling(schedule, selector, patch), attach)


@contextlib.contextmanager
def _accelerated(model: Any, scheduler: Any, sampling: Sampling, attach: _Attach) -> Iterator[Sampling]:
    with ExitStack() as undo:
        tokens = _Tokens(sampling, undo)
        attach(model, tokens)
        _watch(scheduler, tokens, undo)
        yield sampling


class _Tokens:
    """A transformer's tokens during a step: the active ones are taken out, and put back among the others."""

    def __init__(self, sampling: Sampling, undo: ExitStack) -> None:
        self.sampling, self.undo = sampling, undo
        self.active: Tensor | None = None  # of every row of the model's batch, with guidance a multiple of the images'
        self.total = 0
        self.ran = False
        self._caches: list[TokenCache] = []
        undo.callback(self.end)

    def begin(self, steps: int) -> None:
        self.end()
        self.sampling.begin(steps)

    def end(self) -> None:
        self.sampling.end()
        self.active, self.ran = None, False
        for cache in self._caches:
            cache.clear()

    def complete(self, noise: Tensor) -> Tensor:
        self.ran = False
        return self.sampling.complete(noise)

    def enter(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim): all tokens, or the active ones alone."""
        if not self.sampling.shares:
            raise ValueError("the timesteps were set before the with block began; set them inside")
        if self.ran and any(share < 1 for share in self.sampling.shares):
            raise ValueError("the transformer ran twice in a step; skip-layer guidance is not supported")
        self.ran, self.total, chosen = True, x.shape[1], self.sampling.active
        if chosen is not None and len(x) % len(chosen):
            raise ValueError(f"the batch must be a multiple of the {len(chosen)} images sampled, got {len(x)}")
        self.active = None if chosen is None else chosen.repeat(len(x) // len(chosen), 1)
        return x if self.active is None else gathered(x, self.active)

    def leave(self, x: Tensor) -> Tensor:
        """The same number of tokens as before; those that did not run are zero until the scheduler fills them in."""
        if self.active is None:
            return x
        full = TokenCache()
        full.store(x=x.new_zeros(len(x), self.total, x.shape[-1]))
        return full.update(self.active, x=x)[0]

    def cache(self) -> TokenCache:
        """A cache that is emptied when the sampling ends."""
        self._caches.append(TokenCache())
        return self._caches[-1]

    def all(self, cache: TokenCache, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors of the tokens that ran, (batch, tokens, ...), made into those of all tokens."""
        if self.active is not None:
            return cache.update(self.active, **tensors)
        if self.sampling.keeps:
            cache.store(**tensors)
        return tuple(tensors.values())

    def hook(self, module: nn.Module, answer: Callable[[Any], Any]) -> None:
        """Have ``module`` give ``answer(output)`` in place of its output."""
        self.undo.callback(module.register_forward_hook(lambda _, __, output: answer(output)).remove)

    def hook_projections(self, attention: Any) -> None:
        """Have an attention of diffusers see keys and values of all tokens."""
        for name in ("to_k", "to_v"):
            self.hook(getattr(attention, name), functools.partial(self._rows, self.cache()))

    def _rows(self, cache: TokenCache, rows: Tensor) -> Tensor:
        return self.all(cache, rows=rows)[0]


_Attach = Callable[[Any, _Tokens], None]


def _watch(scheduler: Any, tokens: _Tokens, undo: ExitStack) -> None:
    """Have the scheduler start the sampling and see completed predictions. Pipelines inspect signatures: they stay."""
    set_timesteps, step = scheduler.set_timesteps, scheduler.step

    @functools.wraps(set_timesteps)
    def begin(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        tokens.begin(len(scheduler.timesteps))

    @functools.wraps(step)
    def completed(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        return step(tokens.complete(model_output), *args, **kwargs)

    completed.region_adaptive = True  # type: ignore[attr-defined]
    for name, function in (("set_timesteps", begin), ("step", completed)):
        _replace(scheduler, name, function, undo)


def _replace(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute of the instance past its class and its submodules, and put back what was there."""
    own = vars(owner)
    if name in own:
        undo.callback(own.__setitem__, name, own[name])
    else:
        undo.callback(own.pop, name)
    own[name] = value


def _attach_sd3(transformer: Any, tokens: _Tokens) -> None:
    if any(getattr(block.attn, "fused_projections", False) for block in transformer.transformer_blocks):
        raise ValueError("pipe must not have fused projections; call pipe.transformer.unfuse_qkv_projections()")
    tokens.hook(transformer.pos_embed, tokens.enter)
    for block in transformer.transformer_blocks:
        tokens.hook_projections(block.attn)
        if block.attn2 is not None:
            tokens.hook_projections(block.attn2)
    tokens.hook(transformer.proj_out, tokens.leave)


def _attach_lumina(transformer: Any, tokens: _Tokens) -> None:
    places: list[Tensor] = []  # the rotary embedding of all tokens

    def enter(output: Any) -> Any:
        x, mask, size, rotary = output
        places[:] = [rotary]
        x = tokens.enter(x)
        if tokens.active is None:
            return output
        if tokens.active.shape[1] < 2:
            raise ValueError("sample_ratio must leave Lumina at least 2 tokens, got 1: raise it")
        return x, mask, size, gathered(rotary.expand(len(x), -1, -1), tokens.active)

    def self_attention(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if tokens.active is None:
            return None
        changed = {**kwargs, "key_rotary_emb": places[0]}
        if kwargs.get("base_sequence_length") is not None:
            # The model scales by log(queries) / log(base). This base gives the scale that all tokens would have.
            shrunk = math.log(tokens.active.shape[1]) / math.log(tokens.total)
            changed["base_sequence_length"] = kwargs["base_sequence_length"] ** shrunk
        return args, changed

    tokens.hook(transformer.patch_embedder, enter)
    for layer in transformer.layers:
        tokens.hook_projections(layer.attn1)
        handle = layer.attn1.register_forward_pre_hook(self_attention, with_kwargs=True)
        tokens.undo.callback(handle.remove)
    tokens.hook(transformer.norm_out, tokens.leave)


def _attach_dit(model: DiT, tokens: _Tokens) -> None:
    def enter(_: nn.Module, args: Any) -> Any:
        x, condition = args
        return tokens.enter(x), condition

    def widened(attend: Callable[..., Tensor], cache: TokenCache) -> Callable[..., Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = tokens.all(cache, key=k.transpose(1, 2), value=v.transpose(1, 2))
            return attend(q, k.transpose(1, 2), v.transpose(1, 2))

        return run

    tokens.undo.callback(model.blocks[0].register_forward_pre_hook(enter).remove)
    for block in model.blocks:
        attention: Any = block.attention
        _replace(attention, "attend", widened(attention.attend, tokens.cache()), tokens.undo)
    tokens.hook(model.final, tokens.leave)


_KNOWN: dict[str, _Attach] = {
    "StableDiffusion3Pipeline": _attach_sd3,
    "LuminaPipeline": _attach_lumina,
    "DiT": _attach_dit,
}
