import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from everyformer.papers.ras import accelerate, miniature
from everyformer.parts.dit import DiT

HERE = Path(__file__).parent
SIZE = miniature.Size(side=16, dim=32, depth=2, heads=2, text=5, text_dim=16)
STEPS, TOKENS = 7, 64
OPTIONS = {"sample_ratio": 0.5, "dense_steps": 2, "reset_steps": (4,)}


def small_dit(**arguments):
    torch.manual_seed(1)
    return miniature.lively(DiT(image_size=16, patch=2, channels=3, dim=32, depth=2, heads=2, classes=10, **arguments))


class Models:
    """A pipeline or a DiT, and ways to sample it and to see all that may change in it."""

    def __init__(self, name, dtype=torch.float32):
        self.scheduler = None
        if name == "dit":
            self.pipe = small_dit().to(dtype)
            self.scheduler = self.steps_of = FlowMatchEulerDiscreteScheduler()
            self.model = self.pipe
        else:
            self.pipe = getattr(miniature, name)(SIZE, 0).to(dtype)
            self.model, self.steps_of = self.pipe.transformer, self.pipe.scheduler
        self.name, self.dtype = name, dtype

    def draw(self, batch=2, seed=3, steps=STEPS):
        if self.name != "dit":
            return miniature.drawer(self.pipe, SIZE, steps=steps, batch=batch, seed=seed)()
        noise = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).to(self.dtype)
        return miniature.follow(self.pipe, self.scheduler, noise, torch.arange(batch), steps)

    def accelerate(self, **options):
        return accelerate(self.pipe, scheduler=self.scheduler, **{**OPTIONS, **options})

    def state(self):
        found = {"scheduler": vars(self.steps_of).keys() & {"step", "set_timesteps"}}
        for name, module in self.model.named_modules():
            found[name] = (
                sorted(vars(module)), list(module._forward_hooks), list(module._forward_pre_hooks),
                getattr(module, "attend", None), getattr(module, "processor", None),
            )  # fmt: skip
        return found


every = pytest.mark.parametrize("name", ["sd3", "lumina", "dit"])


@pytest.fixture(params=["sd3", "lumina", "dit"])
def models(request):
    return Models(request.param)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_ratio_one_samples_are_the_plain_ones_bit_for_bit(name, dtype):
    models = Models(name, dtype)
    plain = models.draw()
    with models.accelerate(sample_ratio=1.0) as sampling:
        assert torch.equal(models.draw(), plain)
    assert all(step.all() for step in sampling.updates) and len(sampling.updates) == STEPS


def test_samples_differ_repeat_and_the_pipeline_is_as_it_was(models):
    plain, before = models.draw(), models.state()
    with models.accelerate() as sampling:
        first = models.draw()
        assert torch.equal(models.draw(), first)
        assert not torch.equal(models.draw(seed=4), first)
    assert first.isfinite().all() and not torch.allclose(first, plain)
    assert [int(step[0].sum()) for step in sampling.updates] == [64, 64, 32, 32, 64, 32, 32]
    assert models.state() == before
    assert torch.equal(models.draw(), plain)


def test_an_exception_leaves_the_pipeline_as_it_was(models):
    plain, before = models.draw(), models.state()

    def fail(*_):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"), models.accelerate() as sampling:
        models.draw()
        taken = []
        handle = models.model.register_forward_hook(lambda *_: taken.append(1) or (fail() if len(taken) == 4 else None))
        try:
            models.draw()
        finally:
            handle.remove()
    assert models.state() == before
    assert sampling.active is None
    assert torch.equal(models.draw(), plain)


def test_a_sampling_after_a_broken_one_is_whole(models):
    with models.accelerate():
        expected = models.draw()
        models.steps_of.set_timesteps(STEPS)
        assert torch.equal(models.draw(), expected)


def test_each_image_of_a_batch_is_sampled_as_it_is_alone():
    models = Models("dit")
    noise = torch.randn(3, 3, 16, 16)
    with models.accelerate() as sampling:
        together = miniature.follow(models.pipe, models.scheduler, noise, torch.arange(3), STEPS)
        maps = sampling.updates
        for image in range(3):
            alone = miniature.follow(
                models.pipe, models.scheduler, noise[image : image + 1], torch.tensor([image]), STEPS
            )
            torch.testing.assert_close(together[image : image + 1], alone, atol=1e-5, rtol=1e-4)
            assert all(torch.equal(a[image], b[0]) for a, b in zip(maps, sampling.updates, strict=True))
    assert not torch.equal(maps[-1][0], maps[-1][1])


def test_guidance_of_a_dit_uses_one_choice_for_both_branches():
    models = Models("dit")
    scheduler, model = models.scheduler, models.pipe
    noise, labels = torch.randn(2, 3, 16, 16), torch.tensor([1, 2, 10, 10])
    counts = []
    handle = model.blocks[1].register_forward_hook(lambda _, args, __: counts.append(args[0].shape[:2]))

    def draw():
        x = noise
        scheduler.set_timesteps(STEPS)
        for timestep in scheduler.timesteps:
            with torch.no_grad():
                given, none = model(torch.cat([x, x]), timestep.expand(4), labels).chunk(2)
            x = scheduler.step(none + 2.0 * (given - none), timestep, x).prev_sample
        return x

    plain = draw()
    with models.accelerate(sample_ratio=1.0):
        assert torch.equal(draw(), plain)
    counts.clear()
    with models.accelerate():
        assert draw().isfinite().all()
    handle.remove()
    assert counts == [(4, 64), (4, 64), (4, 32), (4, 32), (4, 64), (4, 32), (4, 32)]


def test_only_active_tokens_go_through_the_blocks_and_text_always_does():
    models, seen = Models("sd3"), []
    block = models.model.transformer_blocks[0]
    handle = block.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append((kwargs["hidden_states"].shape[1], kwargs["encoder_hidden_states"].shape[1])),
        with_kwargs=True,
    )
    with models.accelerate(sample_ratio=0.25):
        models.draw()
    handle.remove()
    assert seen == [(n, SIZE.text) for n in (64, 64, 16, 16, 64, 16, 16)]


def test_a_step_is_attention_of_active_tokens_to_fresh_and_kept_keys():
    """One step of a DiT of one block by the equations: queries of active tokens, keys and values of all."""
    torch.manual_seed(0)
    model = miniature.lively(DiT(image_size=8, patch=2, channels=3, dim=16, depth=1, heads=2))
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    taken, projected = [], []
    handle = model.register_forward_hook(lambda _, args, output: taken.append((args, output)))
    with torch.no_grad(), accelerate(model, sample_ratio=0.5, dense_steps=1, scheduler=scheduler) as sampling:
        miniature.follow(model, scheduler, torch.randn(1, 3, 8, 8), None, 2)
        active = sampling.updates[1].flatten().nonzero()[:, 0]
    handle.remove()

    attention = model.blocks[0].attention
    handle = attention.qkv.register_forward_hook(lambda _, __, output: projected.append(output))
    with torch.no_grad():
        for inputs, _ in taken:
            model(*inputs)
    handle.remove()
    q, k, v = (x.view(1, 16, 2, 8).transpose(1, 2) for x in projected[1].chunk(3, -1))
    old_k, old_v = (x.view(1, 16, 2, 8).transpose(1, 2) for x in projected[0].chunk(3, -1)[1:])
    run = torch.zeros(16, dtype=torch.bool)
    run[active] = True
    k, v = (torch.where(run[:, None], new, old) for new, old in ((k, old_k), (v, old_v)))
    plain = attention.attend
    attention.attend = lambda *_: plain(q, k, v)
    with torch.no_grad():
        expected = model(*taken[1][0])
    pixels = run.view(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(taken[1][1], torch.where(pixels, expected, 0.0), atol=1e-5, rtol=1e-4)
    assert len(active) == 8 and taken[1][1].any()


@pytest.mark.parametrize("name", ["sd3", "lumina"])
def test_whole_samplings_are_the_authors(name):
    """Their pipelines with the same weights, prompts and noise, over ratios, metrics and resets."""
    about = json.loads((HERE / "authors.json").read_text(encoding="utf-8"))
    vectors = load_file(HERE / "authors.safetensors")
    pipe = getattr(miniature, name)(miniature.Size(**about["size"]), 0)

    def part(prefix):
        return {key.removeprefix(prefix): tensor for key, tensor in vectors.items() if key.startswith(prefix)}

    absent = pipe.transformer.load_state_dict(part(f"{name}.state."), strict=False)
    assert not absent.unexpected_keys and set(absent.missing_keys) <= {"pos_embed.pos_embed"}
    runs = [(n, run) for n, run in enumerate(about["runs"]) if run["pipeline"] == name]
    assert len(runs) == 2
    for index, run in runs:
        options = {key: run[key] for key in ("sample_ratio", "metric", "high_ratio", "starvation", "reset_steps")}
        arguments = {
            "height": run["pixels"], "width": run["pixels"], "latents": vectors[f"{index}.latents"],
            "num_inference_steps": about["steps"], "guidance_scale": about["guidance_scale"], "output_type": "latent",
        }  # fmt: skip
        with accelerate(pipe, dense_steps=about["dense_steps"], **options):
            found = pipe(**part(f"{name}.words."), **arguments).images
        torch.testing.assert_close(found, vectors[f"{index}.output"], atol=about["tolerance"], rtol=about["tolerance"])


def test_a_model_with_a_second_attention_per_block():
    """As in Stable Diffusion 3.5: norms of queries and keys, and attention among image tokens alone."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=32, pooled_projection_dim=8, pos_embed_max_size=8, dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )  # fmt: skip
    models = Models("sd3")
    models.pipe.register_modules(transformer=miniature.lively(transformer))
    plain = models.draw()
    with models.accelerate(sample_ratio=1.0):
        assert torch.equal(models.draw(), plain)
    with models.accelerate():
        assert models.draw().isfinite().all()


def test_an_attention_that_is_a_module_is_put_back():
    class Scaled(torch.nn.Module):
        def __init__(self, head_dim):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(head_dim))

        def forward(self, q, k, v):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v) * self.weight

    model, scheduler = small_dit(attention=Scaled), FlowMatchEulerDiscreteScheduler()
    names = list(model.state_dict())
    with accelerate(model, scheduler=scheduler, **OPTIONS):
        miniature.follow(model, scheduler, torch.randn(1, 3, 16, 16), None, STEPS)
        assert list(model.state_dict()) == names
    assert isinstance(model.blocks[0].attention.attend, Scaled)


@pytest.mark.filterwarnings("ignore")
def test_a_model_compiled_inside_the_block_gives_the_same():
    models = Models("dit")
    noise, labels = torch.randn(2, 3, 16, 16), torch.arange(2)
    with models.accelerate():
        expected = miniature.follow(models.pipe, models.scheduler, noise, labels, STEPS)
        compiled = torch.compile(models.pipe, backend="aot_eager")
        found = miniature.follow(compiled, models.scheduler, noise, labels, STEPS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@every
def test_bfloat16_samples_keep_their_type(name):
    models = Models(name, torch.bfloat16)
    with models.accelerate():
        found = models.draw()
    assert found.dtype == torch.bfloat16 and found.isfinite().all()


def test_bad_input_is_told_before_anything_is_touched(models):
    before = models.state()
    with pytest.raises(ValueError, match=r"sample_ratio must be in \(0, 1\].*got 1.5"):
        models.accelerate(sample_ratio=1.5)
    with pytest.raises(ValueError, match="metric must be"):
        models.accelerate(metric="entropy")
    with (
        pytest.raises(ValueError, match=r"reset_steps must be below the number of steps, 7, got \[7\]"),
        models.accelerate(reset_steps=(7,)),
    ):
        models.draw()
    with models.accelerate(), pytest.raises(ValueError, match="samples region-adaptively already"):
        models.accelerate()
    models.draw(steps=3)
    assert models.state() == before


def test_an_unknown_pipeline_is_told_which_are_known():
    known = "StableDiffusion3Pipeline, LuminaPipeline, DiT"
    with pytest.raises(TypeError, match=f"pipe must be one of {known}, got Linear"):
        accelerate(torch.nn.Linear(2, 2))


def test_a_dit_needs_a_scheduler():
    with pytest.raises(TypeError, match="scheduler must be a scheduler of diffusers, got NoneType"):
        accelerate(small_dit())


def test_a_compiled_model_is_refused():
    model = small_dit()
    model.compile(backend="eager")
    with pytest.raises(ValueError, match="must not be compiled before the with block"):
        accelerate(model, scheduler=FlowMatchEulerDiscreteScheduler())


def test_fused_projections_are_refused():
    models = Models("sd3")
    models.model.fuse_qkv_projections()
    with pytest.raises(ValueError, match="must not have fused projections"), models.accelerate():
        pass


def test_timesteps_must_be_set_inside_the_block():
    models = Models("dit")
    models.scheduler.set_timesteps(STEPS)
    with models.accelerate(), pytest.raises(ValueError, match="timesteps were set before"):
        models.pipe(torch.randn(1, 3, 16, 16), torch.ones(1))


def test_a_model_that_runs_twice_in_a_step_is_refused():
    models = Models("sd3")
    words = miniature.prompts(models.pipe, SIZE, 1, 0)
    arguments = {"num_inference_steps": STEPS, "output_type": "latent", "skip_guidance_layers": [1]}
    with models.accelerate(), pytest.raises(ValueError, match="skip-layer guidance is not supported"):
        models.pipe(**words, **arguments)


def test_a_batch_that_does_not_fit_the_images_is_told():
    models = Models("dit")
    models.scheduler.set_timesteps(STEPS)
    with torch.no_grad(), models.accelerate():
        models.scheduler.set_timesteps(STEPS)
        x = torch.randn(2, 3, 16, 16)
        for timestep in models.scheduler.timesteps[:2]:
            x = models.scheduler.step(models.pipe(x, timestep.expand(2)), timestep, x).prev_sample
        with pytest.raises(ValueError, match="the batch must be a multiple of the 2 images sampled, got 3"):
            models.pipe(torch.randn(3, 3, 16, 16), torch.ones(3))


def test_lumina_needs_two_tokens():
    models = Models("lumina")
    with models.accelerate(sample_ratio=0.001), pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        models.draw()
