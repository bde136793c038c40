"""Schedulers, settings and calls that no guidance can be used with are refused in one line; the examples run."""

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from bridged import BOTH, DYNAMIC, REFERENCED, diffusers, from_modular, given, opened, opened_modular, refused, stock
from tiny_diffusion import run_example

from dng_lightning.guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DynamicNegativeGuidance,
    LimitedInterval,
    NormalizedAttention,
    PositiveAndNegative,
)
from dng_lightning.guidance.serialization import display_name
from dng_lightning.posterior import ProbePosterior, TrackedPosterior
from dng_lightning.sampling import Particles, SelfFilter
from dng_lightning.text_to_image import guided, pipelines

# --- what cannot be ---


@pytest.mark.parametrize("name", ["PNDMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"])
def test_schedulers_without_a_known_kernel(name: str, folder: Path, folder_xl: Path):
    for call, pipeline in ((stock, opened(folder, name)), (from_modular, opened_modular(folder_xl, name))):
        line = refused(lambda call=call, pipeline=pipeline: call(pipeline, DYNAMIC))
        assert line.startswith(f"{name} is not supported")
        assert line.endswith("pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)")


def test_settings_of_schedulers_that_cannot_be(folder: Path):
    def line(scheduler: str, eta: float = 1.0, **settings: Any) -> str:
        return refused(lambda: stock(opened(folder, scheduler, **settings), DYNAMIC, eta))

    assert "a DDPMScheduler has eta 1; got eta 0.5" in line("DDPMScheduler", 0.5)
    assert "eta must be in [0, 1]; got 2" in line("DDIMScheduler", 2)
    assert "the DDIMScheduler clips" in line("DDIMScheduler", clip_sample=True)
    assert "the DDPMScheduler clips" in line("DDPMScheduler", thresholding=True)
    assert (
        "the DDPMScheduler's variance_type must be fixed_small or fixed_small_log or fixed_large; got learned_range"
        in line("DDPMScheduler", variance_type="learned_range")
    )
    assert "the schedule ends in pure noise" in line("DDPMScheduler", rescale_betas_zero_snr=True)


def test_an_eta_that_is_not_the_pipelines(folder: Path, folder_xl: Path):
    """DDIMScheduler's is 0 if nothing is said."""
    from dng_lightning.text_to_image.guider import Guider

    line = "the scheduler added less noise than eta 1 says: call the pipeline with eta=1"
    pipeline, modular = opened(folder, "DDIMScheduler"), opened_modular(folder_xl, "DDIMScheduler")
    with guided(pipeline, DYNAMIC):
        assert refused(lambda: pipeline(**given(pipeline))) == line
    modular.update_components(guider=Guider(DYNAMIC, modular))
    assert refused(lambda: modular(**given(modular))) == line


def test_calls_without_a_negative_prompt(pipeline: Any, modular: Any):
    line = "DynamicNegativeGuidance needs a negative prompt: call the pipeline with a negative_prompt"
    for call, asked in ((stock, pipeline), (from_modular, modular)):
        for nothing in (None, ["", ""], ["blue", ""]):
            settings = {"negative_prompt": nothing}
            assert refused(lambda call=call, asked=asked, settings=settings: call(asked, DYNAMIC, **settings)) == line
    assert "with a guidance_scale above 1" in refused(lambda: stock(pipeline, DYNAMIC, guidance_scale=1.0))
    line = "ClassifierFreeGuidance uses no negative prompt: call the pipeline without a negative_prompt"
    assert refused(lambda: stock(pipeline, ClassifierFreeGuidance(3.0))) == line


def test_guidances_and_pipelines_that_cannot_be(pipeline: Any, modular: Any, folder_xl: Path):
    from dng_lightning.text_to_image.guider import Guider

    assert "ClassifierGuidance needs a classifier" in refused(lambda: stock(pipeline, ClassifierGuidance(1.0)))
    for method in REFERENCED:
        inside = LimitedInterval(method)
        for asked in (method, inside, PositiveAndNegative(inside, 3.0)):
            for call, where in ((stock, pipeline), (from_modular, modular)):
                line = refused(lambda call=call, where=where, asked=asked: call(where, asked))
                assert line.startswith(f"{display_name(asked)} compares images with reference images, and this model")
                assert line.endswith("a negative prompt, for DynamicNegativeGuidance or NegativePrompting")
    for chains in (SelfFilter(), Particles()):
        line = refused(lambda chains=chains: stock(pipeline, chains))
        assert "chooses among whole chains, and a pipeline draws each once: take a TextToImageSampler" in line
    probed = DynamicNegativeGuidance(posterior=ProbePosterior())
    assert "probe needs a probe, which prompts do not have" in refused(lambda: stock(pipeline, probed))
    attention = NormalizedAttention(ClassifierFreeGuidance(3.0))
    assert "reads its negative prompts itself: guided(" in refused(lambda: stock(pipeline, attention))
    assert "acts inside the attention: use guided" in refused(lambda: from_modular(modular, attention))
    forbidden = DynamicNegativeGuidance(posterior=TrackedPosterior(prior=(0.1, 0.2)))
    assert "prior must be one number or one for each of the 1" in refused(lambda: stock(pipeline, forbidden))
    assert "got a StableDiffusionXLModularPipeline" in refused(lambda: stock(modular, DYNAMIC))
    assert "got a StableDiffusionPipeline" in refused(lambda: Guider(DYNAMIC, pipeline))
    bare = diffusers.ModularPipeline.from_pretrained(str(folder_xl))
    assert "pipeline.load_components() first" in refused(lambda: Guider(DYNAMIC, bare))
    unbiased = DynamicNegativeGuidance(posterior=TrackedPosterior(divergence=1))
    modular.update_components(scheduler=diffusers.DDIMScheduler.from_config(modular.scheduler.config))
    assert "set divergence to 0" in refused(lambda: from_modular(modular, unbiased, eta=0.5))
    pipeline.text_encoder = None
    assert "give the pipeline its text_encoder" in refused(lambda: stock(pipeline, BOTH))


def test_another_scheduler_afterwards(pipeline: Any):
    with guided(pipeline, DYNAMIC):
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
        assert "the pipeline has another scheduler now" in refused(lambda: pipeline(**given(pipeline)))


# --- the examples in the docstrings ---


@pytest.mark.parametrize("module", ["pipelines", "guider"])
def test_the_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    docstring = Path(pipelines.__file__).with_name(f"{module}.py").read_text().split('"""')[1]
    lines = [line for line in docstring.splitlines() if line.startswith("    ")]
    assert len(lines) <= 11
    monkeypatch.chdir(tmp_path)
    (image,) = run_example(textwrap.dedent("\n".join(lines)), tmp_path)["images"]
    assert image.size == (16, 16)
    assert re.match(r"tensor\(\[\[\[(0\.0100|1\.0000e-02)\]", capsys.readouterr().out)
