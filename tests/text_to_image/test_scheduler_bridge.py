"""A guidance in diffusers' pipelines, stock or modular, does what it does in our sampler with the same noise."""

import re
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_diffusion import run_example, tiny
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AttentionSubtraction,
    CFGNegativePrompt,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    DynamicNegativeGuidance,
    DynamicSafeDenoiser,
    Guidance,
    LimitedInterval,
    NormalizedAttention,
    OrthogonalAttention,
    PositiveAndNegative,
    SafeDenoiser,
    SafeLatentDiffusion,
    SafetyGuidedFlow,
    ShieldedDiffusion,
    Unguided,
    ValueSignFlip,
)
from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.guidance.references import References
from dng_lightning.guidance.serialization import display_name
from dng_lightning.posterior import ProbePosterior, TrackedPosterior
from dng_lightning.sampling import ImageNoise, Particles, Sampler, SelfFilter, Trajectories, sample
from dng_lightning.text_to_image import TextPredictor, TextToImageModel, guided, pipelines

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

SEEDS, PROMPTS, NEGATIVES = [3, 14], ["a red seven", "a green one"], ["blue", "dark"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
# odds of at most 4: those of a posterior near 1 would magnify the rounding that the two samplers differ by
TRACKED = TrackedPosterior(prior=0.3, p_max=0.8)
DYNAMIC = DynamicNegativeGuidance(2, TRACKED)
UNSHIFTED = DynamicNegativeGuidance(1, replace(TRACKED, guidance_shift_weight=0.0))
BOTH = PositiveAndNegative(DYNAMIC, 3.0)
REFERENCES = References(torch.zeros(2, 3, 16, 16))
REFERENCED = [
    kind(references=REFERENCES) for kind in (SafeDenoiser, DynamicSafeDenoiser, ShieldedDiffusion, SafetyGuidedFlow)
]
METHODS = [
    DYNAMIC,
    BOTH,
    PositiveAndNegative(UNSHIFTED, 3.0),
    PositiveAndNegative(UNSHIFTED, 3.0, independent=True),
    SafeLatentDiffusion(scale=2.0),
    CFGNegativePrompt(7.5),
    LimitedInterval(DYNAMIC, 0.3, 0.9),
]
Drawn = tuple[Tensor, Tensor | None, Tensor]
"""Latents, posterior and scale, of each image."""


@pytest.fixture(scope="module")
def folder_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("stable") / "tiny-xl", xl=True)


@pytest.fixture
def pipeline(folder: Path) -> Any:
    return opened(folder)


@pytest.fixture
def modular(folder_xl: Path) -> Any:
    return opened_modular(folder_xl)


def opened(folder: Path, scheduler: str = "DDPMScheduler", **settings: Any) -> Any:
    """A stock pipeline."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **settings)
    return pipeline


def opened_modular(folder: Path, scheduler: str = "DDPMScheduler", **settings: Any) -> Any:
    """A modular pipeline."""
    pipeline = diffusers.ModularPipeline.from_pretrained(str(folder))
    pipeline.load_components([name for name in pipeline.component_names if name in ALL_PARTS])
    pipeline.set_progress_bar_config(disable=True)
    scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **settings)
    pipeline.update_components(scheduler=scheduler)
    return pipeline


ALL_PARTS = {"unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"}


def ours(
    folder: Path,
    guidance: Guidance,
    sampler: Sampler,
    negatives: list[str] | None = NEGATIVES,
    seeds: list[int] = SEEDS,
) -> Drawn:
    """One image a seed, each of its own prompt."""
    model, found = TextToImageModel.load(str(folder)), []
    for number, seed in enumerate(seeds):
        prompts = model.encode([PROMPTS[number]], negatives[number : number + 1] if negatives else [])
        predictor = TextPredictor(model, prompts, torch.zeros(1, dtype=torch.long))
        noise, seen = ImageNoise([seed], model.latent_shape()), Trajectories()
        latents = sample(predictor, guidance, model.schedule, noise, sampler, [seen])
        found.append((latents, seen.posterior, seen.scale))
    return tuple(None if part[0] is None else torch.cat(part) for part in zip(*found, strict=True))  # type: ignore


def given(pipeline: Any, seeds: list[int] = SEEDS, **settings: Any) -> dict[str, Any]:
    """What makes a pipeline start from our latents and draw our noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    start = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators])
    sigma = float((1 - pipeline.scheduler.alphas_cumprod[-1].double()) ** 0.5)
    texts = {"prompt": PROMPTS[: len(seeds)], "negative_prompt": NEGATIVES[: len(seeds)]}
    return texts | {"latents": sigma * start, "generator": generators, "num_inference_steps": 10} | settings


def stock(pipeline: Any, guidance: Guidance, eta: float | None = 1.0, **settings: Any) -> Drawn:
    """The same from a stock pipeline."""
    with guided(pipeline, guidance, eta) as hosted:
        own = {} if eta is None else {"eta": eta}
        latents = pipeline(**given(pipeline, **own | {"output_type": "latent"} | settings)).images
    return latents, hosted.trajectories.posterior, hosted.trajectories.scale


def from_modular(pipeline: Any, guidance: Guidance, eta: float = 1.0, **settings: Any) -> Drawn:
    """The same from a modular one."""
    from dng_lightning.text_to_image.guider import Guider

    pipeline.update_components(guider=Guider(guidance, pipeline, eta))
    latents = pipeline(**given(pipeline, **{"eta": eta, "output": "latents"} | settings))
    trajectories = pipeline.guider.hosted.trajectories
    return latents, trajectories.posterior, trajectories.scale


def assert_same(found: Drawn, expected: Drawn) -> None:
    """Up to rounding: their noise levels are fp32, ours fp64."""
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other.to(one.dtype), rtol=0, atol=1e-4 * float(other.abs().max()))


# --- a stock pipeline ---


@pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: type(guidance).__name__)
def test_every_method_does_what_it_does_in_our_sampler(guidance: Guidance, folder: Path, pipeline: Any):
    assert_same(stock(pipeline, guidance), ours(folder, guidance, Sampler(10)))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_each_prediction_of_each_scheduler(prediction: str, tmp_path: Path):
    folder = tiny(tmp_path, prediction_type=prediction)
    assert_same(stock(opened(folder), BOTH), ours(folder, BOTH, Sampler(10)))
    for eta in (0.4, 1.0):
        found = stock(opened(folder, "DDIMScheduler"), BOTH, eta)
        assert_same(found, ours(folder, BOTH, Sampler(10, eta)))


def test_the_larger_variance(tmp_path: Path):
    """Every level is visited: diffusers draws noise at the last step too, unless that is level 1."""
    folder = tiny(tmp_path, num_train_timesteps=10, beta_end=0.3)
    found = stock(opened(folder, variance_type="fixed_large"), BOTH)
    assert_same(found, ours(folder, BOTH, Sampler(10, variance="beta")))


def test_stable_diffusion_xl(folder_xl: Path):
    assert_same(stock(opened(folder_xl), BOTH), ours(folder_xl, BOTH, Sampler(10)))
    assert_same(stock(opened(folder_xl, "DDIMScheduler"), DYNAMIC, 0.4), ours(folder_xl, DYNAMIC, Sampler(10, 0.4)))


@pytest.mark.parametrize("xl", [False, True], ids=["stable", "xl"])
@pytest.mark.parametrize("kind", [NormalizedAttention, OrthogonalAttention, AttentionSubtraction, ValueSignFlip])
def test_negatives_inside_the_attention(kind: type[AttentionGuidance], xl: bool, folder: Path, folder_xl: Path):
    place = folder_xl if xl else folder
    pipeline, guidance = opened(place), kind(ClassifierFreeGuidance(3.0))
    with guided(pipeline, guidance, negative_prompt="blue"):
        settings = given(pipeline, negative_prompt=None, guidance_scale=1.0, output_type="latent")
        found = pipeline(**settings).images
    expected, _, _ = ours(place, guidance, Sampler(10), ["blue", "blue"])
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=1e-4 * float(expected.abs().max()))
    plain, _, _ = ours(place, ClassifierFreeGuidance(3.0), Sampler(10), ["blue", "blue"])
    assert (expected - plain).abs().max() > 1e-3


def test_deterministic_sampling_is_warned_of_unless_the_divergence_is_asked_for(folder: Path):
    with pytest.warns(UserWarning, match="a posterior tracked at eta 0 is biased"):
        found = stock(opened(folder, "DDIMScheduler"), DYNAMIC, eta=0.0)
    with pytest.warns(UserWarning, match="biased"):
        assert_same(found, ours(folder, DYNAMIC, Sampler(10, eta=0.0)))
    unbiased = DynamicNegativeGuidance(2, replace(TRACKED, guidance_shift_weight=0.5, divergence=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = stock(opened(folder, "DDIMScheduler"), unbiased, eta=0.0)
    assert_same(found, ours(folder, unbiased, Sampler(10, eta=0.0)))


def test_guidances_that_avoid_nothing(folder: Path):
    for guidance, settings in ((CFGPlusPlus(0.6), {}), (ClassifierFreeGuidance(7.5), {"guidance_scale": 1.0})):
        found = stock(opened(folder, "DDIMScheduler"), guidance, 0.4, negative_prompt=None, **settings)
        assert_same(found, ours(folder, guidance, Sampler(10, 0.4), negatives=None))


def test_a_guidance_that_does_nothing_is_the_pipeline_itself(folder: Path):
    """And what the pipeline does besides with its two predictions leaves the one that both are alone."""
    for guidance, scale in ((Unguided(), 1.0), (ClassifierFreeGuidance(7.5), 7.5)):
        expected = opened(folder)(**given(opened(folder), negative_prompt=None, guidance_scale=scale, output_type="pt"))
        settings = {"negative_prompt": None, "guidance_rescale": 0.7, "guidance_scale": 3.0, "output_type": "pt"}
        found, _, _ = stock(opened(folder), guidance, **settings)
        torch.testing.assert_close(found, expected.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("EulerAncestralDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ],
    ids=["Euler ancestral", "Euler", "DPM-Solver++ SDE", "DPM-Solver++"],
)
def test_and_under_each_fast_scheduler(scheduler: str, settings: dict[str, Any], folder: Path):
    call = {"guidance_scale": 7.5, "output_type": "latent"}
    expected = opened(folder, scheduler, **settings)
    expected = expected(**given(expected), **call).images
    found, _, _ = stock(opened(folder, scheduler, **settings), CFGNegativePrompt(7.5), eta=None, **call)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_images_are_guided_each_by_its_own_posterior(pipeline: Any):
    _, posterior, scale = stock(pipeline, DYNAMIC)
    assert posterior is not None
    assert (posterior.shape, scale.shape) == ((2, 10, 1), (2, 10))
    posterior = posterior[..., 0]
    torch.testing.assert_close(posterior[:, 0], torch.full((2,), 0.3))
    assert (posterior[0, 1:] - posterior[1, 1:]).abs().min() > 1e-4
    torch.testing.assert_close(scale, 2 * posterior / (1 - posterior), rtol=1e-5, atol=0)


def test_each_call_starts_anew(pipeline: Any):
    with guided(pipeline, BOTH) as hosted:
        pipeline(**given(pipeline), output_type="latent")
        first = hosted.trajectories
        pipeline(**given(pipeline, seeds=[8]), output_type="latent")
        alone = hosted.trajectories
        interrupted = given(pipeline) | {"callback_on_step_end": stop_after_three}
        pipeline(**interrupted, output_type="latent")
        cut = hosted.trajectories
        pipeline(**given(pipeline), output_type="latent")
        again = hosted.trajectories
    assert alone.scale.shape == (1, 10)
    assert len(cut.levels) == 3
    assert first.levels == again.levels
    assert timesteps(first) == list(range(999, 0, -100))
    assert torch.equal(first.posterior, again.posterior)


def timesteps(trajectories: Trajectories) -> list[float]:
    return [level.timestep for level in trajectories.levels]


def stop_after_three(pipeline: Any, index: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    pipeline._interrupt = index == 2
    return tensors


def test_the_unet_is_asked_no_more_than_a_guidance_needs_and_afterwards_as_ever(pipeline: Any):
    sizes: list[int] = []
    forward = pipeline.unet.forward

    def counted(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(sample))
        return forward(sample, *args, **kwargs)

    pipeline.unet.forward = counted  # as libraries do that move weights
    for guidance, branches in ((DYNAMIC, 2), (BOTH, 3)):
        stock(pipeline, guidance)
        assert sizes == [2 * branches] * 10
        sizes.clear()
        assert pipeline.unet.forward is counted
    with guided(pipeline, DYNAMIC):
        pipeline.unet.forward = counted  # and as they put it back after a call: never unguided without a word
        assert "another library replaced the network's forward" in refused(lambda: pipeline(**given(pipeline)))
    assert pipeline.unet.forward is counted
    del pipeline.unet.forward
    with pytest.raises(ZeroDivisionError), guided(pipeline, DYNAMIC):
        1 / 0  # noqa: B018
    assert "forward" not in vars(pipeline.unet)
    assert not pipeline.unet._forward_pre_hooks


def test_leading_steps_and_several_images_a_prompt(folder: Path):
    """Stable Diffusion's own spacing, which starts below the noisiest level and ends above the data."""
    pipeline = opened(folder, timestep_spacing="leading", set_alpha_to_one=False)
    one = given(pipeline, seeds=SEEDS[:1]) | {"num_images_per_prompt": 2, "latents": None, "generator": None}
    with guided(pipeline, BOTH) as hosted:
        latents = pipeline(**one, output_type="latent").images
    assert timesteps(hosted.trajectories) == list(range(901, 0, -100))
    assert hosted.trajectories.scale.shape == (2, 10)
    assert latents.isfinite().all()


def test_half_precision_is_in_the_networks_alone(folder: Path, folder_xl: Path):
    for call, pipeline in ((stock, opened(folder)), (from_modular, opened_modular(folder_xl))):
        _, exact, _ = call(pipeline, DYNAMIC)
        half = {"latents": given(pipeline)["latents"].bfloat16()}
        latents, rough, scale = call(pipeline.to(torch.bfloat16), DYNAMIC, **half)
        assert (latents.dtype, rough.dtype, scale.dtype) == (torch.bfloat16, torch.float32, torch.float32)
        torch.testing.assert_close(rough[:, :3], exact[:, :3], rtol=0, atol=0.05)


# --- a modular pipeline ---


@pytest.mark.parametrize(
    "guidance", [DYNAMIC, BOTH, CFGNegativePrompt(7.5)], ids=lambda guidance: type(guidance).__name__
)
def test_a_guider_does_what_our_sampler_does(guidance: Guidance, folder_xl: Path, modular: Any):
    assert_same(from_modular(modular, guidance), ours(folder_xl, guidance, Sampler(10)))


@pytest.mark.parametrize("prediction", PREDICTIONS[1:])
def test_a_guider_with_each_prediction(prediction: str, tmp_path: Path):
    folder = tiny(tmp_path, xl=True, prediction_type=prediction)
    assert_same(from_modular(opened_modular(folder), BOTH), ours(folder, BOTH, Sampler(10)))
    found = from_modular(opened_modular(folder, "DDIMScheduler"), BOTH, eta=0.4)
    assert_same(found, ours(folder, BOTH, Sampler(10, eta=0.4)))


def test_a_guider_starts_anew_with_each_call_and_shows_its_settings(modular: Any, folder_xl: Path):
    first = from_modular(modular, BOTH)
    guider, forward = modular.guider, modular.unet._forward_pre_hooks
    modular(**given(modular, seeds=[8]), output="latents")
    assert guider.hosted.trajectories.scale.shape == (1, 10)
    again = modular(**given(modular), output="latents")
    assert torch.equal(again, first[0])
    assert torch.equal(guider.hosted.trajectories.posterior, first[1])
    assert not forward  # it looks at the latents no longer
    assert guider.config["guidance"]["guidance"]["posterior"]["prior"] == 0.3
    assert ("num_conditions", 3) in guider.get_state().items()
    guider.disable()
    assert guider.num_conditions == 1


def test_a_guider_that_avoids_nothing_is_diffusers_own(modular: Any):
    modular.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=5.0))
    expected = modular(**given(modular, negative_prompt=None), output="latents")
    found, _, _ = from_modular(modular, ClassifierFreeGuidance(5.0), negative_prompt=None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


# --- what cannot be ---


def refused(call: Any) -> str:
    with pytest.raises(SettingError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


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


@pytest.mark.parametrize("library", ["diffusers.guiders.guider_utils", "transformers"])
def test_a_guider_without_the_extra(library: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "dng_lightning.text_to_image.guider", raising=False)
    with pytest.raises(SettingError, match=r"^a guider needs an extra: pip install 'dng-lightning\[text-to-image\]'$"):
        import dng_lightning.text_to_image.guider  # noqa: F401


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
