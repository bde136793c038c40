"""Networks of a diffusion model: shapes, precision, networks of other libraries."""

from pathlib import Path

import pytest
import torch
import yaml
from running import CONFIGS, QUIET
from torch import nn
from training import images, trainer

from dng_lightning.__main__ import run
from dng_lightning.data import Digits
from dng_lightning.errors import SettingError
from dng_lightning.modules import DiffusionModule, GuidedSampler
from dng_lightning.networks import UNet
from dng_lightning.schedule import LinearSchedule

LEVEL = LinearSchedule().level(500)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (1, 28, 28)),
        ({"image_channels": 3, "channels": [8, 16, 16], "patch": 1, "attention": [0, 2]}, (3, 32, 32)),
        ({"channels": [8], "patch": 1, "attention": []}, (1, 8, 8)),
        ({"channels": [8, 8], "patch": 2, "num_classes": 0}, (1, 8, 12)),
    ],
)
def test_the_unet_keeps_the_shape(settings: dict[str, object], shape: tuple[int, int, int]):
    net = UNet(**settings).eval()  # type: ignore[arg-type]
    for parameter in net.parameters():  # at the start it predicts 0
        nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(3, *shape), torch.tensor([0, 5, 999])
    assert net(x, t).shape == x.shape
    null = torch.full((3,), net.num_classes)
    assert torch.equal(net(x, t), net(x, t, null))
    told = net(x, t, torch.zeros(3, dtype=torch.long))
    assert torch.equal(told, net(x, t)) == (net.num_classes == 0)
    assert not torch.equal(net(x, t - t + 1), net(x, t))
    singly = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert torch.allclose(singly, net(x, t), atol=1e-4)


@pytest.mark.parametrize("config", ["cifar10_only_airplane", "cifar10"])
def test_at_the_size_of_the_ddpm_paper_it_has_the_paper_s_parameters(config: str):
    with torch.device("meta"):
        net = UNet(**CONFIGS[config]["model"]["init_args"]["net"]["init_args"])
    labels = 0 if net.label is None else 11 * 512  # the embeddings of ten classes and of none
    assert sum(parameter.numel() for parameter in net.parameters()) == 35_746_307 + labels  # "35.7 million", appendix B
    assert (net.label is None) == ("only" in config)


def test_an_image_that_cannot_be_halved_is_refused(tmp_path: Path):
    module = DiffusionModule(UNet(1, 10, [8, 8, 8, 8], 1, [], 2))
    with pytest.raises(SettingError, match=r"must be divisible by 16.* cannot be used for 8x8$"):
        trainer(tmp_path, max_steps=1).fit(module, Digits())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_training_in_half_precision(precision: str, tmp_path: Path):
    module = DiffusionModule(UNet(1, 10, [8], 1, [], 1))
    trainer(tmp_path, max_steps=2, limit_val_batches=1, precision=precision).fit(module, Digits())
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_the_data_s_classes_must_be_the_network_s(tmp_path: Path):
    with pytest.raises(SettingError, match="the network has 9 classes, the data have 10"):
        trainer(tmp_path, max_steps=1).fit(DiffusionModule(UNet(1, 9, [8], 1, [], 1)), Digits())


def test_a_network_without_a_number_of_classes_is_refused():
    with pytest.raises(SettingError, match="Linear has no num_classes; wrap it"):
        DiffusionModule(nn.Linear(1, 1))


def test_another_library_s_network_by_class_path(tmp_path: Path):
    pytest.importorskip("diffusers", reason="diffusers is not installed (extra test)")
    network = {
        "class_path": "diffusers.UNet2DModel",
        "init_args": {
            "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 8], "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "norm_num_groups": 4, "num_class_embeds": 11,
        },
    }  # fmt: skip
    net = {"class_path": "DiffusersNetwork", "init_args": {"network": network, "num_classes": 10}}
    model = {"class_path": "DiffusionModule", "init_args": {"net": net}}
    callbacks = [{"class_path": "EMA"}, {"class_path": "Export"}]
    length = {"max_steps": 3, "limit_val_batches": 1, "default_root_dir": str(tmp_path), "callbacks": callbacks}
    config = {"data": {"class_path": "Digits"}, "model": model, "trainer": length}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))

    cli = run(["fit", f"--config={tmp_path / 'mine.yaml'}", *QUIET])
    loaded = DiffusionModule.load(str(tmp_path))
    assert type(loaded.net.network).__name__ == "UNet2DModel"
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 9, 10])
    with torch.no_grad():
        assert torch.allclose(loaded(x, LEVEL, labels), cli.model.eval()(x, LEVEL, labels), atol=1e-5)
        assert torch.equal(loaded(x, LEVEL)[2], loaded(x, LEVEL, labels)[2])  # 10 is the null class
        assert not torch.equal(loaded(x, LEVEL)[0], loaded(x, LEVEL, labels)[0])
    sampler = GuidedSampler(str(tmp_path), classifier=None, steps=2)
    assert sampler.draw([0, 1]).images.isfinite().all()


def test_an_unconditional_network_of_another_library():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra test)")
    from dng_lightning.networks import DiffusersNetwork

    network = diffusers.UNet2DModel(8, 1, 1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
                                    down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    module = DiffusionModule(DiffusersNetwork(network))
    losses, _ = module.losses(*images(3))
    assert losses.shape == (3,)
    assert module.null_class == 0
