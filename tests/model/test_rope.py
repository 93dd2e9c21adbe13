"""Llama 3.1's stretching of rotary wavelengths (spec 2.4)."""

import torch

from herd.model.config import RopeScaling
from herd.model.rope import rotary_frequencies, rotary_table, rotate


def test_scaling_keeps_short_waves_and_divides_long_ones():
    plain = rotary_frequencies(128, 500_000.0)
    ratio = plain / rotary_frequencies(128, 500_000.0, RopeScaling())
    kept, divided = (ratio == 1).sum(), torch.isclose(ratio, torch.tensor(8.0), rtol=1e-6).sum()
    assert (int(kept), int(divided)) == (29, 29)
    blended = ratio[29:35]
    assert ((blended > 1) & (blended < 8)).all() and (blended.diff() > 0).all()


def test_rotated_products_depend_on_distance_alone():
    cos, sin = rotary_table(rotary_frequencies(16, 10_000.0), 200)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).unbind(0)

    def product(at, other):
        turned = (rotate(x, cos[t : t + 1], sin[t : t + 1]) for x, t in ((q, at), (k, other)))
        return torch.mul(*turned).sum()

    torch.testing.assert_close(product(7, 3), product(193, 189), atol=1e-4, rtol=0)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3
