import pytest
import torch

from everyformer.papers.predformer import PredFormer, arranged, checkpoint

CONFIG = {
    "variant": "Quadruplet_TSST", "pre_seq": 2, "num_channels": 1, "height": 4, "width": 8, "patch_size": 4, "dim": 8,
    "heads": 2, "dim_head": 4, "scale_dim": 2, "dropout": 0.0, "attn_dropout": 0.0, "drop_path": 0.0, "depth": 1,
    "Ndepth": 2,
}  # fmt: skip
SIZES = {"patch_size": 4, "dim": 8, "heads": 2, "head_dim": 4, "mlp_scale": 2}


def build(name="tsst", blocks=8, **options):
    model = PredFormer((2, 1, 4, 8), **arranged(name, blocks), **SIZES, **options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def test_our_weights_go_to_the_authors_layout_and_back():
    model = build()
    state = checkpoint.export(model)
    assert state["blocks.1.st_temporal_transformer.layers.0.1.fn.fc1_g.weight"].shape == (16, 8)
    again = checkpoint.load(state, CONFIG).eval()
    video = torch.randn(3, 2, 1, 4, 8)
    assert torch.equal(again(video), model(video))
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_fac_st_is_loaded_as_published_and_put_right_it_is_a_binary_layer():
    published = build("fac_st", 4, reorder=False)
    loaded = checkpoint.load(checkpoint.export(published), {**CONFIG, "variant": "FacST"})
    assert not loaded.reorder
    right = build("fac_st", 4)
    state = checkpoint.export(right)
    assert "blocks.0.st_space_transformer.layers.1.0.norm.weight" in state
    loaded = checkpoint.load(state, {**CONFIG, "variant": "Binary_ST", "Ndepth": 1, "depth": 2}).eval()
    video = torch.randn(1, 2, 1, 4, 8)
    assert torch.equal(loaded(video), right(video))


def test_other_arrangements_have_no_layout():
    model = PredFormer((2, 1, 4, 8), spec="TTS", layers=1, **SIZES)
    with pytest.raises(ValueError, match="model must be one of the authors' arrangements, got 1 layers of TTS"):
        checkpoint.export(model)
    plain = PredFormer((2, 1, 4, 8), spec="TS", layers=1, gated=False, **SIZES)
    with pytest.raises(ValueError, match="gated"):
        checkpoint.export(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 3}, "config has the unknown option window"),
        ({"variant": "TSST"}, r"config\['variant'\] must be one of FullAttention, .*got 'TSST'"),
        ({"Ndepth": 3}, "state lacks the key blocks.2"),
        ({"scale_dim": 4}, r"fc1_g.weight must have shape \(32, 8\), got \(16, 8\)"),
        ({"variant": "Binary_TS", "Ndepth": 4}, "state lacks the key blocks.2"),
    ],
)
def test_options_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.load(checkpoint.export(build()), {**CONFIG, **change})


def test_an_option_that_is_missing_is_named():
    with pytest.raises(ValueError, match="config lacks the option heads"):
        checkpoint.load({}, {key: value for key, value in CONFIG.items() if key != "heads"})
