"""A rectified flow starts at pure noise, where not every prediction has a meaning."""

from typing import get_args

import pytest
import torch

from dng_lightning.errors import SettingError
from dng_lightning.modules import DiffusionModule
from dng_lightning.networks import UNet
from dng_lightning.parametrization import NEEDS_SIGNAL, Prediction
from dng_lightning.schedule import RectifiedFlowSchedule


def module(prediction: Prediction, u_max: float) -> DiffusionModule:
    net = UNet(num_classes=2, channels=(8,), blocks=1, attention=())
    return DiffusionModule(net, RectifiedFlowSchedule(10, u_max), prediction, snr_gamma=5.0)


@pytest.mark.parametrize("prediction", NEEDS_SIGNAL)
def test_a_prediction_that_says_nothing_at_pure_noise_is_refused(prediction):
    with pytest.raises(SettingError, match=f"prediction {prediction} has no denoised prediction at pure noise"):
        module(prediction, 1.0)
    module(prediction, 0.99)


@pytest.mark.parametrize("prediction", sorted(set(get_args(Prediction)) - set(NEEDS_SIGNAL)))
def test_the_others_are_trained_and_denoise_from_pure_noise_on(prediction):
    made = module(prediction, 1.0)
    weights = made.schedule.min_snr_weight(torch.arange(1, 11), 5.0, prediction)
    assert weights.isfinite().all()
    x_t, labels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])
    with torch.no_grad():
        assert made(x_t, made.schedule.level(10), labels).isfinite().all()
