"""The divergence of predictions: probes through networks against what is known, and the sampler's noise as a probe."""

import re

import pytest
import torch
from mixture import BatchNoise, GaussianMixture, trajectory
from torch import Tensor

from dng_lightning.divergence import DivergenceSource
from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveNegative,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    FeedbackGuidance,
    Guidance,
    LimitedInterval,
    Needs,
    NegativePrompting,
    PositiveAndNegative,
)
from dng_lightning.networks import UNet
from dng_lightning.predictors import ClassConditionalPredictor, EpsModel, NetworkPairPredictor
from dng_lightning.sampling import ImageNoise, Probes, Sampler, sample
from dng_lightning.schedule import LinearSchedule

LINEAR = LinearSchedule()
FOUR = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], 0.3, [0.1, 0.4, 0.2, 0.3])
ASKED = Needs(divergence=1)


def linear(matrix: Tensor) -> EpsModel:
    """The network x -> matrix x."""
    return lambda x_t, t, class_labels: x_t @ matrix.T


def of_linear(matrices: list[Tensor], probes: int) -> tuple[DivergenceSource, Needs]:
    networks = [linear(matrix) for matrix in matrices]
    predictor = NetworkPairPredictor(networks[0], networks[1:])
    source = DivergenceSource(predictor, Probes(BatchNoise((64, 5), dtype=torch.double)()), 0.0)
    return source, Needs(divergence=probes)


def exact(mixture: GaussianMixture, label: int, x_t: Tensor, t: int) -> Tensor:
    """The divergence of a class's prediction less that of everything, (B,), by central differences along each axis."""
    h, time = 1e-5, torch.full((len(x_t),), t)

    def difference(x: Tensor) -> Tensor:
        return mixture.network(label)(x, time, None) - mixture.eps(x, time)

    axes = torch.eye(x_t.shape[1], dtype=x_t.dtype)
    return sum((((difference(x_t + h * e) - difference(x_t - h * e)) / (2 * h)) @ e for e in axes), torch.tensor(0.0))


def test_signs_find_the_trace_of_a_diagonal_jacobian_at_once():
    diagonals = torch.randn(3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    source, needs = of_linear([torch.diag(diagonal) for diagonal in diagonals], probes=1)
    found = source.predict(torch.ones(64, 5, dtype=torch.double), 500, needs).divergence
    expected = (diagonals[1:] - diagonals[0]).sum(1)
    torch.testing.assert_close(found, expected.expand(64, 2), rtol=0, atol=1e-12)


def test_many_probes_find_the_trace_of_any_jacobian():
    matrices = list(torch.randn(2, 5, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)))
    source, needs = of_linear(matrices, probes=50)
    found = source.predict(torch.ones(64, 5, dtype=torch.double), 500, needs).divergence
    assert found is not None
    jacobian = matrices[1] - matrices[0]
    symmetric = (jacobian + jacobian.T) / 2
    spread = (2 * (symmetric.square().sum() - symmetric.diag().square().sum())).sqrt()  # of one probe
    assert float((found.mean() - jacobian.trace()).abs()) < 4 * float(spread) / (50 * 64) ** 0.5
    assert float(found.std()) == pytest.approx(float(spread) / 50**0.5, rel=0.35)  # each image has probes of its own


def test_the_noise_of_the_sampler_is_a_probe_of_the_step_before():
    matrices = list(torch.randn(3, 5, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)))
    source, _ = of_linear(matrices, probes=0)
    source.eta = 0.5
    draw, x_t = BatchNoise((64, 5), 1, torch.double)(), BatchNoise((64, 5), 2, torch.double)()
    first = source.predict(x_t, 500, Needs(divergence=0))
    assert first.divergence is None
    source.drawn(first, 0.01, draw)
    found = source.predict(x_t + 0.01 * draw, 490, Needs(divergence=0)).divergence
    expected = torch.stack([((draw @ (m - matrices[0]).T) * draw).sum(1) for m in matrices[1:]], 1)
    torch.testing.assert_close(found, expected)
    assert source.predictor.evaluations == 2 * 3 * 64  # nothing but the predictions


@pytest.mark.parametrize("t", [100, 400, 600])
def test_probes_find_the_divergence_of_the_mixture(t):
    x_t = BatchNoise((32, 2), t, torch.double)()
    source = DivergenceSource(FOUR.shared([0, 2]), Probes(x_t), 0.0)
    found = source.predict(x_t, t, Needs(divergence=400)).divergence
    expected = torch.stack([exact(FOUR, label, x_t, t) for label in (0, 2)], 1)
    assert expected.abs().max() > 0.03
    # a probe deviates by twice the off-diagonal entry, here of the order of the trace; 4 deviations of 400 probes
    torch.testing.assert_close(found, expected, rtol=0, atol=0.2 * float(expected.abs().max()) + 1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("attention", [(), (0, 1)], ids=["convolutions", "attention"])
def test_the_derivative_of_our_network_is_its_finite_difference_in_inference_mode(attention):
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        # of 32 channels and fewer, each is a group of its own, whose norm takes out what the class adds
        net = UNet(num_classes=3, channels=(64, 64), blocks=1, attention=attention).double().eval()
        for parameter in net.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, dtype=parameter.dtype)  # the last layers start at 0
    predictor = ClassConditionalPredictor(lambda x, t, told: net(x, t, told), 3, [0, 2])
    x_t, probe = BatchNoise((2, 1, 8, 8), 0, torch.double)(), BatchNoise((2, 1, 8, 8), 1, torch.double)().sign()
    given = DivergenceSource(predictor, lambda: probe, 0.0).predict(x_t, 500, ASKED)
    plain = predictor.predict(x_t, 500)
    torch.testing.assert_close(given.base, plain.base)
    torch.testing.assert_close(given.negatives, plain.negatives)

    def difference(x: Tensor) -> Tensor:
        predictions = predictor.predict(x, 500)
        return predictions.negatives - predictions.base.unsqueeze(1)

    along = (difference(x_t + 1e-5 * probe) - difference(x_t - 1e-5 * probe)) / 2e-5
    expected = (along * probe.unsqueeze(1)).flatten(2).sum(2)
    assert expected.abs().min() > 1e-3
    torch.testing.assert_close(given.divergence, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("eta", "probes", "times"), [(0.0, 0, 1), (0.0, 1, 2), (0.0, 3, 6), (0.5, 1, 2), (1.0, 1, 1)])
@pytest.mark.filterwarnings("ignore:a posterior tracked")
def test_the_derivatives_are_counted_and_none_is_taken_for_an_ancestral_sampler(eta, probes, times):
    predictor = FOUR.shared([0, 2])
    guidance = DynamicNegativeGuidance(divergence=probes)
    sample(predictor, guidance, LINEAR, BatchNoise((4, 2)), Sampler(5, eta=eta))
    assert predictor.evaluations == times * 5 * 3 * 4


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_probes_leave_the_images_as_they_are_and_depend_on_each_image_alone(eta):
    def run(scale: float, probes: int, seeds: list[int]) -> tuple[Tensor, Tensor]:
        noise, guidance = ImageNoise(seeds, (2,)), DynamicNegativeGuidance(scale, prior=0.2, divergence=probes)
        x_0 = trajectory(FOUR, guidance, [0], Sampler(20, eta=eta), noise)
        return x_0.x_0, x_0.posterior[-1]

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
    predictor = NetworkPairPredictor(lambda x, t, c: x.detach(), [lambda x, t, c: 2 * x.detach()])
    with pytest.raises(SettingError, match="no derivative in forward mode: set divergence to 0"):
        DivergenceSource(predictor, lambda: torch.ones(2, 3), 0.0).predict(torch.ones(2, 3), 500, ASKED)


@pytest.mark.parametrize(("eta", "divergence", "warns"), [(0.0, 0, 1), (0.0, 1, 0), (0.5, 0, 0), (1.0, 0, 0)])
def test_one_warning_says_that_a_deterministic_sampler_biases_the_posterior(eta, divergence, warns, recwarn):
    sample(
        FOUR.shared([0]), DynamicNegativeGuidance(divergence=divergence), LINEAR, BatchNoise((4, 2)), Sampler(5, eta)
    )
    assert sum("set the guidance's divergence to 1" in str(warning.message) for warning in recwarn) == warns


ANCESTRAL, PROBED = DynamicNegativeGuidance(), DynamicNegativeGuidance(divergence=1)


@pytest.mark.parametrize(
    ("guidance", "biased_at", "mend"),
    [
        (ANCESTRAL, [0.0], "set the guidance's divergence to 1 .*, or eta above 0"),
        (PROBED, [], ""),
        (PositiveAndNegative(LimitedInterval(ANCESTRAL, 0.5, 5.0)), [0.0], "divergence to 1 .*, or eta above 0"),
        (AdaptiveNegative(ANCESTRAL), [0.0, 0.5], "divergence of the guidance in it to 1 .*, or eta to 1"),
        (LimitedInterval(AdaptiveNegative(ANCESTRAL), 0.5, 5.0), [0.0, 0.5], "divergence of the guidance in it to 1"),
        (AdaptiveNegative(PROBED), [], ""),
        (AdaptiveNegative(NegativePrompting()), [], ""),
        (FeedbackGuidance(), [0.0, 0.5], "^below eta 1 Feedback Guidance's ratio is biased [^;]*: set eta to 1$"),
        (LimitedInterval(FeedbackGuidance(), 0.5, 5.0), [0.0, 0.5], "^below eta 1 Feedback Guidance's ratio"),
        (ClassifierFreeGuidance(2.0), [], ""),
    ],
)
def test_one_line_names_what_unbiases_each_guidance_below_eta_1(guidance: Guidance, biased_at, mend):
    lines = {eta: guidance.bias(eta) for eta in (0.0, 0.5, 1.0)}
    assert [eta for eta, line in lines.items() if line] == biased_at
    for eta in biased_at:
        assert re.search(mend, lines[eta])


@pytest.mark.parametrize(("eta", "warns"), [(0.5, 1), (1.0, 0)])
def test_the_sampler_warns_of_it(eta, warns, recwarn):
    wanted = torch.ones(4, dtype=torch.long)
    sample(FOUR.shared([]), LimitedInterval(FeedbackGuidance()), LINEAR, BatchNoise((4, 2)), Sampler(5, eta), wanted)
    assert sum("Feedback Guidance's ratio" in str(warning.message) for warning in recwarn) == warns
