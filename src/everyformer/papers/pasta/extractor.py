"""PASTA's features for policies of Stable-Baselines3."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from everyformer.papers.pasta.downstream import Tuning, adapted
from everyformer.papers.pasta.model import Pasta


class PastaFeaturesExtractor(BaseFeaturesExtractor):  # type: ignore[misc]
    """Hand it to a policy: ``policy_kwargs={"features_extractor_class": ..., "features_extractor_kwargs": {"model": ...}}``.

    Args:
        observation_space: the environment's; its size must be the model's.
        model: a pretrained model, which is copied.
        tuning: what of it is trained with the policy.
        domain: which of the model's environments; may be left out where there is one.

    Raises:
        ValueError: observations of another size than the model's, or an unknown domain or tuning.
    """

    def __init__(
        self, observation_space: Any, model: Pasta, *, tuning: Tuning = "frozen", domain: str | None = None
    ) -> None:
        super().__init__(observation_space, features_dim=model.size.dim)
        _, tokenizer = model.tokenizer_of(domain)
        if observation_space.shape != (tokenizer.sensors,):
            raise ValueError(f"observation_space must be ({tokenizer.sensors},), got {observation_space.shape}")
        self.model, self.domain, self.tuned = adapted(model, tuning), domain, tuning != "frozen"

    def forward(self, observations: Float[Tensor, "batch sensors"]) -> Float[Tensor, "batch dim"]:
        model: Any = self.model
        with torch.set_grad_enabled(self.tuned and torch.is_grad_enabled()):
            return model.observation_features(observations, domain=self.domain)  # type: ignore[no-any-return]
