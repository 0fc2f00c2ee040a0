import copy

import diffusers
import peft
import pytest
import torch
from diffusers.models.downsampling import Downsample2D
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from everyformer.papers.diffscaler import DiffScalerConfig, tasks
from everyformer.parts.dit import DiT

X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([1.0, 40.0, 500.0, 990.0])
Y = torch.tensor([0, 1, 4, 3])


def dit(dim=16, **options):
    torch.manual_seed(0)
    network = DiT(**{"image_size": 8, "channels": 2, "dim": dim, "depth": 2, "heads": 2, "classes": 4, **options})
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return network.eval()


def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=5, attention_head_dim=4,
    ).eval()  # fmt: skip


def transformer():
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=4, num_layers=2, sample_size=8,
        num_embeds_ada_norm=6,
    )  # fmt: skip
    return network.eval()


NETWORKS = {
    "our DiT": (dit, lambda network, **more: network(X, T, Y, **more)),
    "DiT of diffusers": (transformer, lambda network, **more: network(X, T.long(), Y, **more).sample),
    "U-Net of diffusers": (unet, lambda network, **more: network(X[:, :1], 10, Y, **more).sample),
}


def trained(model):
    """Stand-in for a training: every parameter that is trained gets other values."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def adapted(network=None, name="default", **options):
    return peft.get_peft_model(network or dit(), DiffScalerConfig(**options), adapter_name=name).eval()


def two_tasks(network=None):
    model = trained(adapted(network, name="cats", rank=2))
    model.add_adapter("dogs", DiffScalerConfig(rank=3))
    model.set_adapter("dogs")
    return trained(model)


def alone(model, call, name):
    if name == "__base__":
        with model.disable_adapter():
            return call(model)
    model.set_adapter(name)
    return call(model)


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_starts_as_the_frozen_network_and_trains_only_its_own(kind):
    build, call = NETWORKS[kind]
    frozen, model = build(), adapted(build())
    expected = call(frozen)
    assert torch.equal(call(model), expected)
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    call(model).square().sum().backward()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".affiner.default." in name for name in names)
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == names
    assert not torch.allclose(call(trained(model)), expected)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    with model.disable_adapter():
        assert torch.equal(call(model), expected)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_layer_acts(kind):
    build, call = NETWORKS[kind]
    model = trained(adapted(build()))
    expected = call(model)
    for name, parameter in model.named_parameters():
        if name.endswith(("affiner.default.scale", "affiner.default.table")):
            kept = parameter.data.clone()
            parameter.data *= 1.5
            assert not torch.equal(call(model), expected), name
            parameter.data.copy_(kept)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_mixed_batch_is_what_the_tasks_give_alone(kind):
    build, call = NETWORKS[kind]
    model, names = two_tasks(build()), ["dogs", "cats", "__base__", "dogs"]
    mixed = call(model, adapter_names=names)
    expected = torch.stack([alone(model, call, name)[row] for row, name in enumerate(names)])
    torch.testing.assert_close(mixed, expected, atol=2e-5, rtol=1e-4)
    with tasks(model.get_base_model(), names):
        torch.testing.assert_close(call(model.get_base_model()), mixed)
    assert torch.equal(call(model), alone(model, call, model.active_adapter))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["cats", "dogs", "__base__"]), min_size=1, max_size=6))
def test_any_mixture_in_any_order(names):
    model, rows = two_tasks(), len(names)
    x, t, y = (tensor.repeat(2, *[1] * (tensor.dim() - 1))[:rows] for tensor in (X, T, Y))
    mixed = model(x, t, y, adapter_names=names)
    for row, name in enumerate(names):
        expected = alone(model, lambda m: m(x, t, y), name)
        torch.testing.assert_close(mixed[row], expected[row], atol=1e-5, rtol=1e-4)


def test_gradients_of_a_mixed_batch_go_to_the_tasks_in_it():
    model = two_tasks()
    model.set_requires_grad(["cats", "dogs"])
    model(X, T, Y, adapter_names=["cats", "cats", "__base__", "cats"]).sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched
    assert all(".affiner.cats." in name for name in touched)


def test_a_task_of_its_own_classes_in_a_mixed_batch():
    model = two_tasks()
    model.add_adapter("faces", DiffScalerConfig(classes=1))
    model.set_adapter("faces")
    trained(model)
    labels = torch.tensor([0, 3, 4, 2])
    mixed = model(X, T, labels, adapter_names=["faces", "cats", "faces", "dogs"])
    expected = model(X, T, torch.tensor([0, 0, 4, 0]))
    torch.testing.assert_close(mixed[[0, 2]], expected[[0, 2]], atol=1e-5, rtol=1e-4)


def test_modules_saved_in_full_are_mixed_too():
    model = trained(adapted(name="cats", modules_to_save=["final"]))
    model.add_adapter("dogs", DiffScalerConfig(modules_to_save=["final"]))
    model.set_adapter("dogs")
    trained(model)
    mixed = model(X, T, Y, adapter_names=["cats", "dogs", "cats", "dogs"])
    for name, rows in (("cats", [0, 2]), ("dogs", [1, 3])):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[rows], model(X, T, Y)[rows], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", NETWORKS)
def test_merging_is_exact_and_can_be_undone_to_the_bit(kind):
    build, call = NETWORKS[kind]
    model = trained(adapted(build()))
    expected = call(model)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(call(model), expected, atol=2e-5, rtol=1e-4)
    with model.disable_adapter():  # PEFT's: it takes the task out
        assert torch.equal(call(model), call(build()))
    assert torch.equal(call(model), expected)
    network = model.merge_and_unload()
    torch.testing.assert_close(call(network), expected, atol=2e-5, rtol=1e-4)
    again = build()
    again.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(call(again), call(network))


def test_norms_without_weights_are_adapted_on_request():
    model = adapted(target_modules=r".*norm\d?")
    assert set(model.targeted_module_names) == {"norm", *(f"blocks.{i}.norm{j}" for i in (0, 1) for j in (1, 2))}
    expected = trained(model)(X, T, Y)
    model.merge_adapter()
    torch.testing.assert_close(model(X, T, Y), expected, atol=1e-5, rtol=1e-4)
    assert model.unload().state_dict().keys() == dit().state_dict().keys()


def test_default_targets_leave_out_what_cannot_act():
    network = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(8, 2), "free": nn.LayerNorm(8, elementwise_affine=False)}
    )
    network["last"] = nn.Linear(8, 8)
    assert adapted(network).targeted_module_names == ["last"]
    assert "label" not in adapted(exclude_modules=["label"]).targeted_module_names


def test_a_task_is_saved_in_kilobytes_and_loaded_under_another_name(tmp_path):
    model = trained(adapted())
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    assert "base_model.model.blocks.0.mlp.0.affiner.scale" in load_file(file)
    assert file.stat().st_size < 4 * sum(p.numel() for p in model.parameters() if p.requires_grad) + 15_000
    assert (tmp_path / "adapter_config.json").stat().st_size < 2000
    again = peft.PeftModel.from_pretrained(dit(), tmp_path, adapter_name="scale").eval()
    assert torch.equal(again(X, T, Y), model(X, T, Y))
    assert again.peft_config["scale"].rank == 4
    cheap = peft.PeftModel.from_pretrained(dit(), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(cheap(X, T, Y), model(X, T, Y))
    both = two_tasks()
    both.load_adapter(tmp_path, "third")
    both.set_adapter("third")
    assert torch.equal(both(X, T, Y), model(X, T, Y))


def test_a_unet_is_saved_and_loaded(tmp_path):
    call = NETWORKS["U-Net of diffusers"][1]
    model = trained(adapted(unet()))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(call(peft.PeftModel.from_pretrained(unet(), tmp_path).eval()), call(model))


def test_a_layer_with_two_names_is_adapted_under_both(tmp_path):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(Downsample2D(4, use_conv=True, name="conv")).eval()

    frozen, x = build(), torch.randn(1, 4, 6, 6)
    assert frozen[0].Conv2d_0 is frozen[0].conv
    model = trained(adapted(build()))
    assert not torch.allclose(model(x), frozen(x))
    model.save_pretrained(tmp_path)
    for cheap in (False, True):
        again = peft.PeftModel.from_pretrained(build(), tmp_path, low_cpu_mem_usage=cheap)
        torch.testing.assert_close(again(x), model(x))
    network = model.unload()
    assert network[0].Conv2d_0 is network[0].conv
    assert isinstance(network[0].conv, nn.Conv2d)


def test_a_file_of_another_width_or_depth_names_the_first_key(tmp_path):
    adapted().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"embed\.affiner\.default\.scale must have shape \(32,\), got \(16,\)"):
        peft.PeftModel.from_pretrained(dit(dim=32), tmp_path)
    with pytest.raises(ValueError, match=r"state lacks the key .*blocks\.2\..*affiner\.default\."):
        peft.PeftModel.from_pretrained(dit(depth=3), tmp_path)


def test_tasks_by_name_and_without():
    model = two_tasks()
    outputs = {name: alone(model, lambda m: m(X, T, Y), name) for name in ("cats", "dogs")}
    assert not torch.allclose(outputs["cats"], outputs["dogs"])
    model.set_adapter("dogs")
    model.delete_adapter("cats")
    assert torch.equal(model(X, T, Y), outputs["dogs"])
    assert not any(".cats." in name for name in model.state_dict())
    network = model.unload()
    assert torch.equal(network(X, T, Y), dit()(X, T, Y))
    assert network.state_dict().keys() == dit().state_dict().keys()


def test_a_pipeline_of_diffusers_draws_for_several_tasks_at_once():
    vae = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, block_out_channels=(4, 8), norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipe = diffusers.DiTPipeline(transformer(), vae, diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    # The pipeline's own "no class" is label 1000.
    pipe.transformer.transformer_blocks.apply(
        lambda m: setattr(m, "embedding_table", nn.Embedding(1001, 16)) if hasattr(m, "embedding_table") else None
    )
    model, names = two_tasks(pipe.transformer), ["cats", "dogs"]

    def draw(labels):
        options = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
        return torch.from_numpy(pipe(labels, guidance_scale=2.0, **options).images)

    with tasks(pipe.transformer, names * 2):
        mixed = draw([3, 5])
    for row, name in enumerate(names):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[row], draw([3, 5])[row], atol=1e-4, rtol=1e-4)


def test_it_compiles_and_copies():
    model = trained(adapted(dit(depth=1)))
    expected = model(X, T, Y)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(X, T, Y), expected)
    assert torch.equal(copy.deepcopy(model)(X, T, Y), expected)
    again = adapted(dit(depth=1))
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again(X, T, Y), expected)


def test_bf16_with_tasks_in_either_type():
    for widen in (True, False):
        model = peft.get_peft_model(dit().bfloat16(), DiffScalerConfig(), autocast_adapter_dtype=widen)
        output = trained(model)(X.bfloat16(), T, Y)
        assert output.dtype == torch.bfloat16
        model.merge_adapter()
        assert (model(X.bfloat16(), T, Y) - output).abs().mean() < 0.03 * output.abs().mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DiffScalerConfig(rank=-1), "rank must be at least 0, got -1"),
        (lambda: DiffScalerConfig(classes=0), "classes must be at least 1, got 0"),
        (lambda: adapted(classes=5), "classes must be between 1 and 4, .* got 5"),
        (lambda: adapted(target_modules=["nothing"]), r"Target modules \['nothing'\] not found"),
        (lambda: adapted(target_modules=["mlp"]), "target_modules must name layers among .*blocks.0.mlp, a Sequential"),
        (lambda: two_tasks()(X, T, Y, adapter_names=["cats"] * 3 + ["cows"]), "names must be among .*got .*'cows'"),
        (lambda: two_tasks()(X, T, Y, adapter_names=["cats"] * 3), "a task for each of the 4 rows, got 3 names"),
        (lambda: two_tasks()(X, T, Y, adapter_names=[]), "names must be among"),
        (lambda: two_tasks().merge_adapter(["cows"]), r"adapter_names must be among \['cats', 'dogs'\], got 'cows'"),
        (lambda: two_tasks().merge_and_unload(adapter_names=["cows"]), "adapter_names must be among .*'cows'"),
        (lambda: two_tasks().merge_adapter(["cats", "dogs"]), r"one task can act at a time, got \['cats', 'dogs'\]"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_names_in_a_string_are_refused():
    with pytest.raises(TypeError, match="names must be a list with a task for each row, got the string 'cats'"):
        two_tasks()(X, T, Y, adapter_names="cats")


def test_a_merged_task_stands_alone():
    model = two_tasks()
    model.merge_adapter()
    for call in (
        model.merge_adapter,
        lambda: model(X, T, Y, adapter_names=["cats"] * 4),
        lambda: model.add_adapter("cows", DiffScalerConfig()),
        model.merge_and_unload,
    ):
        with pytest.raises(ValueError, match="'dogs' is merged into the weights: unmerge it first"):
            call()
    model.unmerge_adapter()
    model(X, T, Y, adapter_names=["cats"] * 4)


def test_a_merge_that_fails_leaves_nothing_merged():
    model = two_tasks()
    expected = model(X, T, Y)
    final = model.get_base_model().final.affiner["dogs"]
    final.scale.data[0], kept = torch.inf, final.scale.data[0].clone()
    for call in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="'dogs' gives weights that are not finite"):
            call(safe_merge=True)
    final.scale.data[0] = kept
    assert torch.equal(model(X, T, Y), expected)


def test_two_active_tasks_are_refused():
    model = two_tasks()
    model.base_model.set_adapter(["cats", "dogs"])
    with pytest.raises(ValueError, match="one task can act at a time"):
        model(X, T, Y)
