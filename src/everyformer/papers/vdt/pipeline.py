"""VDT as a pipeline of diffusers: any of its schedulers, every task by a mask, latents through a VAE of diffusers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import ConfigMixin, DDPMScheduler, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput, export_to_gif, make_image_grid
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from everyformer.papers.vdt.diffusion import check_mask
from everyformer.papers.vdt.model import VDT

OUTPUTS = ("pil", "pt", "latent")
# diffusers has no types.
_Model: Any = ModelMixin
_Config: Any = ConfigMixin
_Pipeline: Any = DiffusionPipeline
_Output: Any = BaseOutput


class VDTModel(VDT, _Model, _Config):
    """:class:`VDT` with diffusers' ``save_pretrained``, ``from_pretrained`` and ``config``."""

    config_name = "config.json"
    __init__ = register_to_config(VDT.__init__)  # type: ignore[assignment]

    @classmethod
    def of(cls, network: VDT) -> VDTModel:
        """The same network, sharing its weights."""
        with torch.device("meta"):
            model = cls(**network.options)
        model.load_state_dict(network.state_dict(keep_vars=True), assign=True)
        return model.train(network.training)


@dataclasses.dataclass
class VDTPipelineOutput(_Output):
    """Videos: lists of PIL images, or one tensor (batch, frames, channels, height, width)."""

    frames: list[list[Image.Image]] | Tensor

    def pictures(self) -> list[list[Image.Image]]:
        """The videos as PIL images, whatever they were asked for as; raises ``ValueError`` for latents of four channels."""
        return _pictures(self.frames) if isinstance(self.frames, Tensor) else self.frames

    def save_gif(self, path: str | Path, *, video: int = 0, fps: int = 8) -> None:
        """Write one of the videos as an animated GIF."""
        export_to_gif(self.pictures()[video], str(path), fps=fps)

    def contact_sheet(self) -> Image.Image:
        """All frames in one picture, a video in each row."""
        videos = self.pictures()
        return make_image_grid([frame for video in videos for frame in video], rows=len(videos), cols=len(videos[0]))


class VDTPipeline(_Pipeline):
    """Generate videos, or what a mask leaves out of given ones.

    Args:
        transformer: a :class:`VDTModel`, or a :class:`VDT`, whose weights are then shared.
        scheduler: any of diffusers' that adds Gaussian noise. ``DDPMScheduler`` with ``variance_type="learned_range"``
            uses the learned variance; others take the noise alone.
        vae: an ``AutoencoderKL`` if the transformer works on latents.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components: ClassVar = ["vae"]
    _callback_tensor_inputs: ClassVar = ["latents"]

    def __init__(self, transformer: VDT, scheduler: Any, vae: Any = None) -> None:
        super().__init__()
        if not isinstance(transformer, VDT):
            raise TypeError(f"transformer must be a VDT, got {type(transformer).__name__}")
        if not isinstance(transformer, VDTModel):
            transformer = VDTModel.of(transformer)
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)

    @torch.no_grad()
    def __call__(
        self,
        video: Float[Tensor, "batch frames channels height width"] | None = None,
        mask: Bool[Tensor, "*batch frames height width"] | None = None,
        labels: Int[Tensor, "batch"] | Sequence[int] | None = None,
        *,
        batch: int = 1,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Float[Tensor, "batch frames channels height width"] | None = None,
        output_type: Literal["pil", "pt", "latent"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> VDTPipelineOutput | tuple[list[list[Image.Image]] | Tensor]:
        """Generate where ``mask`` is true.

        Args:
            video: in [-1, 1]; pixels if there is a VAE, else what the transformer works on. Not read where the mask is
                true. None generates all of it, in a ``batch`` of as many videos.
            mask: of one video or of each, in the transformer's cells; see :func:`~.masks.task_mask`.
            labels: class of each video, for a transformer with classes.
            guidance_scale: above 1, the way from the prediction without labels to the one with them is gone so far
                (arXiv 2207.12598, equation 6).
            latents: the noise to start from.
            output_type: ``pil``, ``pt`` (tensor in [0, 1]) or ``latent`` (as the transformer gives it).
            callback_on_step_end: ``(pipe, step, timestep, {"latents": ...})``, may return other latents.

        Raises:
            ValueError: shapes that do not fit the transformer, a mask without a video or with nothing to generate, labels
                or guidance that the transformer cannot take, an unknown ``output_type``.
        """
        net: Any = self.transformer
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type must be one of {OUTPUTS}, got {output_type!r}")
        if (video is None) != (mask is None):
            raise ValueError("video and mask must be given together, or neither")
        if guidance_scale > 1 and labels is None:
            raise ValueError(f"guidance_scale={guidance_scale} needs labels to guide to")
        device, dtype = self._execution_device, net.dtype
        given, mask = self._given(video, mask, device, dtype)
        count = batch if given is None else len(given)
        shape = (count, net.frames, net.channels, net.image_size, net.image_size)
        if labels is not None:
            labels = torch.as_tensor(labels, device=device)
            if len(labels) != count or not all(0 <= label <= net.classes for label in labels.tolist()):
                raise ValueError(f"labels must be {count} numbers from 0 to {net.classes}, got {labels.tolist()}")
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents must be {shape}, got {tuple(latents.shape)}")

        scheduler = self._scheduler()
        scheduler.set_timesteps(num_inference_steps, device=device)
        noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype) if latents is None else latents
        x = noise.to(device, dtype) * scheduler.init_noise_sigma
        extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for step, timestep in enumerate(self.progress_bar(scheduler.timesteps)):
            seen = scheduler.scale_model_input(x, timestep)
            if given is not None and mask is not None:
                seen = torch.where(mask, seen, given)
            output = self._guided(seen, timestep, labels, guidance_scale)
            if not _learns_variance(scheduler):
                output = output[:, :, : net.channels]
            # Schedulers look for the learned variance along the second axis.
            stepped = scheduler.step(output.transpose(1, 2), timestep, x.transpose(1, 2), **extra)
            x = stepped.prev_sample.transpose(1, 2).to(dtype)
            if callback_on_step_end is not None:
                x = callback_on_step_end(self, step, timestep, {"latents": x}).get("latents", x)
        if given is not None and mask is not None:
            x = torch.where(mask, x, given)
        frames = self._output(x, output_type)
        self.maybe_free_model_hooks()
        return VDTPipelineOutput(frames=frames) if return_dict else (frames,)

    def _given(
        self, video: Tensor | None, mask: Tensor | None, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor | None]:
        """The given video in the transformer's terms, and the mask with an axis for channels."""
        if video is None or mask is None:
            return None, None
        net: Any = self.transformer
        channels, scale = net.channels, 1
        if self.vae is not None:
            channels, scale = self.vae.config.in_channels, 2 ** (len(self.vae.config.block_out_channels) - 1)
        expected = (net.frames, channels, scale * net.image_size, scale * net.image_size)
        if tuple(video.shape[1:]) != expected:
            raise ValueError(f"video must be (batch, {', '.join(map(str, expected))}), got {tuple(video.shape)}")
        given = video.to(device, dtype)
        if self.vae is not None:
            latents = self.vae.encode(given.flatten(0, 1)).latent_dist.mode() * self.vae.config.scaling_factor
            given = latents.unflatten(0, video.shape[:2])
        if mask.dim() == 3:
            mask = mask.expand(len(given), *mask.shape)
        check_mask(mask, given)
        if not mask.flatten(1).any(1).all():
            raise ValueError("mask must leave something to generate in every video")
        return given, mask.to(device)[:, :, None]

    def _scheduler(self) -> Any:
        """The scheduler; one that would misread a learned variance is told that there is none."""
        learns = str(self.scheduler.config.get("variance_type")).startswith("learned")
        if learns and not _learns_variance(self.scheduler):
            return type(self.scheduler).from_config({**self.scheduler.config, "variance_type": None})
        if learns and not self.transformer.learn_sigma:
            raise ValueError(
                f"scheduler must not have variance_type={self.scheduler.config.variance_type!r}: "
                "the transformer has learn_sigma=False"
            )
        return self.scheduler

    def _guided(self, seen: Tensor, timestep: Tensor, labels: Tensor | None, scale: float) -> Tensor:
        times = torch.as_tensor(timestep, device=seen.device).to(torch.float32).expand(len(seen))
        if labels is None or scale <= 1:
            return self.transformer(seen, times, labels)  # type: ignore[no-any-return]
        none = torch.full_like(labels, self.transformer.classes)
        both = self.transformer(torch.cat([seen, seen]), times.repeat(2), torch.cat([labels, none]))
        towards, away = both.chunk(2)
        channels = self.transformer.channels
        guided = away[:, :, :channels] + scale * (towards - away)[:, :, :channels]
        return torch.cat([guided, towards[:, :, channels:]], dim=2)

    def _output(self, x: Tensor, output_type: str) -> list[list[Image.Image]] | Tensor:
        if output_type == "latent":
            return x
        if self.vae is not None:
            x = self.vae.decode(x.flatten(0, 1) / self.vae.config.scaling_factor).sample.unflatten(0, x.shape[:2])
        x = (x.float() / 2 + 0.5).clamp(0, 1).cpu()
        return x if output_type == "pt" else _pictures(x)


def _learns_variance(scheduler: Any) -> bool:
    learned: Any = isinstance(scheduler, DDPMScheduler)
    return learned and str(scheduler.config.variance_type).startswith("learned")


def _pictures(videos: Float[Tensor, "batch frames channels height width"]) -> list[list[Image.Image]]:
    """Tensors in [0, 1] as grey or coloured pictures."""
    if videos.shape[2] not in (1, 3):
        raise ValueError(f"frames must have 1 or 3 channels to be pictures, got {videos.shape[2]}")
    return [[to_pil_image(frame) for frame in video] for video in videos.float().clamp(0, 1).cpu()]
