import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from everyformer.papers.sla import register_transformers, replace_attention, restore_attention
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


def wan_fused():
    model, call = wan()
    for block in model.blocks:
        block.attn1.fuse_projections()
    return model, call


def cogvideox_rotary():
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=16,
        num_layers=2, sample_width=8, sample_height=8, sample_frames=9, patch_size=2, max_text_seq_length=5,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 3, 4, 8, 8),
        "timestep": torch.tensor([10, 900]),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "image_rotary_emb": get_3d_rotary_pos_embed(16, ((0, 0), (4, 4)), (4, 4), 3),
    }
    return model, lambda m: m(**inputs).sample


def cogvideox_fused():
    model, call = cogvideox_rotary()
    model.fuse_qkv_projections()
    return model, call


def bert():
    from transformers import BertConfig, BertModel

    model = BertModel(
        BertConfig(
            vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
        )
    )  # fmt: skip
    words = torch.randint(11, (2, 40))
    return model, lambda m: m(input_ids=words, attention_mask=torch.ones_like(words)).last_hidden_state


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


MODELS = {
    build.__name__: build
    for build in (
        wan, wan_fused, cogvideox, cogvideox_rotary, cogvideox_fused, vit, bert, timm_vit, encoder_layer, small_dit,
    )
}  # fmt: skip


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


@pytest.mark.parametrize("name", MODELS)
def test_sparse_attention_really_takes_the_place_of_full_attention(name):
    """Also where a module would pass its attention by when it is not trained, as nn.TransformerEncoderLayer does."""
    model, call = MODELS[name]()
    with torch.no_grad():
        # Fresh weights attend almost evenly; sharper ones make a dropped block visible.
        for parameter in model.eval().parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        before = call(model)
        replace_attention(model, critical=0.2, negligible=0.1, block=8)
        assert (call(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["wan", "cogvideox_rotary", "vit", "timm_vit", "encoder_layer", "small_dit"])
def test_bfloat16_models_get_bfloat16_layers(name):
    model, _ = MODELS[name]()
    replace_attention(model.to(torch.bfloat16).eval())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["vit", "timm_vit", "encoder_layer", "small_dit"])
def test_replaced_models_compile(name):
    model, call = MODELS[name]()
    replace_attention(model.eval(), critical=0.3, block=16)
    with torch.no_grad():
        torch.testing.assert_close(call(torch.compile(model, backend="aot_eager")), call(model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["wan", "vit", "timm_vit", "encoder_layer", "small_dit"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_replaced_model_is_its_own(name, duplicate):
    model, call = MODELS[name]()
    replace_attention(model.eval(), critical=0.3, block=16)
    with torch.no_grad():
        before = call(model)
        twin = duplicate(model)
        torch.testing.assert_close(call(twin), before)
        for parameter in twin.parameters():
            parameter.add_(1.0)
        torch.testing.assert_close(call(model), before)
        for parameter in model.parameters():
            parameter.add_(1.0)
        torch.testing.assert_close(call(model), call(twin))
        restore_attention(twin)
        with pytest.raises(ValueError, match="already"):
            replace_attention(model, modules=restore_attention(copy.deepcopy(model)))


def test_sequences_first_and_cross_attention_in_plain_pytorch():
    attention = nn.MultiheadAttention(16, 2)
    x, other = torch.randn(24, 3, 16), torch.randn(9, 3, 16)
    plain, across = attention(x, x, x)[0], attention(x, other, other)[0]
    replace_attention(attention, critical=1.0, negligible=0.0, block=8)
    torch.testing.assert_close(attention(x, x, x)[0], plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attention(x, other, other)[0], across)
    with pytest.raises(ValueError, match="is_causal"):
        attention(x, x, x, attn_mask=torch.zeros(24, 24), is_causal=True)
    single = x[:, 0]
    with pytest.raises(ValueError, match="three dimensions"):
        attention(single, single, single)


def test_padding_is_refused_when_the_model_is_called():
    model, _ = bert()
    replace_attention(model)
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, 6:] = 0
    with pytest.raises(ValueError, match=r"attention mask of shape .* without padding"):
        model(input_ids=torch.randint(11, (2, 10)), attention_mask=mask)


def test_only_the_encoder_of_an_encoder_and_decoder_is_replaced():
    from transformers import BartConfig, BartModel

    model = BartModel(
        BartConfig(
            vocab_size=11, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
        )
    ).eval()  # fmt: skip
    words = torch.randint(3, 11, (2, 12))
    before = model(input_ids=words, decoder_input_ids=words).last_hidden_state
    assert replace_attention(model, critical=1.0, negligible=0.0) == ["encoder.layers.0.self_attn"]
    after = model(input_ids=words, decoder_input_ids=words).last_hidden_state
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    for name, reason in (
        ("decoder.layers.0.self_attn", "causal"),
        ("decoder.layers.0.encoder_attn", "cross-attention"),
    ):
        with pytest.raises(ValueError, match=f"'{name}', which cannot be replaced: it is {reason}"):
            replace_attention(model, modules=[name])


def test_a_model_of_causal_attention_of_our_name_is_refused_when_called():
    from transformers import LlamaConfig, LlamaModel

    register_transformers()
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=8,
        attn_implementation="sla",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"call replace_attention\(model\) first"):
        LlamaModel(config)(input_ids=torch.randint(8, (1, 6)))


def test_attention_with_position_biases_is_not_mistaken_for_plain_attention():
    import timm

    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(1,), num_heads=(2,))
    with pytest.raises(ValueError, match="no self-attention to replace"):
        replace_attention(swin)


def test_without_transformers_the_line_to_install_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "everyformer\[language\]"'):
        register_transformers()


def test_importing_it_imports_none_of_the_libraries_it_serves():
    code = (
        "import sys, everyformer.papers.sla.integration; "
        "print([name for name in ('diffusers', 'transformers', 'timm') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
