"""Power laws: recovered from points, and the paper's own extrapolation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.scaling.power_law import PowerLaw, fit_power_law


def test_the_papers_legend_gives_the_papers_tokens():
    """(A, alpha) = (0.299, 0.537) of Figure 3 at 3.8e25 FLOPs: 16.3T tokens; the text's rounding misses (spec E1)."""
    legend = PowerLaw(math.log(0.299), 0.537)
    assert legend(3.8e25) == pytest.approx(16.3e12, rel=0.005)
    assert PowerLaw(math.log(0.29), 0.53)(3.8e25) == pytest.approx(10.5e12, rel=0.005)
    fitted = fit_power_law([6e18, 1e20, 1e22], [legend(c) for c in (6e18, 1e20, 1e22)])
    assert fitted(3.8e25) == pytest.approx(legend(3.8e25), rel=1e-9)
    assert [legend(c) for c in (6e18, 1e22)] == pytest.approx([3.6e9, 195e9], rel=0.02)


@given(
    st.floats(-3, 3).filter(lambda e: abs(e) > 0.01),
    st.floats(-20, 20),
    st.lists(st.floats(1, 60), min_size=2, max_size=8, unique=True),
)
def test_points_on_a_law_give_the_law(exponent, log_coefficient, log_x):
    if max(log_x) - min(log_x) < 0.1:
        return
    law = PowerLaw(log_coefficient, exponent)
    found = fit_power_law([math.exp(x) for x in log_x], [law(math.exp(x)) for x in log_x])
    assert found.exponent == pytest.approx(exponent, abs=1e-6)
    assert found.log_coefficient == pytest.approx(log_coefficient, abs=1e-4)
    assert found.inverse(found(1e9)) == pytest.approx(1e9, rel=1e-6)


def test_noise_is_averaged_out():
    random = np.random.default_rng(0)
    x = np.geomspace(1e18, 1e22, 200)
    y = 0.3 * x**0.5 * np.exp(random.normal(0, 0.1, 200))
    assert fit_power_law(list(x), list(y)).exponent == pytest.approx(0.5, abs=0.01)


def test_one_x_is_refused():
    with pytest.raises(ValueError, match="two distinct x"):
        fit_power_law([1e18, 1e18], [1.0, 2.0])
