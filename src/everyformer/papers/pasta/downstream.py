"""What a pretrained model is good for: features for a head, light adapters, and losses of cloning and offline learning."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from everyformer.papers.pasta.model import History, Pasta

Tuning = Literal["frozen", "ia3", "lora", "full"]
BOUND = 10_000  # trainable parameters of an adapter, at most


def mlp(inputs: int, outputs: int, *, hidden: int = 256) -> nn.Sequential:
    """The head of every task: two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def adapted(model: Pasta, tuning: Tuning, *, bound: int = BOUND) -> nn.Module:
    """A copy of the model of which only what ``tuning`` says is trained; adapters are those of the peft library.

    ``ia3`` (arXiv 2205.05638) scales keys, values and the hidden layer; ``lora`` (arXiv 2106.09685) adds rank one to
    queries and values. Its ``observation_features`` is that of the model.

    Raises:
        ValueError: an unknown tuning, or an adapter of ``bound`` parameters or more.
    """
    network = copy.deepcopy(model).requires_grad_(tuning == "full")
    if tuning in ("frozen", "full"):
        return network
    import peft

    configs = {
        "ia3": peft.IA3Config(target_modules=["key", "value", "down"], feedforward_modules=["down"]),
        "lora": peft.LoraConfig(r=1, lora_alpha=1, target_modules=["query", "value"]),
    }
    if tuning not in configs:
        raise ValueError(f"tuning must be frozen, ia3, lora or full, got {tuning!r}")
    found: nn.Module = peft.get_peft_model(network, configs[tuning])  # type: ignore[arg-type]
    count = trainable(found)
    if count >= bound:
        raise ValueError(f"tuning {tuning!r} must train fewer than {bound} parameters, got {count}")
    return found


def trainable(model: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class Features(nn.Module):
    """``observation_features`` of a model, tuned or not, as a module: ``(batch, sensors) -> (batch, dim)``."""

    def __init__(self, model: nn.Module, *, domain: str | None = None, missing: Sequence[int] = ()) -> None:
        super().__init__()
        self.model, self.domain, self.missing = model, domain, tuple(missing)

    def forward(
        self, observations: Float[Tensor, "batch sensors"], history: History | None = None
    ) -> Float[Tensor, "batch dim"]:
        found: Any = self.model
        return found.observation_features(observations, history, domain=self.domain, missing=self.missing)  # type: ignore[no-any-return]


class Policy(nn.Module):
    """Actions in [-1, 1] times ``reach`` about ``centre``, by a head on features."""

    centre: Tensor
    reach: Tensor

    def __init__(self, features: nn.Module, size: int, low: Tensor, high: Tensor, *, hidden: int = 256) -> None:
        super().__init__()
        self.features, self.head = features, mlp(size, len(low), hidden=hidden)
        self.register_buffer("centre", (high + low) / 2)
        self.register_buffer("reach", (high - low) / 2)

    def forward(self, observations: Float[Tensor, "batch sensors"]) -> Float[Tensor, "batch actuators"]:
        return self.head(self.features(observations)).tanh() * self.reach + self.centre  # type: ignore[no-any-return]


class TD3BC(nn.Module):
    """Offline learning that stays near the data's actions: TD3 with a cloning loss (arXiv 2106.06860).

    Actor and both critics are heads on the same fixed features of states; actions are in [-1, 1].

    Args:
        features: how many numbers a state is given as.
        alpha: how much value counts beside cloning.
    """

    def __init__(
        self,
        features: int,
        actuators: int,
        *,
        hidden: int = 256,
        alpha: float = 2.5,
        discount: float = 0.99,
    ) -> None:
        super().__init__()
        self.actor = mlp(features, actuators, hidden=hidden)
        self.critics = nn.ModuleList(mlp(features + actuators, 1, hidden=hidden) for _ in range(2))
        self.targets = copy.deepcopy(nn.ModuleList([self.actor, *self.critics])).requires_grad_(False)
        self.alpha, self.discount = alpha, discount

    def loss(
        self,
        state: Float[Tensor, "batch features"],
        action: Float[Tensor, "batch actuators"],
        reward: Float[Tensor, " batch"],
        following: Float[Tensor, "batch features"],
        terminated: Bool[Tensor, " batch"],
        noise: Float[Tensor, "batch actuators"],
    ) -> Float[Tensor, ""]:
        """The critics' loss (equation 1 of TD3) and the actor's (equation 3), each for its own parameters.

        ``noise`` is standard normal; it smooths the action in the target.
        """
        with torch.no_grad():
            smoothed = self.targets[0](following).tanh() + (0.2 * noise).clamp(-0.5, 0.5)
            beyond = torch.cat([following, smoothed.clamp(-1, 1)], -1)
            value = torch.minimum(self.targets[1](beyond), self.targets[2](beyond))[:, 0]
            goal = reward + self.discount * ~terminated * value
        known = torch.cat([state, action], -1)
        critic = sum((F.mse_loss(one(known)[:, 0], goal) for one in self.critics), state.new_zeros(()))
        chosen = self.actor(state).tanh()
        first: Any = self.critics[0]
        fixed = {name: parameter.detach() for name, parameter in first.named_parameters()}
        worth = torch.func.functional_call(first, fixed, (torch.cat([state, chosen], -1),))[:, 0]
        scale = self.alpha / worth.detach().abs().mean()
        return critic + F.mse_loss(chosen, action) - scale * worth.mean()

    @torch.no_grad()
    def follow(self, share: float = 0.005) -> None:
        """Move the targets towards the trained networks by ``share``."""
        trained: list[Tensor] = [*self.actor.parameters(), *self.critics.parameters()]
        torch._foreach_lerp_(list(self.targets.parameters()), trained, share)
