"""State dicts of alexiglad/EBT, to ours and back: language (three kinds), Transformer++, and image denoising.

Their rotary embeddings turn neighbouring channels of a head, ours its halves: rows of query and key are put in that order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from everyformer.papers.ebt.descent import Recipe
from everyformer.papers.ebt.images import ImageEBT
from everyformer.papers.ebt.model import EBT
from everyformer.parts import checkpoints
from everyformer.parts.language import LanguageModel

Model = EBT | ImageEBT | LanguageModel
KINDS = {"default": "plain", "time_embed": "time_embed", "adaln": "adaln", "adaln_zero": "adaln_zero"}
# What changes the model or its walk and is not read: it must be as the authors leave it.
FIXED = {
    "ebt_norm": "rms", "ebt_act_func": "silu", "clamp_futures_grad": False, "absolute_clamp": 0.0,
    "sharpen_predicted_distribution": 0.0, "contrastive_loss": False, "soften_target_prob_dist": 0.0,
    "num_modality_processing_mlp_layers": 1, "randomize_mcmc_num_steps_final_landscape": False,
}  # fmt: skip
NORMS = {"attention_norm": "attention_norm", "mlp_norm": "ffn_norm"}
NOISE = "langevin_dynamics_noise_std"  # a parameter of theirs, an option of ours


def load(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Model:
    """The authors' model with the authors' weights: an :class:`EBT`, an :class:`ImageEBT` or a language model.

    Args:
        state: the state dict of the authors' Lightning module.
        config: their options. With ``patch_size`` it is the denoiser; with ``ebt_type`` the language EBT; without
            either Transformer++.

    Raises:
        ValueError: a missing, unexpected or misshapen key (the first is named), or an option that is not accepted.
    """
    for option, accepted in FIXED.items():
        if config.get(option, accepted) != accepted:
            raise ValueError(f"config[{option!r}] must be {accepted!r}, got {config[option]!r}")
    model = _image(config) if "patch_size" in config else _language(state, config)
    theirs = export(model)
    checkpoints.check(state, {key: tensor.shape for key, tensor in theirs.items()})
    model.load_state_dict(_to_ours(model, state), strict=True)
    if not isinstance(model, LanguageModel):
        model.recipe = dataclasses.replace(model.recipe, noise=float(state[NOISE]))
    return model


def export(model: Model) -> dict[str, Tensor]:
    """The weights under the authors' names."""
    found = _to_theirs(model, model.state_dict())
    return found if isinstance(model, LanguageModel) else {**found, NOISE: torch.tensor(model.recipe.noise)}


def replay(model: Model, inputs: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' outputs: logits of Transformer++, or the walk, its losses and the gradients of all parameters."""
    if isinstance(model, LanguageModel):
        return {"logits": model(inputs["ids"])}
    if isinstance(model, ImageEBT):
        walk, loss = model(inputs["noisy"]), model.loss(inputs["noisy"], inputs["clean"])
        outputs = {f"image.{step}": state for step, state in enumerate(walk.states)}
    else:
        torch.manual_seed(0)
        walk = model(inputs["ids"][:, :-1], initial=inputs["initial_logits"])
        targets = inputs["ids"][:, 1:].flatten()
        losses = [nn.functional.cross_entropy(s.flatten(0, 1), targets, ignore_index=0) for s in walk.states]
        loss = losses[-1] if model.recipe.last_only else torch.stack(losses).mean()
        outputs = {f"logits.{step}": state for step, state in enumerate(walk.states)}
        outputs |= {"initial_loss": losses[0], "final_step_loss": losses[-1]}
    gap = walk.energies[0].mean() - walk.energies[-1].mean()
    outputs |= {"loss": loss, "initial_final_pred_energies_gap": gap}
    outputs |= {f"energy.{step}": energies for step, energies in enumerate(walk.energies)}
    model.zero_grad()
    loss.backward()
    grads = {
        name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for name, tensor in model.named_parameters()
    }
    return outputs | {f"grad_{key}": tensor for key, tensor in _to_theirs(model, grads).items()}


def _recipe(config: Mapping[str, Any]) -> Recipe:
    extra, fewest = config.get("randomize_mcmc_num_steps", 0), config.get("randomize_mcmc_num_steps_min", 0)
    return Recipe(
        detach=not config.get("no_mcmc_detach", False),
        last_only=config.get("truncate_mcmc", False),
        noise=config.get("langevin_dynamics_noise", 0.0),
        alpha_scale=config.get("randomize_mcmc_step_size_scale", 1.0),
        repeats=(max(1, fewest), extra + 1) if extra else (1, 1),
    )


def _language(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> EBT | LanguageModel:
    dim = config["embedding_dim"]
    sizes: dict[str, Any] = {
        "vocabulary": len(state["embeddings.weight"]) if "embeddings.weight" in state else 1,
        "dim": dim,
        "depth": config["num_transformer_blocks"],
        "heads": config["multiheaded_attention_heads"],
        "hidden": int(dim * config.get("ffn_dim_multiplier", 1)),
        "longest": config["context_length"],
    }
    if "ebt_type" not in config:
        return LanguageModel(**sizes, tied=False, eps=1e-5)
    if config["ebt_type"] not in KINDS:
        raise ValueError(f"config['ebt_type'] must be one of {', '.join(KINDS)}, got {config['ebt_type']!r}")
    starts = {"random_noise": config.get("gaussian_random_noise_scaling", 1.0), "zeros": 0.0}
    start = config.get("denoising_initial_condition", "random_noise")
    if start not in starts:
        raise ValueError(f"config['denoising_initial_condition'] must be random_noise or zeros, got {start!r}")
    normalise = "first" if config.get("normalize_initial_condition_only_first_step") else "each"
    kind: Any = KINDS[config["ebt_type"]]
    return EBT(
        **sizes,
        kind=kind,
        landscapes=config["mcmc_num_steps"],
        alpha=config["mcmc_step_size"],
        learn_alpha=config.get("mcmc_step_size_learnable", False),
        start=starts[start],
        normalise=normalise if config.get("normalize_initial_condition") else "never",  # type: ignore[arg-type]
        tied=config.get("vocab_to_embed_uses_prob_dist", False),
        recipe=_recipe(config),
        eps=1e-5,
    )


def _image(config: Mapping[str, Any]) -> ImageEBT:
    return ImageEBT(
        image_size=config["image_dims"][0],
        patch=config["patch_size"],
        channels=3,
        dim=config["embedding_dim"],
        depth=config["num_transformer_blocks"],
        heads=config["multiheaded_attention_heads"],
        mlp_ratio=config.get("ffn_dim_multiplier", 4),
        steps=config["mcmc_num_steps"],
        alpha=config["mcmc_step_size"],
        learn_alpha=config.get("mcmc_step_size_learnable", False),
        recipe=_recipe(config),
    )


def _heads(model: EBT | LanguageModel) -> int:
    return model.blocks[0].attention.heads  # type: ignore[union-attr, return-value]


def _reordered(matrix: Tensor, heads: int, *, to_halves: bool) -> Tensor:
    """Rows of a query or key matrix, from neighbouring channels to halves of a head or back."""
    shape = (heads, -1, 2) if to_halves else (heads, 2, matrix.shape[0] // heads // 2)
    return matrix.unflatten(0, shape).transpose(1, 2).flatten(0, 2)


def _to_theirs(model: Model, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names (weights, or their gradients) under the authors'."""
    if isinstance(model, ImageEBT):
        return {_image_name(key): _image_tensor(model, key, tensor) for key, tensor in ours.items()}
    found: dict[str, Tensor] = {}
    for key, tensor in ours.items():
        head, _, rest = key.partition(".")
        if head == "blocks":
            number, _, inner = rest.partition(".")
            found |= {f"transformer.layers.{number}.{k}": t for k, t in _block_to_theirs(model, inner, tensor).items()}
        else:
            found[_outer_name(model, key)] = tensor
    return {key: tensor.contiguous() for key, tensor in found.items()}


def _outer_name(model: Model, key: str) -> str:
    conditioned = isinstance(model, EBT) and model.adaptive is not None
    names = {
        "alpha": "alpha", "embedding.weight": "embeddings.weight", "candidate.weight": "vocab_to_embed.weight",
        "landscape.weight": "transformer.time_embeddings.weight", "norm.weight": "transformer.norm.weight",
        "energy_head.weight": f"transformer.final_layer.{'linear.' if conditioned else ''}weight",
        "adaptive.1.weight": "transformer.final_layer.adaLN_modulation.1.weight",
        "adaptive.1.bias": "transformer.final_layer.adaLN_modulation.1.bias", "head.weight": "output.weight",
    }  # fmt: skip
    return names[key]


def _block_to_theirs(model: EBT | LanguageModel, key: str, tensor: Tensor) -> dict[str, Tensor]:
    name, _, rest = key.partition(".")
    if key == "attention.qkv.weight":
        query, keys, value = tensor.chunk(3)
        turned = [_reordered(matrix, _heads(model), to_halves=False) for matrix in (query, keys)]
        return {f"attention.w{n}.weight": matrix for n, matrix in zip("qkv", (*turned, value), strict=True)}
    if key == "attention.out.weight":
        return {"attention.wo.weight": tensor}
    if key == "mlp.gate_up.weight":
        return {f"feed_forward.w{n}.weight": half for n, half in zip((1, 3), tensor.chunk(2), strict=True)}
    if key == "mlp.down.weight":
        return {"feed_forward.w2.weight": tensor}
    if name == "adaptive":
        return {f"adaLN_modulation.{rest}": tensor}
    return {f"{NORMS[name]}.{rest}": tensor}


def _image_name(key: str) -> str:
    for ours, theirs in (
        ("condition.", "learned_adaln_condition."), ("embed.", "transformer.x_embedder.proj."),
        ("positions", "transformer.pos_embed"), ("blocks.", "transformer.blocks."),
        ("adaptive.", "transformer.final_layer.adaLN_modulation."), ("energy_head.", "transformer.final_layer.linear."),
    ):  # fmt: skip
        if key.startswith(ours):
            key = theirs + key.removeprefix(ours)
            break
    for ours, theirs in (
        (".attention.qkv.", ".attn.qkv."), (".attention.out.", ".attn.proj."), (".mlp.0.", ".mlp.fc1."),
        (".mlp.2.", ".mlp.fc2."), (".adaptive.", ".adaLN_modulation."),
    ):  # fmt: skip
        key = key.replace(ours, theirs)
    return key


def _image_tensor(model: ImageEBT, key: str, tensor: Tensor) -> Tensor:
    if key == "embed.weight":
        return tensor.unflatten(1, (model.channels, model.patch, model.patch))
    return tensor[None] if key == "positions" else tensor


def _to_ours(model: Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors under our names."""
    found = {}
    for key, tensor in model.state_dict().items():
        if isinstance(model, ImageEBT):
            found[key] = state[_image_name(key)].reshape(tensor.shape)
        elif key.startswith("blocks."):
            _, number, inner = key.split(".", 2)
            parts = [state[f"transformer.layers.{number}.{k}"] for k in _block_to_theirs(model, inner, tensor)]
            if inner == "attention.qkv.weight":
                parts[:2] = [_reordered(matrix, _heads(model), to_halves=True) for matrix in parts[:2]]
            found[key] = torch.cat(parts)
        else:
            found[key] = state[_outer_name(model, key)]
    return found
