import pytest
import timm
import torch

from everyformer.papers.wavemix import WaveMixSegmenter, checkpoint


def test_a_variants_file_goes_there_and_back_under_the_authors_names():
    state = checkpoint.export(timm.create_model("wavemix_lite_8_5", in_chans=1))
    assert {"conv.0.weight", "layers.4.reduction.bias", "layers.0.feedforward.4.weight", "pool.2.bias"} <= state.keys()
    back = checkpoint.export(checkpoint.load(state, {"variant": "wavemix_lite_8_5"}))
    assert back.keys() == state.keys()


def test_the_decoder_for_cityscapes_has_the_classifiers_name():
    model = WaveMixSegmenter(5, 1, 8, 2, stem="patch", decoder=(6, 4))
    assert "pool.0.weight" in checkpoint.export(model)
    assert "layers.0.feedforward2.0.weight" in checkpoint.export(model)
    assert "expand.0.weight" in checkpoint.export(WaveMixSegmenter(5, 1, 8, 2))


def test_another_variants_state_names_the_key_and_the_variant_that_fits():
    state = checkpoint.export(timm.create_model("wavemix_lite_8_5"))
    with pytest.raises(ValueError, match=r"conv\.0\.weight must have shape .*the state fits wavemix_lite_8_5"):
        checkpoint.load(state, {"variant": "wavemix_lite_64_6"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"variant": "wavemix_lite_8_6"}, "unknown variant 'wavemix_lite_8_6'; did you mean wavemix_lite_8_5"),
        ({"task": "detection"}, "must be one of classification, segmentation, super_resolution"),
        ({"width": 3}, "config must hold task.*got width"),
    ],
)
def test_settings_that_are_not_known_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.load({"conv.0.weight": torch.zeros(1)}, config)
