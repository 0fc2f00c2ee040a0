import pytest
import torch
import transformers
from torch import nn

from everyformer.parts.compress import distillation
from everyformer.parts.language import LanguageModel


def test_equal_predictions_cost_nothing_and_others_their_divergence():
    logits = torch.randn(3, 5, 7)
    assert float(distillation.logits_loss(logits, logits + 2.0)) == pytest.approx(0, abs=1e-5)
    other = torch.randn(3, 5, 7)
    p, q = (other / 3).softmax(-1), (logits / 3).softmax(-1)
    wanted = 9 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(distillation.logits_loss(logits, other, 3.0), wanted)


def test_layers_are_mapped_with_equal_distances():
    assert distillation.layer_map(4, 12) == [2, 5, 8, 11]
    assert distillation.layer_map(3, 3) == [0, 1, 2]
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"student must have from 1 to the teacher's 3 blocks, got {wrong}"):
            distillation.layer_map(wrong, 3)


def language(dim, depth, vocabulary=16):
    torch.manual_seed(dim)
    return LanguageModel(vocabulary=vocabulary, dim=dim, depth=depth, heads=2)


def test_a_student_learns_what_the_teacher_says_from_no_labels_at_all():
    student, teacher = language(16, 1), language(32, 2)
    with torch.no_grad():
        teacher.head.weight.mul_(20)  # something to say
    distiller = distillation.Distiller(student, teacher, hidden=0.1)
    assert not any("teacher" in name for name in distiller.state_dict())
    optimizer = torch.optim.Adam(distiller.parameters(), 1e-2)
    tokens = torch.randint(16, (8, 10))
    losses = []
    for _ in range(30):
        _, loss = distiller(tokens)
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any("projections" in name for name, _ in distiller.named_parameters())


def test_attention_is_learned_where_models_return_it():
    def bert(layers, heads):
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=32,
            attn_implementation="eager",
        )  # fmt: skip
        return transformers.BertForMaskedLM(config)

    student = bert(1, 2)
    distiller = distillation.Distiller(student, bert(2, 4), soft=0.0, attention=1.0)
    _, loss = distiller({"input_ids": torch.randint(20, (2, 6))})
    loss.backward()
    assert float(loss) > 0 and student.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0
    maps = torch.rand(2, 3, 4, 4)
    assert float(distillation.attention_loss(maps, maps)) == 0
    torch.testing.assert_close(
        distillation.attention_loss(maps, maps[:, :1]), (maps.mean(1) - maps[:, 0]).square().mean()
    )


def test_hidden_states_are_learned_by_models_with_norms_of_queries():
    def qwen(width, layers):
        config = transformers.Qwen3Config(
            vocab_size=20, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2,
            head_dim=8, intermediate_size=32,
        )  # fmt: skip
        return transformers.Qwen3ForCausalLM(config)

    distiller = distillation.Distiller(qwen(16, 1), qwen(32, 2), hidden=1.0)
    assert distiller.projections[0].weight.shape == (32, 16)
    _, loss = distiller(torch.randint(20, (2, 6)))
    assert loss.isfinite()


def test_models_that_do_not_match_are_refused():
    tokens = torch.randint(16, (2, 5))
    with pytest.raises(ValueError, match="same vocabulary"):
        distillation.Distiller(language(16, 1), language(16, 1, vocabulary=24))(tokens)
    with pytest.raises(ValueError, match="from 1 to the teacher's 2 blocks, got 3"):
        distillation.Distiller(language(16, 3), language(16, 2), hidden=1.0)
    with pytest.raises(ValueError, match="soft must be at least 0, got -1"):
        distillation.Distiller(language(16, 1), language(16, 1), soft=-1)
    with pytest.raises(ValueError, match="must be above 0, got 0 for each"):
        distillation.Distiller(language(16, 1), language(16, 1), soft=0)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        distillation.Distiller(language(16, 1), language(16, 1), temperature=0)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        distillation.logits_loss(torch.ones(1, 2), torch.ones(1, 2), 0.0)
    with pytest.raises(ValueError, match="projected to"):
        distillation.hidden_loss(torch.ones(1, 2, 3), torch.ones(1, 2, 4))
    with pytest.raises(ValueError, match="same tokens"):
        distillation.attention_loss(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="at least 0"):
        distillation.Distiller(nn.Identity(), nn.Identity(), hidden=-0.5)
