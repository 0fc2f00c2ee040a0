import copy
import warnings

import peft
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from everyformer.papers.adaptformer import AdaptFormerConfig, VPTConfig

PLACEMENTS = [{"layernorm": norm, "sequential": order} for norm in ("none", "in", "out") for order in (False, True)]
HF = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vit(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
    return timm.models.VisionTransformer(**{**sizes, **options}).eval()


def trained(model):
    """Stand-in for a training: every parameter that is trained gets other values."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return model.eval()


def logits(output):
    return output if isinstance(output, torch.Tensor) else output.logits


def adapted(network=None, **options):
    return peft.get_peft_model(network or vit(), AdaptFormerConfig(**{"bottleneck": 4, **options})).eval()


@pytest.mark.parametrize("options", PLACEMENTS)
def test_the_adapted_network_is_at_first_the_frozen_one_and_later_not(options):
    expected, model = vit()(X), adapted(**options)
    assert torch.equal(model(X), expected)
    assert not torch.allclose(trained(model)(X), expected)
    with model.disable_adapter():
        assert torch.equal(model(X), expected)


def networks():
    video = transformers.VideoMAEConfig(num_frames=4, intermediate_size=32, **HF)
    yield "ViT", transformers.ViTForImageClassification(transformers.ViTConfig(intermediate_size=32, **HF)), (3, 16, 16)
    yield "VideoMAE", transformers.VideoMAEForVideoClassification(video), (4, 3, 16, 16)
    for name, options in (
        ("vit_tiny_patch16_224", {"init_values": 0.1, "depth": 2}),
        ("vit_relpos_small_patch16_224", {"depth": 2}),
        ("eva02_tiny_patch14_224", {"depth": 2}),
        ("beit_base_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads": 4}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}),
    ):
        yield name, timm.create_model(name, num_classes=5, **options), (3, 224, 224)


@pytest.mark.parametrize(("network", "shape"), [pytest.param(n, s, id=name) for name, n, s in networks()])
def test_networks_of_timm_and_transformers(network, shape):
    network, x = network.eval(), torch.randn(1, *shape)
    with torch.no_grad():
        expected = logits(network(x))
        model = adapted(network)
        assert torch.equal(logits(model(x)), expected)
        assert not torch.allclose(logits(trained(model)(x)), expected)
        model = peft.get_peft_model(model.unload(), AdaptFormerConfig(sequential=True)).eval()
        assert torch.equal(logits(model(x)), expected)
        assert not torch.allclose(logits(trained(model)(x)), expected)


@pytest.mark.parametrize("block", ["Block", "ResPostBlock"])
def test_a_block_gives_what_the_equation_says(block):
    model = trained(adapted(vit(block_fn=getattr(timm.models.vision_transformer, block)), layernorm="in"))
    one, x = model.get_base_model().blocks[1], torch.randn(2, 7, 16)
    branch = one.adaptformer.adaptmlp["default"]
    if block == "Block":
        middle = x + one.attn(one.norm1(x))
        expected = middle + one.mlp(one.norm2(middle)) + branch(middle)
    else:
        middle = x + one.norm1(one.attn(x))
        expected = middle + one.norm2(one.mlp(middle)) + branch(middle)
    torch.testing.assert_close(one(x), expected)


def test_hidden_states_of_transformers_are_the_adapted_ones():
    network = transformers.ViTForImageClassification(transformers.ViTConfig(intermediate_size=32, **HF)).eval()
    x = torch.randn(1, 3, 16, 16)
    network(x, output_hidden_states=True)  # installs the recording first
    found = trained(adapted(network))(x, output_hidden_states=True)
    last = network.vit.layernorm(found.hidden_states[-1])[:, 0]
    torch.testing.assert_close(network.classifier(last), found.logits)


def test_only_adapters_and_the_head_are_trained_and_the_frozen_weights_keep_their_names():
    before = set(vit().state_dict())
    model = peft.get_peft_model(vit(), AdaptFormerConfig(bottleneck=4, modules_to_save=["head"]))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".adaptmlp." in name or ".head." in name for name in names)
    assert {name for name in before if not name.startswith("head")} <= set(model.get_base_model().state_dict())
    model.train()(X).square().sum().backward()
    got = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert set(got) == names


def test_saving_and_loading_under_another_name(tmp_path):
    model = peft.get_peft_model(vit(), AdaptFormerConfig(bottleneck=4, modules_to_save=["head"], layernorm="in"))
    trained(model).save_pretrained(tmp_path)
    assert "base_model.model.blocks.0.adaptformer.adaptmlp.down.weight" in load_file(
        tmp_path / "adapter_model.safetensors"
    )
    again = peft.PeftModel.from_pretrained(vit(), tmp_path, adapter_name="birds").eval()
    assert torch.equal(again(X), model(X))
    assert again.peft_config["birds"].layernorm == "in"
    cheap = peft.PeftModel.from_pretrained(vit(), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(cheap(X), model(X))


def test_a_file_is_a_few_megabytes_at_most(tmp_path):
    model = peft.get_peft_model(timm.create_model("vit_tiny_patch16_224"), AdaptFormerConfig(bottleneck=8))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 200_000


def test_several_adapters_by_name():
    model = trained(adapted())
    first = model(X)
    model.add_adapter("second", AdaptFormerConfig(bottleneck=2, sequential=True))
    assert torch.equal(model(X), first)
    model.set_adapter("second")
    second = trained(model)(X)
    assert not torch.allclose(second, first)
    model.set_adapter("default")
    assert torch.equal(model(X), first)
    model.base_model.set_adapter(["default", "second"])
    both = model(X)
    assert not torch.allclose(both, first)
    assert not torch.allclose(both, second)
    model.set_adapter("second")
    model.delete_adapter("default")
    assert torch.equal(model(X), second)
    assert not any(".default." in name for name in model.state_dict())


def test_unloading_gives_the_network_back_and_merging_is_refused():
    model, expected = trained(adapted()), vit()
    with pytest.raises(ValueError, match="AdaptFormerModel cannot be merged"):
        model.merge_and_unload()
    network = model.unload()
    assert torch.equal(network(X), expected(X))
    assert network.state_dict().keys() == expected.state_dict().keys()


@pytest.mark.parametrize("config", [AdaptFormerConfig(layernorm="in"), VPTConfig(tokens=2)])
def test_it_compiles_exports_and_copies(config):
    model = trained(peft.get_peft_model(vit(), config))
    expected = model(X)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(X), expected)
    torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), expected)
    assert torch.equal(copy.deepcopy(model)(X), expected)
    again = peft.get_peft_model(vit(), copy.copy(config)).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again(X), expected)


def test_bf16_with_adapters_in_either_type():
    for widen in (True, False):
        model = peft.get_peft_model(vit().bfloat16(), AdaptFormerConfig(bottleneck=4), autocast_adapter_dtype=widen)
        assert trained(model)(X.bfloat16()).dtype == torch.bfloat16


def test_gradient_checkpointing_gives_the_same_gradients():
    def gradients(network):
        model = trained(adapted(network, dropout=0.0)).train()
        model(X).square().sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    plain, checkpointed = vit(), vit()
    checkpointed.set_grad_checkpointing()
    torch.manual_seed(1)
    expected = gradients(plain)
    torch.manual_seed(1)
    torch.testing.assert_close(gradients(checkpointed), expected)


def test_prompts_act_and_go():
    expected, model = vit()(X), peft.get_peft_model(vit(), VPTConfig(tokens=3)).eval()
    assert not torch.allclose(model(X), expected)
    assert model.get_base_model().forward_features(X).shape == (2, 17, 16)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3 * 3 * 16
    with model.disable_adapter():
        assert torch.equal(model(X), expected)
    assert torch.equal(model.unload()(X), expected)


def test_prompts_are_saved_and_have_names(tmp_path):
    model = trained(peft.get_peft_model(vit(), VPTConfig(tokens=3)))
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(vit(), tmp_path, adapter_name="birds").eval()
    assert torch.equal(again(X), model(X))
    again.add_adapter("cars", VPTConfig(tokens=1))
    assert torch.equal(again(X), model(X))
    again.set_adapter("cars")
    assert not torch.allclose(again(X), model(X))


def test_lora_of_peft_sits_beside_it():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = peft.get_peft_model(vit(), peft.LoraConfig(target_modules=["qkv"])).merge_and_unload()
    assert torch.equal(adapted(network)(X), vit()(X))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AdaptFormerConfig(bottleneck=0), "bottleneck must be at least 1, got 0"),
        (lambda: AdaptFormerConfig(layernorm="before"), "layernorm must be one of .*, got 'before'"),
        (lambda: AdaptFormerConfig(scale="big"), "scale must be a number or 'learnable', got 'big'"),
        (lambda: VPTConfig(tokens=0), "tokens must be at least 1, got 0"),
        (lambda: adapted(nn.Sequential(nn.Linear(3, 3))), "model must have blocks .* found no such MLP in Sequential"),
        (lambda: adapted(target_modules=["head"]), "target_modules must name blocks .* MLP in head, a Linear"),
        (lambda: adapted(target_modules=["nothing"]), r"Target modules \['nothing'\] not found"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_prompts_want_tokens():
    network = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1), num_heads=(2, 2))
    with pytest.raises(ValueError, match="prompts need blocks on tokens"):
        peft.get_peft_model(network, VPTConfig())(torch.randn(1, 3, 224, 224))


def test_a_file_of_another_width_or_depth_names_the_first_key(tmp_path):
    adapted().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"blocks\.0\.adaptformer\.adaptmlp\.default\.down\.weight must have shape \(4, 32\)"
    ):
        peft.PeftModel.from_pretrained(vit(embed_dim=32), tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    save_file({key: state[key] for key in state if "blocks.1" not in key}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        ValueError, match=r"state lacks the key .*blocks\.1\.adaptformer\.adaptmlp\.default\.down\.weight"
    ):
        peft.PeftModel.from_pretrained(vit(), tmp_path)
