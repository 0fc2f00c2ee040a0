"""Hadamard matrices: square, of entries 1 and -1, with orthogonal rows.

Sylvester's doubling takes a matrix of order m to 2m. The others start from a matrix of a small order 4k that is not a
power of two: by Paley's two constructions from the quadratic residues modulo a prime (1933), and by Williamson's array
of four circulant matrices (1944) for 52 and 172, which large language models need: 11008 = 64 x 172.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

LARGEST_BASE = 256  # larger orders are built by doubling a smaller one

Matrix = NDArray[np.int64]


def has_hadamard(order: int) -> bool:
    """Whether :func:`hadamard_matrix` has a matrix of this order."""
    return order >= 1 and _split(order) is not None


def hadamard_matrix(order: int) -> Float[Tensor, "order order"]:
    """H / sqrt(order), orthogonal, in float64; for a power of two it is symmetric.

    Raises:
        ValueError: no construction here gives this order.
    """
    base, doublings = split(order)
    matrix = _base(base)
    for _ in range(doublings):
        matrix = np.kron(matrix, np.array([[1, 1], [1, -1]]))
    return torch.from_numpy(matrix).double() / order**0.5


def split(order: int) -> tuple[int, int]:
    """``order`` as base * 2 ** doublings: the smallest base that has a construction of its own.

    Raises:
        ValueError: there is none; the largest order that divides it is named.
    """
    found = _split(order) if order >= 1 else None
    if found is None:
        fitting = [part for part in range(1, order + 1) if order % part == 0 and _split(part)]
        hint = f"; transform blocks of {max(fitting)} instead" if fitting else ""
        raise ValueError(
            f"order must be a power of two, or one times {', '.join(map(str, _bases()))}, got {order}{hint}"
        )
    return found


@functools.cache
def _split(order: int) -> tuple[int, int] | None:
    doublings = (order & -order).bit_length() - 1
    odd = order >> doublings
    if odd == 1:
        return 1, doublings
    for kept in range(2, doublings + 1):  # Hadamard matrices have orders of 4 k
        if odd << kept in _bases():
            return odd << kept, doublings - kept
    return None


@functools.cache
def _bases() -> tuple[int, ...]:
    """The orders below ``LARGEST_BASE``, no powers of two, that a construction gives without doubling."""
    paley = {prime + 1 for prime in _primes() if prime % 4 == 3} | {
        2 * (prime + 1) for prime in _primes() if prime % 4 == 1
    }
    orders = (paley | {52, 172}) - {2**k for k in range(9)}
    # What doubling makes of a smaller one adds nothing.
    doubled = {order << k for order in orders for k in range(1, 7)}
    return tuple(sorted(order for order in orders - doubled if order <= LARGEST_BASE))


def _primes() -> list[int]:
    return [n for n in range(3, LARGEST_BASE) if all(n % divisor for divisor in range(2, int(n**0.5) + 1))]


@functools.cache
def _base(order: int) -> Matrix:
    if order == 1:
        return np.ones((1, 1), np.int64)
    if order - 1 in _primes():
        return _paley_one(order - 1)
    if order // 2 - 1 in _primes():
        return _paley_two(order // 2 - 1)
    return _williamson(order // 4)


def _jacobsthal(prime: int) -> Matrix:
    """Q[i, j]: 1 where i - j is a quadratic residue, 0 on the diagonal, else -1."""
    residues = {value * value % prime for value in range(1, prime)}
    character = np.array([0] + [1 if value in residues else -1 for value in range(1, prime)])
    places = np.arange(prime)
    return character[(places[:, None] - places) % prime]


def _bordered(corner: int, below: int, core: Matrix) -> Matrix:
    size = len(core) + 1
    matrix = np.ones((size, size), np.int64)
    matrix[0, 0], matrix[1:, 0], matrix[1:, 1:] = corner, below, core
    return matrix


def _paley_one(prime: int) -> Matrix:
    """Order prime + 1, for a prime that is 3 modulo 4: I + S, S skew."""
    return np.eye(prime + 1, dtype=np.int64) + _bordered(0, -1, _jacobsthal(prime))


def _paley_two(prime: int) -> Matrix:
    """Order 2 (prime + 1), for a prime that is 1 modulo 4: of a symmetric S, C x (1 1; 1 -1) + I x (1 -1; -1 -1)."""
    conference = _bordered(0, 1, _jacobsthal(prime))
    eye = np.eye(prime + 1, dtype=np.int64)
    return np.kron(conference, np.array([[1, 1], [1, -1]])) + np.kron(eye, np.array([[1, -1], [-1, -1]]))


def _williamson(prime: int) -> Matrix:
    """Order 4 * prime: four symmetric circulants A, B, C, D with A^2 + B^2 + C^2 + D^2 = 4 * prime * I.

    First rows are sought among those that are constant on the cosets of a subgroup of the units modulo the prime, as
    Williamson did; spectra of a row are then constant on cosets too, and pairs of them are matched.
    """
    root = next(g for g in range(2, prime) if len({pow(g, k, prime) for k in range(prime - 1)}) == prime - 1)
    size = 6 if prime > 20 else 2  # of the subgroup, which holds -1
    cosets = [
        [pow(root, j + k * ((prime - 1) // size), prime) for k in range(size)] for j in range((prime - 1) // size)
    ]
    rows = []
    for signs in itertools.product((1, -1), repeat=len(cosets)):
        row = np.ones(prime, np.int64)
        for coset, sign in zip(cosets, signs, strict=True):
            row[coset] = sign
        rows.append(row)
    spectra = np.fft.fft(rows).real ** 2
    chosen = [0, *(coset[0] for coset in cosets)]
    found: dict[tuple[float, ...], tuple[int, int]] = {}
    for first, second in itertools.combinations_with_replacement(range(len(rows)), 2):
        power = spectra[first, chosen] + spectra[second, chosen]
        found.setdefault(tuple(np.round(power, 3) + 0.0), (first, second))
        missing = found.get(tuple(np.round(4 * prime - power, 3) + 0.0))
        if missing is not None:
            places = np.arange(prime)
            a, b, c, d = (rows[index][(places - places[:, None]) % prime] for index in (first, second, *missing))
            return np.block([[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]])
    raise AssertionError(f"no Williamson matrices of order {prime} among the rows that are constant on cosets")
