import copy
import inspect
import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, LCMScheduler, UNet2DModel
from safetensors.torch import load_file

from everyformer.papers.qsched import Coefficients, QSchedScheduler
from everyformer.papers.qsched.method import SUPPORTED

STEPS = 4
LINES = Coefficients.line(STEPS, model=1.1, sample=0.9, model_end=0.95, sample_end=1.02)
every_class = pytest.mark.parametrize("base", SUPPORTED, ids=lambda base: base.__name__)
HERE = Path(__file__).parent


def sample(scheduler, latents, output=torch.tanh, **options):
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(1)
    for timestep in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(output(latents), timestep, latents, generator=generator, **options).prev_sample
    return latents


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_ones_it_is_the_original_bit_for_bit(base, dtype):
    latents = torch.randn(2, 3, 4, 4, dtype=dtype)
    ones = QSchedScheduler.wrap(base(), Coefficients.line(STEPS))
    expected = sample(base(), latents)
    assert torch.equal(sample(ones, latents), expected)
    assert expected.dtype == dtype


@every_class
def test_the_update_sees_the_output_and_the_sample_times_their_coefficients(base):
    wrapped, original = QSchedScheduler.wrap(base(), LINES), base()
    latents, outputs = torch.randn(2, 3, 4, 4), torch.randn(STEPS, 2, 3, 4, 4)
    for scheduler in (wrapped, original):
        scheduler.set_timesteps(STEPS)
    ours, theirs = latents, latents
    noises = [torch.Generator().manual_seed(1) for _ in range(2)]
    for index, timestep in enumerate(original.timesteps):
        ours = wrapped.step(outputs[index], timestep, ours, generator=noises[0], return_dict=False)[0]
        model, scale = LINES.model[index], LINES.sample[index]
        theirs = original.step(model * outputs[index], timestep, scale * theirs, generator=noises[1]).prev_sample
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, sample(base(), latents))


def test_bfloat16_samples_are_scaled_before_they_are_rounded():
    """Schedulers that compute in float32 lose nothing to a coefficient close to one."""
    from diffusers import FlowMatchEulerDiscreteScheduler as Flow

    latents = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
    wrapped = QSchedScheduler.wrap(Flow(), Coefficients.line(STEPS, sample=0.999))
    wrapped.set_timesteps(STEPS)
    got = wrapped.step(torch.zeros_like(latents), wrapped.timesteps[0], latents).prev_sample
    assert torch.equal(got, (0.999 * latents.float()).bfloat16())


@every_class
def test_diffusers_saves_and_loads_it(base, tmp_path):
    wrapped = QSchedScheduler.wrap(base(), LINES)
    wrapped.save_pretrained(tmp_path)
    latents = torch.randn(2, 3, 4, 4)
    expected = sample(wrapped, latents)
    for loader in (QSchedScheduler, SUPPORTED[base]):
        again = loader.from_pretrained(tmp_path)
        assert type(again) is SUPPORTED[base]
        assert again.coefficients == LINES
        assert torch.equal(sample(again, latents), expected)
    assert isinstance(wrapped, base)


def test_the_original_configuration_is_kept():
    wrapped = QSchedScheduler.wrap(LCMScheduler(prediction_type="v_prediction", beta_end=0.02), LINES)
    assert wrapped.config.prediction_type == "v_prediction"
    assert wrapped.config.beta_end == 0.02
    assert wrapped.config.model_coefficients == list(LINES.model)
    other = QSchedScheduler.wrap(wrapped, Coefficients.line(2))
    assert other.coefficients == Coefficients.line(2)
    assert other.config.beta_end == 0.02
    assert wrapped.coefficients == LINES
    assert copy.deepcopy(wrapped).coefficients == LINES


@every_class
def test_pipelines_see_the_original_signatures(base):
    for name in ("step", "set_timesteps", "__init__"):
        assert inspect.signature(getattr(SUPPORTED[base], name)) == inspect.signature(getattr(base, name))


def unet():
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip


def test_a_pipeline_runs_saves_and_loads_with_it(tmp_path):
    pipe = DDPMPipeline(unet().eval(), QSchedScheduler.wrap(LCMScheduler(), LINES))
    pipe.set_progress_bar_config(disable=True)

    def drawn(pipe):
        return pipe(num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0), output_type="np").images

    expected = drawn(pipe)
    pipe.save_pretrained(tmp_path)
    again = DDPMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.scheduler.coefficients == LINES
    assert abs(drawn(again) - expected).max() < 1e-4
    pipe.scheduler = QSchedScheduler.wrap(pipe.scheduler, Coefficients.line(STEPS))
    assert abs(drawn(pipe) - expected).max() > 1e-2


@every_class
def test_a_sampling_compiles(base):
    """Schedulers keep their place in Python, so that a graph ends there; the samples are the same."""
    wrapped, latents = QSchedScheduler.wrap(base(), LINES), torch.randn(1, 3, 4, 4)
    expected = sample(wrapped, latents)
    compiled = torch.compile(lambda latents: sample(wrapped, latents), backend="aot_eager")
    torch.testing.assert_close(compiled(latents), expected)


def test_it_steps_as_the_authors_do():
    """Outputs of the authors' three published schedulers with the coefficients of their script."""
    about = json.loads((HERE / "schedulers.json").read_text(encoding="utf-8"))
    vectors = load_file(HERE / "schedulers.safetensors")
    lines = Coefficients(**about["coefficients"])
    by_name = {base.__name__: base for base in SUPPORTED}
    assert len(about["config"]) == 3
    for name, config in about["config"].items():
        scheduler = QSchedScheduler.wrap(by_name[name](**config), lines)
        scheduler.set_timesteps(about["steps"])
        latents, generator = vectors["sample"], torch.Generator().manual_seed(about["noise_seed"])
        for index, timestep in enumerate(scheduler.timesteps):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(latents, timestep)
            latents = scheduler.step(vectors["outputs"][index], timestep, latents, generator=generator).prev_sample
            torch.testing.assert_close(
                latents, vectors[f"{name}.{index}"], atol=about["tolerance"], rtol=about["tolerance"]
            )


def test_a_line_goes_from_the_start_to_the_end():
    assert Coefficients.line(3, model=0.8, sample=1.1, sample_end=0.9) == Coefficients((0.8, 0.9, 1.0), (1.1, 1.0, 0.9))
    assert Coefficients.line(1, model=0.8) == Coefficients((0.8,), (1.0,))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Coefficients.line(0)


@pytest.mark.parametrize(
    ("model", "scale", "message"),
    [
        ((1.0, 1.0), (1.0,), "one number per step each, got 2 and 1"),
        ((), (), "model must hold finite numbers"),
        ((1.0,), (float("nan"),), "sample must hold finite numbers"),
    ],
)
def test_coefficients_that_cannot_be(model, scale, message):
    with pytest.raises(ValueError, match=message):
        Coefficients(model, scale)


@every_class
def test_a_count_that_is_not_the_steps_is_told_before_the_model_runs(base):
    wrapped = QSchedScheduler.wrap(base(), LINES)
    with pytest.raises(ValueError, match="steps must be the number of coefficients, 4, got 8"):
        wrapped.set_timesteps(8)


def test_an_unsupported_scheduler_is_told_which_are_supported():
    with pytest.raises(TypeError, match=r"LCMScheduler, TCDScheduler, Euler.*got DDIMScheduler"):
        QSchedScheduler.wrap(DDIMScheduler(), LINES)


def test_a_configuration_without_coefficients_is_refused(tmp_path):
    LCMScheduler().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config must hold model_coefficients and sample_coefficients"):
        QSchedScheduler.from_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "model_coefficients": [1.0], "sample_coefficients": [1.0]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"_class_name among QSchedLCMScheduler.*got 'LCMScheduler'"):
        QSchedScheduler.from_pretrained(tmp_path)
