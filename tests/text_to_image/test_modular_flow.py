"""A guidance in the modular pipeline of Stable Diffusion 3 does what it does in the stock one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import CFGNegativePrompt, ClassifierFreeGuidance, Guidance
from dng_lightning.text_to_image import FlowMatchAncestralScheduler, guided

pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")
pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")

import diffusers
from test_families import BOTH, DYNAMIC, NEGATIVES, PROMPTS, SEEDS, STEPS, assert_same
from tiny_pipelines import save


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A stock and a modular pipeline of the same random weights."""
    if not hasattr(diffusers, "StableDiffusion3ModularPipeline"):
        pytest.skip("DIFFUSERS TOO OLD: the modular pipeline of Stable Diffusion 3 was not tried")
    folder = str(save("StableDiffusion3Pipeline", tmp_path_factory.mktemp("sd3") / "tiny"))
    stock, modular = (
        diffusers.DiffusionPipeline.from_pretrained(folder),
        diffusers.ModularPipeline.from_pretrained(folder),
    )
    modular.load_components([name for name in modular.component_names if name in stock.components])
    for pipeline in (stock, modular):
        pipeline.set_progress_bar_config(disable=True)
    stock.scheduler = FlowMatchAncestralScheduler.from_config(stock.scheduler.config)
    modular.update_components(scheduler=FlowMatchAncestralScheduler.from_config(stock.scheduler.config))
    return stock, modular


def given(**settings: Any) -> dict[str, Any]:
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    latents = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in generators])
    texts = {"prompt": list(PROMPTS), "negative_prompt": list(NEGATIVES)}
    size = {"height": 16, "width": 16, "num_inference_steps": STEPS}
    return texts | size | {"latents": latents, "generator": generators} | settings


def from_stock(pipeline: Any, guidance: Guidance, **settings: Any) -> tuple[Tensor, Any]:
    with guided(pipeline, guidance) as hosted:
        return pipeline(**given(**settings), output_type="latent").images, hosted


def from_modular(pipeline: Any, guidance: Guidance, **settings: Any) -> tuple[Tensor, Any]:
    from dng_lightning.text_to_image.guider import Guider

    pipeline.update_components(guider=Guider(guidance, pipeline))
    return pipeline(**given(**settings), output="latents"), pipeline.guider.hosted


@pytest.mark.parametrize(
    "guidance", [DYNAMIC, BOTH, CFGNegativePrompt(3.0)], ids=["dynamic", "with_prompt", "constant"]
)
def test_it_does_what_the_stock_pipeline_does(guidance: Guidance, pipelines: tuple[Any, Any]):
    stock, modular = pipelines
    (expected, before), (found, after) = from_stock(stock, guidance), from_modular(modular, guidance)
    assert_same(found, expected)
    if guidance is not DYNAMIC and guidance is not BOTH:
        return
    assert (after.trajectories.posterior - 0.3).abs().max() > 1e-3  # it moves
    torch.testing.assert_close(after.trajectories.posterior, before.trajectories.posterior, rtol=0, atol=1e-4)


def test_without_a_negative_prompt(pipelines: tuple[Any, Any]):
    stock, modular = pipelines
    plain = {"negative_prompt": None}
    expected, _ = from_stock(stock, ClassifierFreeGuidance(3.0), **plain)
    found, _ = from_modular(modular, ClassifierFreeGuidance(3.0), **plain)
    assert_same(found, expected)
    with pytest.raises(SettingError, match="needs a negative prompt: call the pipeline with a negative_prompt"):
        from_modular(modular, DYNAMIC, **plain)
