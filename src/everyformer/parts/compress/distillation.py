"""Knowledge distillation: what a small model may learn from a large one, beside the data (arXiv 2307.07982, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from everyformer.parts.compress.anatomy import blocks, norm_widths


def logits_loss(
    student: Float[Tensor, "*batch classes"], teacher: Float[Tensor, "*batch classes"], temperature: float = 2.0
) -> Tensor:
    """Divergence of softened predictions, times T² (Hinton et al., arXiv 1503.02531, section 2); a mean over the batch.

    Raises:
        ValueError: other shapes (another vocabulary), or a temperature that is not above 0.
    """
    if student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"student and teacher must have the same vocabulary, got logits of {shapes}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    ours = F.log_softmax(student.float() / temperature, dim=-1).flatten(0, -2)
    theirs = F.log_softmax(teacher.float() / temperature, dim=-1).flatten(0, -2)
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def hidden_loss(
    student: Float[Tensor, "batch tokens narrow"],
    teacher: Float[Tensor, "batch tokens wide"],
    projection: Callable[[Tensor], Tensor] = lambda states: states,
) -> Tensor:
    """Mean square of the difference of hidden states, the student's projected (TinyBERT, arXiv 1909.10351, eq. 8)."""
    projected = projection(student)
    if projected.shape != teacher.shape:
        raise ValueError(f"student must be projected to {tuple(teacher.shape)}, got {tuple(projected.shape)}")
    return F.mse_loss(projected.float(), teacher.float())


def attention_loss(
    student: Float[Tensor, "batch heads queries keys"], teacher: Float[Tensor, "batch more_heads queries keys"]
) -> Tensor:
    """Mean square of the difference of attention (TinyBERT, eq. 7), of the heads' mean where their numbers differ.

    Raises:
        ValueError: another number of tokens.
    """
    if student.shape[-2:] != teacher.shape[-2:]:
        raise ValueError(f"attention must be of the same tokens, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1), teacher.mean(1)
    return F.mse_loss(student.float(), teacher.float())


def layer_map(student: int, teacher: int) -> list[int]:
    """For each block of the student, the teacher's block that it copies: equally spaced, the last by the last.

    Raises:
        ValueError: more blocks than the teacher has, or none.
    """
    if not 1 <= student <= teacher:
        raise ValueError(f"student must have from 1 to the teacher's {teacher} blocks, got {student}")
    return [(place + 1) * teacher // student - 1 for place in range(student)]


class Distiller(nn.Module):
    """A student with its teacher: ``logits, loss = distiller(inputs)`` to be trained by ``loss`` beside that of the data.

    Parameters are the student's and those of projections between widths; the teacher is frozen, and in no state dict.

    Args:
        student, teacher: models that give logits, or an output with ``logits``; both called with the same inputs.
        temperature, soft: of the predictions' divergence, and its weight.
        hidden: weight of :func:`hidden_loss` over the blocks that :func:`layer_map` pairs.
        attention: weight of :func:`attention_loss`; for models of transformers that can return attention.

    Raises:
        ValueError: negative weights or all zero, a student with more blocks, another vocabulary.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        temperature: float = 2.0,
        soft: float = 1.0,
        hidden: float = 0.0,
        attention: float = 0.0,
    ) -> None:
        super().__init__()
        weights = {"soft": soft, "hidden": hidden, "attention": attention}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{name} must be at least 0, got {weight}")
        if not any(weights.values()):
            raise ValueError("soft, hidden or attention must be above 0, got 0 for each")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.student, self.temperature = student, temperature
        self.soft, self.hidden, self.attention = soft, hidden, attention
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple: not a part of this module
        self.projections = nn.ModuleList()
        if hidden or attention:
            ours, theirs = blocks(student)[1], blocks(teacher)[1]
            self.pairs = layer_map(len(ours), len(theirs))
        if hidden:
            narrow, wide = _width(student), _width(teacher)
            if narrow != wide:
                self.projections.extend(nn.Linear(narrow, wide, bias=False) for _ in self.pairs)

    def forward(self, inputs: Any) -> tuple[Float[Tensor, "*batch classes"], Tensor]:
        """The student's logits, and the weighted sum of the losses."""
        teacher = self._teacher[0]
        teacher.to(next(self.student.parameters()).device)
        with torch.no_grad():
            theirs, their_states, their_maps = self._run(teacher, inputs)
        ours, our_states, our_maps = self._run(self.student, inputs)
        loss = self.soft * logits_loss(ours, theirs, self.temperature) if self.soft else ours.new_zeros(())
        if self.hidden:
            for number, pair in enumerate(self.pairs):
                projection = self.projections[number] if len(self.projections) else nn.Identity()
                loss = loss + self.hidden / len(self.pairs) * hidden_loss(
                    our_states[number], their_states[pair], projection
                )
        if self.attention:
            for number, pair in enumerate(self.pairs):
                loss = loss + self.attention / len(self.pairs) * attention_loss(our_maps[number], their_maps[pair])
        return ours, loss

    def _run(self, model: nn.Module, inputs: Any) -> tuple[Tensor, list[Tensor], Any]:
        """Logits, the blocks' outputs and attention of one model, as far as they are needed."""
        states: list[Tensor] = []
        handles = []
        if self.hidden:
            handles = [
                block.register_forward_hook(
                    lambda _, __, output: states.append(output[0] if isinstance(output, tuple) else output)
                )
                for block in blocks(model)[1]
            ]
        options: dict[str, Any] = {"output_attentions": True} if self.attention else {}
        try:
            output = model(**inputs, **options) if isinstance(inputs, Mapping) else model(inputs, **options)
        finally:
            for handle in handles:
                handle.remove()
        maps: Any = getattr(output, "attentions", None)
        if self.attention and (not maps or maps[0] is None):
            raise ValueError(
                f"attention must be 0 for {type(model).__name__}, which returns none (eager attention does)"
            )
        return getattr(output, "logits", output), states, maps


def _width(model: nn.Module) -> int:
    """Width of a model's tokens: as its configuration says, else that of the first norm in its blocks.

    In transformers' blocks the first may be a norm of queries, so where the configuration is silent, the widest counts.
    """
    config: Any = getattr(model, "config", None)
    width = getattr(config, "hidden_size", None)
    if isinstance(width, int):
        return width
    widths = norm_widths(blocks(model)[1][0])
    if not widths:
        raise ValueError(f"model must have norms that tell its width, got {type(model).__name__} without")
    return widths[0] if config is None else max(widths)
