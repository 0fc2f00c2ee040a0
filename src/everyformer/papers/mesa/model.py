"""One layer of linear causal attention on complex sequences, and what it is compared with (arXiv 2405.16845).

The token at t is e_t = (x_t ; x_{t-1}) with zeros below x_1. With E_t = [e_1 .. e_t] the layer forecasts x_{t+1} by
y_t = W_PV E_t E_t^H W_KQ e_t / (t - 1), from t = 2 on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from everyformer.papers.mesa.data import Law, ar_sequences, first_values


def tokens(x: Complex[Tensor, "batch time dim"]) -> Complex[Tensor, "batch time 2*dim"]:
    """e_t = (x_t ; x_{t-1}), with zeros for the x_0 that is not there."""
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
    return torch.cat([x, before], dim=-1)


def linear_attention(
    query: Complex[Tensor, "batch time n"],
    key: Complex[Tensor, "batch time n"],
    value: Complex[Tensor, "batch time dim"],
    chunk: int = 20,
) -> Complex[Tensor, "batch time dim"]:
    """sum over s <= t of value_s (key_s^H query_t), in O(time): prefix sums over chunks, a masked product inside each."""
    time = query.shape[1]
    fill = (0, 0, 0, -time % chunk)
    query, key, value = (F.pad(part, fill).unflatten(1, (-1, chunk)) for part in (query, key.conj(), value))
    mask = torch.ones(chunk, chunk, dtype=query.real.dtype, device=query.device).tril()
    inside = ((query @ key.mT) * mask) @ value
    sums = (key.mT @ value).cumsum(dim=1)  # up to the end of each chunk
    before = F.pad(sums[:, :-1], (0, 0, 0, 0, 1, 0))
    return (inside + query @ before).flatten(1, 2)[:, :time]


class CausalLinearAttention(nn.Module):
    """Linear causal attention with merged weights W_KQ (2 dim, 2 dim) and W_PV (dim, 2 dim), both complex.

    Parameters start as complex normal numbers of variance 1 / (2 dim); :meth:`from_product` gives the paper's start.

    Args:
        dim: width of x_t, at least 1.
        dtype: ``torch.complex64`` or ``torch.complex128``.

    Raises:
        ValueError: ``dim`` below 1 or a type that is not complex.
    """

    def __init__(self, dim: int, dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if not dtype.is_complex:
            raise ValueError(f"dtype must be complex, got {dtype}")
        self.dim = dim
        self.w_kq = nn.Parameter(torch.randn(2 * dim, 2 * dim, dtype=dtype) / (2 * dim) ** 0.5)
        self.w_pv = nn.Parameter(torch.randn(dim, 2 * dim, dtype=dtype) / (2 * dim) ** 0.5)

    @classmethod
    def from_product(cls, a: float, b: float, dim: int, dtype: torch.dtype = torch.complex64) -> CausalLinearAttention:
        """The layer with a I in W_KQ (lower left), b I in W_PV (left) and zeros elsewhere.

        Such a layer takes one step of gradient descent in its context, at rate ab / (t - 1): :func:`gradient_step`.

        Raises:
            ValueError: ``a`` or ``b`` not positive.
        """
        check_start(a, b)
        layer = cls(dim, dtype)
        with torch.no_grad():
            layer.w_kq.zero_()[dim:, :dim].diagonal().fill_(a)
            layer.w_pv.zero_()[:, :dim].diagonal().fill_(b)
        return layer

    def forward(self, x: Complex[Tensor, "batch time dim"]) -> Complex[Tensor, "batch time-1 dim"]:
        """Forecasts: ``[:, i]`` is the forecast of the token after the first ``i + 2``, so the last lies beyond ``x``.

        Raises:
            ValueError: another shape, a series that is not complex, or fewer than two tokens.
        """
        e = tokens(_checked(x, self.dim))
        read = linear_attention(e @ self.w_kq.mT, e, e @ self.w_pv.mT)[:, 1:]
        pairs = torch.arange(1, x.shape[1], device=x.device, dtype=x.real.dtype)  # (x_i, x_{i+1}) in the context
        return read * pairs.reciprocal().unsqueeze(-1)

    def forecast(self, x: Complex[Tensor, "batch time dim"]) -> Complex[Tensor, "batch dim"]:
        """The forecast of the one token after ``x``: ``forward(x)[:, -1]`` without the others."""
        return forecast(_checked(x, self.dim), self.w_kq, self.w_pv)

    @torch.no_grad()
    def diagonals(self) -> tuple[float, float]:
        """a and b: the mean of the real diagonal of the lower left block of W_KQ, and of the left block of W_PV."""
        a, b = diagonals(self.w_kq, self.w_pv)
        return float(a.mean()), float(b.mean())


def check_start(a: float | Tensor, b: float | Tensor) -> None:
    """Raise ``ValueError`` that names the one of ``a`` and ``b`` that is not positive."""
    for name, value in (("a", a), ("b", b)):
        if not (torch.as_tensor(value) > 0).all():
            raise ValueError(f"{name} must be positive, got {value}: training from it need not reach the learner")


def diagonals(
    w_kq: Complex[Tensor, "*models n n"], w_pv: Complex[Tensor, "*models dim n"]
) -> tuple[Float[Tensor, "*models dim"], Float[Tensor, "*models dim"]]:
    """The real diagonals of the two blocks that carry the learner, of any number of layers at once."""
    dim = w_pv.shape[-2]
    return w_kq[..., dim:, :dim].diagonal(dim1=-2, dim2=-1).real, w_pv[..., :dim].diagonal(dim1=-2, dim2=-1).real


def forecast(
    x: Complex[Tensor, "batch time dim"], w_kq: Complex[Tensor, "*models n n"], w_pv: Complex[Tensor, "*models dim n"]
) -> Complex[Tensor, "*models batch dim"]:
    """The forecast of the token after ``x`` by any number of layers at once."""
    e = tokens(x)
    total = e.mT @ e.conj()  # E_T E_T^H of each sequence
    asked = e[:, -1] @ w_kq.mT
    read = torch.einsum("bpq,...bq->...bp", total, asked)
    return read @ w_pv.mT / (x.shape[1] - 1)


def loss(forecasts: Complex[Tensor, "batch time-1 dim"], x: Complex[Tensor, "batch time dim"]) -> Float[Tensor, ""]:
    """Half the squared error of the forecasts of x_3 .. x_T, summed over steps and coordinates, mean over sequences."""
    error = forecasts[:, :-1] - x[:, 2:]
    return 0.5 * (error.real.square() + error.imag.square()).sum() / len(x)


def gradient_step(x: Complex[Tensor, "batch time dim"], rate: float) -> Complex[Tensor, "batch dim"]:
    """What one step of gradient descent from W = 0 forecasts after ``x``.

    On half the sum of |x_{i+1} - W x_i|^2 over the time - 1 pairs of the context, with step ``rate`` / (time - 1).
    """
    w = rate / (x.shape[1] - 1) * x[:, 1:].mT @ x[:, :-1].conj()
    return (w @ x[:, -1:].mT).squeeze(-1)


def least_squares(x: Complex[Tensor, "batch time dim"]) -> Complex[Tensor, "batch dim"]:
    """What the best diagonal W in the context forecasts after ``x``: exact from two tokens on; 0 where x is 0."""
    power = x[:, :-1].abs().square().sum(dim=1)
    w = (x[:, 1:] * x[:, :-1].conj()).sum(dim=1) / power.clamp_min(torch.finfo(power.dtype).tiny)
    return w * x[:, -1]


def recovery_ratio(
    model: CausalLinearAttention,
    law: str | Law,
    length: int,
    *,
    scale: float = 1.0,
    starts: int = 2000,
    repeats: int = 25,
    seed: int = 0,
) -> float:
    """The mean of forecast / truth for the last of ``length`` tokens, over the coordinates that are not zero.

    1 is recovery. Forecasts for one x_1 are averaged over ``repeats`` draws of W before they are divided: whatever of
    another coordinate leaks into a small one would make the mean of the plain quotients heavy-tailed.

    Raises:
        ValueError: as :func:`~.data.ar_sequences`, or an x_1 that is all zeros.
    """
    with torch.no_grad():
        return float(
            recovery_ratios(model.w_kq, model.w_pv, law, length, scale=scale, starts=starts, repeats=repeats, seed=seed)
        )


def recovery_ratios(
    w_kq: Complex[Tensor, "*models n n"],
    w_pv: Complex[Tensor, "*models dim n"],
    law: str | Law,
    length: int,
    *,
    scale: float = 1.0,
    starts: int = 2000,
    repeats: int = 25,
    seed: int = 0,
) -> Float[Tensor, "*models"]:
    """:func:`recovery_ratio` of any number of layers at once, all on the same sequences."""
    dim = w_pv.shape[-2]
    first = first_values(law, dim, starts, torch.Generator().manual_seed(seed), scale)
    if not first.any():
        raise ValueError("law must give values other than zero")
    products = torch.zeros(*w_kq.shape[:-2], starts, dim, device=w_kq.device)
    for turn in range(repeats):
        x = ar_sequences(lambda *_: first, dim, length, starts, seed + 1 + turn).to(w_kq)
        products += (forecast(x[:, :-1], w_kq, w_pv) * x[:, -1].conj()).real
    power = first.square().to(products)
    return (products / repeats / power)[..., power > 0].mean(dim=-1)


def _checked(x: Tensor, dim: int) -> Tensor:
    if x.ndim != 3 or x.shape[2] != dim or x.shape[1] < 2:
        raise ValueError(f"x must have shape (batch, time, {dim}) with time at least 2, got {tuple(x.shape)}")
    if not x.is_complex():
        raise ValueError(f"x must be complex, got {x.dtype}")
    return x
