import copy

import pytest
import torch
from torch import nn

from everyformer.papers.sla import replace_attention, restore_attention
from everyformer.parts.dit import DiT


def wan():
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(1, 4, 3, 8, 8),
        "timestep": torch.tensor([10]),
        "encoder_hidden_states": torch.randn(1, 5, 16),
    }
    return model, lambda m: m(**inputs).sample


def cogvideox():
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=16,
        num_layers=2, sample_width=8, sample_height=8, sample_frames=9, patch_size=2, max_text_seq_length=5,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(1, 3, 4, 8, 8),
        "timestep": torch.tensor([10]),
        "encoder_hidden_states": torch.randn(1, 5, 16),
    }
    return model, lambda m: m(**inputs).sample


def vit():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=4
    )
    images = torch.randn(2, 3, 32, 32)
    return ViTModel(config), lambda m: m(pixel_values=images).last_hidden_state


def timm_vit():
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    images = torch.randn(2, 3, 32, 32)
    return model, lambda m: m(images)


def encoder_layer():
    x = torch.randn(2, 40, 16)
    return nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), lambda m: m(x)


def small_dit():
    model = DiT(image_size=8, patch=1, channels=1, dim=16, depth=2, heads=2)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images, times = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 500.0])
    return model, lambda m: m(images, times)


MODELS = {f.__name__: f for f in (wan, cogvideox, vit, timm_vit, encoder_layer, small_dit)}


@pytest.mark.parametrize("name", MODELS)
def test_with_every_block_critical_the_model_gives_what_it_gave_and_restores(name):
    torch.manual_seed(0)
    model, call = MODELS[name]()
    model.eval()
    with torch.no_grad():
        before = call(model)
        names = replace_attention(model, critical=1.0, negligible=0.0, block=16)
        assert names
        torch.testing.assert_close(call(model), before, atol=1e-5, rtol=1e-4)
        assert restore_attention(model) == names
        torch.testing.assert_close(call(model), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_projections_are_trained_and_saved_with_the_model(name):
    torch.manual_seed(0)
    model, call = MODELS[name]()
    again = copy.deepcopy(model)
    names = replace_attention(model, critical=0.3, negligible=0.1, block=16)
    call(model.train()).square().sum().backward()
    projections = [p for key, p in model.named_parameters() if key.endswith(("sla.proj.weight", "attend.proj.weight"))]
    assert len(projections) == len(names)
    assert all(p.grad.abs().sum() > 0 for p in projections)
    replace_attention(again, critical=0.3, negligible=0.1, block=16)
    again.load_state_dict(model.state_dict(), strict=True)
    model.eval(), again.eval()
    torch.testing.assert_close(call(again), call(model))


def test_cross_attention_is_left_alone():
    model, _ = wan()
    assert replace_attention(model) == ["blocks.0.attn1", "blocks.1.attn1"]


def test_only_the_modules_named_are_replaced():
    model, _ = vit()
    every = replace_attention(model)
    restore_attention(model)
    assert replace_attention(model, modules=every[:1]) == every[:1]


def test_what_cannot_be_replaced_is_said():
    from transformers import LlamaConfig, LlamaModel

    causal = LlamaModel(
        LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=8)
    )
    with pytest.raises(ValueError, match=r"no self-attention to replace .*causal"):
        replace_attention(causal)
    with pytest.raises(ValueError, match="no self-attention to replace"):
        replace_attention(nn.Linear(2, 2))
    model, _ = encoder_layer()
    with pytest.raises(ValueError, match="modules names 'nowhere'"):
        replace_attention(model, modules=["nowhere"])
    replace_attention(model)
    with pytest.raises(ValueError, match="restore_attention"):
        replace_attention(model)
    with pytest.raises(ValueError, match="attention mask"):
        model(torch.randn(2, 8, 16), src_key_padding_mask=torch.zeros(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="no attention that replace_attention replaced"):
        restore_attention(nn.Linear(2, 2))


def test_settings_out_of_range_leave_the_model_as_it_was():
    model, call = encoder_layer()
    before = call(model.eval())
    with pytest.raises(ValueError, match="critical must be"):
        replace_attention(model, critical=2.0)
    torch.testing.assert_close(call(model), before)
