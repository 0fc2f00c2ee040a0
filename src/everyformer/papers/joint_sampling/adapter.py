"""Masked language models of transformers (Dream as Qwen2, LLaDA as LLaMA) as a base for the sampler, left where they are."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from everyformer.papers.joint_sampling.model import Sizes, States, Tokens, aligned, check_mask_token
from everyformer.parts.language import Block


class TransformersMaskedLM(nn.Module):
    """A decoder of transformers that was trained without the causal mask.

    Args:
        model: a ``Qwen2ForCausalLM`` or ``LlamaForCausalLM``, or one with the same parts.
        mask_token: id of the mask; ``mask_token_id`` of the model's configuration by default.
        shifted: row i - 1 of the network predicts position i: True for Dream, False for LLaDA.

    Raises:
        ValueError: no mask token, or a model that stays causal under an all-zero mask.
        TypeError: a model of other parts.
    """

    def __init__(self, model: Any, *, mask_token: int | None = None, shifted: bool = False) -> None:
        super().__init__()
        self.model, self.shifted = model, shifted
        try:
            config, last = model.config, model.model.layers[-1]
            for part in ("input_layernorm", "post_attention_layernorm", "mlp.gate_proj"):
                last.get_submodule(part)
            for part in ("model.norm", "lm_head"):
                model.get_submodule(part)
            attention, mlp = last.self_attn, last.mlp
            projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        except AttributeError as error:
            raise TypeError(
                f"model must have the layers of Qwen2 or LLaMA, got {type(model).__name__}: {error}"
            ) from None
        extra = [name for name, part in attention.named_children() if part not in projections]
        if extra or projections[3].bias is not None or mlp.gate_proj.bias is not None:
            raise TypeError(f"model must have the layers of Qwen2 or LLaMA, got {type(model).__name__} with {extra}")
        mask_token = getattr(config, "mask_token_id", None) if mask_token is None else mask_token
        check_mask_token(mask_token, config.vocab_size)
        self.mask_token: int = mask_token  # type: ignore[assignment]
        rope = getattr(config, "rope_parameters", None) or {}
        self.sizes = Sizes(
            vocabulary=config.vocab_size,
            dim=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            hidden=config.intermediate_size,
            longest=config.max_position_embeddings,
            bias=attention.q_proj.bias is not None,
            theta=float(rope.get("rope_theta", 10_000.0)),
            eps=config.rms_norm_eps,
        )
        self._see_both_sides()

    def states(self, tokens: Tokens) -> States:
        """What comes out of the last layer, before the final norm; row i predicts position i."""
        body, found = self.model.model, []
        count = tokens.shape[1]
        if count > self.sizes.longest:
            raise ValueError(f"tokens must be at most longest {self.sizes.longest}, got {count}")
        # A 4-D mask is added to the scores as it is, and replaces the causal one.
        mask = body.norm.weight.new_zeros(1, 1, count, count).expand(len(tokens), -1, -1, -1)
        hook = body.norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            body(input_ids=tokens, attention_mask=mask, use_cache=False)
        finally:
            hook.remove()
        return aligned(found[0]) if self.shifted else found[0]

    def logits(self, states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocabulary"]:
        """Final norm and head."""
        return self.model.lm_head(self.model.model.norm(states))  # type: ignore[no-any-return]

    def embed(self, tokens: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows dim"]:
        """The token embedding."""
        return self.model.model.embed_tokens(tokens)  # type: ignore[no-any-return]

    def last_block(self) -> Block:
        """A copy of the last layer as a block of ours."""
        last, sizes = self.model.model.layers[-1], self.sizes
        block = Block(sizes.dim, sizes.heads, sizes.hidden, kv_heads=sizes.kv_heads, bias=sizes.bias, eps=sizes.eps)
        attention, mlp = last.self_attn, last.mlp
        three = (attention.q_proj, attention.k_proj, attention.v_proj)
        state = {
            "attention_norm.weight": last.input_layernorm.weight,
            "attention.qkv.weight": torch.cat([part.weight for part in three]),
            "attention.out.weight": attention.o_proj.weight,
            "mlp_norm.weight": last.post_attention_layernorm.weight,
            "mlp.gate_up.weight": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            "mlp.down.weight": mlp.down_proj.weight,
        }
        if sizes.bias:
            state["attention.qkv.bias"] = torch.cat([part.bias for part in three])
        block.to(last.input_layernorm.weight).load_state_dict(state)
        return block

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch tokens vocabulary"]:
        """Logits of the token at each position."""
        return self.logits(self.states(tokens))

    @torch.no_grad()
    def _see_both_sides(self) -> None:
        """The last of three tokens must reach the first row."""
        device = self.model.model.norm.weight.device
        pair = torch.tensor([[0, 0, 0], [0, 0, 1]], device=device)
        first, second = self.states(pair)[:, 0]
        if torch.equal(first, second):
            raise ValueError(f"model must see both sides, got a causal {type(self.model).__name__}")
