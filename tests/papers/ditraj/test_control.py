import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from everyformer.papers.ditraj import Trajectory, TrajectoryControl
from everyformer.papers.ditraj.method import foreground
from everyformer.parts.video_dit import VideoDiT

WORDS, TEXT = 5, 16
MOVING = Trajectory([(0, 0.0, 0.5, 0.0, 0.5), (8, 0.5, 1.0, 0.5, 1.0)], frames=9)
FULL = Trajectory([(0, 0.0, 1.0, 0.0, 1.0)], frames=9)
GRID = (3, 4, 4)


def wan(layers=2):
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=TEXT,
        freq_dim=16, ffn_dim=32, num_layers=layers,
    )  # fmt: skip
    return model, lambda m, x, t, words: m(x.transpose(1, 2), t, words, return_dict=False)[0].transpose(1, 2)


def cogvideox(layers=2):
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=TEXT, num_layers=layers, sample_width=8, sample_height=8, sample_frames=9, patch_size=2,
        max_text_seq_length=WORDS, use_rotary_positional_embeddings=True,
    )  # fmt: skip
    rotary = get_3d_rotary_pos_embed(16, ((0, 0), (4, 4)), (4, 4), 3)
    return model, lambda m, x, t, words: m(x, words, t, image_rotary_emb=rotary, return_dict=False)[0]


def cogvideox_fused(layers=2):
    model, call = cogvideox(layers)
    model.fuse_qkv_projections()
    return model, call


def video_dit(layers=2):
    model = VideoDiT(patch=2, channels=4, text_dim=TEXT, dim=24, depth=layers, heads=2)
    return model, lambda m, x, t, words: m(x, t, words)


MODELS = {build.__name__: build for build in (wan, cogvideox, cogvideox_fused, video_dit)}


def built(name, layers=2):
    """A model whose every part shows in its output, and a call of it at a timestep."""
    model, call = MODELS[name](layers)
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    video, words = torch.randn(2, 3, 4, 8, 8), torch.randn(2, WORDS, TEXT)

    def run(time=900.0, words=words, video=video):
        with torch.no_grad():
            return call(model, video, torch.full((len(video),), time), words)

    return model, run, words


def state_of(model):
    """Everything about a model's modules that control touches."""
    return {
        name: (
            {key: id(value) for key, value in module.__dict__.items() if not key.startswith("_")},
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            "_trajectory_control" in module.__dict__,
        )
        for name, module in model.named_modules()
    }


def prompts():
    return {"foreground_prompt": torch.randn(4, TEXT), "background_prompt": torch.randn(3, TEXT)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mask", ["redundant", "separate", "none"])
def test_control_acts_inside_its_context_and_leaves_no_trace(name, mask):
    model, run, _ = built(name)
    plain, before = run(), state_of(model)
    control = TrajectoryControl(MOVING, **prompts(), self_mask=mask)
    with control.on(model):
        controlled = run()
        assert (controlled - plain).abs().max() > 1e-3
        assert controlled.isfinite().all()
    assert state_of(model) == before
    assert torch.equal(run(), plain)
    with pytest.raises(KeyboardInterrupt), control.on(model):
        raise KeyboardInterrupt
    assert state_of(model) == before
    with control.on(model):
        assert torch.equal(run(), controlled)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mask", ["redundant", "separate"])
def test_boxes_that_never_move_and_fill_the_frame_leave_the_output_unchanged(name, mask):
    model, run, words = built(name)
    plain = run()
    with TrajectoryControl(FULL, self_mask=mask).on(model):
        torch.testing.assert_close(run(), plain, atol=1e-5, rtol=1e-4)
    own = {"foreground_prompt": words, "background_prompt": torch.randn(7, TEXT)}
    with TrajectoryControl(FULL, **own, self_mask=mask).on(model):
        torch.testing.assert_close(run(), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_control_of_nothing_and_boxes_that_stay_change_not_a_bit(name):
    model, run, _ = built(name)
    plain = run()
    with TrajectoryControl(MOVING, rope_steps=0, self_mask="none").on(model):
        assert torch.equal(run(), plain)
    still = Trajectory([(0, 0.0, 0.5, 0.25, 0.75)], frames=9)
    with TrajectoryControl(still, self_mask="none").on(model):
        assert torch.equal(run(), plain)


@pytest.mark.parametrize("name", MODELS)
def test_steps_are_counted_by_falling_timesteps(name):
    model, run, _ = built(name)
    plain = {time: run(time) for time in (900.0, 500.0, 100.0)}
    with TrajectoryControl(MOVING, **prompts(), steps=2, rope_steps=1).on(model):
        for _ in range(2):  # the second video begins with a rise
            first, again, second, third = run(900.0), run(900.0), run(500.0), run(100.0)
            assert torch.equal(first, again)
            assert (first - plain[900.0]).abs().max() > 1e-3
            assert (second - plain[500.0]).abs().max() > 1e-3
            assert torch.equal(third, plain[100.0])
    with TrajectoryControl(MOVING, steps=0, rope_steps=1).on(model):
        assert (run(900.0) - plain[900.0]).abs().max() > 1e-3
        assert torch.equal(run(500.0), plain[500.0])


@pytest.mark.parametrize("name", MODELS)
def test_inside_sees_the_foreground_prompt_and_outside_the_background_prompt(name):
    """With one layer, a change of a prompt stays where it is seen."""
    model, run, _ = built(name, layers=1)
    given = prompts()
    inside = foreground(MOVING.tokens(GRID), GRID).view(GRID)
    inside = inside.repeat_interleave(2, 1).repeat_interleave(2, 2)[None, :, None].expand(2, 3, 4, 8, 8)

    def drawn(**changed):
        with TrajectoryControl(MOVING, **{**given, **changed}).on(model):
            return run()

    first = drawn()
    moved = (drawn(foreground_prompt=given["foreground_prompt"] + 1) - first).abs()
    assert moved[inside].max() > 1e-3 and moved[~inside].max() < 1e-5
    moved = (drawn(background_prompt=given["background_prompt"] + 1) - first).abs()
    assert moved[~inside].max() > 1e-3 and moved[inside].max() < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_an_unconditional_pass_keeps_its_text(name):
    model, run, words = built(name)
    with TrajectoryControl(MOVING, **prompts(), rope_steps=0, self_mask="none").on(model) as steering:
        with steering.unconditional():
            free = run()
        assert (run() - free).abs().max() > 1e-3
    assert torch.equal(run(words=words), free)


def test_a_batch_may_have_a_prompt_for_each_video():
    model, run, _ = built("wan")
    both = {"foreground_prompt": torch.randn(2, 4, TEXT), "background_prompt": torch.randn(2, 3, TEXT)}
    with TrajectoryControl(MOVING, **both).on(model):
        together = run()
    for index in range(2):
        with TrajectoryControl(MOVING, **{key: value[index] for key, value in both.items()}).on(model):
            torch.testing.assert_close(run()[index], together[index], atol=1e-5, rtol=1e-4)


def test_bfloat16_stays_near_float32():
    model, run, words = built("wan")
    video = torch.randn(1, 3, 4, 8, 8)
    control = TrajectoryControl(MOVING, **prompts())
    with control.on(model):
        full = run(words=words[:1], video=video)
    model.to(torch.bfloat16)
    with control.on(model):
        half = run(words=words[:1].bfloat16(), video=video.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() < 0.1 * full.norm()


def text_encoder():
    """A tokenizer of a few words and a tiny encoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "<unk>", "a", "dog", "garden", "in", "ugly"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = T5Config(vocab_size=len(words), d_model=TEXT, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"), T5EncoderModel(
        config
    ).eval()


def pipeline(name):
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, FlowMatchEulerDiscreteScheduler, WanPipeline

    model, _, _ = built(name)
    tokenizer, encoder = text_encoder()
    kind, scheduler = {
        "wan": (WanPipeline, FlowMatchEulerDiscreteScheduler(shift=3.0)),
        "cogvideox": (CogVideoXPipeline, CogVideoXDDIMScheduler()),
    }[name]
    pipe = kind(tokenizer=tokenizer, text_encoder=encoder, vae=None, transformer=model, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)

    def generate(prompt="a dog in a garden", seed=0, guidance=3.0, **options):
        return pipe(
            prompt=prompt, negative_prompt=None if guidance <= 1 else "ugly", height=64, width=64, num_frames=9,
            num_inference_steps=3, guidance_scale=guidance, output_type="latent", max_sequence_length=WORDS,
            generator=torch.Generator().manual_seed(seed), **options,
        ).frames  # fmt: skip

    return pipe, generate


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_pipelines_follow_texts_reproducibly_and_are_restored(name):
    pipe, generate = pipeline(name)
    plain = generate()
    control = TrajectoryControl(MOVING, "a dog", "a garden", steps=2, rope_steps=1)
    with control.on(pipe):
        first = generate()
        assert torch.equal(generate(), first)
        assert (generate(seed=1) - first).abs().max() > 1e-3
        unguided = generate(guidance=1.0)
        both = generate(["a dog in a garden", "a dog"])
        twice = generate(num_videos_per_prompt=2)
    assert (first - plain).abs().max() > 1e-3 and (first - unguided).abs().max() > 1e-3
    assert len(both) == 2
    assert len(twice) == (2 if name == "wan" else 1)  # CogVideoX's pipeline makes one, whatever it is asked for
    assert torch.equal(generate(), plain)
    assert "encode_prompt" not in pipe.__dict__ and "cache_context" not in pipe.transformer.__dict__
    with torch.no_grad():
        texts = ("a dog", "a garden")
        embedded = [pipe.encode_prompt(text, None, False, 1, max_sequence_length=WORDS)[0] for text in texts]
    with TrajectoryControl(MOVING, *embedded, steps=2, rope_steps=1).on(pipe):
        torch.testing.assert_close(generate(), first, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_guidance_in_a_pipeline_is_guidance_of_two_passes(name):
    """The prompt's pass is controlled, the negative prompt's keeps its text and the moved positions."""
    pipe, generate = pipeline(name)
    control = TrajectoryControl(MOVING, "a dog", "a garden", steps=2, rope_steps=1)
    with control.on(pipe):
        piped = generate()

    wanted, negative = pipe.encode_prompt("a dog in a garden", "ugly", True, 1, max_sequence_length=WORDS)
    both = [pipe.encode_prompt(text, None, False, 1, max_sequence_length=WORDS)[0] for text in ("a dog", "a garden")]
    shape = (1, 4, 3, 8, 8) if name == "wan" else (1, 3, 4, 8, 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(3)
    rotary = {} if name == "wan" else {
        "image_rotary_emb": pipe._prepare_rotary_positional_embeddings(64, 64, 3, torch.device("cpu"))
    }  # fmt: skip
    with torch.no_grad(), TrajectoryControl(MOVING, *both, steps=2, rope_steps=1).on(pipe.transformer) as steering:
        for time in pipe.scheduler.timesteps:
            call = {"hidden_states": latents, "timestep": time[None], "return_dict": False, **rotary}
            yes = pipe.transformer(encoder_hidden_states=wanted, **call)[0]
            with steering.unconditional():
                no = pipe.transformer(encoder_hidden_states=negative, **call)[0]
            latents = pipe.scheduler.step(no + 3.0 * (yes - no), time, latents, return_dict=False)[0]
    torch.testing.assert_close(piped, latents, atol=1e-4, rtol=1e-3)


def test_both_transformers_of_a_pipeline_are_controlled():
    pipe, generate = pipeline("wan")
    other, _, _ = built("wan")
    pipe.register_modules(transformer_2=other)
    pipe.register_to_config(boundary_ratio=0.85)
    plain = generate(guidance=1.0)
    with TrajectoryControl(MOVING, "a dog", "a garden").on(pipe):
        assert "_trajectory_control" in other.__dict__
        assert (generate(guidance=1.0) - plain).abs().max() > 1e-3
    assert torch.equal(generate(guidance=1.0), plain)


def test_a_target_that_cannot_be_steered_is_named():
    control = TrajectoryControl(MOVING)
    with (
        pytest.raises(TypeError, match=r"target must be one of WanPipeline, .* got Linear"),
        control.on(torch.nn.Linear(1, 1)),
    ):
        pass
    model, _, _ = built("wan")
    before = state_of(model)
    with control.on(model), pytest.raises(ValueError, match="under trajectory control already"), control.on(model):
        pass
    with (
        pytest.raises(ValueError, match="must be embeddings for a bare transformer"),
        TrajectoryControl(MOVING, "a dog", "a garden").on(model),
    ):
        pass
    assert state_of(model) == before
    own = VideoDiT(patch=2, channels=4, dim=24, depth=1, heads=2, attention=lambda head_dim: lambda q, k, v: v)
    with pytest.raises(ValueError, match="self_mask must be 'none'"), control.on(own):
        pass
    from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel

    fixed = CogVideoXTransformer3DModel(num_attention_heads=1, attention_head_dim=16, num_layers=1, time_embed_dim=8)
    with pytest.raises(ValueError, match="with rotary embeddings alone"), control.on(fixed):
        pass
    seeing = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, ffn_dim=8, num_layers=1, added_kv_proj_dim=12, image_dim=8
    )
    with pytest.raises(ValueError, match="text-to-video Wan"), control.on(seeing):
        pass


def test_what_does_not_fit_a_pass_is_named():
    model, run, _ = built("wan")
    short = TrajectoryControl(Trajectory([(0, 0.0, 1.0, 0.0, 1.0)], frames=2))
    with short.on(model), pytest.raises(ValueError, match="3 frames of tokens, more than the trajectory's 2"):
        run()
    for bad in ((3, 4, TEXT), (4, TEXT + 1)):
        wrong = {"foreground_prompt": torch.randn(bad), "background_prompt": torch.randn(3, TEXT)}
        with (
            TrajectoryControl(MOVING, **wrong).on(model),
            pytest.raises(ValueError, match=r"foreground_prompt must be"),
        ):
            run()
    cog, _, words = built("cogvideox")
    with TrajectoryControl(MOVING).on(cog), pytest.raises(ValueError, match="image_rotary_emb must be given"):
        cog(torch.randn(2, 3, 4, 8, 8), words, torch.tensor([9, 9]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"boxes": [(0, 0, 1, 0, 1)]}, TypeError, "boxes must be a Trajectory, got list"),
        ({"foreground_prompt": "a dog"}, ValueError, "both or neither"),
        ({"steps": -1}, ValueError, "steps must be a whole number, 0 or more, got -1"),
        ({"rope_steps": 0.5}, ValueError, "rope_steps must be a whole number"),
        ({"trim": -1}, ValueError, "trim must be"),
        ({"self_mask": "all"}, ValueError, "self_mask must be one of .* got 'all'"),
    ],
)
def test_settings_that_cannot_be_are_named(options, error, message):
    with pytest.raises(error, match=message):
        TrajectoryControl(**{"boxes": MOVING, **options})


def test_a_video_dit_keeps_the_kernel_it_had():
    model, _, _ = built("video_dit")
    with TrajectoryControl(MOVING).on(model):
        assert model.blocks[0].attention.attend is not F.scaled_dot_product_attention
    assert all(block.attention.attend is F.scaled_dot_product_attention for block in model.blocks)


def test_importing_it_does_not_import_diffusers():
    code = "import sys; from everyformer.papers.ditraj import TrajectoryControl, std_rope; print('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
