"""`dng test` of prompts: what it writes is what its images are worth."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from running import Dng

from dng_lightning.data.pixels import to_uint8
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.class_balance import kl_divergence, posterior_quality, wilson_interval
from dng_lightning.evaluation.distribution_metrics import Moments, frechet_distance
from dng_lightning.guidance import (
    AdaptiveNegative,
    CFGNegativePrompt,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    NegativePrompting,
    PositiveAndNegative,
)
from dng_lightning.interfaces import Needs
from dng_lightning.posterior import ObserverPosterior, TrackedPosterior
from dng_lightning.text_to_image import TextToImageSampler
from scripts.captioned_digits import CaptionedDigits, DigitReader
from scripts.captioned_digits.attributes import VALUES
from scripts.captioned_digits.captions import parse_caption

N, STEPS = 8, 4
FREE = ClassifierFreeGuidance(2.0)
TRACKING = PositiveAndNegative(DynamicNegativeGuidance(1.0, TrackedPosterior(prior=0.2)), 2.0)
ADAPTIVE = AdaptiveNegative(PositiveAndNegative(NegativePrompting(1.0), 2.0), ObserverPosterior(None, 2, 0.0))
GUIDANCES = """[
  {class_path: PositiveAndNegative, init_args: {guidance: {class_path: DynamicNegativeGuidance,
    init_args: {scale: 1.0, posterior: {class_path: TrackedPosterior, init_args: {prior: 0.2}}}}, cfg_scale: 2.0}},
  {class_path: AdaptiveNegative, init_args: {guidance: {class_path: PositiveAndNegative, init_args: {guidance:
    {class_path: NegativePrompting, init_args: {scale: 1.0}}, cfg_scale: 2.0}},
    posterior: {class_path: ObserverPosterior, init_args: {observe_steps: 2, threshold: 0.0}}}}]"""


def sampler(
    prompt: str = "a red digit", negative: str | list[str] = "a seven", **settings: object
) -> TextToImageSampler:
    given = {"guidances": [TRACKING, ADAPTIVE], "unguided": FREE, "steps": STEPS, "reader": DigitReader()}
    return TextToImageSampler("captioned-digits", prompt, negative, **given | settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def written(captioned_place: Path, dng: Dng) -> Path:
    """The folder of a comparison, relative to the place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(captioned_place)
        few = [
            f"--data.num_samples={N}",
            f"--model.steps={STEPS}",
            "--model.compile=false",
            "--data.reference_data.val_size=20",
        ]
        free = "--model.unguided={class_path: ClassifierFreeGuidance, init_args: {scale: 2.0}}"
        only = [f"--model.guidances={GUIDANCES}", free, "--model.precision=fp32", "--data.batch_size=5"]
        dng("test", "--config=captioned_digits_related", *few, *only, "--trainer.default_root_dir=compared/prompts")
    return Path("compared/prompts")


def rows(folder: Path, name: str = "results") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{name}.csv").open(newline="")))


def test_the_values_are_those_of_the_images(written: Path, in_place: Path):
    found, module = rows(written), sampler()
    names = ["PositiveAndNegative(DynamicNegativeGuidance)", "AdaptiveNegative(PositiveAndNegative(NegativePrompting))"]
    shown = [row for row in found if row["method"] != "Rejection"]
    assert [row["method"] for row in shown] == ["Unguided", *names]
    assert [row["scale"] for row in shown] == ["", "1", "1"]
    assert module.judge is not None
    drawn = [module.draw(range(N), guidance) for guidance in (FREE, TRACKING, ADAPTIVE)]
    data = CaptionedDigits(str(Path("data")), label="digit", include_classes=module.label_space.obeys, val_size=20)  # type: ignore[attr-defined]
    data.setup()
    real, moments = data.part("train"), Moments()
    moments.update(module.judge.net.features(real.images[real.labels != 7] / 127.5 - 1))
    seen = [module.judge.label(to_uint8(samples.images) / 127.5 - 1) for samples in drawn]
    assert seen[0] is not None
    fine = seen[0].labels != 7
    for row, samples, labels in zip(shown, drawn, seen, strict=True):
        read = module.judge.net.read(to_uint8(samples.images) / 127.5 - 1)
        assert labels is not None
        assert labels.attributes is not None
        assert torch.equal(labels.attributes, read)
        assert torch.equal(labels.labels, read[:, 0])
        counts = torch.bincount(read[:, 0], minlength=10).tolist()
        red = int((read[:, 1] == VALUES["colour"].index("red")).sum())
        opened = [torch.bincount(read[:, column], minlength=n).tolist() for column, n in ((2, 2), (3, 4))]
        expected = {
            "forbidden_rate": counts[7] / N,
            "kl_retained": kl_divergence(counts, [7]),
            "prompt_accuracy": red / N,
            "prompt_accuracy_low": wilson_interval(red, N)[0],
            "prompt_accuracy_high": wilson_interval(red, N)[1],
            "kl_unspecified": sum(map(kl_divergence, opened)) / 2,
        }
        pixels, twins = (to_uint8(s.images).double() / 255 for s in (samples, drawn[0]))
        if fine.any():
            moved = (pixels - twins).square().flatten(1).mean(1).sqrt()[fine].mean()
            assert float(row["rmse_to_unguided"]) == pytest.approx(float(moved), abs=1e-3)
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-4, abs=1e-6), name
        own = Moments()
        own.update(module.judge.net.features(to_uint8(samples.images) / 127.5 - 1))
        distance = frechet_distance(own.mean, own.covariance, moments.mean, moments.covariance)
        assert float(row["fd_retained"]) == pytest.approx(distance, rel=0.01, abs=1e-3)
    assert [float(row["nfe"]) for row in shown[:2]] == [2 * STEPS, 3 * STEPS]


def test_the_tracker_is_judged_by_what_the_unguided_images_became(written: Path, in_place: Path):
    module = sampler()
    halfway, end = rows(written, "posterior")
    assert json.loads(end["tracker"])["prior"] == 0.2
    idle = module.draw(range(N), PositiveAndNegative(DynamicNegativeGuidance(0.0, TrackedPosterior(prior=0.2)), 2.0))
    assert idle.posterior is not None
    labels = module.judge.label(to_uint8(idle.images) / 127.5 - 1)
    assert labels is not None
    quality = posterior_quality(idle.posterior[:, -1].sum(1), labels.labels == 7)
    assert float(end["brier"]) == pytest.approx(quality.brier, rel=1e-3)
    assert (halfway["t/T"], end["t/T"]) == ("0.5", "0")


def test_tables_and_figures_have_what_is_new(
    written: Path, in_place: Path, dng: Dng, capsys: pytest.CaptureFixture[str]
):
    text = (written / "results.md").read_text()
    assert "| prompt accuracy, % | KL of unspecified attributes |" in text
    assert "Without a seven; seeds 0–7, 4 steps." in text
    for name in ("tradeoff", "histograms", "samples", "calibration"):
        assert (written / f"{name}.png").exists()
    assert (written / "real-captioned-digits-reader.pt").exists()


def test_an_observer_sees_what_the_reader_reads_in_the_decoded_images(captioned_place: Path, in_place: Path):
    module = sampler(negative=["a seven", "a thin blue digit"])
    predictor = module.predictor(ADAPTIVE, torch.zeros(3, dtype=torch.long))
    assert "observer" in predictor.provides
    x, level = torch.randn(3, *module.chain_shape), module.schedule.level(500)
    given = predictor.predict(x, level, Needs(observer=1.0))
    images = module.model.decode(given.denoised).clamp(-1, 1)
    assert module.judge is not None
    digit, colour, thickness, _ = module.judge.net.probabilities(images)
    expected = torch.stack([digit[:, 7], colour[:, VALUES["colour"].index("blue")] * thickness[:, 0]], 1)
    torch.testing.assert_close(given.observed, expected, rtol=1e-4, atol=1e-6)
    assert "observer" not in module.predictor(TRACKING).provides


def test_predict_says_how_many_images_have_what_was_to_be_avoided(
    captioned_place: Path, in_place: Path, dng: Dng, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    reader = "--model.reader=scripts.captioned_digits.DigitReader"
    prompts = ["--model.prompt=a red digit", "--model.negative_prompt=a seven", reader]
    few = ["--model.checkpoint=captioned-digits", "--model.steps=2", "--data.num_samples=2"]
    dng("predict", "--config=stable_diffusion", *few, *prompts, f"--trainer.default_root_dir={tmp_path}")
    out = capsys.readouterr().out
    assert "7 ✗" in out
    labels = list(csv.DictReader((tmp_path / "labels.csv").open(newline="")))
    assert {row["class_label"] for row in labels} == {"a red digit"}
    assert all(row["label"] in VALUES["digit"] for row in labels)
    colours = [json.loads(path.read_text())["read"][1] for path in (tmp_path / "records").glob("*.json")]
    red = colours.count(VALUES["colour"].index("red"))
    guided = [line for line in out.splitlines() if line.startswith("PositiveAndNegative") and "asks for" in line]
    assert re.search(rf": {red} of 2 images are all that their prompt asks for, {red / 2:.1%} \[", *guided)


def test_predict_holds_images_of_many_prompts_against_their_own(
    captioned_place: Path, in_place: Path, dng: Dng, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    few = [
        "--data.num_samples=24",
        "--model.steps=2",
        "--model.compile=false",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    dng("predict", "--config=stable_diffusion", "--config=captioned_digits_prompts", *few)
    out = capsys.readouterr().out
    labels = list(csv.DictReader((tmp_path / "labels.csv").open(newline="")))
    assert labels[0]["class_label"] == labels[20]["class_label"] == "a red seven"
    assert {row["label"] for row in labels} == {""}
    seen = [json.loads(path.read_text())["read"] for path in sorted((tmp_path / "records").glob("*.json"))]
    right = 0
    for row, each in zip(labels, seen, strict=True):
        said = parse_caption(row["class_label"]).labels()
        right += all(each[list(VALUES).index(name)] == label for name, label in said.items())
    assert f": {right} of 24 images are all that their prompt asks for" in out


def test_a_reader_whose_classifiers_are_not_there(in_place: Path):
    with pytest.raises(SettingError, match="No checkpoint 'nobody-digit'"):
        DigitReader("nobody")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reader": None}, "AdaptiveNegative.* needs an observer of the images: set observer or reader"),
        ({"prompt": ["a seven", "a red one"]}, "a reader judges what is avoided by one prompt"),
        ({"negative": "roasted meat"}, "'roasted meat' is not understood"),
        ({"height": 48}, r"a reader knows images of \(3, 32, 32\), not \(3, 48, 32\)"),
        ({"guidances": [CFGNegativePrompt(2.0)], "negative": None}, "CFGNegativePrompt avoids something"),
    ],
)
def test_settings_that_cannot_be(settings: dict, message: str, captioned_place: Path, in_place: Path):
    with pytest.raises(SettingError, match=message) as caught:
        sampler(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "--data.reference_data.label=colour",
            "these prompts ask for other real images: set data.reference_data to CaptionedDigits",
        ),
        ("--data.reference_data.include_classes.colour=blue", "these prompts ask for other real images"),
        ("--model.reader=null", "set model.classifier, or for prompts model.reader"),
    ],
)
def test_comparisons_that_cannot_be(
    setting: str, message: str, captioned_place: Path, in_place: Path, dng: Dng, tmp_path: Path, capsys
):
    few = [
        f"--data.num_samples={N}",
        "--model.steps=2",
        "--model.compile=false",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    guidances = "--model.guidances=[{class_path: CFGNegativePrompt}]"
    with pytest.raises(SystemExit):
        dng("test", "--config=captioned_digits_related", *few, guidances, setting)
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().splitlines()[-1].startswith("dng: error: ")
