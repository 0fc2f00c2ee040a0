import peft
import pytest
import timm
import torch
import transformers
from torch import nn

from everyformer.papers.adaptformer import AdaptFormerConfig, checkpoint

CONFIG = {"img_size": 16, "patch_size": 8, "num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 3, "ffn_num": 4}
ADAPTED = {**CONFIG, "ffn_adapt": True}
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def built(**options):
    torch.manual_seed(0)
    model = checkpoint._build({**ADAPTED, **options}, batch_norm=False)
    for name, parameter in model.named_parameters():
        if "adaptmlp" in name:
            nn.init.normal_(parameter)
    return model.eval()


def test_adapters_go_to_the_authors_layout_and_into_another_network():
    source = built()
    state = checkpoint.export_adapter(source)
    assert sorted(state)[:3] == [
        "blocks.0.adaptmlp.down_proj.bias",
        "blocks.0.adaptmlp.down_proj.weight",
        "blocks.0.adaptmlp.up_proj.bias",
    ]
    network = source.get_base_model()
    other = timm.models.VisionTransformer(img_size=16, patch_size=8, num_classes=5, embed_dim=24, depth=2, num_heads=3)
    other.load_state_dict({key: value for key, value in network.state_dict().items() if "adaptformer" not in key})
    model = peft.get_peft_model(other, AdaptFormerConfig(bottleneck=4), adapter_name="birds").eval()
    checkpoint.load_adapter(model, checkpoint.export(source), "birds")
    assert torch.equal(model(X), source(X))


def test_adapters_of_the_authors_go_into_networks_of_transformers():
    network = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=16,
            patch_size=8,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=32,
        )
    )
    model = peft.get_peft_model(network, AdaptFormerConfig(bottleneck=4))
    state = checkpoint.export_adapter(built())
    checkpoint.load_adapter(model, state)
    again = checkpoint.export_adapter(model)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_a_trained_head_is_exported():
    config = AdaptFormerConfig(bottleneck=4, modules_to_save=["head"])
    model = peft.get_peft_model(built().unload(), config).eval()
    nn.init.normal_(model.get_base_model().head.modules_to_save["default"].weight)
    again = checkpoint.load(checkpoint.export(model), ADAPTED).eval()
    assert torch.equal(again(X), model(X))


def test_adapters_of_another_width_or_bottleneck_name_the_first_key():
    state = checkpoint.export_adapter(built())
    message = r"blocks\.0\.adaptmlp\.down_proj\.weight must have shape \(4, 48\), got \(4, 24\)"
    with pytest.raises(ValueError, match=message):
        checkpoint.load_adapter(built(embed_dim=48), state)
    with pytest.raises(ValueError, match=r"down_proj\.weight must have shape \(8, 24\), got \(4, 24\)"):
        checkpoint.load_adapter(built(ffn_num=8), state)
    with pytest.raises(ValueError, match=r"state lacks the key blocks\.2\.adaptmlp\.down_proj\.weight"):
        checkpoint.load_adapter(built(depth=3), state)
    with pytest.raises(ValueError, match="adapter_name must be an AdaptFormer of the model, got 'cars'"):
        checkpoint.load_adapter(built(), state, "cars")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**ADAPTED, "width": 3}, "config has the unknown option width"),
        (CONFIG, "config must set one of ffn_adapt and vpt_on"),
        ({**ADAPTED, "vpt_on": True}, "config must set one of ffn_adapt and vpt_on"),
        ({**ADAPTED, "ffn_option": "both"}, r"config\['ffn_option'\] must be parallel or sequential, got 'both'"),
    ],
)
def test_options_that_do_not_fit_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.load({}, config)
