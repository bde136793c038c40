"""Whatever the settings and however large the evidence, posteriors stay within their bounds; kernels are finite."""

import math

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import PATHS, Setting, T, assert_bounds, assert_scale, posteriors, powers_of_ten, scales

from dng_lightning.errors import SettingError
from dng_lightning.interfaces import Guided, Predictions, Step
from dng_lightning.kernel import Kernel
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.posterior.base import odds

QUICK = settings(max_examples=300, deadline=None)


def posteriors_and_classes(classes: int) -> st.SearchStrategy[tuple[int, Setting]]:
    return st.tuples(st.just(classes), posteriors(classes))


OFFSET_OF_1E12 = Setting(prior=0.1, temperature=0.0, offset=1e12, p_min=0.0, p_max=1 - 1e-9)
HIGH_P_MIN = Setting(prior=0.3, temperature=1.0, offset=9.0, p_min=0.2, p_max=0.8)


@given(
    st.integers(1, 3).flatmap(posteriors_and_classes),
    scales,
    st.lists(powers_of_ten(-3, 20) | powers_of_ten(-3, 20).map(lambda x: -x) | st.just(0.0), min_size=4, max_size=4),
    st.sampled_from(sorted(PATHS)),
    st.integers(1, T).flatmap(lambda t: st.tuples(st.just(t), st.integers(0, t - 1))),
)
@QUICK
@example(  # log p of 1e12, where log p - (log p - log p_max) used to be 0
    (2, OFFSET_OF_1E12), 1.0, [0.0, 0.0, 0.0, 0.0], "linear", (500, 400)
)
@example(  # two classes, one far above p_max: the other used to fall below p_min
    (2, HIGH_P_MIN), 1.0, [1.0, 0.0, -1.0, 2.0], "linear", (500, 400)
)
def test_the_bounds_hold_after_any_evidence_however_large(case, scale, numbers, path, grid):
    classes, setting = case
    # states and predictions of up to 1e20: their squares are beyond fp32
    x_t, x_s, base, negative = (torch.full((2, 3), number) for number in numbers)
    negatives = torch.stack([negative * (k + 1) for k in range(classes)], 1)
    try:
        posterior = setting.posterior()
        log_p = posterior.start(x_t, classes)
    except SettingError:
        return
    kernel = Kernel(*map(PATHS[path].level, grid))
    given, step = Predictions(base, negatives), Step(0, 1, kernel, kernel)
    log_p = posterior.update(log_p, step, x_t, x_s, given, Guided(base, torch.zeros(2)))
    assert_bounds(log_p.exp(), setting.p_min, setting.p_max)
    assert_scale(scale * odds(log_p).sum(1), scale, setting.p_max)


@given(st.integers(1, 3).flatmap(posteriors_and_classes))
@QUICK
def test_priors_are_taken_as_they_are_or_refused(case):
    classes, setting = case
    try:
        log_p = TrackedPosterior(setting.prior, p_max=setting.p_max).start(torch.empty(2, 3), classes)
    except SettingError:
        return
    p = log_p.exp()
    expected = torch.tensor(setting.prior, dtype=torch.double).expand(2, classes)
    torch.testing.assert_close(p, expected, rtol=1e-12, atol=0)
    assert (odds(log_p) > 0).all()
    assert odds(log_p).sum(1).max() <= setting.p_max / (1 - setting.p_max) * (1 + 2e-6)


@given(st.sampled_from(sorted(PATHS)), st.integers(1, T), st.data())
@QUICK
def test_every_kernel_is_finite_and_has_a_variance_where_evidence_is_taken(path, t, data):
    s = data.draw(st.integers(0, t - 1))
    for kind in ("beta_tilde", "beta"):
        kernel = Kernel(PATHS[path].level(t), PATHS[path].level(s), kind=kind)
        assert all(map(math.isfinite, (kernel.x_coef, kernel.x0_coef, kernel.variance, kernel.beta_tilde)))
        assert (kernel.variance > 0) == (s > 0)
        assert kernel.beta_tilde >= 0
        assert 0 <= kernel.x_coef <= 1 / kernel.level.alpha
