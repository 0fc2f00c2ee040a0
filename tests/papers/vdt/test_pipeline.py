import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

from everyformer.papers.vdt import VDT, VDTPipeline, checkpoint, task_mask

HERE = Path(__file__).parent
SIZES = {"image_size": 8, "patch": 4, "channels": 1, "frames": 4, "dim": 16, "depth": 1, "heads": 2}
SCHEDULERS = [
    "DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler", "PNDMScheduler", "LCMScheduler",
]  # fmt: skip


def network(**options):
    torch.manual_seed(0)
    model = VDT(**{**SIZES, **options}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def pipeline(scheduler=None, vae=None, **options):
    pipe = VDTPipeline(network(**options), scheduler or DDPMScheduler(variance_type="learned_range"), vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shown():
    return torch.rand(2, 4, 1, 8, 8, generator=seeded()) * 2 - 1, task_mask("prediction", 4, 8, 8)


@pytest.mark.parametrize("clip", [False, True])
def test_the_authors_sampling_from_the_same_noise(clip, monkeypatch):
    tensors = load_file(HERE / "sampling.safetensors")
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    model = checkpoint.load(state, json.loads((HERE / "sampling.json").read_text())["config"]).eval()
    scheduler = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace", clip_sample=clip)
    pipe = VDTPipeline(model, scheduler)
    noises = iter(tensors["input.noise"])
    monkeypatch.setattr(diffusers.schedulers.scheduling_ddpm, "randn_tensor", lambda *_, **__: next(noises))
    mask, video = tensors["input.mask"].bool(), tensors["input.video"]
    found = pipe(video, mask, latents=tensors["input.latents"], num_inference_steps=5, output_type="latent").frames
    assert pipe.scheduler.timesteps.tolist() == tensors["output.timesteps"].tolist()[::-1]
    kept = mask[:, :, None].expand_as(video)
    expected = tensors["output.clipped" if clip else "output.plain"]
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-4, atol=1e-4)
    assert torch.equal(found[~kept], video[~kept])


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("sigma", [True, False])
def test_schedulers_are_interchangeable_and_seeds_repeat(name, sigma):
    pipe = pipeline(DDPMScheduler(variance_type="learned_range" if sigma else "fixed_small"), learn_sigma=sigma)
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    video, mask = shown()
    found = [
        pipe(video, mask, num_inference_steps=5, generator=seeded(seed), output_type="latent").frames
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert torch.equal(found[0][:, :2], video[:, :2])
    assert found[0].isfinite().all()


def test_what_the_mask_hides_is_not_read():
    pipe, (video, mask) = pipeline(), shown()
    other = torch.where(mask[:, None], torch.rand_like(video), video)
    options = {"num_inference_steps": 3, "output_type": "latent"}
    assert torch.equal(
        pipe(video, mask, generator=seeded(), **options).frames, pipe(other, mask, generator=seeded(), **options).frames
    )
    changed = video.clone()
    changed[:, 0] = -changed[:, 0]
    found = [pipe(given, mask, generator=seeded(), **options).frames[:, 2:] for given in (video, changed)]
    assert not torch.allclose(*found)


def test_a_model_that_sees_the_video_restores_it():
    """With the truth for a network, every step ends at the truth."""
    video, mask = shown()
    pipe = pipeline(DDIMScheduler(prediction_type="sample", timestep_spacing="trailing"), learn_sigma=False)
    pipe.transformer.forward = lambda seen, times, labels=None: video
    found = pipe(video, mask, num_inference_steps=4, generator=seeded(), output_type="latent").frames
    torch.testing.assert_close(found, video, atol=1e-5, rtol=0)


def test_guidance_goes_on_from_none_to_the_label():
    pipe = pipeline(DDIMScheduler(clip_sample=False), classes=3)
    latents, label = torch.randn(2, 4, 1, 8, 8), torch.tensor([0, 2])
    options = {"latents": latents, "num_inference_steps": 1, "output_type": "latent"}

    def one(labels, scale=1.0):
        return pipe(labels=labels, batch=2, guidance_scale=scale, **options).frames

    with_label, without = one(label), one(torch.tensor([3, 3]))
    torch.testing.assert_close(one(label, 3.0), without + 3 * (with_label - without), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(with_label, without)
    assert torch.equal(one(None), without)


def test_saved_and_loaded_it_generates_the_same(tmp_path):
    pipe = pipeline(classes=1)
    options = {"num_inference_steps": 3, "output_type": "pt"}
    expected = pipe(batch=2, generator=seeded(), **options).frames
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").is_file()
    again = VDTPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(again(batch=2, generator=seeded(), **options).frames, expected, atol=1e-4, rtol=0)
    assert again.vae is None
    assert again.transformer.config.classes == 1


def test_the_pipeline_shares_the_weights_of_the_network():
    model = network()
    pipe = VDTPipeline(model, DDIMScheduler())
    with torch.no_grad():
        model.final.bias.fill_(7.0)
    assert (pipe.transformer.final.bias == 7.0).all()


def test_latents_go_through_a_vae():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=1,
    )  # fmt: skip
    pipe = pipeline(vae=vae)
    video, mask = torch.rand(1, 4, 3, 16, 16) * 2 - 1, task_mask("prediction", 4, 8, 8)
    output = pipe(video, mask, num_inference_steps=2, generator=seeded(), output_type="pt").frames
    assert output.shape == video.shape
    through = vae.decode(vae.encode(video[0]).latent_dist.mode()).sample / 2 + 0.5
    torch.testing.assert_close(output[0, :2], through[:2].clamp(0, 1), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"video must be \(batch, 4, 3, 16, 16\), got \(1, 4, 1, 8, 8\)"):
        pipe(torch.zeros(1, 4, 1, 8, 8), mask)


def test_pictures_a_gif_and_a_contact_sheet(tmp_path):
    output = pipeline()(batch=2, num_inference_steps=2, generator=seeded())
    assert [len(video) for video in output.frames] == [4, 4]
    assert output.contact_sheet().size == (4 * 8, 2 * 8)
    output.save_gif(tmp_path / "video.gif", video=1, fps=5)
    with Image.open(tmp_path / "video.gif") as gif:
        assert gif.n_frames == 4
        assert gif.info["duration"] == 200
    tensor = pipeline()(batch=2, num_inference_steps=2, generator=seeded(), output_type="pt")
    assert tensor.contact_sheet() == output.contact_sheet()
    four = pipeline(channels=4)(num_inference_steps=2, output_type="latent")
    with pytest.raises(ValueError, match="frames must have 1 or 3 channels to be pictures, got 4"):
        four.contact_sheet()


def test_a_callback_sees_and_changes_every_step():
    steps = []

    def note(pipe, step, timestep, tensors):
        steps.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    found = pipeline()(num_inference_steps=3, output_type="latent", callback_on_step_end=note)
    assert [step for step, _ in steps] == [0, 1, 2]
    assert not found.frames.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": "np"}, r"output_type must be one of \('pil', 'pt', 'latent'\), got 'np'"),
        ({"video": torch.zeros(1, 4, 1, 8, 8)}, "video and mask must be given together, or neither"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 needs labels to guide to"),
        ({"labels": [1]}, r"labels must be 1 numbers from 0 to 0, got \[1\]"),
        ({"latents": torch.zeros(1, 4, 2, 8, 8)}, r"latents must be \(1, 4, 1, 8, 8\), got \(1, 4, 2, 8, 8\)"),
        (
            {"video": torch.zeros(1, 3, 1, 8, 8), "mask": torch.ones(4, 8, 8).bool()},
            r"video must be \(batch, 4, 1, 8, 8\)",
        ),
        ({"video": torch.zeros(1, 4, 1, 8, 8), "mask": torch.ones(4, 8, 8)}, "mask must be boolean"),
        ({"video": torch.zeros(1, 4, 1, 8, 8), "mask": torch.zeros(4, 8, 8).bool()}, "mask must leave something"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline()(num_inference_steps=2, **arguments)


def test_a_learned_variance_needs_a_model_that_has_one():
    with pytest.raises(ValueError, match="variance_type='learned_range': the transformer has learn_sigma=False"):
        pipeline(learn_sigma=False)(num_inference_steps=2)
    with pytest.raises(TypeError, match="transformer must be a VDT, got Linear"):
        VDTPipeline(torch.nn.Linear(2, 2), DDIMScheduler())
