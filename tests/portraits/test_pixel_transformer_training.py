from pathlib import Path

import pytest
import torch
from running import TINY

from dng_lightning.errors import SettingError
from dng_lightning.text_to_image import TextToImageModel
from scripts.captioned_images import networks
from scripts.portraits import PipelineExport, PixelTransformerModule

for library in ("diffusers", "ftfy", "transformers"):
    pytest.importorskip(
        library, reason=f"{library} MISSING: no portraits were learned (extras portraits, text-to-image)"
    )

TEXT = "a smiling person with long red hair"


def tiny(**settings: float) -> PixelTransformerModule:
    torch.manual_seed(0)
    return PixelTransformerModule(TINY["portraits"]["transformer"], TINY["portraits"]["text_encoder"], **settings)


def test_the_loss_is_the_error_of_the_flow():
    """Of a network that says 0: |x_0|^2 / u^2, with u at least 0.05."""
    module = tiny()
    module.net.final_layer.linear.weight.data.zero_()
    module.net.final_layer.linear.bias.data.zero_()
    images = torch.full((200, 3, 64, 64), 0.5)
    losses, t = module.losses(images, [TEXT] * 200, torch.Generator().manual_seed(0))
    u = module.schedule.sigma[t].float()
    torch.testing.assert_close(losses, 0.25 / u.clamp(min=0.05) ** 2)
    assert float((u > 0.8).float().mean()) == pytest.approx(3 / 7, abs=0.1)  # of the levels at a shift of 3


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_captions_are_dropped_for_the_empty_one(dropout: float):
    module, told = tiny(caption_dropout=dropout), []
    module.text_encoder.register_forward_pre_hook(lambda _, given: told.append(given[0]))
    module.losses(torch.zeros(4, 3, 64, 64), [TEXT] * 4)
    expected, _ = networks.masked_tokens(module.tokenizer, ["" if dropout else TEXT] * 4)
    assert told[0].equal(expected)


def test_an_exported_model_has_the_same_levels_and_predictions(tmp_path: Path):
    module = tiny().eval()
    for block in module.net.blocks:  # which start as the identity
        torch.nn.init.normal_(block.modulation.lin.weight, std=0.1)
    PipelineExport().write(module, tmp_path)
    model = TextToImageModel.load(str(tmp_path))
    torch.testing.assert_close(model.schedule.sigma, module.schedule.sigma, rtol=1e-6, atol=0)
    assert model.latent_shape() == (3, 64, 64)
    x, level = torch.randn(1, 3, 64, 64), model.schedule.level(600)
    tokens, mask = networks.masked_tokens(module.tokenizer, [TEXT])
    with torch.no_grad():
        embedded = module.text_encoder(tokens, attention_mask=mask).last_hidden_state
        u = module.schedule.timestep(torch.tensor([600]))
        expected = module.net(x, u, embedded, attention_mask=mask.bool()).sample
    torch.testing.assert_close(model(x, level, model.encode([TEXT]).take([0])), expected, rtol=1e-4, atol=1e-4)


def test_a_training_starts_from_an_exported_model(tmp_path: Path):
    first, second = tiny().eval(), tiny()
    torch.nn.init.normal_(first.net.final_layer.linear.weight)
    PipelineExport().write(first, tmp_path)
    second.start_from(str(tmp_path))
    assert all(torch.equal(weight, first.state_dict()[name]) for name, weight in second.state_dict().items())
    with pytest.raises(SettingError, match="is no checkpoint of this PixelTransformerModule"):
        second.start_from("portraits")
