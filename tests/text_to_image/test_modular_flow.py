"""A guidance in the modular pipelines of flow-matching families does what it does in the stock ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import CFGNegativePrompt, ClassifierFreeGuidance, Guidance
from dng_lightning.text_to_image import guided
from dng_lightning.text_to_image.attention import replaced

pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")
pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")

import diffusers
from family_samples import BOTH, DYNAMIC, PROMPTS, SEEDS, STEPS, assert_same
from tiny_pipelines import FAMILIES, enlarge

LATENTS = {"StableDiffusion3": (4, 8, 8), "QwenImage": (16, 16), "ZImage": (4, 8, 8), "Wan": (4, 2, 2, 2)}


def built(name: str) -> tuple[Any, Any]:
    """A stock and a modular pipeline of the same random weights."""
    if not hasattr(diffusers, f"{name}ModularPipeline"):
        pytest.skip(f"DIFFUSERS TOO OLD: {name}ModularPipeline was not tried")
    torch.manual_seed(0)
    stock = FAMILIES[f"{name}Pipeline"].build()
    stock = type(stock)(**stock.components)  # with the class's own template of prompts
    modular = getattr(diffusers, f"{name}ModularPipeline")()
    parts = {part: own for part in modular.component_names if (own := stock.components.get(part)) is not None}
    modular.update_components(**parts)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            enlarge(part)
    for pipeline in (stock, modular):
        pipeline.set_progress_bar_config(disable=True)
    return stock, modular


@pytest.fixture(scope="module")
def pipelines() -> dict[str, tuple[Any, Any]]:
    """Made when they are first used."""

    class Built(dict[str, tuple[Any, Any]]):
        def __missing__(self, name: str) -> tuple[Any, Any]:
            self[name] = built(name)
            return self[name]

    return Built()


def drawn(pipeline: Any, name: str, **settings: Any) -> Tensor:
    """The latents after the last step."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    latents = torch.stack([torch.randn(LATENTS[name], generator=generator) for generator in generators])
    size = {"height": 32, "width": 32} if name == "QwenImage" else {"height": 16, "width": 16}
    size |= {"num_frames": 5} if name == "Wan" else {}
    states, step = [], pipeline.scheduler.step

    def noted(*args: Any, **kwargs: Any) -> Any:
        states.append(step(*args, **kwargs)[0])
        return (states[-1],)

    with replaced(pipeline.scheduler, "step", noted):
        pipeline(prompt=list(PROMPTS), num_inference_steps=STEPS, latents=latents, **size, **settings)
    return states[-1]


def from_stock(pipeline: Any, name: str, guidance: Guidance, negative: str | None = "blue") -> tuple[Tensor, Any]:
    with guided(pipeline, guidance, negative_prompt=negative) as hosted:
        return drawn(pipeline, name, output_type="latent"), hosted


def from_modular(pipeline: Any, name: str, guidance: Guidance, negative: str | None = "blue") -> tuple[Tensor, Any]:
    from dng_lightning.text_to_image.guider import Guider

    pipeline.update_components(guider=Guider(guidance, pipeline))
    return drawn(pipeline, name, negative_prompt=[negative or ""] * 2), pipeline.guider.hosted


@pytest.mark.parametrize(
    "guidance", [DYNAMIC, BOTH, CFGNegativePrompt(3.0)], ids=["dynamic", "with_prompt", "constant"]
)
@pytest.mark.parametrize("name", LATENTS)
def test_it_does_what_the_stock_pipeline_does(name: str, guidance: Guidance, pipelines: dict[str, tuple[Any, Any]]):
    stock, modular = pipelines[name]
    (expected, before), (found, after) = from_stock(stock, name, guidance), from_modular(modular, name, guidance)
    assert_same(found, expected)
    if guidance in (DYNAMIC, BOTH):
        assert (after.trajectories.posterior - 0.3).abs().max() > 1e-3  # it moves
        torch.testing.assert_close(after.trajectories.posterior, before.trajectories.posterior, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LATENTS)
def test_without_a_negative_prompt(name: str, pipelines: dict[str, tuple[Any, Any]]):
    stock, modular = pipelines[name]
    expected, _ = from_stock(stock, name, ClassifierFreeGuidance(3.0), None)
    found, _ = from_modular(modular, name, ClassifierFreeGuidance(3.0), None)
    assert_same(found, expected)
    with pytest.raises(SettingError, match="needs a negative prompt: call the pipeline with a negative_prompt"):
        from_modular(modular, name, DYNAMIC, None)


def test_an_image_to_continue_or_a_mask_is_refused(pipelines: dict[str, tuple[Any, Any]]):
    from dng_lightning.text_to_image.guider import Guider

    _, modular = pipelines["StableDiffusion3"]
    guider, output = Guider(ClassifierFreeGuidance(3.0), modular), torch.zeros(2, 4, 8, 8)
    guider._look(modular.transformer, (), {"hidden_states": torch.zeros(2, 9, 8, 8)})
    with pytest.raises(SettingError, match=r"^a Guider does not support image prompts and masks: call"):
        guider.forward(output)


def test_a_pipeline_without_its_text_encoder_is_refused(pipelines: dict[str, tuple[Any, Any]]):
    from dng_lightning.text_to_image.guider import Guider

    blocks = pipelines["StableDiffusion3"][1].blocks
    blocks.sub_blocks.pop("text_encoder")
    with pytest.raises(SettingError, match=r"encodes the empty prompt: make the pipeline with its text_encoder block$"):
        Guider(DYNAMIC, blocks.init_pipeline())
