"""Layouts beyond what the parity vectors hold: files, older states, heads for tracks, timm's encoder."""

import argparse
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as read_tensors

from everyformer.papers.feedforward_3d import (
    MultiViewModel,
    PairModel,
    checkpoint,
    dust3r_512_dpt,
    dust3r_linear,
    load_file,
    vggt_1b,
)

PAIR = {"patch": 4, "dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_depth": 4, "decoder_heads": 2}
DPT = {"head": "dpt", "features": 8, "layer_dims": (4, 4, 8, 8), "last": 4}
HEADS = {"enc_num_heads": 2, "dec_num_heads": 2}
MULTI = {
    "image_size": 16, "patch": 4, "dim": 16, "depth": 2, "heads": 2, "registers": 1, "encoder_depth": 1,
    "camera_depth": 1, "camera_heads": 2, "features": 8, "layer_dims": (4, 4, 8, 8), "last": 4, "layers": (0, 0, 1, 1),
}  # fmt: skip
VIEWS = {"num_heads": 2, "camera_num_heads": 2, "dpt_layers": (0, 0, 1, 1)}


def test_published_layouts():
    expected = {
        dust3r_linear: (877, {"downstream_head2.proj.weight": (1024, 768), "mask_token": (1, 1, 768)}),
        dust3r_512_dpt: (
            1009,
            {
                "patch_embed.proj.weight": (1024, 3, 16, 16),
                "enc_blocks.23.attn.qkv.weight": (3072, 1024),
                "dec_blocks2.11.cross_attn.projk.bias": (768,),
                "dec_blocks.0.norm_y.weight": (768,),
                "downstream_head1.dpt.act_postprocess.0.1.weight": (96, 96, 4, 4),
                "downstream_head1.dpt.act_postprocess.3.1.weight": (768, 768, 3, 3),
                "downstream_head1.dpt.scratch.layer2_rn.weight": (256, 192, 3, 3),
                "downstream_head1.dpt.scratch.layer_rn.1.weight": (256, 192, 3, 3),
                "downstream_head2.dpt.scratch.refinenet4.resConfUnit1.conv1.weight": (256, 256, 3, 3),
                "downstream_head2.dpt.head.4.weight": (4, 128, 1, 1),
            },
        ),
        vggt_1b: (
            None,
            {
                "aggregator.camera_token": (1, 2, 1, 1024),
                "aggregator.register_token": (1, 2, 4, 1024),
                "aggregator.patch_embed.pos_embed": (1, 1370, 1024),
                "aggregator.patch_embed.patch_embed.proj.weight": (1024, 3, 14, 14),
                "aggregator.patch_embed.blocks.23.ls2.gamma": (1024,),
                "aggregator.global_blocks.23.attn.k_norm.weight": (64,),
                "camera_head.trunk.3.mlp.fc1.weight": (8192, 2048),
                "camera_head.poseLN_modulation.1.weight": (6144, 2048),
                "camera_head.pose_branch.fc2.weight": (9, 1024),
                "point_head.norm.weight": (2048,),
                "point_head.scratch.output_conv2.2.weight": (4, 32, 1, 1),
                "depth_head.resize_layers.3.weight": (1024, 1024, 3, 3),
                "depth_head.scratch.output_conv2.2.weight": (2, 32, 1, 1),
            },
        ),
    }
    for build, (count, shapes) in expected.items():
        with torch.device("meta"):
            state = checkpoint.export(build())
        assert count is None or len(state) == count
        assert {key: tuple(state[key].shape) for key in shapes} == shapes
        assert not any("scratch.refinenet4.resConfUnit1" in key for key in state if key.startswith("depth_head"))


def test_the_authors_views_with_convolved_patches():
    """facebookresearch/vggt at 44b3afb with random weights: three views, two blocks for cameras, no dense heads."""
    tensors = read_tensors(Path(__file__).parent / "views.safetensors")
    state = {key.removeprefix("state."): tensor for key, tensor in tensors.items() if key.startswith("state.")}
    filler = MultiViewModel(
        image_size=56, patch=14, dim=32, depth=4, heads=2, encoder_depth=0, camera_depth=2, camera_heads=4, features=8,
        layer_dims=(4, 4, 4, 4), layers=(0, 1, 2, 3),
    )  # fmt: skip
    dense = {key: value for key, value in checkpoint.export(filler).items() if key[:6] in ("point_", "depth_")}
    config = {"num_heads": 2, "camera_num_heads": 4, "dpt_layers": (0, 1, 2, 3)}
    model = checkpoint.load({**state, **dense}, config).eval()
    with torch.no_grad():
        codes = model(tensors["input.images"]).pose_codes
        tokens = model.mix(tensors["input.images"])[3]
    torch.testing.assert_close(tokens, tensors["output.tokens_last"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(codes[0], tensors["output.pose_enc_first"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(codes[3], tensors["output.pose_enc"], atol=1e-4, rtol=1e-4)


def test_a_published_file_is_read_without_running_what_it_says(tmp_path):
    model = PairModel(**PAIR, **DPT).eval()
    arguments = argparse.Namespace(model="__import__('os').abort()", lr=1e-4)
    torch.save({"args": arguments, "model": checkpoint.export(model), "epoch": 3}, tmp_path / "dust3r.pth")
    again = load_file(tmp_path / "dust3r.pth", HEADS)
    images = torch.rand(2, 1, 3, 8, 12)
    for found, expected in zip(again(*images), model(*images), strict=True):
        torch.testing.assert_close(found, expected)
    frozen = [name for name, parameter in again.named_parameters() if not parameter.requires_grad]
    assert frozen and all("fuse.3.skip" in name for name in frozen)


class Trap:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_file_that_needs_unpickling_is_refused(tmp_path, capsys):
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"model": Trap()}))
    torch.save({"model": Trap()}, tmp_path / "zip.pth")
    for name in ("trap.pth", "zip.pth"):
        with pytest.raises(ValueError, match="is not a checkpoint of plain tensors"):
            load_file(tmp_path / name)
    assert "unpickled" not in capsys.readouterr().out


def test_weights_before_pairs_fill_the_second_decoder():
    model = PairModel(**PAIR)
    state = checkpoint.export(model)
    older = {key: tensor for key, tensor in state.items() if not key.startswith("dec_blocks2.")}
    again = checkpoint.load({**older, "prediction_head.weight": torch.zeros(1)}, HEADS)
    assert torch.equal(again.decoder2[2].cross.key.weight, model.decoder1[2].cross.key.weight)
    assert again.decoder2[2].cross.key.weight is not again.decoder1[2].cross.key.weight


def test_the_head_for_tracks_is_left_out_or_kept(tmp_path):
    model = MultiViewModel(**MULTI)
    state = {**checkpoint.export(model), "track_head.tracker.corr.weight": torch.randn(3)}
    with pytest.raises(ValueError, match=re.escape("unexpected key track_head.tracker.corr.weight")):
        checkpoint.load(state, VIEWS)
    kept = checkpoint.export(checkpoint.load(state, VIEWS, tracks=True))
    assert torch.equal(kept["track_head.tracker.corr.weight"], state["track_head.tracker.corr.weight"])
    torch.save(state, tmp_path / "vggt.pt")
    again = load_file(tmp_path / "vggt.pt", VIEWS).eval()
    images = torch.rand(1, 2, 3, 8, 8)
    torch.testing.assert_close(again(images), model.eval()(images))


def test_weights_that_should_be_twins_must_be_the_same():
    state = checkpoint.export(PairModel(**PAIR, **DPT))
    key = "downstream_head1.dpt.scratch.layer_rn.2.weight"
    with pytest.raises(ValueError, match=re.escape(f"layer3_rn.weight and {key} must hold the same weights")):
        checkpoint.load({**state, key: state[key] + 1}, HEADS)
    del state[key]
    with pytest.raises(ValueError, match=re.escape(f"state lacks the key {key}")):
        checkpoint.load(state, HEADS)


def test_options_that_do_not_fit_are_named():
    state = checkpoint.export(PairModel(**PAIR))
    with pytest.raises(ValueError, match="unknown option num_heads; accepted are enc_num_heads, dec_num_heads"):
        checkpoint.load(state, {"num_heads": 2})
    with pytest.raises(ValueError, match=re.escape("state lacks the key patch_embed.proj.weight")):
        checkpoint.load({}, {})
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight must have 4 dimensions, got shape \(16, 48\)"):
        checkpoint.load({**state, "patch_embed.proj.weight": torch.zeros(16, 48)}, HEADS)


@pytest.mark.parametrize("size", [(28, 28), (14, 42)])
def test_timms_dinov2_weights_give_timms_tokens(size):
    timm = pytest.importorskip("timm")
    theirs = timm.models.VisionTransformer(
        img_size=size if size[0] == size[1] else 28, patch_size=14, embed_dim=32, depth=2, num_heads=4, num_classes=0,
        reg_tokens=4, no_embed_class=True, init_values=1.0, dynamic_img_size=True,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = checkpoint.load_dino(theirs.state_dict(), heads=4).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.forward_features(images)[:, 5:], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=re.escape("state lacks the key blocks.1.ls1.gamma")):
        checkpoint.load_dino({k: v for k, v in theirs.state_dict().items() if k != "blocks.1.ls1.gamma"}, heads=4)
