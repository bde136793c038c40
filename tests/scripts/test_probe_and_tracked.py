"""The comparison of `scripts/probe_and_tracked.py`."""

import numpy as np
from probe_and_tracked import judged


def test_two_independent_looks_are_better_than_one():
    draws = np.random.default_rng(0)
    became = draws.random((400, 10)) < 0.1
    looks = np.log(0.1 / 0.9) + 2.0 * became[..., None] - 1.0 + draws.normal(0, 1.4, (400, 10, 2))
    (alone, area, (own,)), (both, larger, weights) = judged(looks[..., :1], became), judged(looks, became)
    assert both.mean() < alone.mean() < 0.09  # that of the share alone
    assert larger > area > 0.7
    np.testing.assert_allclose([own, *weights], 2.0 / 1.4**2, atol=0.15)  # the exact log odds
    copied = judged(looks[..., [0, 0]], became)
    np.testing.assert_allclose(copied[0], alone, atol=1e-4)  # nothing new; each in its image's row
