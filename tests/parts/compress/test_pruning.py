import pytest
import torch
import transformers
from torch import nn

from everyformer.parts.compress import anatomy, distillation, factors, pruning, quantise

KINDS = ("ours", "llama", "gpt2", "bert", "hf_vit", "vit")


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_weights_of_any_model_become_zero(models, kind):
    model, inputs = models.build(kind)
    weights = torch.cat([layer.weight.detach().abs().flatten() for layer in anatomy.linears(model).values()])
    bound = weights.sort().values[len(weights) // 2]
    pruning.magnitude(model, 0.5)
    assert pruning.sparsity(model) == pytest.approx(0.5, abs=0.01)
    left = torch.cat([layer.weight.detach().abs().flatten() for layer in anatomy.linears(model).values()])
    assert left[left > 0].min() >= bound * 0.999
    assert models.logits(model, inputs).isfinite().all()
    assert not any("mask" in name for name in model.state_dict())


def test_by_layer_each_loses_its_share(models):
    model, _ = models.build("ours")
    pruning.magnitude(model, 0.75, scope="layer")
    for layer in anatomy.linears(model).values():
        assert float((layer.weight == 0).float().mean()) == pytest.approx(0.75, abs=0.01)


def test_training_keeps_the_zeros_of_masks(models):
    model, tokens = models.build("ours")
    pruning.magnitude(model, 0.5, permanent=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(tokens).square().mean().backward()
        optimizer.step()
    pruning.make_permanent(model)
    assert pruning.sparsity(model) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_of_every_four_weights_the_two_largest_stay(models, kind):
    model, inputs = models.build(kind)
    anatomy.prepare(model)
    before = {name: layer.weight.detach().clone() for name, layer in anatomy.linears(model).items()}
    pruning.n_of_m(model)
    for name, layer in anatomy.linears(model).items():
        groups, old = layer.weight.detach().view(-1, 4), before[name].abs().view(-1, 4)
        assert torch.equal((groups != 0).sum(1), torch.full((len(groups),), 2))
        assert torch.equal(groups.abs().sum(1), old.topk(2).values.sum(1)) or torch.allclose(
            groups.abs().sum(1), old.topk(2).values.sum(1)
        )
    assert models.logits(model, inputs).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_write_nothing_can_go_without_a_trace(models, kind):
    model, inputs = models.build(kind)
    heads = anatomy.attentions(anatomy.prepare(model))
    assert len(heads) == 4
    with torch.no_grad():
        for number, one in enumerate(heads.values()):  # another dead head in every layer
            part = one.output.weight.unflatten(1, (one.groups, -1))
            part[:, number % one.groups] = 0
    expected = models.logits(model, inputs)
    sizes = sum(parameter.numel() for parameter in model.parameters())
    pruning.prune_heads(model, 0.5 if next(iter(heads.values())).groups == 2 else 0.25)
    torch.testing.assert_close(models.logits(model, inputs), expected, atol=1e-5, rtol=1e-5)
    assert sum(parameter.numel() for parameter in model.parameters()) < sizes


def test_the_importance_by_gradients_is_zero_for_dead_heads_and_decides_over_all_layers(models):
    model, inputs = models.build("gpt2")
    with torch.no_grad():
        first = next(iter(anatomy.attentions(anatomy.prepare(model)).values()))
        first.output.weight.unflatten(1, (4, -1))[:, 1:] = 0
    scores = pruning.head_importance(model, [inputs], lambda net, some: net(some).logits.square().mean())
    assert scores["transformer.h.0.attn"][1:].max() == 0 < scores["transformer.h.0.attn"][0]
    expected = models.logits(model, inputs)
    pruning.prune_heads(model, 3 / 16, importance=scores, scope="global")
    assert [heads.count for heads in anatomy.attentions(model).values()] == [1, 4, 4, 4]
    torch.testing.assert_close(models.logits(model, inputs), expected, atol=1e-5, rtol=1e-5)


def test_a_pruned_model_writes_token_by_token_as_before(models):
    model, tokens = models.build("llama")
    pruning.prune_heads(pruning.drop_blocks(model, 0.5), 0.5)
    kept = model.generate(tokens, max_new_tokens=4, do_sample=False, use_cache=True)
    assert torch.equal(kept, model.generate(tokens, max_new_tokens=4, do_sample=False, use_cache=False))
    ours, tokens = models.build("ours")
    pruning.prune_heads(pruning.drop_blocks(ours, 0.5), 0.5)
    written = ours.generate(tokens, 3, temperature=0.0)
    assert torch.equal(written[:, -1], models.logits(ours, written[:, :-1])[:, -1].argmax(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_go_and_the_least_important_first(models, kind):
    model, inputs = models.build(kind)
    name, members = anatomy.blocks(model)
    with torch.no_grad():
        for parameter in members[2].parameters():
            parameter.zero_()  # a residual block of zeros passes its input on (BERT's norm ends it)
    importance = pruning.block_importance(model, [inputs])
    if kind != "bert":
        assert int(importance.argmin()) == 2 and float(importance[2]) == pytest.approx(0, abs=1e-5)
    expected = models.logits(model, inputs)
    pruning.drop_blocks(model, 0.25, importance=importance)
    assert len(anatomy.blocks(model)[1]) == 3 and anatomy.blocks(model)[0] == name
    if kind != "bert":
        torch.testing.assert_close(models.logits(model, inputs), expected)


@pytest.mark.parametrize("kind", ["Gemma2", "Qwen3"])
def test_layers_that_stay_keep_their_kind_of_attention_and_can_be_saved(kind, tmp_path):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=64, sliding_window=4, use_sliding_window=True,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    pruning.drop_blocks(model, 0.25, importance=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert model.config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    assert [layer.self_attn.sliding_window for layer in model.model.layers] == [4, 4, None]
    model.save_pretrained(tmp_path)
    tokens = torch.randint(64, (1, 12))
    with torch.no_grad():
        expected = model(tokens).logits
        torch.testing.assert_close(type(model).from_pretrained(tmp_path).eval()(tokens).logits, expected)


def test_questions_leave_the_layers_of_gpt2_as_they_are(models):
    model, tokens = models.build("gpt2")
    classes = [type(module) for module in model.modules()]
    sizes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.transformer.h[0].attn.c_proj.weight.zero_()
    assert pruning.sparsity(model) == pytest.approx(32 * 32 / (4 * 12 * 32 * 32), abs=1e-3)
    pruning.block_importance(model, [tokens])
    scores = pruning.head_importance(model, [tokens], lambda net, some: net(some).logits.square().mean())
    assert [len(score) for score in scores.values()] == [4] * 4
    assert scores["transformer.h.0.attn"].max() == 0 < scores["transformer.h.1.attn"].max()
    pruning.drop_blocks(distilled := models.build("gpt2")[0], 0.5)
    distillation.Distiller(distilled, model, hidden=1.0)(tokens)
    assert classes == [type(module) for module in model.modules()]
    assert sizes == {name: tensor.shape for name, tensor in model.state_dict().items()}
    prepared = pruning.head_importance(
        anatomy.prepare(model.requires_grad_()), [tokens], lambda net, some: net(some).logits.square().mean()
    )
    for name, score in scores.items():
        torch.testing.assert_close(prepared[name], score)


@pytest.mark.parametrize("treat", [quantise.int8_weights, quantise.int4_weights, quantise.nvfp4_weights])
def test_weights_in_few_bits_cannot_be_treated_again_but_can_be_asked(models, treat):
    model, _ = models.build("llama")
    head = model.lm_head.weight.detach().clone()
    treat(pruning.magnitude(model, 0.5))
    assert pruning.sparsity(model) > 0.45
    for again in (
        pruning.magnitude, pruning.n_of_m, pruning.prune_heads, factors.low_rank, factors.share_blocks,
        quantise.int8_weights, quantise.int4_weights, quantise.nvfp4_weights,
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"weights must be plain numbers to compress, got (Int|NVFP4)"):
            again(model)
    assert torch.equal(model.lm_head.weight, head)
    with pytest.raises(ValueError, match="plain numbers to compress, got LowRank"):
        pruning.prune_heads(factors.low_rank(models.build("llama")[0]), 0.5)


def test_a_mixer_and_a_backbone_of_the_library_can_be_pruned():
    from everyformer import mixers
    from everyformer.parts.dit import SelfAttention

    for model in (mixers.create("full", 32, heads=4), SelfAttention(32, heads=4)):
        holder = nn.ModuleDict({"mixer": model})
        x = torch.randn(2, 6, 32)
        assert model(x).shape == (2, 6, 32)
        pruning.prune_heads(holder, 0.5)
        assert model(x).shape == (2, 6, 32) and model.out.in_features == 16


def test_a_wrong_share_scope_or_model_is_refused(models):
    model, _ = models.build("ours")
    for function, name in (
        (pruning.magnitude, "sparsity"),
        (pruning.prune_heads, "ratio"),
        (pruning.drop_blocks, "ratio"),
    ):
        for value in (-0.1, 1.0, 2.0):
            with pytest.raises(ValueError, match=f"{name} must be from 0 to below 1, got {value}"):
                function(model, value)
    with pytest.raises(ValueError, match="scope must be layer or global, got 'all'"):
        pruning.magnitude(model, 0.5, scope="all")
    with pytest.raises(ValueError, match="n must be above 0 and below m"):
        pruning.n_of_m(model, 4, 4)
    with pytest.raises(ValueError, match="multiple of m=5, got 32"):
        pruning.n_of_m(model, 2, 5)
    with pytest.raises(ValueError, match="must have attention"):
        pruning.prune_heads(nn.Sequential(nn.Linear(4, 4)), 0.5)
    with pytest.raises(ValueError, match="list of equal blocks"):
        pruning.drop_blocks(nn.Sequential(nn.Linear(4, 4)), 0.5)
    with pytest.raises(ValueError, match="linear layers to compress"):
        pruning.magnitude(nn.Sequential(nn.ReLU()), 0.5)
    with pytest.raises(ValueError, match="names must be of linear layers of the model, got 'nothing'"):
        pruning.magnitude(model, 0.5, names=["nothing"])
    with pytest.raises(ValueError, match="importance must have 2 values"):
        pruning.prune_heads(model, 0.5, importance={"other": torch.ones(4)})
    with pytest.raises(ValueError, match="importance must have 4 values, got 3"):
        pruning.drop_blocks(model, 0.5, importance=torch.ones(3))
    with pytest.raises(ValueError, match="batches must hold"):
        pruning.block_importance(model, [])
    with pytest.raises(ValueError, match="batches must hold"):
        pruning.head_importance(model, [], lambda net, batch: net(batch).mean())
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"compute capability 8\.0"):
            pruning.semi_structured(model)
