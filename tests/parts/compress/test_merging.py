import copy

import pytest
import torch
import transformers

from everyformer.parts.compress import factors, merging, pruning, quantise


def test_the_likest_pairs_merge_and_the_class_token_stays():
    keys = torch.randn(1, 7, 16)
    keys[0, 5] = 2 * keys[0, 2]  # place 2 is even, place 5 odd: the likest pair
    keys[0, 1] = keys[0, 0]  # the class token is protected
    found = merging.bipartite(keys, 1, 1)
    assert found.source.tolist() == [[2]] and found.target.tolist() == [[5]]
    assert found.kept.tolist() == [[0, 1, 3, 4, 5, 6]]


def test_merged_tokens_are_means_by_size():
    x = torch.tensor([[[0.0], [1.0], [2.0], [5.0]]])
    sizes = torch.tensor([[[1.0], [1.0], [3.0], [1.0]]])
    found = merging.matched(torch.tensor([[2]]), torch.tensor([[3]]), 4)
    merged, left = merging.merge(x, sizes, found)
    assert merged.flatten().tolist() == [0.0, 1.0, (3 * 2 + 5) / 4] and left.flatten().tolist() == [1.0, 1.0, 4.0]


@pytest.mark.parametrize("kind", ["vit", "hf_vit"])
def test_without_pairs_the_model_is_what_it_was_and_with_them_tokens_go(models, kind):
    model, inputs = models.build(kind)
    expected = models.logits(model, inputs)
    torch.testing.assert_close(models.logits(merging.merge_tokens(model, 0), inputs), expected, atol=1e-5, rtol=1e-5)
    counts = []
    merging.merge_tokens(merging.unmerge(model), 3)
    blocks = list(
        model.blocks if kind == "vit" else model.vit.layers if hasattr(model.vit, "layers") else model.vit.encoder.layer
    )
    handles = [block.register_forward_hook(lambda _, __, out: counts.append(out.shape[1])) for block in blocks]
    first, again = models.logits(model, inputs), models.logits(model, inputs)
    assert counts == [14, 11, 8, 5] * 2
    assert torch.equal(first, again) and first.shape == expected.shape
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(models.logits(merging.unmerge(model), inputs), expected)


def test_equal_tokens_merge_without_a_trace(models):
    model, pictures = models.build("vit")
    with torch.no_grad():
        model.pos_embed.zero_()
    pictures = pictures[:, :, :4, :4].repeat(1, 1, 4, 4)  # every patch is the same one
    expected = models.logits(model, pictures)
    torch.testing.assert_close(models.logits(merging.merge_tokens(model, 3), pictures), expected, atol=1e-5, rtol=1e-5)


def test_more_pairs_than_there_are_merge_half(models):
    model, pictures = models.build("vit")
    merging.merge_tokens(model, 100)
    assert model.forward_features(pictures).shape[1] == 2  # 17, 9, 5, 3, 2


def test_copies_precision_training_compiling_and_other_compressors(models):
    model, pictures = models.build("vit")
    merging.merge_tokens(model, 3)
    expected = models.logits(model, pictures)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.zero_()
    torch.testing.assert_close(models.logits(twin, pictures), expected)  # a copy has its own weights
    assert models.logits(copy.deepcopy(twin).bfloat16(), pictures.bfloat16()).dtype == torch.bfloat16
    twin.train()(pictures).sum().backward()
    assert twin.blocks[3].attn.qkv.weight.grad.abs().sum() > 0
    short = pruning.drop_blocks(models.build("vit")[0], 0.5)
    merging.merge_tokens(short, 3)
    with torch.no_grad():
        compiled = torch.compile(short, backend="aot_eager")(pictures)
    torch.testing.assert_close(compiled, models.logits(short, pictures), rtol=1e-4, atol=1e-5)
    smaller = quantise.nvfp4_weights(pruning.prune_heads(twin, 0.5))
    assert models.logits(smaller, pictures).isfinite().all()


def test_the_distillation_token_stays_alone_too(models):
    config = transformers.DeiTConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    torch.manual_seed(0)
    model = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    counts = []

    def note(keys, count, protected):
        counts.append(protected)
        return merging.bipartite(keys, count, protected)

    merging.merge_tokens(model, 4, match=note)
    assert models.logits(model, torch.randn(1, 3, 16, 16)).isfinite().all() and counts == [2, 2]


@pytest.mark.parametrize("kind", ["vit", "hf_vit"])
@pytest.mark.parametrize("first", [factors.low_rank, quantise.nvfp4_weights, quantise.int8_weights])
def test_tokens_merge_after_factors_and_after_fewer_bits(models, kind, first):
    model, pictures = models.build(kind)
    expected = models.logits(first(model), pictures)
    torch.testing.assert_close(models.logits(merging.merge_tokens(model, 0), pictures), expected)
    assert models.logits(merging.merge_tokens(merging.unmerge(model), 3), pictures).isfinite().all()


def test_models_that_cannot_merge_are_refused(models):
    with pytest.raises(ValueError, match="per_block must be at least 0, got -1"):
        merging.merge_tokens(models.build("vit")[0], -1)
    with pytest.raises(ValueError, match="protected must be at least 0, got -1"):
        merging.merge_tokens(models.build("vit")[0], protected=-1)
    model, pictures = models.build("vit")
    with pytest.raises(ValueError, match="protected must be at most the 17 tokens, got 500"):
        merging.merge_tokens(model, protected=500)(pictures)
    assert merging.merge_tokens(merging.unmerge(model), protected=17)(pictures).isfinite().all()
    for kind in ("llama", "bert", "ours"):
        with pytest.raises(ValueError, match="timm's Block or transformers' ViTLayer"):
            merging.merge_tokens(models.build(kind)[0], 2)
