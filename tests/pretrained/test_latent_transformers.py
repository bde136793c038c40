"""Class-conditional transformers of latents: diffusers' `DiTPipeline`, with random weights."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Dng
from tiny_diffusion import dit_pipeline, tiny_dit
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    Guidance,
    NegativePrompting,
    Unguided,
)
from dng_lightning.interfaces import Needs
from dng_lightning.modules import DiffusionModule, GuidedSampler
from dng_lightning.pretrained import DiffusersModel
from dng_lightning.sampling import ClassConditionalPredictor, Sampler, sample

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra diffusers)")

TENCH, RETRIEVER, STEPS, SEEDS = 0, 207, 5, [3, 14]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dit(tmp_path_factory.mktemp("models") / "tiny-dit")


def drawn_by(pipeline: Any, labels: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """The pipeline's latents and images in [0, 1]."""
    generators, latents = [torch.Generator().manual_seed(seed) for seed in SEEDS], []
    decode, pipeline.vae.decode = pipeline.vae.decode, lambda z: latents.append(z) or decode(z)
    images = pipeline(labels, scale, generators, STEPS, output_type="pt").images
    return latents[0] * pipeline.vae.config.scaling_factor, images


def drawn(module: DiffusionModule, labels: list[int], guidance: Guidance) -> Tensor:
    """Our latents of the same noise, deterministically."""
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    started = noise / module.schedule.level(module.schedule.T).sigma  # the pipeline starts from variance 1
    predictor = ClassConditionalPredictor(module, module.null_class, [], torch.tensor(labels))
    return sample(predictor, guidance, module.schedule, lambda: started, Sampler(STEPS, eta=0))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_it_draws_the_latents_and_images_of_the_pipeline(scale: float, folder: Path):
    latents, images = drawn_by(dit_pipeline(), [TENCH, RETRIEVER], scale)
    module = DiffusionModule.load(str(folder))
    found = drawn(module, [TENCH, RETRIEVER], Unguided() if scale == 1 else ClassifierFreeGuidance(scale))
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-5 * float(latents.abs().max()))
    torch.testing.assert_close((module.decode(found) / 2 + 0.5).clamp(0, 1), images, rtol=0, atol=1e-4)
    assert (latents[0] - latents[1]).abs().max() > 1e-2


class Evaluated(Unguided):
    """No guidance, and the forbidden predictions all the same: rounding depends on the size of a batch."""

    def needs(self, state: Any = None, step: Any = None) -> Needs:
        return Needs(negatives=True)


def test_at_scale_0_it_is_unguided_bit_for_bit(folder: Path):
    sampler = GuidedSampler(str(folder), ["golden retriever", 5], class_labels=[7, 0], classifier=None, steps=STEPS)
    expected = sampler.draw(SEEDS, Evaluated()).images
    for guidance in (DynamicNegativeGuidance(0), NegativePrompting(0)):
        assert torch.equal(sampler.draw(SEEDS, guidance).images, expected)
    torch.testing.assert_close(sampler.draw(SEEDS, Unguided()).images, expected, rtol=0, atol=1e-4)
    assert not torch.equal(sampler.draw(SEEDS, NegativePrompting(2.0)).images, expected)


def test_a_class_is_forbidden_by_its_name(folder: Path):
    sampler = GuidedSampler(str(folder), "golden retriever", classifier=None, steps=3)
    assert (sampler.forbidden, sampler.chain_shape, sampler.image_shape) == ([RETRIEVER], (4, 8, 8), (3, 16, 16))
    samples = sampler.draw(SEEDS)
    assert samples.images.shape == (2, 3, 16, 16)
    assert samples.images.isfinite().all()
    assert samples.posterior is not None
    assert GuidedSampler(str(folder), "Tinca tinca", classifier=None, steps=3).forbidden == [TENCH]
    with pytest.raises(SettingError, match=r"'crane' is ambiguous; .* knows crane \(134\), crane \(517\)"):
        GuidedSampler(str(folder), "crane", classifier=None, steps=3)
    with pytest.raises(SettingError, match=r"1000 classes, the nearest being golden retriever"):
        GuidedSampler(str(folder), "golden retreiver", classifier=None, steps=3)
    own = DiffusersModel(str(folder), class_names=[f"own {label}" for label in range(1000)])
    assert GuidedSampler(own, "own 7", classifier=None, steps=3).forbidden == [7]


def test_older_files_name_the_transformer_otherwise(folder: Path, tmp_path: Path):
    older = shutil.copytree(folder, tmp_path / "older")
    for file, change in (
        ("model_index.json", {"transformer": ["diffusers", "Transformer2DModel"], "id2label": None}),
        ("transformer/config.json", {"_class_name": "Transformer2DModel", "cross_attention_dim": None}),
    ):
        (older / file).write_text(json.dumps(json.loads((older / file).read_text()) | change))
    module, expected = DiffusionModule.load(str(older)), DiffusionModule.load(str(folder))
    assert torch.equal(drawn(module, [1, 2], Unguided()), drawn(expected, [1, 2], Unguided()))
    assert (module.class_names, module.null_class) == ((), 1000)


def test_what_is_no_such_model(folder: Path, tmp_path: Path):
    for number, part in enumerate(("vae", "transformer", "scheduler")):
        damaged = shutil.copytree(folder, tmp_path / f"damaged{number}")
        shutil.rmtree(damaged / part)
        with pytest.raises(SettingError, match="holds no pixel or latent diffusion model in diffusers' format: "):
            DiffusionModule.load(str(damaged))
    index = json.loads((folder / "model_index.json").read_text())
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "model_index.json").write_text(
        json.dumps(index | {"transformer": ["diffusers", "PixArtTransformer2DModel"]})
    )
    with pytest.raises(SettingError, match=r"it is not a UNet2DModel .*, nor a DiTPipeline"):
        DiffusionModule.load(str(other))
    (other / "model_index.json").write_text(json.dumps(index | {"id2label": {"0": "tench"}}))
    with pytest.raises(SettingError, match=r"has 1000 classes, but class_names has 1$"):
        DiffusionModule.load(str(other))


def test_from_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dng: Dng):
    monkeypatch.chdir(tmp_path)
    dng("predict", f"--model.checkpoint={folder}", "--model.forbidden=golden retriever", "--model.steps=2",
        "--data.num_samples=2", "--model.classifier=null")  # fmt: skip
    (drawn_in,) = (tmp_path / "samples").iterdir()
    assert drawn_in.name == "tiny-dit-without-golden_retriever-DynamicNegativeGuidance"
    assert (drawn_in / "00000001.png").exists()


def test_methods_are_compared_by_a_judge_of_its_classes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dng: Dng
):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 1000))
    torch.jit.save(torch.jit.trace(network, torch.randn(1, 3, 16, 16)), tmp_path / "judge.pt")
    names = DiffusionModule.load(str(folder)).class_names
    unique = [f"{name} {label}" if names.count(name) > 1 else name for label, name in enumerate(names)]
    (tmp_path / "names.txt").write_text("\n".join(unique))
    preprocessing = "{size: 16, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
    model = {"class_path": "DiffusersModel", "init_args": {"path": str(folder), "class_names": "names.txt"}}
    dng("test", f"--model.checkpoint={json.dumps(model)}", "--model.forbidden=golden retriever", "--model.steps=2",
        "--model.classifier={class_path: TorchScriptClassifier, init_args: {path: judge.pt, class_names: names.txt, "
        f"preprocessing: {preprocessing}}}}}", "--data.num_samples=4", "--trainer.callbacks.features=null",
        "--model.guidances=[NegativePrompting]")  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "results" / "tiny-dit-without-golden_retriever" / "results.csv").open()))
    assert [row["method"] for row in rows if row["method"] != "Rejection"] == ["Unguided", "NegativePrompting"]
    assert all(sum(map(int, row["class_counts"].split())) == int(row["n"]) for row in rows)
