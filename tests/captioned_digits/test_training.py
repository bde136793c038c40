"""Training of a small latent text-to-image model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from devices import WithoutDouble
from running import QUIET, TINY, fit_settings
from torch import Tensor

from dng_lightning.__main__ import run
from dng_lightning.errors import SettingError
from dng_lightning.guidance import AdaptiveNegative, ClassifierFreeGuidance, NegativePrompting
from dng_lightning.sampling import ImageNoise, Sampler, sample
from dng_lightning.storage import resources
from dng_lightning.text_to_image import TextPredictor, TextToImageModel
from scripts.captioned_digits import (
    AutoencoderModule,
    CaptionedDigits,
    PromptSampling,
    TextToImageModule,
)
from scripts.captioned_images import networks
from scripts.captioned_images.data import Captioned

pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
pytest.importorskip("transformers", reason="transformers is not installed (extra text-to-image)")

SETTINGS: dict[str, Any] = TINY["captioned_digits"]
PROMPTS, SEEDS = ["a red seven", "a thin blue digit on white"], [3, 14]


def captioned(count: int) -> Captioned:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1
    return Captioned(images, [PROMPTS[i % 2] for i in range(count)], torch.zeros(count, 4, dtype=torch.long))


def ours(model: TextToImageModel, steps: int = 10) -> Tensor:
    """Latents of PROMPTS."""
    predictor = TextPredictor(model, model.encode(PROMPTS), torch.arange(2))
    noise = ImageNoise(SEEDS, model.latent_shape())
    return sample(predictor, ClassifierFreeGuidance(3.0), model.schedule, noise, Sampler(steps))


# --- losses ---


def test_the_loss_is_the_mean_squared_error_of_what_is_predicted(text_to_image: TextToImageModule):
    """Of an untrained U-Net that says 0, which is v's own variance: 1 for latents of unit variance."""
    module = text_to_image
    module.net.conv_out.weight.data.zero_()
    module.net.conv_out.bias.data.zero_()
    mean, deviation = torch.randn(500, 4, 8, 8) / 4, torch.full((500, 4, 8, 8), 3**0.5 / 4)
    tokens = networks.tokens(module.tokenizer, ["a digit"] * 500)
    losses, t = module.losses(mean, deviation, tokens, torch.Generator().manual_seed(0))
    assert losses.shape == t.shape == (500,)
    assert float(losses.mean()) == pytest.approx(1, abs=0.02)  # the scale is 2, of a standard deviation of 1 / 2
    again, levels = module.losses(mean, deviation, tokens, torch.Generator().manual_seed(0))
    assert torch.equal(again, losses)
    assert torch.equal(levels, t)
    assert 1 <= t.min() < 50 < 950 < t.max() <= 1000


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_captions_are_dropped_for_the_empty_one(dropout: float, autoencoder: Path):
    module, told = TextToImageModule(str(autoencoder), **SETTINGS, caption_dropout=dropout), []
    module.scale = 1.0
    module.text_encoder.register_forward_pre_hook(lambda _, given: told.append(given[0]))
    tokens = networks.tokens(module.tokenizer, ["a red seven"] * 500)
    module.losses(torch.zeros(500, 4, 8, 8), torch.ones(500, 4, 8, 8), tokens, torch.Generator().manual_seed(0))
    dropped = (told[0] == networks.tokens(module.tokenizer, [""])).all(1)
    assert float(dropped.float().mean()) == pytest.approx(dropout, abs=0.05)
    assert torch.equal(told[0][~dropped], tokens[~dropped])


def test_it_learns_a_handful_of_images_and_their_captions(text_to_image: TextToImageModule):
    torch.manual_seed(0)
    module, batch = text_to_image, captioned(8)
    with torch.no_grad():
        mean, deviation = networks.moments(module.vae, batch.images)
        mean = torch.where(torch.arange(8).view(-1, 1, 1, 1) % 2 == 0, 0.5, -0.5).expand_as(mean)  # by the caption
    tokens, level = networks.tokens(module.tokenizer, batch.captions), torch.Generator()

    def loss() -> Tensor:
        return module.losses(mean, 0.01 * deviation, tokens, level)[0].mean()

    adam = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.01)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    errors = []
    for step in range(60):
        level.manual_seed(step)
        adam.zero_grad()
        error = loss()
        error.backward()
        adam.step()
        errors.append(float(error.detach()))
    assert sum(errors[-5:]) < 0.6 * sum(errors[:5])
    after = module.state_dict()
    changed = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"net", "text_encoder"}  # and not the autoencoder


def test_latents_have_unit_variance(fitted, place: Path):
    last = torch.load(fitted("captioned_digits") / "checkpoints" / "last.ckpt", weights_only=True)
    data = CaptionedDigits(str(place / "data"), val_size=20)
    data.setup()
    net = AutoencoderModule.load(str(place / "logs" / "captioned-digits-autoencoder")).net
    torch.manual_seed(0)
    mean, deviation = networks.moments(net, data.part("train").images / 127.5 - 1)
    latents = last["latent_scale"] * (mean + deviation * torch.randn_like(mean))
    assert float(latents.std()) == pytest.approx(1, abs=0.01)


# --- resuming ---


@pytest.fixture
def trained(fitted, in_place: Path, tmp_path: Path):
    """`trained(steps, resumed)`: the folder of a tiny training by the command line."""
    fitted("captioned_digits_autoencoder")

    def train(name: str, steps: int, *settings: str) -> Path:
        callbacks = "[{class_path: EMA}, {class_path: scripts.captioned_digits.PipelineExport}, "
        callbacks += "{class_path: ModelCheckpoint, init_args: "
        callbacks += "{every_n_train_steps: 2, save_top_k: -1, filename: '{step}'}}]"
        given = [*fit_settings("captioned_digits"), "--data.batch_size=40", "--model.scheduler=null"]
        given += [f"--trainer.callbacks={callbacks}", f"--trainer.max_steps={steps}", "--trainer.logger=false"]
        folder = tmp_path / name
        given += [f"--trainer.default_root_dir={folder}", "--trainer.precision=32"]
        run(["fit", f"--config={resources.config('captioned_digits')}", *QUIET, *given, *settings])
        return folder

    return train


def test_resuming_changes_nothing(trained):
    """In the middle of an epoch of four batches."""
    whole = trained("whole", 6)
    (checkpoint,) = whole.rglob("step=2.ckpt")
    resumed = trained("resumed", 6, f"--ckpt_path={checkpoint}")
    one, other = (torch.load(next(f.rglob("step=6.ckpt")), weights_only=True) for f in (whole, resumed))
    for state in ("state_dict", "current_model_state"):
        assert all(torch.equal(one[state][name], other[state][name]) for name in one[state])
    assert one["latent_scale"] == other["latent_scale"]
    assert not torch.equal(one["state_dict"]["net.conv_in.weight"], one["current_model_state"]["net.conv_in.weight"])
    drawn = [ours(TextToImageModel.load(str(folder))) for folder in (whole, resumed)]
    assert torch.equal(*drawn)


# --- images while it trains ---


def test_prompts_are_drawn_while_it_trains(text_to_image: TextToImageModule):
    callback = PromptSampling(PROMPTS, num_samples=2, steps=5)
    with torch.no_grad():
        images = callback._draw(text_to_image)
        model = text_to_image.model()
        predictor = TextPredictor(model, model.encode(PROMPTS), torch.ones(2, dtype=torch.long))
        guidance, noise = ClassifierFreeGuidance(3.0), ImageNoise([0, 1], (4, 8, 8))
        second = model.decode(sample(predictor, guidance, model.schedule, noise, Sampler(5)))
    assert images.shape == (4, 3, 32, 32)
    assert (images[2:].int() - ((second.clamp(-1, 1) + 1) * 127.5).round().int()).abs().max() <= 1
    assert callback._obeyed(images) == []
    assert text_to_image.net.conv_in.weight.requires_grad  # it can go on training


def test_what_obeys_is_what_the_classifiers_read(text_to_image: TextToImageModule, fitted, in_place: Path):
    fitted("captioned_digits_autoencoder")
    callback = PromptSampling(["a red seven", "a digit"], num_samples=3, reader="captioned-digits")
    assert callback.reader is not None
    read = torch.tensor([[7, 0, 0, 0], [7, 1, 1, 1], [1, 0, 0, 0]] * 2)
    callback.reader.read = lambda _: read  # type: ignore[method-assign,assignment]
    assert callback._obeyed(torch.zeros(6, 3, 32, 32, dtype=torch.uint8)) == [True, False, False, True, True, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": []}, "PromptSampling's prompts must be at least 1"),
        ({"prompts": ["a"], "num_samples": 0}, "PromptSampling's num_samples must be at least 1"),
        ({"prompts": ["a"], "guidance": NegativePrompting(1.0)}, "NegativePrompting is not for it"),
        ({"prompts": ["a"], "guidance": AdaptiveNegative(ClassifierFreeGuidance(1.0))}, "is not for it"),
        ({"prompts": ["a"], "steps": 0}, "steps must be at least 1"),
    ],
)
def test_prompts_that_cannot_be_drawn(settings: dict[str, Any], message: str):
    with pytest.raises(SettingError, match=message):
        PromptSampling(**settings)


# --- what cannot be trained ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unet": {"channels": 3}}, "these settings do not make a UNet2DConditionModel: .*channels"),
        ({"unet": {"block_out_channels": 8}}, "these settings do not make a UNet2DConditionModel: "),
        ({"unet": SETTINGS["unet"] | {"in_channels": 4}}, "gets its in_channels from another part"),
        ({"text_encoder": {"width": 3}}, "these settings do not make a CLIPTextModel: there is no setting width"),
        ({"text_encoder": {"hidden_size": 10, "num_attention_heads": 3}}, "these settings do not make a CLIPTextModel"),
        ({"text_encoder": {"vocab_size": 10}}, "gets its vocab_size from another part"),
        ({"caption_dropout": 1.5}, r"caption_dropout must be in \[0, 1\]; got 1.5"),
        ({"snr_gamma": 0.0}, r"snr_gamma must be in \(0, inf\)"),
        ({"autoencoder": "nowhere"}, "No checkpoint 'nowhere'"),
        ({"autoencoder": "digits-classifier"}, "is no checkpoint of a AutoencoderModule"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str, autoencoder: Path):
    with pytest.raises(SettingError, match=message) as caught:
        TextToImageModule(**{"autoencoder": str(autoencoder), **SETTINGS, **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--data.label=colour"], "set data to CaptionedDigits, its label all"),
        (["--data=MNIST", "--data.val_size=20"], "set data to CaptionedDigits, its label all"),
    ],
)
def test_data_without_captions_are_refused(settings: list[str], message: str, trained):
    with pytest.raises(SettingError, match=message):
        trained("refused", 1, *settings)


def test_the_scale_of_the_latents_asks_no_device_for_double_precision(monkeypatch: pytest.MonkeyPatch):
    def moments(_: object, images: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.arange(len(images) * 4.0).view(-1, 4).as_subclass(WithoutDouble)
        return values, 0 * values

    monkeypatch.setattr(networks, "moments", moments)
    data = SimpleNamespace(part=lambda _: SimpleNamespace(images=torch.zeros(3, 3, 8, 8, dtype=torch.uint8)))
    model = SimpleNamespace(scale=None, vae=None, device=torch.device("cpu"), trainer=SimpleNamespace(datamodule=data))
    scale = TextToImageModule._measured_scale(model)  # type: ignore[arg-type]
    assert scale == pytest.approx(float(torch.arange(12.0).var(correction=0)) ** -0.5)
