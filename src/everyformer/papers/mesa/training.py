"""Full-batch training of many layers at once: several laws, several starts, one batched step.

The layer is linear in the products of an entry of W_PV with an entry of W_KQ, so its loss on a fixed sample is a
quadratic form in them. Its coefficients are summed once; then a step of training costs the same for a hundred sequences
and for a million, and the gradient is that of the layer itself on the whole sample, up to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from everyformer.papers.mesa.model import CausalLinearAttention, diagonals, tokens


@dataclasses.dataclass(frozen=True)
class LossForm:
    """The loss of the layer on a fixed sample, of any number of samples ("laws") side by side.

    With theta_j = W_PV[j] ⊗ W_KQ (n = 8 dim^3 numbers for each output j):
    loss = (sum_j theta_j gram theta_j^H - 2 Re sum_j theta_j cross_j + power) / 2.
    """

    gram: Complex[Tensor, "*laws n n"]
    cross: Complex[Tensor, "*laws dim n"]
    power: Float[Tensor, "*laws"]

    @classmethod
    def of(cls, x: Complex[Tensor, "batch time dim"], chunk: int = 10) -> LossForm:
        """The form of one sample, ``chunk`` sequences at a time.

        E_t E_t^H and e_t e_t^H are Hermitian, and Re + Im of a Hermitian matrix holds all of it: sums of real
        products, half as many for the symmetric pair of E_t E_t^H, are an eighth of the complex work.

        Raises:
            ValueError: fewer than three tokens.
        """
        if x.shape[1] < 3:
            raise ValueError(f"x must have at least three tokens, got {x.shape[1]}")
        width = 2 * x.shape[2]
        rows = width * width
        upper = torch.triu_indices(rows, rows, device=x.device)
        triple = torch.zeros(upper.shape[1], rows, dtype=torch.float64, device=x.device)
        cross = torch.zeros(x.shape[2] * width, rows, dtype=torch.complex128, device=x.device)
        for part in x.split(chunk):
            e = tokens(part)
            pairs = torch.arange(1, x.shape[1] - 1, device=x.device).view(-1, 1, 1)
            sums = (e[:, :-1].unsqueeze(-1) * e[:, :-1].conj().unsqueeze(-2)).cumsum(dim=1)[:, 1:] / pairs
            asked, target = e[:, 1:-1].flatten(0, 1), part[:, 2:].flatten(0, 1)
            triple += _pairs(_real(sums.flatten(0, 1)).flatten(1).T.contiguous()) @ _real(
                asked.unsqueeze(-1) * asked.conj().unsqueeze(-2)
            ).flatten(1)
            cross += (target.conj().unsqueeze(-1) * asked.unsqueeze(-2)).flatten(1).T @ sums.flatten(0, 1).flatten(1)
        full = triple.new_zeros(rows, rows, rows)
        full[upper[0], upper[1]] = full[upper[1], upper[0]] = triple
        # Axes of the moment E S[p,q] S[s,v] (e e^H)[r,w], with S[s,v] = conj S[v,s].
        moment = _hermitian(_hermitian(_hermitian(full.view([width] * 6), 0), 2), 4)
        gram = moment.permute(0, 1, 4, 3, 2, 5).reshape(rows * width, rows * width)
        cross = cross.view(x.shape[2], width, width, width).permute(0, 2, 3, 1).flatten(1)
        power = x[:, 2:].abs().double().square().sum()
        return cls(
            *((part / len(x)).to(kind) for part, kind in ((gram, x.dtype), (cross, x.dtype), (power, x.real.dtype)))
        )

    @classmethod
    def stack(cls, forms: Sequence[LossForm]) -> LossForm:
        """Several samples side by side."""
        return cls(*(torch.stack([getattr(form, f.name) for form in forms]) for f in dataclasses.fields(cls)))

    def select(self, laws: Sequence[int]) -> LossForm:
        """Some of the samples of a stack."""
        return LossForm(*(getattr(self, field.name)[list(laws)] for field in dataclasses.fields(self)))

    def __call__(
        self, w_kq: Complex[Tensor, "*laws models m m"], w_pv: Complex[Tensor, "*laws models dim m"]
    ) -> Float[Tensor, "*laws models"]:
        """The loss of several layers on each sample."""
        theta = torch.einsum("...jp,...qr->...jpqr", w_pv, w_kq).flatten(-3)
        quadratic = (theta.flatten(-3, -2) @ self.gram).view(theta.shape)
        bent = (quadratic - 2 * self.cross.conj().unsqueeze(-3)) * theta.conj()
        return 0.5 * (bent.real.sum((-2, -1)) + self.power.unsqueeze(-1))


@dataclasses.dataclass(frozen=True)
class Path:
    """Both matrices of every layer after each step, the start included."""

    w_kq: Complex[Tensor, "steps *laws starts m m"]
    w_pv: Complex[Tensor, "steps *laws starts dim m"]

    @property
    def a(self) -> Float[Tensor, "steps *laws starts"]:
        """Mean diagonal of the block of W_KQ that carries the learner."""
        return diagonals(self.w_kq, self.w_pv)[0].mean(dim=-1)

    @property
    def b(self) -> Float[Tensor, "steps *laws starts"]:
        """Mean diagonal of the block of W_PV that carries the learner."""
        return diagonals(self.w_kq, self.w_pv)[1].mean(dim=-1)

    @property
    def product(self) -> Float[Tensor, "steps *laws starts"]:
        """Mean over the coordinates of the product of both diagonals, as the authors plot it."""
        a, b = diagonals(self.w_kq, self.w_pv)
        return (a * b).mean(dim=-1)


def train(
    form: LossForm,
    starts: Sequence[tuple[float, float]],
    rate: float | Float[Tensor, "*laws"],
    steps: int,
    *,
    method: Literal["descent", "runge-kutta"] = "descent",
    clip: bool = False,
) -> Path:
    """Train one layer per sample and start (a_0, b_0), all at once, on the whole sample.

    Args:
        rate: learning rate (of gradient descent) or time step (of the gradient flow), one or one per sample.
        method: ``descent``: gradient descent; ``runge-kutta``: the gradient flow by the method of order four.
        clip: set the entries off the diagonal of the two blocks that carry the learner to zero after every step.

    Raises:
        ValueError: no starts, one that is not positive, ``steps`` below 1 or an unknown method.
    """
    if not starts or steps < 1:
        raise ValueError(f"starts must not be empty and steps be at least 1, got {starts} and {steps}")
    if method not in ("descent", "runge-kutta"):
        raise ValueError(f"method must be 'descent' or 'runge-kutta', got {method!r}")
    dim = form.cross.shape[-2]
    layers = [CausalLinearAttention.from_product(a, b, dim, form.gram.dtype) for a, b in starts]
    laws = form.power.shape
    state = tuple(
        torch.stack([getattr(layer, name).detach() for layer in layers]).expand(*laws, -1, -1, -1).to(form.gram.device)
        for name in ("w_kq", "w_pv")
    )
    step = torch.as_tensor(rate, device=form.gram.device).expand(laws).view(*laws, 1, 1, 1)
    masks = _masks(dim, form.gram.device)

    def downhill(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaves = [part.detach().requires_grad_() for part in state]
        return tuple(-grad for grad in torch.autograd.grad(form(*leaves).sum(), leaves))

    def ahead(state: tuple[Tensor, ...], slope: tuple[Tensor, ...], by: float) -> tuple[Tensor, ...]:
        return tuple(part + by * step * grad for part, grad in zip(state, slope, strict=True))

    path = [state]
    for _ in range(steps):
        slope = downhill(state)
        if method == "runge-kutta":
            second = downhill(ahead(state, slope, 0.5))
            third = downhill(ahead(state, second, 0.5))
            fourth = downhill(ahead(state, third, 1.0))
            slope = tuple((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(slope, second, third, fourth, strict=True))
        state = ahead(state, slope, 1.0)
        if clip:
            state = tuple(part * mask for part, mask in zip(state, masks, strict=True))
        path.append(state)
    return Path(*(torch.stack(parts) for parts in zip(*path, strict=True)))


def off_diagonal_norm(
    w_kq: Complex[Tensor, "*models m m"], w_pv: Complex[Tensor, "*models dim m"]
) -> Float[Tensor, "*models"]:
    """Norm of the entries off the diagonal in the two blocks that carry the learner; zero for vanilla descent."""
    kq, pv = _masks(w_pv.shape[-2], w_pv.device)
    squares = [(part * (1 - mask)).abs().square().sum((-2, -1)) for part, mask in ((w_kq, kq), (w_pv, pv))]
    return (squares[0] + squares[1]).sqrt()


def _masks(dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Zeros off the diagonal of the two blocks that carry the learner, ones elsewhere."""
    identity = torch.eye(dim, device=device)
    kq, pv = torch.ones(2 * dim, 2 * dim, device=device), torch.ones(dim, 2 * dim, device=device)
    kq[dim:, :dim] = pv[:, :dim] = identity
    return kq, pv


def _real(matrix: Complex[Tensor, "*rows n n"]) -> Float[Tensor, "*rows n n"]:
    """Re + Im, which tells a Hermitian matrix: Re is its symmetric part and Im its antisymmetric one."""
    return matrix.real + matrix.imag


def _hermitian(real: Tensor, axis: int) -> Complex[Tensor, "..."]:
    """The inverse of :func:`_real`, on the axes ``axis`` and ``axis + 1``."""
    turned = real.transpose(axis, axis + 1)
    return (0.5 + 0.5j) * real + (0.5 - 0.5j) * turned


def _pairs(x: Float[Tensor, "n rows"]) -> Float[Tensor, "pairs rows"]:
    """x_i x_k for i <= k, in the order of ``torch.triu_indices``."""
    out = x.new_empty(len(x) * (len(x) + 1) // 2, x.shape[1])
    begin = 0
    for i in range(len(x)):
        torch.mul(x[i:], x[i], out=out[begin : begin + len(x) - i])
        begin += len(x) - i
    return out
