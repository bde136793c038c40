"""`dng predict` and `dng test` with the pipelines of other families, and with a file of prompts."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import Dng
from tiny_diffusion import tiny

from dng_lightning.data.pixels import from_png, to_uint8
from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    DynamicNegativeGuidance,
    NegativePrompting,
    PositiveAndNegative,
    Unguided,
    ValueSignFlip,
)
from dng_lightning.judges import PretrainedClassifier
from dng_lightning.judges.preprocessing import Preprocessing
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.storage import resources
from dng_lightning.text_to_image import PipelineSampler, pipeline_sampler

pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

from tiny_pipelines import FAMILIES
from tiny_transformers import stable_diffusion_3, wan

SIZE = ["--model.height=16", "--model.width=16", "--model.precision=fp32", "--model.steps=3"]
SMALL: dict[str, Any] = {"height": 16, "width": 16, "precision": "fp32", "steps": 3}
DYNAMIC = PositiveAndNegative(DynamicNegativeGuidance(2.0, TrackedPosterior(prior=0.3)), cfg_scale=3.0)
ROWS = "prompt,negative_prompt,seed\n" + "".join(f"a red {n},a blue one,{7 * n}\n" for n in range(10))
CONFIG_OF = {"sd3": "StableDiffusion3Pipeline", "pixart": "PixArtSigmaPipeline", "qwen_image": "QwenImagePipeline"}


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Stable Diffusion 3 with random weights, and its own scheduler."""
    import diffusers

    torch.manual_seed(0)
    pipeline, folder = stable_diffusion_3(), tmp_path_factory.mktemp("sd3") / "tiny-sd3"
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A sampler of a family whose tokenizers are no files."""

    def sampler(family: str, **settings: Any) -> PipelineSampler:
        torch.manual_seed(0)
        pipeline = FAMILIES[family].build()
        monkeypatch.setattr(pipeline_sampler, "open_pipeline", lambda *_: (pipeline, Path("tiny")))
        return PipelineSampler("tiny", **SMALL | settings)

    return sampler


def test_predict_with_a_file_of_prompts(sd3: Path, dng: Dng, tmp_path: Path):
    (tmp_path / "rows.csv").write_text("\ufeff" + ROWS, encoding="utf-8")  # as spreadsheets write it
    settings = ["--config=sd3.yaml", f"--model.checkpoint={sd3}", f"--model.prompts={tmp_path / 'rows.csv'}", *SIZE]
    for folder, size in (("pairs", 2), ("single", 1)):
        out = [f"--trainer.default_root_dir={tmp_path / folder}", f"--data.batch_size={size}"]
        dng("predict", *settings, "--data.num_samples=3", *out)
    images = [from_png(tmp_path / "pairs" / f"0000000{n}.png").int() for n in range(3)]
    assert not torch.equal(images[0], images[1])
    for n, image in enumerate(images):  # whatever the batch
        assert (image - from_png(tmp_path / "single" / f"0000000{n}.png").int()).abs().max() <= 1
    rows = list(csv.DictReader((tmp_path / "pairs" / "labels.csv").open(newline="")))
    assert [row["class_label"] for row in rows] == ["a red 0", "a red 1", "a red 2"]
    own = PipelineSampler(str(sd3), "a red 2", "a blue one", call={"guidance_scale": 1.0}, **SMALL)
    twin = to_uint8(own.draw([14], own.unguided).images)[0].int()  # the seed in the file
    assert (twin - from_png(tmp_path / "pairs" / "unguided" / "00000002.png")).abs().max() <= 1
    assert yaml.safe_load((tmp_path / "pairs" / "config.yaml").read_text())["model"]["init_args"]["steps"] == 3


def test_unguided_with_its_own_scheduler_is_the_pipeline_itself(sd3: Path):
    sampler = PipelineSampler(
        str(sd3), "a red one", unguided=Unguided(), eta=0.0, call={"guidance_scale": 1.0}, **SMALL
    )
    pipeline, _ = pipeline_sampler.open_pipeline(str(sd3), "fp32", ["StableDiffusion3Pipeline"])
    settings = {"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "pt"}
    images = pipeline("a red one", generator=torch.Generator().manual_seed(5), **settings).images
    drawn = sampler.draw([5], Unguided())
    assert torch.equal(drawn.images, 2 * images.float() - 1)
    assert drawn.nfe == 3


@pytest.mark.parametrize("name", CONFIG_OF)
def test_each_family_with_its_configuration(name: str, in_memory: Any):
    given = yaml.safe_load(resources.config(name).read_text())["model"]["init_args"]
    call = given["call"] | ({"use_resolution_binning": False} if name == "pixart" else {})  # to 1024 pixels
    sampler = in_memory(CONFIG_OF[name], prompt="a red one", negative_prompt=["blue", "dark"], call=call)
    seen = sampler.draw([3, 4], DYNAMIC)
    assert seen.images.shape == (2, 3, 16, 16)
    assert seen.images.isfinite().all()
    assert seen.posterior is not None
    assert seen.posterior.shape == (2, 3, 2)
    assert seen.nfe == 12  # prompt, empty prompt and two negatives a step
    assert seen.times[0] == pytest.approx(1, abs=0.01)
    assert (seen.images - sampler.draw([3, 4], sampler.unguided).images).abs().max() > 1e-3
    alone = sampler.draw([4], DYNAMIC)
    torch.testing.assert_close(alone.images[0], seen.images[1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["PixArtAlphaPipeline", "HunyuanDiTPipeline", "SanaPipeline", "ZImagePipeline"])
def test_each_family_without_a_configuration(name: str, in_memory: Any):
    family = FAMILIES[name]
    size = {side: family.call[side] for side in ("height", "width")}
    call = {setting: value for setting, value in family.call.items() if setting not in size} | {
        family.scale: family.off
    }
    sampler = in_memory(name, prompt="a red one", negative_prompt=["blue", "dark"], call=call, **size)
    seen = sampler.draw([3, 4], DYNAMIC)
    assert seen.images.shape == (2, 3, size["height"], size["width"])
    assert seen.images.isfinite().all()
    assert seen.posterior is not None
    assert (seen.posterior.shape, seen.nfe) == ((2, 3, 2), 12)  # prompt, empty prompt and two negatives a step
    assert (seen.images - sampler.draw([3, 4], sampler.unguided).images).abs().max() > 1e-3


def test_a_distilled_model_with_a_negative_inside_the_attention(in_memory: Any):
    given = yaml.safe_load(resources.config("flux").read_text())["model"]["init_args"]
    settings = {"prompt": "a red one", "negative_prompt": "blue", "eta": 0.0, "call": given["call"]}
    sampler = in_memory("FluxPipeline", guidance=ValueSignFlip(Unguided(), 3.5), unguided=Unguided(), **settings)
    guided, plain = sampler.draw([3]), sampler.draw([3], Unguided())
    assert guided.nfe == plain.nfe == 3
    assert not torch.equal(guided.images, plain.images)


class BrighterHalf(torch.nn.Module):
    """Which half of an image is brighter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([half.mean((1, 2, 3)) for half in x.chunk(2, 3)], 1)


def test_test_counts_what_a_judge_sees(sd3: Path, dng: Dng, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rows.csv").write_text(ROWS)
    judge = PretrainedClassifier("light", BrighterHalf(), ["left", "right"], None, Preprocessing([0.0] * 3, [1.0] * 3))
    monkeypatch.setattr(pipeline_sampler, "load_classifier", lambda _: judge)
    dng(
        *("test", "--config=prompt_file.yaml", f"--model.checkpoint={sd3}", *SIZE, "--data.num_samples=10"),
        *(f"--model.prompts={tmp_path / 'rows.csv'}", "--model.classifier=light", "--model.forbidden=left"),
        f"--trainer.default_root_dir={tmp_path / 'out'}",
    )
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open(newline="")))
    assert {row["method"] for row in rows} >= {"Unguided", "Rejection", "CFGNegativePrompt"}
    unguided = next(row for row in rows if row["method"] == "Unguided")
    sampler = PipelineSampler(str(sd3), prompts=str(tmp_path / "rows.csv"), call={"guidance_scale": 1.0}, **SMALL)
    labels = judge.label(sampler.draw(range(10), sampler.unguided).images).labels
    assert float(unguided["forbidden_rate"]) == pytest.approx(float((labels == 0).float().mean()))
    assert float(unguided["n"]) == 10


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.csv", "text,seed\na,1\n", "row 1: there is no prompt; the columns are text, seed"),
        ("a.csv", "prompt,negative_prompt\na,\n", "row 1: negative_prompt is empty"),
        ("a.csv", "prompt,seed\na,1\nb,-1\n", "row 2: seed must be a whole number from 0 to 2\\^32 - 1; got '-1'"),
        ("a.csv", "prompt,seed\na,0\nb,1\nc,0\n", "row 3: seed 0 is that of row 1 too"),
        ("a.csv", "prompt\na\n \n", "row 2: prompt is empty"),
        ("a.csv", "prompt,negative_prompt\na,[b\n", "row 1: negative_prompt is no JSON list"),
        ("a.csv", "prompt,negative_prompt\na,[]\nb,[]\n", "row 1: negative_prompt is empty"),
        (
            "a.jsonl",
            '{"prompt": "a", "negative_prompt": 3}\n',
            "negative_prompt must be a text or a list of texts; got 3",
        ),
        ("a.csv", "", "has no rows"),
        ("a.jsonl", '{"prompt": "a"\n', "cannot be read"),
        ("a.jsonl", '["a"]\n', "row 1: there is no prompt; the columns are list"),
        ("a.txt", "a", "must be a .csv or a .jsonl file"),
        (
            "a.jsonl",
            '{"prompt": "a", "negative_prompt": ["b", "c"]}\n{"prompt": "a", "negative_prompt": "b"}\n',
            "all rows must have the same number of negative prompts",
        ),
    ],
)
def test_files_that_are_refused(name: str, text: str, line: str, tmp_path: Path, in_memory: Any):
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingError, match=line):
        in_memory("StableDiffusion3Pipeline", prompts=str(tmp_path / name))


def test_what_does_not_go_together(in_memory: Any, tmp_path: Path, sd3: Path):
    with pytest.raises(SettingError, match="precision must be fp32 or bf16"):
        PipelineSampler(str(sd3), precision="fp64")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="avoids something: set negative_prompt, or guidance to null"):
        in_memory("StableDiffusion3Pipeline", prompt="a", guidance=DYNAMIC)
    with pytest.raises(SettingError, match=r"digits-classifier has images of another shape than the pipeline"):
        in_memory("StableDiffusion3Pipeline", prompt="a", classifier="digits-classifier")
    (tmp_path / "a.csv").write_text("prompt\na\n")
    sampler = in_memory("StableDiffusion3Pipeline", prompts=str(tmp_path / "a.csv"), call={"guidance_scale": 1.0})
    with pytest.raises(SettingError, match="prompts has 1 rows: set"):
        sampler.draw([1])


def test_folders_of_other_pipelines_are_refused(tmp_path: Path):
    for name, kind in (("video", wan()), ("other", None)):
        folder = tmp_path / name
        folder.mkdir()
        index = f'{{"_class_name": "{type(kind).__name__ if kind else "KandinskyPipeline"}"}}'
        (folder / "model_index.json").write_text(index)
        with pytest.raises(
            SettingError,
            match=r"holds no text-to-image model in diffusers' format: (it is a \w+, not|a WanPipeline makes videos)",
        ):
            PipelineSampler(str(folder))


def test_stable_diffusion_is_one_of_the_families(tmp_path: Path):
    negatives, call = ["blue", "dark"], {"guidance_scale": 1.0}
    sampler = PipelineSampler(str(tiny(tmp_path / "sd")), "a red one", negatives, call=call, **SMALL)
    assert type(sampler.pipeline.scheduler).__name__ == "DDPMScheduler"  # draws noise at every step, unlike DDIM at 0
    found = sampler.draw([1], DYNAMIC)
    assert found.images.shape == (1, 3, 16, 16)
    assert found.posterior is not None
    assert (found.posterior.shape, found.nfe) == ((1, 3, 2), 12)


def test_images_that_are_no_numbers_are_refused(in_memory: Any):
    texts = {"prompt": "a red one", "negative_prompt": "blue"}
    sampler = in_memory("StableDiffusion3Pipeline", call={"guidance_scale": 1.0}, **texts)
    assert sampler.draw([3, 4], NegativePrompting(1e15)).images.isfinite().all()  # far out, and not for lack of noise
    with pytest.raises(SettingError, match="the images of seeds 3 to 4 are not finite: lower the guidance's scale"):
        sampler.draw([3, 4], NegativePrompting(1e38))
