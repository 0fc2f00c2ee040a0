import pytest

from everyformer.lab.growth import exponent


@pytest.mark.parametrize(("xs", "power"), [((2, 8, 32), 1.5), ((10.0, 100.0, 1000.0), 2), ((3, 6), -1)])
def test_the_exponent_is_the_power_of_a_power_law(xs, power):
    assert exponent(xs, [3 * x**power for x in xs]) == pytest.approx(power)
