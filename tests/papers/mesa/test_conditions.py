import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everyformer.papers.mesa import ExactMoment, exact_moment, moment_condition, moments
from everyformer.papers.mesa.data import LAWS, first_values

EMERGENCE = {"ones": False, "gaussian": True, "sparse": True, "signs": True, "uniform": True, "mixed": True}
RECOVERY = {"ones": False, "gaussian": False, "sparse": True, "signs": True, "uniform": False, "mixed": False}


def draws(law, dim, n=20_000, scale=1.0):
    return first_values(law, dim, n, torch.Generator().manual_seed(0), scale)


@pytest.mark.parametrize("law", sorted(LAWS))
def test_exact_moments_agree_with_samples(law):
    exact, sample = moments(law, 3, scale=1.5), moments(draws(law, 3, 400_000, 1.5))
    assert exact.exact and not sample.exact
    for name, tolerance in (("second", 0.02), ("k1", 0.03), ("k2", 0.1), ("k3", 0.1)):
        assert math.isclose(getattr(exact, name), getattr(sample, name), rel_tol=tolerance, abs_tol=1e-9), name


@settings(max_examples=25, deadline=None)
@given(dim=st.integers(1, 8), scale=st.floats(0.1, 5))
def test_moments_in_closed_form(dim, scale):
    gaussian, sparse, signs = (moments(law, dim, scale=scale) for law in ("gaussian", "sparse", "signs"))
    assert math.isclose(gaussian.k1 / gaussian.k2, 1 / (5 * scale**2))
    assert math.isclose(gaussian.k3, 3 * (dim - 1) * scale**6, abs_tol=1e-12)
    assert sparse.k3 == 0 and math.isclose(sparse.k1, scale**4 / dim)
    assert math.isclose(signs.k3, (dim - 1) * scale**6, abs_tol=1e-12)
    assert math.isclose(gaussian.defect, 0.4) and abs(sparse.defect) < 1e-9 and abs(signs.defect) < 1e-9


@settings(max_examples=20, deadline=None)
@given(law=st.sampled_from(sorted(LAWS)), dim=st.integers(2, 6), scale=st.floats(0.1, 5))
def test_exact_moments_prove_the_condition_or_its_failure(law, dim, scale):
    for level, expected in (("emergence", EMERGENCE), ("recovery", RECOVERY)):
        report = moment_condition(law, level, dim, scale=scale)
        assert report.verdict == ("holds" if expected[law] else "fails"), report
        assert report.holds is expected[law] and report.standard_error == 0


@pytest.mark.parametrize("law", sorted(LAWS))
def test_samples_reject_or_do_not_but_never_prove(law):
    for level, expected in (("emergence", EMERGENCE), ("recovery", RECOVERY)):
        report = moment_condition(draws(law, 4), level)
        assert report.verdict == ("not rejected" if expected[law] else "rejected"), report
        assert report.holds is (None if expected[law] else False)
        assert moment_condition(LAWS[law], level, 4, draws=20_000).verdict == report.verdict


def test_a_zero_mean_law_without_symmetry_meets_the_condition():
    skewed = ExactMoment(3, lambda e: math.prod(((-1.0) ** k * 2 + 2.0**k) / 3 for k in e))  # -1, -1, 2 alike
    assert skewed.function((1, 0, 0)) == 0 and skewed.function((3, 0, 0)) == 2
    assert moment_condition(skewed).verdict == "holds"
    assert moment_condition(skewed, "recovery").verdict == "fails"


def test_the_moment_that_breaks_the_condition_is_named():
    tied = draws("gaussian", 4)
    tied[:, 2] = tied[:, 0]
    report = moment_condition(tied)
    assert report.verdict == "rejected" and "x_0" in report.moment and "x_2" in report.moment
    assert report.value / report.standard_error > 10


def test_a_coordinate_of_another_size_is_named():
    samples = draws("signs", 4)
    samples[:, 3] *= 1.5
    report = moment_condition(samples)
    assert report.verdict == "rejected" and report.coordinate == 3 and "coordinate 3" in report.moment
    sizes = [1.0, 1.0, 2.0]
    law = ExactMoment(
        3, lambda e: math.prod(s**k for s, k in zip(sizes, e, strict=True)) if all(k % 2 == 0 for k in e) else 0.0
    )
    report = moment_condition(law)
    assert report.verdict == "fails" and report.coordinate == 2 and "coordinate 2" in report.moment


def test_the_condition_is_rejected_about_as_rarely_as_promised_where_it_holds():
    generator = torch.Generator().manual_seed(1)
    verdicts = [moment_condition(first_values("uniform", 3, 2000, generator), risk=0.05).verdict for _ in range(60)]
    assert verdicts.count("rejected") <= 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moments("gaussian"), "dim must be given"),
        (lambda: moments("cauchy", 2), "law must be one of"),
        (lambda: moments("gaussian", 2, scale=-1), "scale must be positive"),
        (lambda: exact_moment("gaussian", 0), "dim must be at least 1"),
        (lambda: moments(torch.ones(5)), "samples must have shape"),
        (lambda: moments(torch.ones(5, 2, dtype=torch.complex64)), "must be real"),
        (lambda: moments(torch.tensor([[1.0], [torch.nan]])), "finite sixth moment"),
        (lambda: moments(torch.tensor([[1.0], [torch.inf]])), "finite sixth moment"),
        (lambda: moments(torch.tensor([[1.0], [1e60]], dtype=torch.float64)), "finite sixth moment"),
        (lambda: moment_condition("signs", "convergence", 2), "level must be"),
        (lambda: moment_condition("signs", "recovery", 2, risk=0.0), "risk must be between"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
