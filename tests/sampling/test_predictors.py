"""From networks to predictions: what is evaluated, in which order, and what the wrappers add."""

import pytest
import torch
from mixture import BatchNoise, GaussianMixture
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DynamicNegativeGuidance,
    NegativePrompting,
    NormalizedAttention,
    SafeLatentDiffusion,
    Unguided,
)
from dng_lightning.interfaces import Needs
from dng_lightning.posterior import ClassifierPosterior, ObserverPosterior, TrackedPosterior
from dng_lightning.sampling import (
    ClassConditionalPredictor,
    NetworkPairPredictor,
    Predictor,
    Sampler,
    WithClassifier,
    WithObserver,
    WithProbe,
    sample,
)
from dng_lightning.schedule import LinearSchedule

LINEAR = LinearSchedule()
FOUR = GaussianMixture(LINEAR, [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], 0.3, [0.1, 0.4, 0.2, 0.3])
AT_300 = LINEAR.level(300)
LABELS = torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize(
    "guidance",
    [
        Unguided(),
        NegativePrompting(),
        SafeLatentDiffusion(),
        DynamicNegativeGuidance(posterior=TrackedPosterior(prior=0.2)),
    ],
    ids=lambda guidance: type(guidance).__name__,
)
def test_a_shared_network_and_a_pair_that_hold_the_same_function_give_the_same_images(guidance):
    def images(predictor: Predictor) -> Tensor:
        return sample(predictor, guidance, LINEAR, BatchNoise((64, 2)), Sampler(100))

    # exact functions whose batches are stacked differently; 64 images keep SIMD lanes full
    assert torch.equal(images(FOUR.shared([0, 2])), images(FOUR.pair([0, 2])))


def test_predictors_give_base_and_negatives_in_the_order_of_the_forbidden_classes():
    x_t = BatchNoise((5, 2))()
    for predictor in (FOUR.shared([3, 1]), FOUR.pair([3, 1])):
        made = predictor.predict(x_t, AT_300)
        assert predictor.conditions == 2
        torch.testing.assert_close(made.denoised, FOUR.denoised(x_t, AT_300), rtol=0, atol=1e-6)
        for k, label in enumerate((3, 1)):
            expected = FOUR.network(label)(x_t, AT_300, None)
            torch.testing.assert_close(made.negatives[:, k], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(made.differences, made.negatives - made.denoised.unsqueeze(1), rtol=0, atol=0)


def test_only_the_active_conditions_of_each_image_are_evaluated():
    x_t, active = BatchNoise((5, 2))(), torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1], [0, 0]]).bool()
    for predictor in (FOUR.shared([3, 1]), FOUR.pair([3, 1])):
        full = predictor.predict(x_t, AT_300)
        spared = predictor.predict(x_t, AT_300, Needs(negatives=True, active=active))
        expected = torch.where(active.unsqueeze(2), full.negatives, full.denoised.unsqueeze(1))
        torch.testing.assert_close(spared.negatives, expected, rtol=0, atol=1e-6)
        assert torch.equal(spared.active, active)
        assert predictor.nfe == 5 * 3 + 5 + 4
        none = predictor.predict(x_t, AT_300, Needs(negatives=True, active=torch.zeros_like(active)))
        assert none.negatives.shape == full.negatives.shape
        assert torch.equal(none.negatives, none.denoised.unsqueeze(1).expand_as(none.negatives))
        assert predictor.nfe == 5 * 3 + 5 + 4 + 5


def test_the_unconditional_prediction_comes_beside_that_of_a_class_and_is_not_evaluated_twice():
    x_t = BatchNoise((5, 2))()
    of_class = NetworkPairPredictor(FOUR.denoised, [FOUR.network(3)], FOUR.null_class, LABELS)
    for predictor in (FOUR.shared([3], LABELS), of_class):
        both = predictor.predict(x_t, AT_300, Needs(null=True))
        torch.testing.assert_close(both.denoised, FOUR.denoised(x_t, AT_300, LABELS), rtol=0, atol=1e-6)
        assert both.null is not None
        torch.testing.assert_close(both.null, FOUR.denoised(x_t, AT_300), rtol=0, atol=1e-6)
        assert predictor.nfe == 10
        assert predictor.predict(x_t, AT_300).null is None
    for predictor in (FOUR.shared([3]), FOUR.pair([3])):
        alone = predictor.predict(x_t, AT_300, Needs(negatives=True, null=True))
        assert alone.null is not None
        assert torch.equal(alone.null, alone.denoised)
        assert predictor.nfe == 10


def test_nfe_is_counted_image_by_image_and_unguided_sampling_needs_no_negatives():
    for predictor in (FOUR.shared([0, 2]), FOUR.pair([0, 2])):
        sample(predictor, Unguided(), LINEAR, BatchNoise((5, 2)), Sampler(10))
        assert predictor.nfe == 5 * 10
        sample(predictor, NegativePrompting(), LINEAR, BatchNoise((5, 2)), Sampler(10))
        assert predictor.nfe == 5 * 10 + 3 * 5 * 10


# --- with a classifier ---


@pytest.mark.parametrize("forbidden", [[3, 1], [2]], ids=["two classes", "one class"])
def test_a_posterior_comes_with_the_predictions_at_their_level_in_the_order_of_the_forbidden_classes(forbidden):
    x_t, needs = BatchNoise((5, 2))(), Needs(negatives=True, classifier="posterior")
    for predictor in (FOUR.shared(forbidden), FOUR.pair(forbidden)):
        bare, informed = predictor.predict(x_t, AT_300), WithClassifier(predictor, FOUR.log_posterior, forbidden)
        made = informed.predict(x_t, AT_300, needs)
        assert bare.log_posterior is None
        assert torch.equal(made.denoised, bare.denoised)
        assert torch.equal(made.negatives, bare.negatives)
        assert made.log_posterior is not None
        torch.testing.assert_close(made.log_posterior.exp(), FOUR.posterior(x_t, 300, forbidden))
        other = informed.predict(x_t, LINEAR.level(100), needs).log_posterior
        assert not torch.allclose(made.log_posterior, other)
        assert informed.predict(x_t, AT_300, Needs()).log_posterior is None
        assert informed.conditions == len(forbidden)
        # of the denoising networks: the bare one, two with all negatives, one without; none for the classifier
        assert informed.nfe == predictor.nfe == 5 * (3 * (1 + len(forbidden)) + 1)


def test_the_gradient_of_the_posterior_is_the_difference_of_the_scores():
    x_t, needs = BatchNoise((5, 2))(), Needs(negatives=True, null=True, classifier="gradient")
    predictor = WithClassifier(FOUR.shared([3, 1], LABELS), FOUR.log_posterior, [3, 1])
    made = predictor.predict(x_t, AT_300, needs)
    assert made.gradient is not None
    assert made.class_gradient is not None
    # a score is (alpha D - x_t) / sigma^2
    factor = AT_300.alpha / AT_300.sigma**2
    score = factor * (made.negatives - made.null.unsqueeze(1))
    torch.testing.assert_close(made.gradient, score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.class_gradient, factor * (made.denoised - made.null), rtol=1e-4, atol=1e-4)
    exact = FOUR.log_posterior(x_t, AT_300)
    torch.testing.assert_close(made.log_posterior, exact[:, [3, 1]])
    torch.testing.assert_close(made.class_log_posterior, exact.gather(1, LABELS.unsqueeze(1)))
    with torch.inference_mode():
        again = predictor.predict(BatchNoise((5, 2))(), AT_300, needs)
    assert torch.equal(again.gradient, made.gradient)


def test_a_posterior_of_other_classes_than_the_forbidden_ones_is_refused():
    with pytest.raises(SettingError, match="has 2 forbidden conditions, not 1"):
        WithClassifier(FOUR.shared([0, 2]), FOUR.log_posterior, [0])


def test_conditions_that_are_chosen_by_the_classifier_are_chosen_before_the_network_is_called():
    x_t = BatchNoise((64, 2))()
    predictor = WithClassifier(FOUR.shared([3, 1]), FOUR.log_posterior, [3, 1])
    active = FOUR.posterior(x_t, 300, [3, 1]) > 0.3
    needs = Needs(negatives=True, classifier="posterior", active=lambda made: made.log_posterior.exp() > 0.3)
    made = predictor.predict(x_t, AT_300, needs)
    assert torch.equal(made.active, active)
    assert predictor.nfe == 64 + int(active.sum())


def test_conditions_that_the_base_prediction_chooses_are_evaluated_after_it():
    x_t = BatchNoise((64, 2))()
    needs = Needs(negatives=True, active=lambda base: base.denoised > 0.2)
    for predictor in (FOUR.shared([3, 1]), FOUR.pair([3, 1])):
        made = predictor.predict(x_t, AT_300, needs)
        expected = FOUR.denoised(x_t, AT_300) > 0.2
        assert torch.equal(made.active, expected)
        assert predictor.nfe == 64 + int(expected.sum())
        for k, label in enumerate([3, 1]):
            evaluated = FOUR.denoised(x_t, AT_300, torch.full((64,), label))
            assert torch.equal(made.negatives[:, k], torch.where(expected[:, k : k + 1], evaluated, made.denoised))


def test_a_probe_reads_the_features_of_the_base_prediction_at_no_evaluation():
    x_t = BatchNoise((64, 2))()
    needs = Needs(negatives=True, probe=True, active=lambda base: base.probed.exp() > 0.3)
    expected = FOUR.log_posterior(x_t, AT_300)[:, [3, 1]]
    for predictor in (FOUR.shared([3, 1]), FOUR.pair([3, 1])):
        probing = WithProbe(predictor, FOUR.log_posterior, "x_t", [3, 1])
        assert torch.equal(probing.predict(x_t, AT_300, Needs(probe=True)).probed, expected)
        assert probing.nfe == 64
        made = probing.predict(x_t, AT_300, needs)
        assert torch.equal(made.probed, expected)
        assert torch.equal(made.active, expected.exp() > 0.3)
        assert probing.nfe == 128 + int(made.active.sum())
        assert probing.predict(x_t, AT_300).probed is None


def test_a_classifier_and_a_probe_choose_the_conditions_together():
    x_t = BatchNoise((64, 2))()
    both = WithProbe(
        WithClassifier(FOUR.shared([3]), FOUR.log_posterior, [3]), lambda *_: torch.zeros(64, 4), "x_t", [3]
    )
    seen = []
    needs = Needs(True, classifier="posterior", probe=True, active=lambda made: seen.append(made) or made.probed < 0)
    for predictor in (
        both,
        WithClassifier(WithProbe(FOUR.shared([3]), FOUR.log_posterior, "x_t", [3]), FOUR.log_posterior, [3]),
    ):
        predictor.predict(x_t, AT_300, needs)
        assert seen[-1].probed is not None
        assert seen[-1].log_posterior is not None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: WithProbe(FOUR.shared([0, 1]), FOUR.log_posterior, "x_t", [0]), "2 forbidden conditions, not 1"),
        (lambda: WithProbe(FOUR.shared([0], LABELS), FOUR.log_posterior, "x_t", [0]), "no class_labels"),
        (
            lambda: WithProbe(
                ClassConditionalPredictor(lambda x, *_: x, 4, [0]), FOUR.log_posterior, "x_t", [0]
            ).predict(BatchNoise((4, 2))(), AT_300, Needs(probe=True)),
            "a denoiser with the method with_features",
        ),
    ],
)
def test_what_a_probe_cannot_read_is_refused(make, reason):
    with pytest.raises(SettingError, match=reason):
        make()


# --- needs that a predictor cannot serve ---


def bare() -> Predictor:
    return FOUR.shared([0, 2])


@pytest.mark.parametrize(
    ("guidance", "reason"),
    [
        (DynamicNegativeGuidance(posterior=ClassifierPosterior()), r"needs p\(c \| x_t\): wrap the predictor in With"),
        (ClassifierGuidance(), r"^ClassifierGuidance needs p\(c \| x_t\)"),
        (DynamicNegativeGuidance(posterior=ObserverPosterior()), "needs an observer: wrap the predictor in With"),
        (NormalizedAttention(Unguided()), "it needs a TextPredictor"),
        (ClassifierFreeGuidance(), "guides toward a class: set class_labels to one"),
    ],
)
def test_what_a_predictor_cannot_serve_is_refused_before_any_network_is_called(guidance, reason):
    predictor = bare()
    with pytest.raises(SettingError, match=reason):
        sample(predictor, guidance, LINEAR, BatchNoise((4, 2)), Sampler(10))
    assert predictor.nfe == 0


def test_wrappers_serve_what_they_add_and_what_the_wrapped_predictor_serves():
    both = WithObserver(WithClassifier(bare(), FOUR.log_posterior, [0, 2]), lambda x: FOUR.posterior(x, 0, [0, 2]))
    assert both.provides == {"classifier", "observer"}
    both.check(Needs(classifier="gradient", observer=1.0), "it")
    assert torch.equal(WithObserver(FOUR.shared([0], LABELS), lambda x: x).class_labels, LABELS)
