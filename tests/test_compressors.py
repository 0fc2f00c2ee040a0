import copy

import pytest
import torch

import everyformer
from everyformer import compressors, mixers
from everyformer.lab import mixing_tasks
from everyformer.papers.vit_resnas import Stage
from everyformer.parts.compress import anatomy, pruning, storage
from everyformer.parts.language import LanguageModel


def model():
    torch.manual_seed(0)
    return LanguageModel(vocabulary=32, dim=32, depth=4, heads=4).eval()


TOKENS = torch.randint(32, (2, 8), generator=torch.Generator().manual_seed(0))


def test_every_card_names_a_function_and_a_stage():
    for name, card in compressors.cards().items():
        assert card.name == name and callable(card.function) and card.stage in compressors.STAGES


@pytest.mark.parametrize("name", [name for name in compressors.cards() if name not in ("merging", "semi_structured")])
def test_each_makes_the_file_smaller_as_its_card_says(name):
    whole = model()
    options = {"int4": {"group": 16}}.get(name, {})
    made = compressors.apply(copy.deepcopy(whole), name, **options)
    assert made(TOKENS).isfinite().all()
    assert compressors.cards()[name].file
    assert len(storage.to_bytes(made)) < 0.95 * len(storage.to_bytes(whole))


def test_a_composition_is_done_in_order_and_heals_before_the_bits():
    seen = []

    def heal(half):
        seen.append([type(layer.weight).__name__ for layer in anatomy.linears(half).values()])
        with torch.no_grad():
            for layer in anatomy.linears(half).values():
                layer.weight_orig.add_(1.0)  # training moves what is masked too

    steps = ["blocks", ("heads", {"ratio": 0.5}), ("magnitude", {"sparsity": 0.5}), "int8"]
    made = compressors.compose(model(), steps, heal=heal)
    assert len(seen) == 1 and len(anatomy.blocks(made)[1]) == 3
    layers = anatomy.linears(made).values()
    assert {type(layer._parameters["weight"].data).__name__ for layer in layers} == {"Int8Tensor"}
    assert pruning.sparsity(made) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["int8", "magnitude"], r"steps must have magnitude \(zeros\) before int8 \(bits\)"),
        (["magnitude", "low_rank"], r"low_rank \(factors\) before magnitude"),
        (["int8", "nvfp4"], "one method for bits at most, got int8, nvfp4"),
        (["int9"], "did you mean int"),
        ([("magnitude", {"sparsity": 1.0})], "sparsity must be from 0"),
    ],
)
def test_compositions_that_cannot_be_are_refused_before_anything_changes(steps, message):
    whole = model()
    before = copy.deepcopy(whole.state_dict())
    with pytest.raises(ValueError, match=message):
        compressors.compose(whole, steps)
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())


OPTIONS = {"heads": {"ratio": 0.5}, "int4": {"group": 16}, "merging": {"per_block": 4}}


def compressed(whole, inputs):
    """Names of the compressors that do not refuse a model; each must leave one that runs."""
    done = set()
    with torch.no_grad():
        expected = whole(inputs).shape
        for name in compressors.cards():
            twin = copy.deepcopy(whole)
            try:
                compressors.apply(twin, name, **OPTIONS.get(name, {}))
            except ValueError:
                continue
            out = twin(inputs)
            assert out.shape == expected and out.isfinite().all(), name
            done.add(name)
    return done


ALWAYS = {"low_rank", "magnitude", "int8", "int8_dynamic"}
VIT = {"blocks", "heads", "n_of_m", "int4", "nvfp4"}


@pytest.mark.parametrize(
    ("name", "options", "more"),
    [
        ("favit_b0", {"depths": (1, 1, 6, 1)}, {"blocks", "sharing"}),
        ("favit_b0", {"depths": (1, 1, 2, 1)}, set()),  # the longest list is that of its stages
        ("fcaformer_l0", {"dims": (64,), "depths": (3,), "heads": (4,), "img_size": 64}, {"n_of_m", "int4", "nvfp4"}),
        ("fcaformer_l1", {"depths": (2, 1, 1, 1), "img_size": 64}, {"blocks", "sharing", "nvfp4"}),
        ("fmvit_t", {}, {"n_of_m", "int4", "nvfp4"}),
        ("sret_t", {"img_size": 64, "groups": None}, {"blocks", "heads", "sharing"}),
        ("vit_res_tiny", {"img_size": 56, "stages": (Stage(48, 16, [(3, 96)] * 4),)}, {"sharing", *VIT}),
        ("vit_resnas_tiny", {"img_size": 56, "stages": (Stage(48, 16, [(3, 96), (4, 64)] * 2),)}, VIT),
        ("wavemix", {}, {"n_of_m", "int4", "nvfp4"}),
    ],
)
def test_backbones_of_the_library_run_on_or_are_refused(name, options, more):
    torch.manual_seed(0)
    backbone = everyformer.create_model(name, **options).eval()
    side = options.get("img_size", 64)
    assert compressed(backbone, torch.randn(1, 3, side, side)) >= ALWAYS | more


@pytest.mark.parametrize("name", list(mixers.cards()))
def test_networks_of_every_mixer_run_on_or_are_refused(name):
    torch.manual_seed(0)
    causal = mixers.cards()[name].causal == "only"
    made = [mixing_tasks.Block(mixers.create(name, 64, causal=causal, length=32), 64, 64) for _ in range(2)]
    network = mixing_tasks.Network(made, 64, vocabulary=32, classes=32, length=32).eval()
    assert compressed(network, torch.randint(32, (2, 32))) >= ALWAYS | {"blocks", "sharing"}


def test_layers_that_are_read_are_multiplied_by_what_a_call_would():
    linformer = mixers.create("linformer", 32, length=16).eval()
    x = torch.randn(2, 16, 32)
    with torch.no_grad():
        for name in ("low_rank", "int8", "int4", "nvfp4"):
            twin = compressors.apply(copy.deepcopy(linformer), name)
            plain = copy.deepcopy(linformer)
            plain.qkv.weight.copy_(twin.qkv.weight)
            plain.out.weight.copy_(twin.out.weight)
            torch.testing.assert_close(twin(x), plain(x), rtol=1e-4, atol=1e-5)
