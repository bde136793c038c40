"""Who looks at decoded images: a tiny vision-language model, an image classifier, and one that is made up."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from running import Dng
from tiny_vision_language import tiny_vision_language
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveNegative,
    DynamicNegativeGuidance,
    Guidance,
    NegativePrompting,
    NormalizedAttention,
    PositiveAndNegative,
    SignedNegative,
    Unguided,
)
from dng_lightning.interfaces import Needs
from dng_lightning.modules import ClassifierModule
from dng_lightning.posterior import ObserverPosterior, TrackedPosterior
from dng_lightning.sampling import ImageNoise
from dng_lightning.storage import resources
from dng_lightning.text_to_image import (
    ClassifierObserver,
    PromptObserver,
    TextToImageSampler,
    VisionLanguageObserver,
)

pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

PROMPT, NEGATIVES = "a red seven", ["blue", "green"]
SEEDS = [3, 14, 15]
RED, BLUE = (torch.tensor(colour).view(3, 1, 1).expand(3, 16, 16) for colour in ([1.0, -1, -1], [-1.0, -1, 1]))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_language(tmp_path_factory.mktemp("chat") / "model")


class Told(PromptObserver):
    """Says what it is told to, and remembers what it was shown."""

    def __init__(self, *said: list[list[float]]) -> None:
        self.said, self.shown, self.asked = list(said), [], []  # type: ignore[var-annotated]

    def probabilities(self, images: Tensor, things: Sequence[str]) -> Tensor:
        self.shown.append(images)
        self.asked.append(list(things))
        return torch.tensor(self.said.pop(0))


def sampler_of(
    folder: Path, guidance: Guidance, observer: PromptObserver | None, **settings: Any
) -> TextToImageSampler:
    settings = {"steps": 4} | settings
    return TextToImageSampler(str(folder), PROMPT, NEGATIVES, guidance, observer=observer, **settings)


# --- the hook ---


def test_it_is_shown_decoded_images_and_the_negative_prompts(folder: Path):
    signed = SignedNegative(2.0, 3.0)
    for shown_scale in (1.0, 3.0):
        observer = Told([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
        guidance = AdaptiveNegative(signed, ObserverPosterior(None, [0], observer_cfg_scale=shown_scale))
        module = sampler_of(folder, guidance, observer)
        assert module.draw(SEEDS).nfe == (4 * 2 * 3 + 3 * 2) / 3  # three steps with a negative for two images
        assert observer.asked == [NEGATIVES]
        x = float(module.schedule.sigma[-1]) * ImageNoise(SEEDS, module.chain_shape)()
        predictor, level = module.predictor(Unguided(), torch.zeros(3, dtype=torch.long)), module.schedule.level(1000)
        given = predictor.predict(x, level, Needs(null=True))
        assert given.null is not None
        expected = module.decode(given.null + shown_scale * (given.denoised - given.null)).clamp(-1, 1)
        torch.testing.assert_close(observer.shown[0], expected, rtol=0, atol=1e-4)


def test_where_nothing_emerges_it_is_classifier_free_guidance_and_else_the_signed_form(folder: Path):
    signed = SignedNegative(15.0, 7.5)
    nothing, everything = [[0.0, 0.0]] * 3, [[1.0, 1.0]] * 3
    module = sampler_of(folder, AdaptiveNegative(signed, ObserverPosterior(None, [0])), Told(nothing))
    torch.testing.assert_close(module.draw(SEEDS).images, module.draw(SEEDS, module.unguided).images, rtol=0, atol=1e-5)
    guidance = AdaptiveNegative(signed, ObserverPosterior(None, [0, 0.5]))
    module = sampler_of(folder, guidance, Told(nothing, everything))
    late = module.draw(SEEDS)
    assert late.scale.tolist() == [[0.0] * 3 + [15.0]] * 3
    assert late.nfe == 3 * 2 + 4
    assert (late.images - module.draw(SEEDS, module.unguided).images).abs().max() > 1e-3


def test_any_guidance_takes_its_word(folder: Path):
    seen = ObserverPosterior(None, [0], observer_cfg_scale=3.0)
    tracked = DynamicNegativeGuidance(posterior=replace(seen, posterior=TrackedPosterior(prior=0.1)))
    for guidance in (PositiveAndNegative(tracked, 3.0), AdaptiveNegative(NormalizedAttention(Unguided()), seen)):
        module = sampler_of(folder, guidance, Told([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
        samples = module.draw(SEEDS)
        pushed = samples.scale[:, 1:] > 0
        assert pushed.tolist() == [[True] * 3, [False] * 3, [True] * 3]


def test_a_guidance_that_needs_one_says_so(folder: Path):
    guidance = AdaptiveNegative(NegativePrompting())
    with pytest.raises(SettingError, match=r"AdaptiveNegative\(NegativePrompting\) needs an observer .*: set observer"):
        sampler_of(folder, guidance, None)
    module = sampler_of(folder, NegativePrompting(), None)
    with pytest.raises(SettingError, match="AdaptiveNegative needs an observer"):
        module.draw(SEEDS, guidance)


# --- a classifier ---


def test_a_classifier_sees_the_classes_that_the_prompts_name():
    classifier = ClassifierModule.load("digits-classifier")
    images, names = torch.randn(4, 1, 8, 8).clamp(-1, 1), {"a three or so": "3", "both": ["5", "3"]}
    observer = ClassifierObserver(["digits-classifier"], names)
    observer.check(["7", *names], (1, 8, 8))
    p = classifier.probabilities(images)
    expected = torch.stack([p[:, 7], p[:, 3], p[:, 5] * p[:, 3]], 1)
    torch.testing.assert_close(observer.probabilities(images, ["7", *names]), expected)


def test_a_classifier_refuses_what_it_does_not_know_before_anything_is_drawn(folder: Path):
    observer = ClassifierObserver(["digits-classifier"])
    with pytest.raises(SettingError, match=r"judges images of \(1, 8, 8\), not \(3, 16, 16\)"):
        sampler_of(folder, AdaptiveNegative(NegativePrompting()), observer)
    with pytest.raises(SettingError, match=r"knows no classes 'red' for 'red'; set its names to one of 0, 1, 2"):
        observer.check(["red"], (1, 8, 8))
    with pytest.raises(SettingError, match="knows 2 classes '3' for '3'"):
        ClassifierObserver(["digits-classifier", str(resources.checkpoint("digits-classifier"))]).check(
            ["3"], (1, 8, 8)
        )


# --- a vision-language model ---


def test_a_vision_language_model_answers_by_what_it_is_shown(chat: Path):
    observer = VisionLanguageObserver(str(chat), precision="fp32")
    images = torch.stack([RED, BLUE, 0.5 * RED - 0.5, BLUE])
    assert observer.probabilities(images, ["red", "a hint of red"]).tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]
    rough = VisionLanguageObserver(str(chat))
    assert rough.probabilities(images, ["red"]).tolist() == [[1], [0], [1], [0]]
    assert rough.model.model.dtype == torch.bfloat16


def test_it_is_read_when_it_is_asked_first_and_once(chat: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    loaded, asked = [], []

    def load(task: str, name: str, **settings: Any) -> Any:
        loaded.append((name, settings["dtype"]))
        return SimpleNamespace(processor=SimpleNamespace(chat_template="{}"))

    def answer(self: VisionLanguageObserver, image: Tensor, question: str) -> str:
        assert self.model.processor
        assert (image.dtype, image.shape) == (torch.uint8, (3, 16, 16))
        asked.append(question)
        return "Yes." if "blue" in question else "no"

    monkeypatch.setattr("transformers.pipeline", load)
    monkeypatch.setattr(VisionLanguageObserver, "answer", answer)
    observer = VisionLanguageObserver("somebody/chats", "Is {} there?")
    module = sampler_of(
        folder, AdaptiveNegative(SignedNegative(2.0, 7.5), ObserverPosterior(None, [0.25, 0.5])), observer
    )
    assert not loaded
    samples = module.draw(SEEDS)
    assert loaded == [("somebody/chats", torch.bfloat16)]
    assert asked == ["Is blue there?", "Is green there?"] * 3 * 2
    assert samples.nfe == 2 * 2 + 2 * 3  # one of two negatives at the last two steps


@pytest.mark.parametrize(
    ("answer", "sees"),
    [("yes", 1), ("Yes.", 1), (" **No**\n", 0), ("NO", 0), ("Yes, it does", 1), ("no. There is none", 0)],
)
def test_a_clear_answer_is_read(answer: str, sees: int):
    assert asked_of(answer).probabilities(torch.zeros(1, 3, 2, 2), ["a cat"]).tolist() == [[sees]]


@pytest.mark.parametrize("answer", ["", "no doubt", "Yes/No", "a cat", "not", "yes or no", "I see yes", "yesterday"])
def test_an_unclear_answer_is_refused(answer: str):
    with pytest.raises(SettingError) as caught:
        asked_of(answer).probabilities(torch.zeros(1, 3, 2, 2), ["a cat"])
    line = f"chat answers 'A cat? a cat!' with {answer!r}, not yes or no: change the question"
    assert str(caught.value) == line


def asked_of(answer: str) -> VisionLanguageObserver:
    """One who is asked whatever it is, and says this."""

    observer = VisionLanguageObserver("chat", "A cat? {}!")
    vars(observer)["answer"] = lambda image, question: answer
    return observer


def test_one_that_talks_of_other_things_is_refused(tmp_path: Path):
    babbling = tiny_vision_language(tmp_path, always=3)
    with pytest.raises(SettingError, match="with '', not yes or no: change the question"):
        VisionLanguageObserver(str(babbling)).probabilities(RED.unsqueeze(0), ["red"])


def test_what_cannot_be_asked(chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SettingError, match=r"question must have \{\} in the place of the negative prompt"):
        VisionLanguageObserver(question="What is this?")
    with pytest.raises(SettingError, match="precision must be fp32 or bf16"):
        VisionLanguageObserver(precision="fp8")  # type: ignore[arg-type]
    mute = shutil.copytree(chat, tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    for name in (tmp_path / "nothing", tmp_path, mute):
        with pytest.raises(SettingError) as caught:
            _ = VisionLanguageObserver(str(name)).model
        assert str(caught.value).startswith(f"{name} is no vision-language model that answers questions: ")
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingError, match=r"text-to-image needs \w+: pip install"):
        _ = VisionLanguageObserver(str(chat)).model


# --- the command line ---


def test_predict_negates_what_the_model_says_it_sees(
    folder: Path, chat: Path, dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    configs = ["--config=stable_diffusion", "--config=vl_dnp", f"--model.observer.model={chat}"]
    settings = [
        f"--model.checkpoint={folder}",
        "--model.steps=4",
        "--model.negative_prompt=[red, blue]",
        "--data.num_samples=2",
    ]
    dng(
        "predict",
        *configs,
        *settings,
        "--model.guidance.posterior.observe_steps=[0, 0.5]",
        "--trainer.default_root_dir=here",
    )
    assert {"00000000.png", "00000001.png", "grid.png"} <= {path.name for path in Path("here").iterdir()}
    assert "observe_steps" in Path("here/config.yaml").read_text()
