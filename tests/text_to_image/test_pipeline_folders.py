"""`dng predict` on folders of each family, with tokenizers and the schedulers of the published ones."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import Dng

from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicNegativeGuidance, PositiveAndNegative
from dng_lightning.judges import ZeroShotClassifier
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.text_to_image import PipelineSampler, TextToImageSampler
from dng_lightning.text_to_image.prompt_file import read_prompts

pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")
pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")

import transformers
from tiny_diffusion import encoder, tokenizer
from tiny_pipelines import save

CONFIGS = {
    "sd3": ("StableDiffusion3Pipeline", "FlowMatchAncestralScheduler", 16, {"max_sequence_length": 24}),
    "pixart": (
        "PixArtSigmaPipeline", "DPMSolverMultistepScheduler", 16,
        {"use_resolution_binning": False, "clean_caption": False},
    ),
    "qwen_image": ("QwenImagePipeline", "FlowMatchAncestralScheduler", 32, {"true_cfg_scale": 1.0}),
    "flux": ("FluxPipeline", "FlowMatchEulerDiscreteScheduler", 16, {"max_sequence_length": 24}),
}  # fmt: skip
BOTH = PositiveAndNegative(DynamicNegativeGuidance(2, TrackedPosterior(prior=0.3, p_max=0.8)), 3.0)
CLASSES = ["a cat", "a dog", "a tree"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {name: save(name, place / name) for name, *_ in CONFIGS.values()}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with random weights."""
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = transformers.CLIPConfig(
        text_config=encoder().config.to_dict(), vision_config=vision.to_dict(), projection_dim=8
    )
    place = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).save_pretrained(place)
    tokenizer().save_pretrained(place)
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    transformers.CLIPImageProcessor(**sizes).save_pretrained(place)
    return place


def small(folder: Path, **settings: Any) -> PipelineSampler:
    call = {"guidance_scale": 1.0, "max_sequence_length": 24}
    given = {"steps": 3, "height": 16, "width": 16, "precision": "fp32", "call": call}
    return PipelineSampler(str(folder), **(given | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("config", CONFIGS)
def test_predict_writes_images_and_goes_on_after_an_interruption(
    config: str, folders: dict[str, Path], dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name, _, size, call = CONFIGS[config]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders[name], tmp_path / "model")
    call = {"guidance_scale": 1.0} | call
    words = [
        f"--config={config}.yaml", "--model.checkpoint=model", f"--model.height={size}", f"--model.width={size}",
        "--model.steps=3", f"--model.call={call}", "--model.precision=fp32", "--data.num_samples=3",
    ]  # fmt: skip
    dng("predict", *words)
    (made,) = Path("samples").iterdir()
    assert made.name.startswith("model-without-roasted_meat-")
    images = [(made / f"0000000{seed}.png").read_bytes() for seed in range(3)]
    assert len(set(images)) == 3
    assert images[0] != (made / "unguided" / "00000000.png").read_bytes()
    assert {"config.yaml", "grid.png", "trajectories.png", "labels.csv"} <= {path.name for path in made.iterdir()}
    assert yaml.safe_load((made / "config.yaml").read_text())["model"]["init_args"]["steps"] == 3

    # The image of a seed is that of another batch, and a finished one is not drawn again
    (made / "00000001.png").unlink()
    (made / "records" / "00000001.json").unlink()
    before = (made / "00000000.png").stat().st_mtime_ns
    dng("predict", *words, "--data.batch_size=2")
    assert (made / "00000001.png").read_bytes() == images[1]
    assert (made / "00000000.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("config", [name for name in CONFIGS if name != "flux"])
def test_an_image_depends_on_its_seed_alone(config: str, folders: dict[str, Path]):
    name, scheduler, size, call = CONFIGS[config]
    settings = {"height": size, "width": size, "guidance": BOTH, "call": {"guidance_scale": 1.0} | call}
    module = small(folders[name], prompt="a red seven", negative_prompt=["blue", "dark"], **settings)
    assert type(module.pipeline.scheduler).__name__ == scheduler
    assert module.pipeline.scheduler.config.get("algorithm_type", "sde-dpmsolver++") == "sde-dpmsolver++"
    both, alone = module.draw([4, 5]), module.draw([5])
    torch.testing.assert_close(alone.images[0], both.images[1], rtol=0, atol=1e-4)
    assert both.posterior is not None
    assert not torch.allclose(both.posterior[:, 0], both.posterior[:, -1], rtol=1e-3)  # it moves
    assert both.nfe == 3 * 4  # prompt, empty prompt and two negative prompts


def test_mistakes_are_one_line(folders: dict[str, Path]):
    folder = folders["StableDiffusion3Pipeline"]
    texts = {"prompt": "a red seven", "negative_prompt": "blue"}
    for settings, line in [
        ({"eta": 0.5}, "eta must be 0, the pipeline's own scheduler, or 1"),
        ({"call": {"nonsense": 1}}, "got an unexpected keyword argument 'nonsense'"),
        ({"call": {"height": 16}}, "call: height follows from the other settings"),
        ({"call": {"negative_prompt": "x"}}, "guided has negative prompts: call the pipeline without"),
        ({"height": 18, "width": 17}, "StableDiffusion3Pipeline: `height` and `width` have to be divisible by"),
        (
            {"call": {"guidance_scale": 1.0, "max_sequence_length": 999}},
            "StableDiffusion3Pipeline: `max_sequence_length`",
        ),
        ({"negative_prompt": " "}, "negative_prompt is empty"),
        ({"eta": 0.0}, "adds no noise, which biases a tracked posterior"),
    ]:
        with pytest.raises(SettingError) as caught:
            small(folder, **(texts | settings)).draw([0])
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        SettingError, match=r"it is a StableDiffusion3Pipeline, not .*; class_path PipelineSampler samples"
    ):
        TextToImageSampler(str(folder), "a red seven")


# --- a file of prompts ---


def test_several_negative_prompts_in_a_row(tmp_path: Path):
    (tmp_path / "a.csv").write_text('prompt,negative_prompt\n"one, on white","[""blue, dark"", ""green""]"\n')
    (tmp_path / "a.jsonl").write_text('{"prompt": "one, on white", "negative_prompt": ["blue, dark", "green"]}\n')
    rows = [read_prompts(tmp_path / name) for name in ("a.csv", "a.jsonl")]
    assert rows[0] == rows[1]
    assert rows[0][0].negatives == ("blue, dark", "green")


def test_a_changed_file_is_not_mixed_with_what_is_there(
    folders: dict[str, Path], dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("prompt,negative_prompt\na red one,blue\n")
    words = [
        "predict", "--config=sd3.yaml", f"--model.checkpoint={folders['StableDiffusion3Pipeline']}", "--model.steps=1",
        "--model.prompts=rows.csv", "--model.height=16", "--model.width=16", "--data.num_samples=1",
        "--model.call={guidance_scale: 1.0, max_sequence_length: 24}", "--trainer.default_root_dir=out",
    ]  # fmt: skip
    dng(*words)
    Path("rows.csv").write_text("prompt,negative_prompt\na green one,blue\n")
    with pytest.raises(SystemExit):
        dng(*words)
    assert "the file of prompts has changed since" in capsys.readouterr().err


def test_a_clip_counts_on_ten_rows(
    folders: dict[str, Path], clip: Path, dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    rows = [
        f"a digit {letter},{'blue' if number % 2 else 'dark'},{10 * number}"
        for number, letter in enumerate("abcdefghij")
    ]
    Path("rows.csv").write_text("\n".join(["prompt,negative_prompt,seed", *rows]))
    folder = folders["StableDiffusion3Pipeline"]
    judge = {"class_path": "ZeroShotClassifier", "init_args": {"model": str(clip), "class_names": CLASSES}}
    Path("judge.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"classifier": judge}}}))
    dng(
        "test", "--config=prompt_file.yaml", "--config=judge.yaml", f"--model.checkpoint={folder}",
        "--model.prompts=rows.csv", "--model.height=16", "--model.width=16", "--model.steps=2",
        "--model.call={guidance_scale: 1.0, max_sequence_length: 24}", "--model.precision=fp32",
        "--model.forbidden=[a dog, a tree]", "--data.batch_size=5", "--trainer.default_root_dir=found",
    )  # fmt: skip
    found = {row["method"]: row for row in csv.DictReader(Path("found/results.csv").read_text().splitlines())}
    assert {"Unguided", "Rejection", "CFGNegativePrompt", "PositiveAndNegative(DynamicNegativeGuidance)"} <= set(found)
    row, module = found["Unguided"], small(folder, steps=2, prompts="rows.csv")
    images = module.draw(range(10), module.unguided).images.clamp(-1, 1)
    labels = ZeroShotClassifier(str(clip), CLASSES).label((images * 127.5 + 127.5).round() / 127.5 - 1).labels
    assert int(row["n"]) == 10
    assert float(row["forbidden_rate"]) == pytest.approx(float((labels > 0).float().mean()), abs=1e-6)
    assert float(row["forbidden_rate_low"]) <= float(row["forbidden_rate"]) <= float(row["forbidden_rate_high"])


def test_a_zero_shot_judge_is_its_model(clip: Path, monkeypatch: pytest.MonkeyPatch):
    judge, texts = ZeroShotClassifier(str(clip), CLASSES[:2]), ["a photo of a cat", "a photo of a dog"]
    images = torch.rand(3, 3, 20, 24) * 2 - 1
    model, words = transformers.CLIPModel.from_pretrained(clip), transformers.AutoTokenizer.from_pretrained(clip)
    processor = transformers.AutoImageProcessor.from_pretrained(clip)
    shown = processor(images=list(127.5 * (images + 1)), return_tensors="pt")["pixel_values"]
    logits = model(pixel_values=shown, **words(texts, padding=True, return_tensors="pt")).logits_per_image
    torch.testing.assert_close(judge.probabilities(images), logits.softmax(1).detach(), rtol=1e-4, atol=1e-5)
    for names, line in [(["a cat"], "two or more different classes"), (["a", "a"], "two or more different classes")]:
        with pytest.raises(SettingError, match=line):
            ZeroShotClassifier(str(clip), names)
    with pytest.raises(SettingError, match="template must have"):
        ZeroShotClassifier(str(clip), ["a", "b"], template="a photo")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries to connect for a minute
    with pytest.raises(SettingError, match="is no model of images and texts"):
        ZeroShotClassifier("nowhere", ["a", "b"])
