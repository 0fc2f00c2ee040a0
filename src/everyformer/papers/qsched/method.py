"""Schedulers of diffusers with two coefficients per step (arXiv 2509.01624, section 3).

A few-step sampler computes the next sample from the model's output and the current sample, each with a weight that was
derived for the model in full precision. Quantisation changes the output's size and its error; two coefficients per step
correct the weights instead of the model: the update sees ``model_coefficient * output`` and
``sample_coefficient * sample``. What the model itself is given stays as it is.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import Any

import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from jaxtyping import Float
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """What the model's output and the sample are multiplied by at each step, first step first.

    Raises ``ValueError`` if the two differ in length, are empty, or hold something that is not finite.
    """

    model: tuple[float, ...]
    sample: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("model", "sample"):
            values = tuple(float(value) for value in getattr(self, name))
            if not values or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must hold finite numbers, one per step, got {values}")
            object.__setattr__(self, name, values)
        if len(self.model) != len(self.sample):
            raise ValueError(
                f"model and sample must have one number per step each, got {len(self.model)} and {len(self.sample)}"
            )

    @classmethod
    def line(
        cls, steps: int, *, model: float = 1.0, sample: float = 1.0, model_end: float = 1.0, sample_end: float = 1.0
    ) -> Coefficients:
        """Lines over the steps from ``model`` and ``sample`` at the first to ``*_end`` at the last.

        A single step takes the first values. Raises ``ValueError`` if ``steps`` is not positive.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        at = [step / max(1, steps - 1) for step in range(steps)]
        return cls(
            tuple(model + (model_end - model) * place for place in at),
            tuple(sample + (sample_end - sample) * place for place in at),
        )


class QSchedScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A scheduler of diffusers with two coefficients per step; make one with :meth:`wrap`.

    Each supported scheduler has a subclass of its own that is also a subclass of the original, so that pipelines treat
    it as they treat the original. The coefficients are part of the configuration: ``save_pretrained`` writes them, and
    ``from_pretrained`` and ``from_config``, of this class or of the subclass, restore them. With all coefficients 1 the
    samples are bit for bit those of the original.
    """

    coefficients: Coefficients

    @staticmethod
    def wrap(scheduler: SchedulerMixin, coefficients: Coefficients) -> QSchedScheduler:
        """A new scheduler configured as ``scheduler`` (or, if that is wrapped, as what it wraps) with ``coefficients``.

        Raises ``TypeError`` for a scheduler of an unsupported class, listing the supported ones.
        """
        for base, wrapped in SUPPORTED.items():
            if type(scheduler) in (base, wrapped):
                return wrapped.from_config({**scheduler.config, **_configuration(coefficients)})  # type: ignore[attr-defined,no-any-return]
        raise TypeError(
            f"scheduler must be one of {', '.join(base.__name__ for base in SUPPORTED)}, got {type(scheduler).__name__}"
        )

    @classmethod
    def from_config(  # type: ignore[override]
        cls, config: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """As diffusers' own; raises ``ValueError`` if ``config`` has no coefficients or names no supported class."""
        missing = [key for key in ("model_coefficients", "sample_coefficients") if key not in config]
        if missing:
            raise ValueError(f"config must hold {' and '.join(missing)}; make the scheduler with QSchedScheduler.wrap")
        target: Any = cls
        if cls is QSchedScheduler:
            by_name = {wrapped.__name__: wrapped for wrapped in SUPPORTED.values()}
            if config.get("_class_name") not in by_name:
                raise ValueError(
                    f"config must have a _class_name among {', '.join(by_name)}, got {config.get('_class_name')!r}"
                )
            target = by_name[config["_class_name"]]
        coefficients = Coefficients(config["model_coefficients"], config["sample_coefficients"])
        made: Any = super(QSchedScheduler, target).from_config(unwrapped(config), return_unused_kwargs, **kwargs)
        scheduler = made[0] if return_unused_kwargs else made
        scheduler.coefficients = coefficients
        scheduler.register_to_config(**_configuration(coefficients))
        return made


def unwrapped(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` without what belongs to :class:`QSchedScheduler`: for the ``from_config`` of an original scheduler."""
    return {
        key: copy.copy(value)
        for key, value in config.items()
        if key not in ("model_coefficients", "sample_coefficients", "_class_name")
    }


def _configuration(coefficients: Coefficients) -> dict[str, list[float]]:
    return {"model_coefficients": list(coefficients.model), "sample_coefficients": list(coefficients.sample)}


def _scheduled(base: Any, *, upcasts: bool) -> Any:
    """The subclass of ``base`` with coefficients; ``upcasts``: whether ``base`` computes on samples in float32.

    Pipelines inspect the signatures of ``set_timesteps`` and ``step``; ``wraps`` keeps the original's.
    """

    class Scheduled(QSchedScheduler, base):  # type: ignore[misc]
        @functools.wraps(base.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            base.set_timesteps(self, *args, **kwargs)
            if len(self.timesteps) != len(self.coefficients.model):
                raise ValueError(
                    f"steps must be the number of coefficients, {len(self.coefficients.model)}, got "
                    f"{len(self.timesteps)}; wrap the scheduler with coefficients for as many steps"
                )

        @functools.wraps(base.step)
        def step(
            self,
            model_output: Float[Tensor, "*shape"],
            timestep: Float[Tensor, ""] | float,
            sample: Float[Tensor, "*shape"],
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            if self.step_index is None:
                self._init_step_index(timestep)
            index = self.step_index
            # Before the coefficient, so that a half-precision sample is not rounded twice.
            sample = sample.to(torch.float32) if upcasts else sample
            return base.step(
                self,
                self.coefficients.model[index] * model_output,
                timestep,
                self.coefficients.sample[index] * sample,
                *args,
                **kwargs,
            )

    Scheduled.__name__ = Scheduled.__qualname__ = f"QSched{base.__name__}"
    Scheduled.__doc__ = f"diffusers' ``{base.__name__}`` with two coefficients per step."
    return Scheduled


QSchedLCMScheduler = _scheduled(LCMScheduler, upcasts=False)
QSchedTCDScheduler = _scheduled(TCDScheduler, upcasts=False)
QSchedEulerAncestralDiscreteScheduler = _scheduled(EulerAncestralDiscreteScheduler, upcasts=True)
QSchedFlowMatchEulerDiscreteScheduler = _scheduled(FlowMatchEulerDiscreteScheduler, upcasts=True)

SUPPORTED: dict[Any, Any] = {
    LCMScheduler: QSchedLCMScheduler,
    TCDScheduler: QSchedTCDScheduler,
    EulerAncestralDiscreteScheduler: QSchedEulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler: QSchedFlowMatchEulerDiscreteScheduler,
}
"""Supported schedulers of diffusers, and the class that each is wrapped in."""
