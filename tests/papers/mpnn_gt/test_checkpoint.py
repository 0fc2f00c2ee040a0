import pytest
import torch

from everyformer.papers.mpnn_gt import DeepSetsVN, GatedGCN, GPSLayer, VirtualNodeNetwork, checkpoint

NETWORK = {"dim": 4, "layers": 2, "layer_type": "gatedgcnconv", "residual": True}
GPS = {"dim": 4, "local": "CustomGatedGCN", "global_model": "DSVN"}


def test_a_prefix_of_lightning_is_taken_off():
    state = checkpoint.export(VirtualNodeNetwork(4, 2))
    loaded = checkpoint.load({f"model.{key}": value for key, value in state.items()}, NETWORK)
    assert all(torch.equal(state[key], value) for key, value in checkpoint.export(loaded).items())


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_every_norm_of_a_gps_layer_goes_there_and_back(norm):
    state = checkpoint.export(GPSLayer(GatedGCN(4), DeepSetsVN(4), 4, norm=norm))
    config = {**GPS, "batch_norm": norm == "batch", "layer_norm": norm == "layer"}
    back = checkpoint.export(checkpoint.load(state, config))
    assert back.keys() == state.keys() and all(torch.equal(state[key], value) for key, value in back.items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**GPS, "batch_norm": True, "layer_norm": True}, "one of batch_norm and layer_norm, got both"),
        ({**GPS, "global_model": "Transformer"}, r"config\['global_model'\] must be 'DSVN', got 'Transformer'"),
        ({**NETWORK, "layer_type": "gcn"}, r"config\['layer_type'\] must be one of"),
        ({"d": 4, "bn": False}, r"config\['bn'\] must be true"),
        ({"layer_type": "gineconv", "dim": 4}, "config must give layers"),
    ],
)
def test_options_that_cannot_be_loaded_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.load({}, config)


def test_a_model_that_the_authors_do_not_have_is_not_exported():
    for model in (VirtualNodeNetwork(4, 2, virtual=False), torch.nn.Linear(2, 2), GPSLayer(None, DeepSetsVN(4), 4)):
        with pytest.raises(TypeError, match="model must"):
            checkpoint.export(model)
