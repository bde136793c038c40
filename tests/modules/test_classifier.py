"""Classifiers: network, noise-conditional network, augmentation, labels."""

from typing import Any

import pytest
import torch
import yaml
from classifiers import small_net
from torch import nn

from dng_lightning.errors import SettingError
from dng_lightning.modules.classifier import ClassifierModule, random_cutout, random_shift
from dng_lightning.networks.classifier import ImageClassifier
from dng_lightning.schedule import LinearSchedule
from dng_lightning.storage import resources

# --- network ---


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 23)])
def test_any_image_size(shape: tuple[int, int, int]):
    net = ImageClassifier(shape[0], 7).eval()
    x = torch.randn(4, *shape)
    assert net(x).shape == (4, 7)
    assert net.features(x).shape == (4, net.num_features) == (4, 128)
    assert torch.equal(net(x), net.head(net.features(x)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_channels": -1}, "image_channels must be at least 1; got -1"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"channels": []}, "channels must be at least 1"),
        ({"channels": [8, 0]}, "channels must be at least 1"),
        ({"features": -8}, "features must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"embedding": -2}, "embedding must be at least 0"),
        ({"embedding": 3}, "embedding must be even; got 3"),
    ],
)
def test_settings_of_the_network(settings: dict[str, Any], message: str):
    with pytest.raises(SettingError, match=message):
        ImageClassifier(**{"image_channels": 1, "num_classes": 10} | settings)


def test_the_network_is_small():
    assert sum(parameter.numel() for parameter in ImageClassifier(3, 10).parameters()) * 4 < 2e6


def test_a_residual_block_adds_its_pair_of_convolutions_to_the_halved_image():
    net = ImageClassifier(1, 10, channels=[4, 6], residual=True).eval()
    x = torch.randn(2, 1, 8, 8)
    *halve, pair = net.blocks[0]
    halved = nn.Sequential(*halve)(x)
    assert [type(layer).__name__ for layer in pair] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    assert halved.shape == (2, 4, 4, 4)
    torch.testing.assert_close(net.blocks[0](x), halved + nn.Sequential(*pair)(halved))
    noisy = ImageClassifier(1, 10, channels=[4, 6], residual=True, embedding=8).eval()
    assert noisy(x, torch.tensor([0, 999])).shape == (2, 10)


def test_the_size_of_the_shipped_cifar10_classifier():
    """The issue allows 8 MB."""
    net = yaml.safe_load(resources.config("cifar10_classifier").read_text())["model"]["init_args"]["net"]["init_args"]
    assert sum(parameter.numel() for parameter in ImageClassifier(**net).parameters()) * 4 < 8e6


# --- noise-conditional network ---


def noisy_net() -> ImageClassifier:
    """A small one whose levels matter: the embedding's last layers start at random, as torch makes them."""
    torch.manual_seed(0)
    return ImageClassifier(1, 10, channels=[8, 16], features=12, embedding=16).eval()


def test_the_level_reaches_every_block():
    net, x = noisy_net(), torch.randn(2, 1, 8, 8)
    t = torch.tensor([3, 700])
    assert not torch.allclose(net(x, t), net(x, t.flip(0)), atol=1e-4)
    assert torch.allclose(net(x, t)[:1], net(x[:1], t[:1]), atol=1e-6)  # each image has its own
    for film in net.films:
        nn.init.zeros_(film.weight)
        nn.init.zeros_(film.bias)
    assert torch.equal(net(x, t), net(x, t.flip(0)))
    clean = small_net().eval()
    clean.load_state_dict({name: weight for name, weight in net.state_dict().items() if name in clean.state_dict()})
    torch.testing.assert_close(net(x, t), clean(x))  # without scale and shift: the classifier of clean images
    for film in net.films:
        nn.init.constant_(film.bias, 1.0)  # scale 1 + 1 and shift 1
        assert not torch.allclose(net(x, t), clean(x), atol=1e-4)
        nn.init.zeros_(film.bias)


def test_the_scale_comes_before_the_shift_and_the_relu_last():
    net, x, t = noisy_net(), torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    block, film = net.blocks[0], net.films[0]
    nn.init.zeros_(film.weight)
    film.bias.data = torch.cat([torch.full((8,), 0.5), torch.full((8,), -0.25)])
    before_relu, seen = block[:-1](x), []
    net.blocks[1][0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(x, t)
    torch.testing.assert_close(seen[0], (1.5 * before_relu - 0.25).relu())


@pytest.mark.parametrize("embedding", [0, 16])
def test_a_level_is_told_to_those_who_need_it_and_to_no_others(embedding: int):
    net = ImageClassifier(1, 10, channels=[8], embedding=embedding)
    assert net.noise_conditional == bool(embedding)
    wrong = None if embedding else torch.zeros(2, dtype=torch.long)
    with pytest.raises(SettingError, match="needs the noise level" if embedding else "takes no noise level"):
        net(torch.randn(2, 1, 8, 8), wrong)
    with pytest.raises(SettingError, match=r"needs model\.schedule" if embedding else r"set model\.net\.embedding"):
        ClassifierModule(net, schedule=None if embedding else LinearSchedule())


@pytest.mark.parametrize("name", ["digits-classifier", "mnist-classifier"])
def test_the_shipped_classifiers_are_as_they_were(name: str):
    module, stored = ClassifierModule.load(name), torch.load(resources.checkpoint(name), weights_only=True)
    assert set(module.state_dict()) == set(stored["state_dict"])
    assert module.schedule is None
    assert not module.net.noise_conditional
    with pytest.raises(SettingError, match=f"{name} classifies clean images: name a noise-conditional"):
        ClassifierModule.load(name, noisy=True)
    with pytest.raises(SettingError, match="takes no noise level"):
        module.log_posterior(torch.zeros(1, *module.image_shape), LinearSchedule().level(1))


# --- augmentation ---


def test_shifted_images_are_windows_of_the_padded_image():
    images = torch.rand(64, 3, 6, 5)
    shifted = random_shift(images, 2)
    padded = nn.functional.pad(images, [2] * 4, value=-1.0)
    found = set()
    for before, after in zip(padded, shifted, strict=True):
        offsets = [(r, c) for r in range(5) for c in range(5) if torch.equal(before[:, r : r + 6, c : c + 5], after)]
        assert len(offsets) == 1  # all channels move together, and nothing else changes
        found |= set(offsets)
    assert len(found) > 15  # of 25: each image moves by itself


def test_no_shift_changes_nothing():
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(random_shift(images, 0), images)


def test_cutout_hides_one_square_of_each_image():
    images = torch.ones(400, 2, 9, 12)
    shown = random_cutout(images, 4)
    assert shown.unique().tolist() == [0, 1]
    hidden = shown == 0
    assert torch.equal(hidden[:, 0], hidden[:, 1])  # all channels together
    rows, columns = hidden[:, 0].any(2), hidden[:, 0].any(1)  # (B, H), (B, W)
    assert torch.equal(hidden[:, 0], rows[:, :, None] & columns[:, None, :])
    for lines, length in ((rows, 9), (columns, 12)):
        assert set(lines.sum(1).tolist()) == {2, 3, 4}  # whole, or cut by a border
        assert ((lines.diff(dim=1) != 0).sum(1) <= 2).all()  # in one piece
        places = lines.float().mean(0)
        assert places.min() > 0.5 / length  # everywhere
    assert torch.equal(random_cutout(images, 0), images)


def test_training_hides_and_shifts_and_judging_does_not(monkeypatch: pytest.MonkeyPatch):
    module = ClassifierModule(small_net(), shift=0, cutout=3)
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(module.net, "forward", lambda x: shown.append(x) or torch.zeros(len(x), 10, requires_grad=True))
    images = torch.ones(64, 1, 8, 8)
    module.training_step((images, torch.zeros(64, dtype=torch.long)), 0)
    module.label(images)
    assert (shown[0] == 0).flatten(1).any(1).all()
    assert torch.equal(shown[1], images)


# --- classify ---


def test_classify_is_in_evaluation_mode_and_full_precision():
    torch.manual_seed(0)
    module = ClassifierModule(small_net()).train()
    x = torch.randn(16, 1, 8, 8)
    running = module.net.state_dict()["blocks.0.1.running_mean"].clone()
    with torch.autocast("cpu", torch.bfloat16):
        found = module.label(x)
        labels, confidence = found.labels, found.confidence
    assert module.net.training  # left as it was found
    assert torch.equal(module.net.state_dict()["blocks.0.1.running_mean"], running)
    expected, expected_labels = module.eval()(x).softmax(1).max(1)
    assert (labels.dtype, confidence.dtype) == (torch.int64, torch.float32)
    assert torch.equal(labels, expected_labels)
    assert torch.equal(confidence, expected)
    assert torch.equal(module.label(x[:1]).labels, labels[:1])


class Told(nn.Module):
    """Says what it was told: logits 0 but for the level, counted from 0."""

    num_classes, noise_conditional = 3, True

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        assert not self.training
        return nn.functional.pad(t[:, None].float(), (0, 2))


def test_the_posterior_is_the_network_s_at_the_level_that_networks_are_told():
    module = ClassifierModule(Told(), schedule=LinearSchedule())
    with torch.autocast("cpu", torch.bfloat16):
        log_p = torch.cat([module.log_posterior(torch.zeros(1, 1, 4, 4), LinearSchedule().level(t)) for t in (1, 2, 6)])
    assert module.net.training  # left as it was found
    assert log_p.dtype == torch.float32
    odds = torch.tensor([0.0, 1.0, 5.0]).exp()  # t - 1, against two classes with logit 0
    torch.testing.assert_close(log_p.exp(), torch.stack([odds, *torch.ones(2, 3)], 1) / (odds + 2)[:, None])
