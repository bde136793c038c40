"""What a text-to-image sampler makes of its settings, and what it refuses."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_diffusion import tiny

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    CFGNegativePrompt,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DynamicNegativeGuidance,
    Guidance,
    NegativePrompting,
    PositiveAndNegative,
    ShieldedDiffusion,
)
from dng_lightning.guidance.references import References
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.text_to_image import TextToImageModel, TextToImageSampler

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

PROMPT, NEGATIVE = "a red seven", "blue"


def refused(name: Path | str, *args: Any, **settings: Any) -> str:
    with pytest.raises(SettingError) as caught:
        TextToImageSampler(str(name), *args, **settings)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_without_a_negative_prompt_the_default_is_the_unguided_method(folder: Path):
    module = TextToImageSampler(str(folder), PROMPT)
    assert module.guidance == module.unguided == ClassifierFreeGuidance(7.5)
    method = TextToImageSampler(str(folder), PROMPT, NEGATIVE).guidance
    assert isinstance(method, PositiveAndNegative)
    assert method.cfg_scale == 7.5


def test_the_methods_that_are_shown_beside(folder: Path):
    def compared(negative: str | None, methods: list[Guidance] | None) -> list[Guidance]:
        return TextToImageSampler(str(folder), PROMPT, negative, baselines=methods).baselines

    assert compared(NEGATIVE, None) == [CFGNegativePrompt(7.5)]
    assert compared(None, None) == compared(NEGATIVE, []) == []
    both: list[Guidance] = [CFGNegativePrompt(3.0), CFGNegativePrompt(7.5)]
    assert compared(NEGATIVE, both) == both
    assert "or baselines to null" in refused(folder, PROMPT, None, baselines=both)
    assert "baselines names a method twice" in refused(
        folder, PROMPT, NEGATIVE, baselines=[both[0], CFGNegativePrompt(3)]
    )
    assert "ClassifierGuidance needs a classifier" in refused(folder, PROMPT, "blue", baselines=[ClassifierGuidance(1)])


def test_settings_that_cannot_be(folder: Path):
    for empty in ("", " ", [NEGATIVE, ""]):
        assert "negative_prompt is empty" in refused(folder, PROMPT, empty)
    assert "named twice" in refused(folder, PROMPT, [NEGATIVE, NEGATIVE])
    assert "prompt is an empty list" in refused(folder, [])
    assert "set negative_prompt, or guidance to null" in refused(folder, PROMPT, None, NegativePrompting(1))
    assert "unguided is NegativePrompting" in refused(folder, PROMPT, NEGATIVE, unguided=NegativePrompting(1))
    assert "ClassifierGuidance needs a classifier" in refused(folder, PROMPT, NEGATIVE, ClassifierGuidance(1))
    shielded = ShieldedDiffusion(references=References(torch.zeros(2, 3, 16, 16)), radius=1.0)
    assert "compares images with reference images, and this model denoises" in refused(folder, PROMPT, None, shielded)
    assert "height must be a multiple of 4 pixels; got 17" in refused(folder, PROMPT, height=17)
    assert "width must be a multiple of 4 pixels; got 0" in refused(folder, PROMPT, width=0)
    assert "steps must be between 1 and 1000" in refused(folder, PROMPT, steps=1001)
    assert "precision must be fp32 or bf16" in refused(folder, PROMPT, precision="fp8")
    priors = DynamicNegativeGuidance(posterior=TrackedPosterior(prior=0.6))
    assert "2 forbidden conditions sum to 1.2" in refused(folder, PROMPT, ["a", "b"], priors)


def test_a_prompt_that_is_too_long_is_cut_and_said(model: TextToImageModel, capture_info: list[str]):
    fits, long = "abcdefghijklmnopqrstuv", "abcdefghijklmnopqrstuvwxyz"  # of letters 22 are read, and two marks
    prompts = model.encode([fits, long])
    assert capture_info == [f"The prompt '{long}' is cut after 22 tokens: 'wxyz' is not read."]
    tokens = prompts.texts["encoder_hidden_states"]
    assert not torch.equal(tokens[0], tokens[2])


def test_folders_of_something_else(folder: Path, tmp_path: Path):
    assert refused(tmp_path).startswith(f"folder {tmp_path} holds no model.ckpt")
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
    assert "the schedule ends in pure noise" in refused(pure)


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_without_the_extra(library: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, library, None)
    assert refused(folder) == f"text-to-image needs {library}: pip install 'dng-lightning[text-to-image]'"


def test_the_hub_is_asked_for_what_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(name: str, **without: None) -> str:
        asked.append((name, *without))
        return str(folder)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    assert TextToImageModel.load("somebody/stable").latent_shape() == (4, 8, 8)
    assert asked == [("somebody/stable", "safety_checker", "feature_extractor", "image_encoder")]


def test_a_single_file_is_to_become_a_folder(tmp_path: Path):
    file = tmp_path / "v1-5.safetensors"
    file.write_bytes(b"weights")
    line = refused(file, PROMPT)
    assert line.startswith(f"{file} is a single file: make a folder of it once, by diffusers' StableDiffusionPipeline.")
    assert f"from_single_file({str(file)!r}).save_pretrained(FOLDER)" in line


def test_a_scheduler_of_other_levels_is_named(tmp_path: Path):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tiny(tmp_path / "sd"))
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline.save_pretrained(tmp_path / "flow")
    assert "the noise levels of its FlowMatchEulerDiscreteScheduler are not" in refused(tmp_path / "flow", PROMPT)
