import pytest
import torch

from everyformer.papers.ebt import EBT, S2, ImageEBT, checkpoint
from everyformer.parts.language import LanguageModel

LANGUAGE = {
    "embedding_dim": 16,
    "num_transformer_blocks": 2,
    "multiheaded_attention_heads": 2,
    "ffn_dim_multiplier": 1,
    "context_length": 12,
}
EBT_OPTIONS = {**LANGUAGE, "mcmc_num_steps": 2, "mcmc_step_size": 4.0, "normalize_initial_condition": True}
IMAGES = {
    "image_dims": [8, 8],
    "patch_size": 4,
    "embedding_dim": 16,
    "num_transformer_blocks": 1,
    "multiheaded_attention_heads": 2,
    "mcmc_num_steps": 1,
    "mcmc_step_size": 50.0,
}


def exported(config):
    """A state dict in the authors' layout, of random weights."""
    torch.manual_seed(0)
    if "patch_size" in config:
        model = ImageEBT(image_size=8, patch=4, dim=16, depth=1, heads=2, alpha=50.0)
    elif "ebt_type" in config:
        kind = checkpoint.KINDS[config["ebt_type"]]
        model = EBT(vocabulary=9, dim=16, depth=2, heads=2, longest=12, kind=kind, alpha=4.0)
    else:
        model = LanguageModel(vocabulary=9, dim=16, depth=2, heads=2, hidden=16, longest=12, tied=False, eps=1e-5)
    return model, checkpoint.export(model)


@pytest.mark.parametrize(
    "config",
    [LANGUAGE, IMAGES, *({**EBT_OPTIONS, "ebt_type": kind} for kind in checkpoint.KINDS)],
)
def test_export_and_load_return_the_same_model(config):
    model, state = exported(config)
    back = checkpoint.load(state, config)
    assert type(back) is type(model)
    for key, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key


def test_rows_of_query_and_key_go_from_neighbours_to_halves():
    matrix = torch.arange(8.0)[:, None]
    halves = checkpoint._reordered(matrix, 2, to_halves=True)
    assert halves[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(checkpoint._reordered(halves, 2, to_halves=False), matrix)


def test_options_of_s2_are_read():
    _, state = exported({**EBT_OPTIONS, "ebt_type": "time_embed"})
    state["transformer.time_embeddings.weight"] = state["transformer.time_embeddings.weight"][:1]
    state["langevin_dynamics_noise_std"] = torch.tensor(3.0)
    options = {
        **EBT_OPTIONS, "ebt_type": "time_embed", "mcmc_num_steps": 1, "no_mcmc_detach": True, "truncate_mcmc": True,
        "langevin_dynamics_noise": 3.0, "randomize_mcmc_step_size_scale": 2.0, "randomize_mcmc_num_steps": 2,
        "randomize_mcmc_num_steps_min": 2,
    }  # fmt: skip
    model = checkpoint.load(state, options)
    assert model.recipe == S2
    assert not model.alpha.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ebt_type": "fancy"},
            r"config\['ebt_type'\] must be one of default, time_embed, adaln, adaln_zero, got 'fancy'",
        ),
        ({"ebt_type": "default", "ebt_norm": "dyt"}, r"config\['ebt_norm'\] must be 'rms', got 'dyt'"),
        (
            {"ebt_type": "default", "denoising_initial_condition": "most_recent_embedding"},
            "must be random_noise or zeros, got 'most_recent_embedding'",
        ),
        ({"ebt_type": "default", "clamp_futures_grad": True}, "must be False, got True"),
    ],
)
def test_options_that_are_not_read_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.load({}, {**EBT_OPTIONS, **options})


def test_another_vocabulary_is_named():
    _, state = exported({**EBT_OPTIONS, "ebt_type": "default"})
    state["vocab_to_embed.weight"] = torch.zeros(16, 10)
    with pytest.raises(ValueError, match=r"vocab_to_embed\.weight must have shape \(16, 9\), got \(16, 10\)"):
        checkpoint.load(state, {**EBT_OPTIONS, "ebt_type": "default"})
