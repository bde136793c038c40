"""The divergence of predictions: probes through networks against what is known, and the sampler's noise as a probe."""

from collections.abc import Callable

import pytest
import torch
from mixture import BatchNoise, GaussianMixture, trajectory
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveNegative,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    FeedbackGuidance,
    Guidance,
    LimitedInterval,
    NegativePrompting,
    PositiveAndNegative,
)
from dng_lightning.interfaces import Needs, Predictions
from dng_lightning.kernel import NoiseLevel
from dng_lightning.networks import UNet
from dng_lightning.posterior import (
    CalibratedPosterior,
    ClassifierPosterior,
    ConstantPosterior,
    ObserverPosterior,
    ReleasedPosterior,
    TrackedPosterior,
)
from dng_lightning.sampling import (
    ClassConditionalPredictor,
    Denoiser,
    ImageNoise,
    NetworkPairPredictor,
    Predictor,
    Sampler,
    WithClassifier,
    WithObserver,
    sample,
)
from dng_lightning.sampling.divergence import WithDivergence
from dng_lightning.sampling.noise import Probes
from dng_lightning.sampling.predictor_wrappers import PredictorWrapper
from dng_lightning.schedule import LinearSchedule

LINEAR = LinearSchedule()
FOUR = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], 0.3, [0.1, 0.4, 0.2, 0.3])
AT_500 = LINEAR.level(500)
NEEDED = Needs(negatives=True, divergence=1)


def linear(matrix: Tensor) -> Denoiser:
    """The network x -> matrix x."""
    return lambda x_t, level, class_labels: x_t @ matrix.T


def of_linear(matrices: list[Tensor], probes: int) -> tuple[WithDivergence, Needs]:
    networks = [linear(matrix) for matrix in matrices]
    predictor = NetworkPairPredictor(networks[0], networks[1:])
    source = WithDivergence(predictor, Probes(BatchNoise((64, 5), dtype=torch.double)()), 0.0)
    return source, Needs(negatives=True, divergence=probes)


def exact(mixture: GaussianMixture, label: int, x_t: Tensor, level: NoiseLevel) -> Tensor:
    """The divergence of a class's prediction less that of everything, (B,), by central differences along each axis."""
    h = 1e-5

    def difference(x: Tensor) -> Tensor:
        return mixture.network(label)(x, level, None) - mixture.denoised(x, level)

    axes = torch.eye(x_t.shape[1], dtype=x_t.dtype)
    return sum((((difference(x_t + h * e) - difference(x_t - h * e)) / (2 * h)) @ e for e in axes), torch.tensor(0.0))


def test_signs_find_the_trace_of_a_diagonal_jacobian_at_once():
    diagonals = torch.randn(3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    source, needs = of_linear([torch.diag(diagonal) for diagonal in diagonals], probes=1)
    found = source.predict(torch.ones(64, 5, dtype=torch.double), AT_500, needs).divergence
    expected = (diagonals[1:] - diagonals[0]).sum(1)
    torch.testing.assert_close(found, expected.expand(64, 2), rtol=0, atol=1e-12)


def test_many_probes_find_the_trace_of_any_jacobian():
    matrices = list(torch.randn(2, 5, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)))
    source, needs = of_linear(matrices, probes=50)
    found = source.predict(torch.ones(64, 5, dtype=torch.double), AT_500, needs).divergence
    assert found is not None
    jacobian = matrices[1] - matrices[0]
    symmetric = (jacobian + jacobian.T) / 2
    spread = (2 * (symmetric.square().sum() - symmetric.diag().square().sum())).sqrt()  # of one probe
    assert float((found.mean() - jacobian.trace()).abs()) < 4 * float(spread) / (50 * 64) ** 0.5
    assert float(found.std()) == pytest.approx(float(spread) / 50**0.5, rel=0.35)  # each image has probes of its own


def test_the_noise_of_the_sampler_is_a_probe_of_the_step_before():
    matrices = list(torch.randn(3, 5, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)))
    source, needs = of_linear(matrices, probes=0)
    source.eta = 0.5
    draw, x_t = BatchNoise((64, 5), 1, torch.double)(), BatchNoise((64, 5), 2, torch.double)()
    first = source.predict(x_t, AT_500, needs)
    assert first.divergence is None
    source.record_noise(first, 0.01, draw)
    found = source.predict(x_t + 0.01 * draw, LINEAR.level(490), needs).divergence
    expected = torch.stack([((draw @ (m - matrices[0]).T) * draw).sum(1) for m in matrices[1:]], 1)
    torch.testing.assert_close(found, expected)
    assert source.nfe == 2 * 3 * 64  # nothing but the predictions


@pytest.mark.parametrize("t", [100, 400, 600])
def test_probes_find_the_divergence_of_the_mixture(t):
    x_t, level = BatchNoise((32, 2), t, torch.double)(), LINEAR.level(t)
    source = WithDivergence(FOUR.shared([0, 2]), Probes(x_t), 0.0)
    found = source.predict(x_t, level, Needs(negatives=True, divergence=400)).divergence
    # in units of eps, whose predictions differ by -alpha / sigma times as much
    in_eps = -level.alpha / level.sigma
    expected = in_eps * torch.stack([exact(FOUR, label, x_t, level) for label in (0, 2)], 1)
    assert expected.abs().max() > 0.03
    # a probe deviates by twice the off-diagonal entry, here of the order of the trace; 4 deviations of 400 probes
    torch.testing.assert_close(in_eps * found, expected, rtol=0, atol=0.2 * float(expected.abs().max()) + 1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("attention", [(), (0, 1)], ids=["convolutions", "attention"])
def test_the_derivative_of_our_network_is_its_finite_difference_in_inference_mode(attention):
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        # of 32 channels and fewer, each is a group of its own, whose norm takes out what the class adds
        net = UNet(num_classes=3, channels=(64, 64), blocks=1, attention=attention).double().eval()
        for parameter in net.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, dtype=parameter.dtype)  # the last layers start at 0

    def denoiser(x_t: Tensor, level: NoiseLevel, class_labels: Tensor | None) -> Tensor:
        return net(x_t, torch.full((len(x_t),), level.timestep), class_labels)

    predictor = ClassConditionalPredictor(denoiser, 3, [0, 2])
    x_t, probe = BatchNoise((2, 1, 8, 8), 0, torch.double)(), BatchNoise((2, 1, 8, 8), 1, torch.double)().sign()
    given = WithDivergence(predictor, lambda: probe, 0.0).predict(x_t, AT_500, NEEDED)
    plain = predictor.predict(x_t, AT_500)
    torch.testing.assert_close(given.denoised, plain.denoised)
    torch.testing.assert_close(given.negatives, plain.negatives)

    def difference(x: Tensor) -> Tensor:
        return predictor.predict(x, AT_500).differences

    along = (difference(x_t + 1e-5 * probe) - difference(x_t - 1e-5 * probe)) / 2e-5
    expected = (along * probe.unsqueeze(1)).flatten(2).sum(2)
    assert expected.abs().min() > 1e-3
    torch.testing.assert_close(given.divergence, expected, rtol=1e-5, atol=1e-6)


# --- cost ---


class Passing(PredictorWrapper):
    """Changes nothing."""

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs) -> Predictions:
        return self.predictor.predict(x_t, level, needs)


WRAPPERS: dict[str, Callable[[Predictor], Predictor]] = {
    "bare": lambda predictor: predictor,
    "with a classifier": lambda predictor: WithClassifier(predictor, FOUR.log_posterior, [0, 2]),
    "with an observer": lambda predictor: WithObserver(predictor, lambda x: FOUR.posterior(x, 0, [0, 2])),
    "with another wrapper": Passing,
    "with several": lambda predictor: Passing(
        WithObserver(WithClassifier(predictor, FOUR.log_posterior, [0, 2]), lambda x: FOUR.posterior(x, 0, [0, 2]))
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize(("eta", "probes", "times"), [(0.0, 0, 1), (0.0, 1, 2), (0.0, 3, 6), (0.5, 1, 2), (1.0, 1, 1)])
@pytest.mark.filterwarnings("ignore:a posterior tracked")
def test_the_derivatives_are_counted_however_the_predictor_is_wrapped(wrap, eta, probes, times):
    """And none is taken for an ancestral sampler.

    A wrapper that keeps a count of its own, overwritten at each call, loses the derivative's: 20 in place of 40.
    """
    predictor = FOUR.shared([0, 2])
    wrapped, guidance = wrap(predictor), DynamicNegativeGuidance(posterior=TrackedPosterior(divergence=probes))
    sample(wrapped, guidance, LINEAR, BatchNoise((4, 2)), Sampler(5, eta=eta))
    assert wrapped.nfe == predictor.nfe == times * 5 * 3 * 4


def test_the_derivatives_are_counted_where_the_guidance_asks_for_what_the_wrappers_add():
    predictor = FOUR.shared([0, 2])
    posterior = ObserverPosterior(TrackedPosterior(divergence=1), observe_steps=[0, 0.4], threshold=0.0)
    wrapped = WithObserver(predictor, lambda x: FOUR.posterior(x, 0, [0, 2]))
    sample(wrapped, DynamicNegativeGuidance(posterior=posterior), LINEAR, BatchNoise((4, 2)), Sampler(5, eta=0.0))
    # the first step has no active condition, as the observer's first look is at its end
    assert wrapped.nfe == predictor.nfe == 2 * 4 * (1 + 4 * 3)


# --- what depends on what ---


@pytest.mark.filterwarnings("ignore:a posterior tracked")
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_probes_leave_the_images_as_they_are_and_depend_on_each_image_alone(eta):
    def run(scale: float, probes: int, seeds: list[int]) -> tuple[Tensor, Tensor]:
        guidance = DynamicNegativeGuidance(scale, TrackedPosterior(0.2, divergence=probes))
        seen = trajectory(FOUR, guidance, [0], Sampler(20, eta=eta), ImageNoise(seeds, (2,)))
        return seen.x_0, seen.posterior[-1]

    seeds = [3, 1, 4, 15, 9, 2, 6, 5]
    assert torch.equal(run(0.0, 2, seeds)[0], run(0.0, 0, seeds)[0])
    for together, alone in zip(run(1.0, 2, seeds), run(1.0, 2, seeds[5:6]), strict=True):
        torch.testing.assert_close(together[5:6], alone, rtol=1e-5, atol=1e-6)


def test_probes_are_signs_that_differ_from_image_to_image_and_from_draw_to_draw():
    probes = Probes(ImageNoise(range(200), (1, 4, 4))())
    first, second = probes(), probes()
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    for a, b in ((first, second), (first[1:], first[:-1])):
        assert float((a * b).mean().abs()) < 4 / a.numel() ** 0.5
    assert float(first.mean().abs()) < 4 / first.numel() ** 0.5


def test_a_network_without_a_derivative_is_refused():
    predictor = NetworkPairPredictor(lambda x, level, c: x.detach(), [lambda x, level, c: 2 * x.detach()])
    with pytest.raises(SettingError, match="no derivative in forward mode: set divergence to 0"):
        WithDivergence(predictor, lambda: torch.ones(2, 3), 0.0).predict(torch.ones(2, 3), AT_500, NEEDED)


# --- the warning ---


@pytest.mark.parametrize(("eta", "divergence", "warns"), [(0.0, 0, 1), (0.0, 1, 0), (0.5, 0, 0), (1.0, 0, 0)])
def test_one_warning_says_that_a_deterministic_sampler_biases_the_posterior(eta, divergence, warns, recwarn):
    guidance = DynamicNegativeGuidance(posterior=TrackedPosterior(divergence=divergence))
    sample(FOUR.shared([0]), guidance, LINEAR, BatchNoise((4, 2)), Sampler(5, eta))
    found = [
        warning for warning in recwarn if "set eta to 1, or the posterior's divergence to 1" in str(warning.message)
    ]
    assert len(found) == warns
    assert all(warning.filename == __file__ for warning in found)


ANCESTRAL = DynamicNegativeGuidance()
PROBED = DynamicNegativeGuidance(posterior=TrackedPosterior(divergence=1))


def observed(posterior: TrackedPosterior) -> DynamicNegativeGuidance:
    return DynamicNegativeGuidance(posterior=ObserverPosterior(posterior))


@pytest.mark.parametrize(
    ("guidance", "biased_at"),
    [
        (ANCESTRAL, [0.0]),
        (PROBED, []),
        (DynamicNegativeGuidance(posterior=CalibratedPosterior([[0, 1, 0]])), [0.0]),
        (DynamicNegativeGuidance(posterior=ReleasedPosterior()), [0.0]),
        (DynamicNegativeGuidance(posterior=ClassifierPosterior()), []),
        (DynamicNegativeGuidance(posterior=ConstantPosterior()), []),
        (PositiveAndNegative(LimitedInterval(ANCESTRAL, 0.5, 5.0)), [0.0]),
        (PositiveAndNegative(ANCESTRAL, independent=True), [0.0, 0.5]),
        # the sampler's noise tells no divergence of conditions that come and go
        (observed(TrackedPosterior()), [0.0, 0.5]),
        (LimitedInterval(observed(TrackedPosterior()), 0.5, 5.0), [0.0, 0.5]),
        (observed(TrackedPosterior(divergence=1)), []),
        # what is skipped does not come back
        (DynamicNegativeGuidance(posterior=TrackedPosterior(), skip_below=0.01), [0.0]),
        (DynamicNegativeGuidance(posterior=TrackedPosterior(divergence=1), skip_below=0.01), []),
        (AdaptiveNegative(NegativePrompting()), []),
        (FeedbackGuidance(), [0.0, 0.5]),
        (LimitedInterval(FeedbackGuidance(), 0.5, 5.0), [0.0, 0.5]),
        (FeedbackGuidance(posterior=ClassifierPosterior()), []),
        (ClassifierFreeGuidance(2.0), []),
    ],
)
def test_a_guidance_that_is_biased_below_eta_1_says_so(guidance: Guidance, biased_at):
    assert [eta for eta in (0.0, 0.5, 1.0) if guidance.needs().is_biased(eta)] == biased_at


@pytest.mark.parametrize(("eta", "warns"), [(0.5, 1), (1.0, 0)])
def test_the_sampler_warns_of_it(eta, warns, recwarn):
    predictor = FOUR.shared([], torch.ones(4, dtype=torch.long))
    sample(predictor, LimitedInterval(FeedbackGuidance()), LINEAR, BatchNoise((4, 2)), Sampler(5, eta))
    assert sum("a posterior tracked at eta 0.5 is biased" in str(warning.message) for warning in recwarn) == warns
