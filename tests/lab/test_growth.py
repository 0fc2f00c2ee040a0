import pytest

from everyformer.lab.growth import exponent


def test_the_exponent_is_the_power_of_a_power_law():
    assert exponent((2, 8, 32), [3 * x**1.5 for x in (2, 8, 32)]) == pytest.approx(1.5)
