"""The posterior of a probe on the features of the base prediction."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from mixture import BatchNoise, GaussianMixture, trajectory
from torch import nn

from dng_lightning.__main__ import run
from dng_lightning.data import Digits
from dng_lightning.data.pixels import to_float, to_png, to_uint8
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.class_balance import posterior_quality
from dng_lightning.guidance import DynamicNegativeGuidance, Unguided
from dng_lightning.interfaces import NO_PREDICTIONS
from dng_lightning.modules import DiffusionModule, GuidedSampler, ProbeModule
from dng_lightning.networks import FeatureProbe, UNet
from dng_lightning.networks.features import features_only
from dng_lightning.posterior import ClassifierPosterior, ProbePosterior
from dng_lightning.sampling import PassiveTracking, Sampler, SelfFilter
from dng_lightning.schedule import LinearSchedule
from dng_lightning.storage import resources

FOUR = GaussianMixture(LinearSchedule(), [[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], 0.3, [0.1, 0.4, 0.2, 0.3])
CONFIG = str(resources.config("mnist_probe"))


# --- the posterior, on an exact mixture ---


@pytest.mark.parametrize("forbidden", [[0], [3, 0]])
def test_a_perfect_probe_guides_as_a_perfect_classifier_does(forbidden):
    by_probe, by_classifier = (
        trajectory(FOUR, DynamicNegativeGuidance(1.0, posterior), forbidden, Sampler(30), BatchNoise((64, 2)))
        for posterior in (ProbePosterior(), ClassifierPosterior())
    )
    assert torch.equal(by_probe.posterior, by_classifier.posterior)
    assert torch.equal(by_probe.x_0, by_classifier.x_0)


def test_a_shift_mends_a_probe_that_was_trained_on_other_shares():
    """A probe that saw the forbidden class as often as the rest: its odds are 9 times the true ones."""
    balanced = GaussianMixture(FOUR.schedule, FOUR.means.tolist(), 0.3, [0.5, 2 / 9, 1 / 9, 1.5 / 9])
    x_t, level = BatchNoise((64, 2), dtype=torch.double)(), FOUR.level(300)
    posterior, step = ProbePosterior(calibration=[[0, 1, -math.log(9)]]), Sampler(10).chain(FOUR.schedule)[3]
    found = posterior.log_prob(replace(NO_PREDICTIONS, probed=balanced.log_posterior(x_t, level)[:, [0]]), None, step)
    expected = FOUR.log_posterior(x_t, level)[:, [0]].clamp(max=torch.tensor(0.99).double().log())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_a_calibration_mends_a_probe_level_by_level():
    """Log odds that are off by another factor and shift at each of two levels, and linear in between."""
    rows, chain = [[-8.0, 0.5, 1.0], [8.0, 2.0, -1.0]], Sampler(20).chain(FOUR.schedule)
    posterior = ProbePosterior(calibration=rows)
    for step in chain:
        exact = FOUR.log_posterior(BatchNoise((64, 2), dtype=torch.double)(), step.level)[:, [0]]
        place = min(max((step.level.log_snr + 8) / 16, 0), 1)
        spoiled = (exact.exp().logit() - (1 - 2 * place)) / (0.5 + 1.5 * place)
        probed = torch.nn.functional.logsigmoid(spoiled)
        found = posterior.log_prob(replace(NO_PREDICTIONS, probed=probed), None, step)
        torch.testing.assert_close(found, exact.clamp(max=math.log(0.99)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "reason"), [({"p_max": 1.0}, "p_max"), ({"calibration": [[0, 1]]}, "rows of three numbers")]
)
def test_settings_out_of_range_are_refused(settings, reason):
    with pytest.raises(SettingError, match=reason):
        ProbePosterior(**settings)


# --- features of any network ---


def unet() -> UNet:
    torch.manual_seed(0)
    net = UNet(1, 10, channels=(8, 16), blocks=1).eval()
    for name in ("middle1.residual.conv2", "middle2.conv2"):  # zero at first, so that nothing would reach the output
        nn.init.normal_(net.get_submodule(name).weight, std=0.2)
    return net


def test_the_prediction_with_features_is_the_prediction():
    module, x = DiffusionModule(unet()).eval(), torch.randn(3, 1, 16, 16)
    level, labels = module.schedule.level(500), torch.tensor([10, 3, 10])
    with torch.no_grad():
        expected = module(x, level, labels)
        denoised, features = module.with_features(x, level, labels, "middle2")
        assert torch.equal(denoised, expected)
        assert features.shape == (3, 16, 4, 4)
        of_null = module.features(x, torch.full((3,), 500), "middle2")
    torch.testing.assert_close(of_null[[0, 2]], features[[0, 2]])
    assert not torch.equal(of_null[1], features[1])  # another class


def test_nothing_after_the_module_is_computed():
    net, x = unet(), torch.randn(1, 1, 16, 16)
    net.head.register_forward_hook(lambda *_: pytest.fail("the whole network was computed"))
    assert features_only(net, "middle2", lambda: net(x, torch.zeros(1))).shape == (1, 16, 4, 4)
    assert not net.middle2._forward_hooks


def test_modules_that_are_not_there_or_not_called_are_refused():
    net, x = unet(), torch.randn(1, 1, 16, 16)
    with pytest.raises(SettingError, match="UNet has no module 'mid': name one inside of time, label, stem"):
        features_only(net, "mid", lambda: net(x, torch.zeros(1)))
    net.unused = nn.Linear(1, 1)
    with pytest.raises(SettingError, match="does not call its module 'unused'"):
        features_only(net, "unused", lambda: net(x, torch.zeros(1)))


def test_a_probe_reads_images_and_tokens_alike():
    torch.manual_seed(0)
    probe, t = FeatureProbe(6, 4, hidden=8, embedding=4).eval(), torch.tensor([3.0, 700.0])
    images = torch.randn(2, 6, 5, 5)
    logits = probe(images, t)
    assert logits.shape == (2, 4)
    torch.testing.assert_close(probe(images.flatten(2).transpose(1, 2), t), logits)
    assert not torch.allclose(probe(images, t.flip(0)), logits)
    with pytest.raises(SettingError, match=r"shape \(7, 5, 5\), not 6 channels: set net.channels"):
        probe(torch.randn(2, 7, 5, 5), t)


# --- training and use ---


def fit(folder: Path, *data: str) -> Path:
    """Train a probe of the shipped model of digits for a moment."""
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
    model = ["--model.diffusion_checkpoint=digits", "--model.net.channels=64", "--model.shift=0"]
    settings = ["--trainer.precision=32", "--data.batch_size=32", "--model.scheduler.max_lr=0.01"]
    run(["fit", f"--config={CONFIG}", *data, *quiet, *model, *settings, f"--trainer.default_root_dir={folder}"])
    return folder


@pytest.fixture(scope="module")
def probe_of_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("probe"), "--data=Digits", "--trainer.max_epochs=6")


def test_two_folders_of_examples_are_enough(tmp_path: Path):
    """Fifty zeros and fifty other digits tell the probe which images are zeros."""
    data = Digits()
    data.setup()
    images, labels = data.part("train").images, data.part("train").labels
    for name, own in (("0", images[labels == 0]), ("other", images[labels != 0])):
        (tmp_path / "examples" / name).mkdir(parents=True)
        for number, image in enumerate(own[:50]):
            (tmp_path / "examples" / name / f"{number}.png").write_bytes(to_png(image))
    examples = ["--data=ImageFolder", f"--data.root={tmp_path / 'examples'}", "--model.net.num_classes=2"]
    probe = ProbeModule.load(str(fit(tmp_path / "probe", *examples, "--trainer.max_epochs=40")))
    assert probe.class_names == ("0", "other")
    guidance = SelfFilter(posterior=ProbePosterior())
    settings = {"checkpoint": "digits", "classifier": "digits-classifier", "forbidden": "0", "guidance": guidance}
    sampler = GuidedSampler(**settings, steps=20, probe=str(tmp_path / "probe"))
    assert sampler.judge is not None
    tracking = PassiveTracking([ProbePosterior()])
    became = sampler.judge.label(sampler.draw(range(100), Unguided(), [tracking]).images.clamp(-1, 1)).labels == 0
    assert posterior_quality(tracking.log_prob[:, -1, 0, 0].exp(), became).auc > 0.9


def test_it_learns_and_its_checkpoint_holds_the_head_alone(probe_of_digits: Path):
    probe, model = ProbeModule.load(str(probe_of_digits)), DiffusionModule.load("digits")
    assert probe.model is None
    assert {name.split(".")[0] for name in probe.state_dict()} == {"net"}
    data = Digits()
    data.setup()
    images, truth = data.part("test").images / 127.5 - 1, data.part("test").labels
    level, t = model.schedule.level(50), torch.full((len(images),), 50)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    x_t = model.schedule.add_noise(images, t, noise)
    _, features = model.with_features(x_t, level, torch.full((len(images),), 10), probe.module)
    log_p = probe.log_posterior(features, level)
    assert (log_p.argmax(1) == truth).float().mean() > 0.7
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(len(images)))


def test_it_guides_the_model_that_it_was_trained_on_and_no_other(probe_of_digits: Path):
    guidance = DynamicNegativeGuidance(1.0, ProbePosterior(), skip_below=0.02)
    settings = {"forbidden": "0", "guidance": guidance, "steps": 10}
    digits = {"checkpoint": "digits", "classifier": "digits-classifier"}
    sampler = GuidedSampler(**digits, **settings, probe=str(probe_of_digits))
    samples = sampler.draw(range(16))
    assert 10 < samples.nfe < 20
    (row,) = [draw for draw in sampler.all_draws() if draw.run.method != "Unguided"]
    assert '"probe": ' in row.run.settings
    with pytest.raises(SettingError, match=r"of a probe: .*setting probe"):
        GuidedSampler(**digits, **settings)
    with pytest.raises(SettingError, match="reads the features of another model than mnist"):
        GuidedSampler(**settings, probe=str(probe_of_digits))
    with pytest.raises(SettingError, match="reads the unconditional prediction: give the predictor no class_labels"):
        GuidedSampler(**digits, **settings, probe=str(probe_of_digits), class_labels="3")


def test_its_calibration_is_fitted_without_evaluations_of_the_classes_and_read_from_its_folder(
    probe_of_digits: Path, tmp_path: Path
):
    uncalibrated = DynamicNegativeGuidance(1.0, ProbePosterior(calibration="checkpoint"))
    settings = {"checkpoint": "digits", "classifier": "digits-classifier", "probe": str(probe_of_digits)}
    assert GuidedSampler(**settings, guidance=uncalibrated).guidance.posterior == ProbePosterior()
    run(
        [
            *(
                "test",
                f"--config={resources.config('calibrate')}",
                "--model.compile=false",
                "--trainer.precision=32-true",
            ),
            *(f"--model.{name}={value}" for name, value in settings.items()),
            *("--model.steps=10", "--data.num_samples=60", "--data.batch_size=60", "--trainer.accelerator=cpu"),
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    text = (probe_of_digits / "calibration.yaml").read_text()
    assert text == (tmp_path / "calibration.yaml").read_text()
    overlay = yaml.safe_load(text)["model"]["init_args"]
    assert overlay["probe"] == probe_of_digits.name
    posterior = ProbePosterior(**overlay["guidance"]["init_args"]["posterior"]["init_args"])
    assert GuidedSampler(**settings, guidance=uncalibrated).guidance.posterior == posterior
    judged = json.loads((tmp_path / "calibration.json").read_text())
    guidance = Unguided()
    sampler = GuidedSampler(**settings, guidance=guidance, forbidden=list(range(10)), steps=10)
    tracking = PassiveTracking([posterior])
    labels = sampler.judge.label(to_float(to_uint8(sampler.draw(range(100_000, 100_060), guidance, [tracking]).images)))
    became = labels.labels[30:, None] == torch.arange(10)
    brier = (tracking.log_prob[30:, -1, 0].exp() - became.double()).square().mean()
    assert list(judged["calibrated"].values())[-1]["brier"] == pytest.approx(float(brier), abs=2e-3)
