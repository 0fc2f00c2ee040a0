"""Small pipelines with random weights, without text encoders or decoder: for timing and for trying things out.

They are diffusers' own classes; prompts are passed as embeddings, and latents come out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.dit import DiT


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of a transformer; ``side`` is the latents' (patches of 2), ``text`` the tokens of a prompt."""

    side: int
    dim: int
    depth: int
    heads: int
    text: int = 77
    text_dim: int = 64


# At 1024 pixels: Stable Diffusion 3 medium by its published configuration, Lumina-Next by diffusers' defaults with
# 8 heads of keys and values.
SD3_MEDIUM = Size(side=128, dim=1536, depth=24, heads=24, text=333, text_dim=4096)
LUMINA_NEXT = Size(side=128, dim=2304, depth=32, heads=32, text=256, text_dim=2048)


def sd3_transformer(size: Size) -> Any:
    """diffusers' ``SD3Transformer2DModel`` of the given size."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=size.side, num_layers=size.depth, attention_head_dim=size.dim // size.heads,
        num_attention_heads=size.heads, joint_attention_dim=size.text_dim, caption_projection_dim=size.dim,
        pooled_projection_dim=size.text_dim // 2, pos_embed_max_size=size.side // 2,
    )  # fmt: skip


def lumina_transformer(size: Size) -> Any:
    """diffusers' ``LuminaNextDiT2DModel`` of the given size."""
    from diffusers import LuminaNextDiT2DModel

    model: Any = LuminaNextDiT2DModel(
        sample_size=size.side, hidden_size=size.dim, num_layers=size.depth, num_attention_heads=size.heads,
        num_kv_heads=max(1, size.heads // 4), multiple_of=32, cross_attention_dim=size.text_dim,
    )  # fmt: skip
    nn.init.zeros_(model.pad_token)  # unused, and left as the memory was
    return model


def sd3(size: Size, seed: int) -> Any:
    """A ``StableDiffusion3Pipeline`` with random weights."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    torch.manual_seed(seed)
    nothing = dict.fromkeys(
        ["vae", *(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))]
    )
    pipe = StableDiffusion3Pipeline(
        transformer=lively(sd3_transformer(size)), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **nothing
    )
    return quiet(pipe)


def lumina(size: Size, seed: int) -> Any:
    """A ``LuminaPipeline`` (Lumina-Next-T2I) with random weights."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LuminaPipeline

    torch.manual_seed(seed)
    pipe = LuminaPipeline(
        transformer=lively(lumina_transformer(size)), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None, text_encoder=None, tokenizer=None,
    )  # fmt: skip
    return quiet(pipe)


def lively(model: Any) -> Any:
    """``model`` with what was initialised to zero made random, so that every part of it has an effect."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def quiet(pipe: Any) -> Any:
    """``pipe`` without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(pipe: Any, size: Size, batch: int, seed: int) -> dict[str, Tensor]:
    """Random embeddings of ``batch`` prompts and of what is not wanted, as arguments of ``pipe``."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator).to(pipe.device, pipe.dtype)

    words = {name: some(size.text, size.text_dim) for name in ("prompt_embeds", "negative_prompt_embeds")}
    if type(pipe).__name__ == "LuminaPipeline":
        kept = torch.ones(batch, size.text, dtype=torch.long, device=pipe.device)
        return words | {"prompt_attention_mask": kept, "negative_prompt_attention_mask": kept}
    return words | {
        name: some(size.text_dim // 2) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    }


def drawer(pipe: Any, size: Size, *, steps: int, batch: int = 1, seed: int = 0) -> Callable[[], Tensor]:
    """A function that samples latents with guidance, each time from the same noise."""
    words = prompts(pipe, size, batch, seed)

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pipe(  # type: ignore[no-any-return]
            **words, num_inference_steps=steps, guidance_scale=4.0, generator=generator, output_type="latent"
        ).images

    return draw


@torch.no_grad()
def follow(
    model: DiT, scheduler: Any, noise: Float[Tensor, "batch channels height width"], labels: Tensor | None, steps: int
) -> Float[Tensor, "batch channels height width"]:
    """Sample a DiT in ``steps`` steps of a scheduler of diffusers."""
    scheduler.set_timesteps(steps, device=noise.device)
    for timestep in scheduler.timesteps:
        velocity = model(noise, timestep.expand(len(noise)).to(noise.dtype), labels)
        noise = scheduler.step(velocity, timestep, noise, return_dict=False)[0]
    return noise
