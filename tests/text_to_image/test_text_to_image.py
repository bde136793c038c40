"""Stable Diffusion's classes with random weights: our sampler is diffusers' own where the two do the same."""

import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Dng
from tiny_diffusion import tiny
from torch import Tensor

from dng_lightning.data.pixels import from_png, to_uint8
from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DynamicNegativeGuidance,
    Guidance,
    NegativePrompting,
    PositiveAndNegative,
    SwappedNegative,
    Unguided,
)
from dng_lightning.guidance.base import Needs
from dng_lightning.sampling import ImageNoise, Sampler, sample
from dng_lightning.text_to_image import TextPredictor, TextToImageModel, TextToImageSampler

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

PROMPT, NEGATIVE = "a red seven", "blue"
SEEDS = [3, 14]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
NEUTRAL = DynamicNegativeGuidance(prior=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("stable") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> TextToImageModel:
    return TextToImageModel.load(str(folder))


def ours(
    model: TextToImageModel, guidance: Guidance, sampler: Sampler, prompt: str = PROMPT, negative: Sequence[str] = ()
) -> Tensor:
    """Latents of SEEDS."""
    predictor, noise = TextPredictor(model, model.encode([prompt], negative)), ImageNoise(SEEDS, model.latent_shape())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of eta = 0
        return sample(predictor, guidance, model.schedule, noise, sampler, torch.zeros(2, dtype=torch.long))


def theirs(pipeline: Any, model: TextToImageModel, scale: float, output: str = "latent", **settings: Any) -> Tensor:
    """The same from diffusers: they start from the same latents, and draw the same noise later."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    start = torch.stack([torch.randn(model.latent_shape(), generator=g) for g in generators])
    pipeline.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 10, "latents": float(model.schedule.sigma[-1]) * start, "generator": generators}
    images: Tensor = pipeline([PROMPT] * 2, guidance_scale=scale, output_type=output, **given | settings).images
    return images


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Up to 1e-4 of the largest: their noise levels are fp32, ours fp64, and guidance of scale 7.5 magnifies it."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_is_diffusers_own(prediction: str, tmp_path: Path):
    model = TextToImageModel.load(str(tiny(tmp_path, prediction_type=prediction)))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    found = ours(model, ClassifierFreeGuidance(7.5), Sampler(10, eta=0.0))
    assert_same(found, theirs(pipeline, model, 7.5))
    assert_same(ours(model, Unguided(), Sampler(10, eta=0.0)), theirs(pipeline, model, 1.0))
    other = ours(model, ClassifierFreeGuidance(7.5), Sampler(10, eta=0.0), "a green one")
    assert (other - found).abs().max() > 1e-2 * found.abs().max()  # the prompt counts
    assert_same(ours(model, ClassifierFreeGuidance(7.5), Sampler(10, eta=0.3)), theirs(pipeline, model, 7.5, eta=0.3))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("variance", "theirs_is"), [("beta_tilde", "fixed_small"), ("beta", "fixed_large")])
def test_ddpm_is_diffusers_own(prediction: str, variance: Any, theirs_is: str, tmp_path: Path):
    """Every level is visited, for "fixed_large" draws noise at the last step too unless that is level 1."""
    levels = {"num_train_timesteps": 10, "beta_end": 0.3}
    model = TextToImageModel.load(str(tiny(tmp_path, prediction_type=prediction, **levels)))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    pipeline.scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config, variance_type=theirs_is)
    found = ours(model, ClassifierFreeGuidance(7.5), Sampler(10, variance=variance))
    assert_same(found, theirs(pipeline, model, 7.5))


def test_ddpm_in_long_steps_is_diffusers_own(folder: Path, model: TextToImageModel):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    assert_same(ours(model, ClassifierFreeGuidance(7.5), Sampler(10)), theirs(pipeline, model, 7.5))


def test_a_negative_in_the_place_of_the_empty_prompt_is_diffusers_negative_prompt(
    folder: Path, model: TextToImageModel
):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    found = ours(model, SwappedNegative(7.5), Sampler(10, eta=0.0), negative=[NEGATIVE])
    assert_same(found, theirs(pipeline, model, 7.5, negative_prompt=[NEGATIVE] * 2))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sdxl_is_diffusers_own(prediction: str, tmp_path: Path):
    model = TextToImageModel.load(str(tiny(tmp_path, xl=True, prediction_type=prediction)))
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path)
    assert_same(ours(model, ClassifierFreeGuidance(7.5), Sampler(10, eta=0.0)), theirs(pipeline, model, 7.5))
    found = ours(model, ClassifierFreeGuidance(7.5), Sampler(10, eta=0.3))
    assert_same(found, theirs(pipeline, model, 7.5, eta=0.3))
    found = ours(model, SwappedNegative(7.5), Sampler(10, eta=0.0), negative=[NEGATIVE])
    assert_same(found, theirs(pipeline, model, 7.5, negative_prompt=[NEGATIVE] * 2))
    pipeline.scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    assert_same(ours(model, ClassifierFreeGuidance(7.5), Sampler(10)), theirs(pipeline, model, 7.5))
    assert_same(ours(model, Unguided(), Sampler(10)), theirs(pipeline, model, 1.0))


def test_images_are_what_diffusers_decodes(folder: Path):
    module = TextToImageSampler(str(folder), PROMPT, steps=10, eta=0.0)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    samples = module.draw(SEEDS)
    expected = theirs(pipeline, module.model, 7.5, "pt")
    assert samples.images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(samples.images.clamp(-1, 1) / 2 + 0.5, expected, rtol=0, atol=1e-5)
    assert samples.evaluations == 20  # prompt and empty prompt, ten steps
    assert expected.std() > 0.01


# --- predictions ---


def test_all_that_is_asked_for_comes_from_one_forward(model: TextToImageModel):
    prompts = model.encode(["a", "b"], ["c", "d"])
    assert (prompts.null, prompts.forbidden, len(prompts.tokens)) == (4, [2, 3], 5)
    predictor, calls = TextPredictor(model, prompts), []
    x, t = torch.randn(2, *model.latent_shape()), torch.tensor([600, 600])
    hook = model.unet.register_forward_hook(lambda *_: calls.append(1))
    given = predictor.predict(x, 600, Needs(null=True), torch.tensor([1, 0]))
    hook.remove()
    assert (len(calls), predictor.evaluations) == (1, 8)
    with torch.no_grad():
        for found, numbers in [
            (given.base, [1, 0]),
            (given.null, [4, 4]),
            (given.negatives[:, 0], [2, 2]),
            (given.negatives[:, 1], [3, 3]),
        ]:
            torch.testing.assert_close(found, model(x, t, prompts.tokens[numbers]))
    active = torch.tensor([[False, True], [False, False]])
    given = predictor.predict(x, 600, Needs(active=active), torch.tensor([1, 0]))
    assert predictor.evaluations == 8 + 3
    assert torch.equal(given.negatives[:, 0], given.base)


def test_half_precision_is_in_the_networks_alone(folder: Path):
    exact, rough = (TextToImageSampler(str(folder), PROMPT, NEGATIVE, NEUTRAL, precision=p) for p in ("fp32", "bf16"))
    assert (rough.model.unet.dtype, rough.model.vae.dtype) == (torch.bfloat16, torch.float32)
    x = torch.randn(2, *exact.chain_shape)
    near, far = (module.predictor().predict(x, 500).base for module in (rough, exact))
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, far, rtol=0, atol=0.05)


def test_less_memory_gives_the_same(folder: Path):
    settings = {"guidance": PositiveAndNegative(NEUTRAL, 3.0), "steps": 3}
    plain = TextToImageSampler(str(folder), PROMPT, NEGATIVE, **settings).draw(SEEDS)
    saving = TextToImageSampler(str(folder), PROMPT, NEGATIVE, save_memory=True, **settings).draw(SEEDS)
    torch.testing.assert_close(saving.images, plain.images, rtol=0, atol=1e-4)


def test_another_size(folder: Path):
    samples = TextToImageSampler(str(folder), PROMPT, steps=2, height=24, width=40).draw([0])
    assert samples.images.shape == (1, 3, 24, 40)


# --- guidance ---


def test_identical_prompts_leave_the_posterior_at_the_prior(folder: Path, capture_info: list[str]):
    guidance = PositiveAndNegative(NEUTRAL, 7.5)
    module = TextToImageSampler(str(folder), PROMPT, PROMPT, guidance, steps=10)
    assert capture_info == [f"{PROMPT!r} is both wanted and avoided: nothing is pushed away from itself"]
    guided, plain = module.draw(SEEDS), module.draw(SEEDS, module.unguided)
    assert guided.posterior is not None
    torch.testing.assert_close(guided.posterior, torch.full((2, 10, 1), 0.1), rtol=1e-3, atol=0)
    torch.testing.assert_close(guided.images, plain.images, rtol=0, atol=1e-4)


def test_a_negative_prompt_is_pushed_away_as_far_as_it_is_believed(folder: Path):
    guidance = PositiveAndNegative(DynamicNegativeGuidance(scale=2, prior=0.3), 7.5)
    module = TextToImageSampler(str(folder), PROMPT, [NEGATIVE, "green"], guidance, steps=5)
    guided, plain = module.draw(SEEDS), module.draw(SEEDS, module.unguided)
    assert guided.posterior is not None
    assert guided.posterior.shape == (2, 5, 2)
    total = guided.posterior.double().sum(2)
    torch.testing.assert_close(guided.scale.double(), 2 * total / (1 - total), rtol=1e-4, atol=1e-9)
    assert not torch.allclose(guided.posterior, guided.posterior[:, :1], rtol=1e-2)  # it learned something
    assert (guided.images - plain.images).abs().max() > 1e-3
    assert guided.evaluations == 5 * 4


def test_an_image_depends_on_its_seed_alone_and_prompts_take_turns(folder: Path):
    settings = {"guidance": PositiveAndNegative(NEUTRAL, 2.0), "steps": 3}
    module = TextToImageSampler(str(folder), [PROMPT, "a one"], NEGATIVE, **settings)
    both = module.draw([4, 5]).images
    for seed, prompt, image in zip((4, 5), (PROMPT, "a one"), both, strict=True):
        alone = TextToImageSampler(str(folder), prompt, NEGATIVE, **settings).draw([seed]).images[0]
        torch.testing.assert_close(image, alone, rtol=0, atol=1e-4)


def test_without_a_negative_prompt_the_default_is_the_unguided_method(folder: Path):
    module = TextToImageSampler(str(folder), PROMPT)
    assert module.guidance == module.unguided == ClassifierFreeGuidance(7.5)
    method = TextToImageSampler(str(folder), PROMPT, NEGATIVE).guidance
    assert isinstance(method, PositiveAndNegative)
    assert method.wanted_scale == 7.5


# --- the command line ---


def test_predict_writes_images_beside_those_without_the_negative(
    folder: Path, dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "model")
    settings = ["--config=stable_diffusion", "--model.checkpoint=model", "--model.steps=3", "--data.n=2"]
    dng("predict", *settings, "--model.prompt=a red/seven", "--model.negative_prompt=[a blue one, green]")
    made = Path("samples/model-without-a_blue_one-green-PositiveAndNegative")
    names = {path.name for path in made.iterdir()}
    assert {"00000000.png", "00000001.png", "grid.png", "trajectories.png", "labels.csv", "unguided"} <= names
    assert (made / "00000000.png").read_bytes() != (made / "unguided" / "00000000.png").read_bytes()
    assert "a red/seven" in (made / "labels.csv").read_text()
    twins = TextToImageSampler("model", "a red/seven", ["a blue one", "green"], steps=3).draw([1], SwappedNegative(7.5))
    written = from_png(made / "SwappedNegative_scale_7_5" / "00000001.png").int()
    assert (written - to_uint8(twins.images)[0].int()).abs().max() <= 1
    costs = re.findall(r"^ *(\S.*?) {2,}(\d+) +([\d.e+]+)$", capsys.readouterr().out, re.MULTILINE)
    methods = ["unguided", "SwappedNegative, scale 7.5", "PositiveAndNegative(DynamicNegativeGuidance)"]
    assert [(name, int(evaluations)) for name, evaluations, _ in costs] == list(zip(methods, (6, 9, 12), strict=True))
    assert all(float(speed) > 0 for _, _, speed in costs)
    dng("predict", *settings, "--model.prompt=a red/seven", "--model.negative_prompt=[a blue one, green]")
    assert "network evaluations" not in capsys.readouterr().out  # nothing was left to be drawn
    dng("predict", *settings, "--model.negative_prompt=null", "--model.guidance=null")
    made = Path("samples/model-without-nothing")
    assert (made / "00000001.png").exists()
    assert not [path for path in made.iterdir() if path.is_dir() and path.name != "records"]  # they are that themselves


def test_the_methods_that_are_shown_beside(folder: Path):
    def compared(negative: str | None, methods: list[Guidance] | None) -> list[Guidance]:
        return TextToImageSampler(str(folder), PROMPT, negative, compared=methods).compared

    assert compared(NEGATIVE, None) == [SwappedNegative(7.5)]
    assert compared(None, None) == compared(NEGATIVE, []) == []
    both: list[Guidance] = [SwappedNegative(3.0), SwappedNegative(7.5)]
    assert compared(NEGATIVE, both) == both
    assert "or compared to null" in refused(folder, PROMPT, None, compared=both)
    assert "compared names a method twice" in refused(folder, PROMPT, NEGATIVE, compared=[both[0], SwappedNegative(3)])
    assert "ClassifierGuidance needs a classifier" in refused(folder, PROMPT, "blue", compared=[ClassifierGuidance(1)])


def test_predict_with_sdxl(dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tiny(Path("xl"), xl=True)
    settings = ["--model.checkpoint=xl", "--model.negative_prompt=blue", "--model.steps=3", "--data.n=2"]
    dng("predict", "--config=stable_diffusion", *settings)
    made = Path("samples/xl-without-blue-PositiveAndNegative")
    first, second = ((made / f"0000000{number}.png").read_bytes() for number in range(2))
    assert first != second
    assert first != (made / "unguided" / "00000000.png").read_bytes()
    assert (made / "trajectories.png").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["--model.checkpoint=nowhere"], "No checkpoint 'nowhere'"),
        (["--model.checkpoint=mnist"], "holds no text-to-image model in diffusers' format"),
        (["--model.negative_prompt="], "negative_prompt is empty: say what to avoid"),
        (["--model.negative_prompt=null"], "avoids something: set negative_prompt, or guidance to null"),
    ],
)
def test_mistakes_are_one_line(
    settings: list[str], line: str, folder: Path, dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        dng("predict", "--config=stable_diffusion", f"--model.checkpoint={folder}", *settings)
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("dng: error: ")
    assert line in said
    assert not list(tmp_path.iterdir())


# --- what cannot be used ---


def refused(name: Path | str, *args: Any, **settings: Any) -> str:
    with pytest.raises(SettingError) as caught:
        TextToImageSampler(str(name), *args, **settings)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture
def capture_info(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said."""
    said: list[str] = []
    for name in ("model", "prompts"):
        monkeypatch.setattr(f"dng_lightning.text_to_image.{name}.rank_zero_info", said.append)
    return said


def test_settings_that_cannot_be(folder: Path):
    for empty in ("", " ", [NEGATIVE, ""]):
        assert "negative_prompt is empty" in refused(folder, PROMPT, empty)
    assert "named twice" in refused(folder, PROMPT, [NEGATIVE, NEGATIVE])
    assert "prompt is an empty list" in refused(folder, [])
    assert "set negative_prompt, or guidance to null" in refused(folder, PROMPT, None, NegativePrompting(1))
    assert "unguided is NegativePrompting" in refused(folder, PROMPT, NEGATIVE, unguided=NegativePrompting(1))
    assert "ClassifierGuidance needs a classifier" in refused(folder, PROMPT, NEGATIVE, ClassifierGuidance(1))
    assert "height must be a multiple of 4 pixels; got 17" in refused(folder, PROMPT, height=17)
    assert "width must be a multiple of 4 pixels; got 0" in refused(folder, PROMPT, width=0)
    assert "steps must be between 1 and 1000" in refused(folder, PROMPT, steps=1001)
    assert "precision must be fp32 or bf16" in refused(folder, PROMPT, precision="fp8")
    assert "2 forbidden classes sum to 1.2" in refused(folder, PROMPT, ["a", "b"], DynamicNegativeGuidance(prior=0.6))


def test_a_prompt_that_is_too_long_is_cut_and_said(model: TextToImageModel, capture_info: list[str]):
    fits, long = "abcdefghijklmnopqrstuv", "abcdefghijklmnopqrstuvwxyz"  # of letters 22 are read, and two marks
    prompts = model.encode([fits, long])
    assert capture_info == [f"The prompt '{long}' is cut after 22 tokens: 'wxyz' is not read."]
    assert not torch.equal(prompts.tokens[0], prompts.tokens[2])


def test_folders_of_something_else(folder: Path, tmp_path: Path):
    assert refused(tmp_path).startswith(f"No checkpoint '{tmp_path}'")
    assert "holds no text-to-image model in diffusers' format" in refused("mnist")
    network = diffusers.UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                                    down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    assert "it is a DDPMPipeline, not a StableDiffusionPipeline" in refused(tmp_path / "ddpm")
    for part in ("unet", "tokenizer", "vae/diffusion_pytorch_model.safetensors", "scheduler"):
        damaged = shutil.copytree(folder, tmp_path / part.partition("/")[0])
        (shutil.rmtree if (damaged / part).is_dir() else Path.unlink)(damaged / part)
        assert "holds no text-to-image model in diffusers' format: " in refused(damaged)


def test_models_of_another_kind(tmp_path: Path):
    inpainting = tiny(tmp_path / "inpainting", unet={"in_channels": 9})
    assert "its U-Net takes or gives more than latents" in refused(inpainting)
    pure = tiny(tmp_path / "pure", rescale_betas_zero_snr=True)
    assert "a schedule needs alpha > 0" in refused(pure)


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_without_the_extra(library: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, library, None)
    assert refused(folder) == "text-to-image needs an extra: pip install 'dng-lightning[text-to-image]'"


def test_the_hub_is_asked_for_what_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(name: str, **without: None) -> str:
        asked.append((name, *without))
        return str(folder)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    assert TextToImageModel.load("somebody/stable").latent_shape() == (4, 8, 8)
    assert asked == [("somebody/stable", "safety_checker", "feature_extractor", "image_encoder")]
