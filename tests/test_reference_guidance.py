"""Guidance away from reference images: each push against its formula, and the exact one against exact guidance."""

import math
import shutil

import pytest
import torch
from mixture import BatchNoise, GaussianMixture, across, near
from torch import Tensor

from dng_lightning import shipped
from dng_lightning.data.pixels import to_float, to_png
from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    OracleNegativeGuidance,
    OracleSafeDenoiser,
    Predictions,
    SafeDenoiser,
    SafetyGuidedFlow,
    ShieldedDiffusion,
    Step,
)
from dng_lightning.guidance.reference_guidance import ReferenceGuidance
from dng_lightning.guidance.references import References, read
from dng_lightning.schedule import LinearSchedule

LINEAR = LinearSchedule()
ONE = torch.tensor([[1.0, 0.0]], dtype=torch.double)
TWO = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.double)
METHODS = [OracleSafeDenoiser, SafeDenoiser, SafetyGuidedFlow, ShieldedDiffusion]


def at(index: int = 0, t: int = 500, s: int = 490, count: int = 10) -> Step:
    return Step(index, count, t, s, LINEAR.transition(t, s))


def moved(guidance: ReferenceGuidance, x0_hat: Tensor, step: Step | None = None) -> tuple[Tensor, Tensor]:
    """Where predictions that denoise to ``x0_hat`` denoise to when guided, and the scale that is reported."""
    step = step or at()
    x_t = BatchNoise(x0_hat.shape, dtype=torch.double)()
    eps = (x_t - step.transition.alpha_t * x0_hat) / step.transition.sigma_t
    given = Predictions(eps, eps.new_empty(len(eps), 0, *eps.shape[1:]))
    guided = guidance.guide(given, guidance.start(x_t, 1), step)
    return step.transition.x0_hat(x_t, guided.eps), guided.scale


def draws(count: int = 50, size: int = 2) -> Tensor:
    return BatchNoise((count, size), seed=3, dtype=torch.double)()


def test_the_state_is_the_image_itself():
    guidance, x = near(ShieldedDiffusion), draws()
    given = Predictions(x, x.new_empty(50, 0, 2))
    assert guidance.start(x, 1) is x
    assert torch.equal(guidance.observe(x, at(), x, x + 1, given), x + 1)


# ------------------------------------------------------------------------------------------------------------- SPELL


def test_a_shield_moves_nothing_outside_and_pushes_out_to_its_surface_from_inside():
    x0_hat = draws(200)
    end, scale = moved(near(ShieldedDiffusion, ONE, scale=1.0, radius=1.2), x0_hat)
    before, after = (x0_hat - ONE).norm(dim=1), (end - ONE).norm(dim=1)
    within = before < 1.2
    assert 30 < within.sum() < 170
    torch.testing.assert_close(end[~within], x0_hat[~within], rtol=0, atol=1e-12)
    torch.testing.assert_close(after[within], torch.full_like(after[within], 1.2))
    # on a straight line from the centre
    torch.testing.assert_close((end - ONE)[within] / 1.2, ((x0_hat - ONE) / before.unsqueeze(1))[within])
    assert torch.equal(scale, within.double())


def test_shields_add_up_by_the_formula():
    x0_hat = draws(200)
    end, _ = moved(near(ShieldedDiffusion, TWO, radius=2.5), x0_hat)
    away = x0_hat.unsqueeze(1) - TWO
    weight = (2.5 / away.norm(dim=2) - 1).clamp(min=0)
    assert (weight > 0).all(1).any()
    torch.testing.assert_close(end, x0_hat + 1.6 * (weight.unsqueeze(2) * away).sum(1), rtol=0, atol=1e-10)


def test_at_the_very_centre_of_a_shield_nothing_moves():
    end, _ = moved(near(ShieldedDiffusion, ONE, radius=1.0), ONE.clone())
    torch.testing.assert_close(end, ONE, rtol=0, atol=1e-12)


def test_the_radius_reaches_from_95_of_100_references_to_another():
    # pairs 1, 2, ... 20 apart, the pairs far from each other: the 95th percentile lies between 19 and 20
    pairs = torch.tensor([[1000.0 * i + d, 0.0] for i in range(1, 21) for d in (0, i)], dtype=torch.double)
    for distance, pushed in ((18.9, True), (20.1, False)):
        _, scale = moved(near(ShieldedDiffusion, pairs), torch.tensor([[1000.0, distance]], dtype=torch.double))
        assert bool(scale) == pushed


# --------------------------------------------------------------------------------------------------------------- SGF


def test_the_flow_goes_down_the_kernel_density():
    x0_hat = draws().requires_grad_()
    potential = (-0.7 * (x0_hat.unsqueeze(1) - TWO).square().sum(2)).exp().sum()
    (gradient,) = torch.autograd.grad(potential, x0_hat)
    end, _ = moved(near(SafetyGuidedFlow, TWO, scale=0.3, gamma=0.7, bound=None), x0_hat.detach())
    torch.testing.assert_close(end, (x0_hat - 0.3 * gradient).detach(), rtol=0, atol=1e-10)


def test_the_flow_leads_away_from_a_single_reference():
    x0_hat = draws()
    end, _ = moved(near(SafetyGuidedFlow, ONE, gamma=0.5), x0_hat)
    assert ((end - ONE).norm(dim=1) > (x0_hat - ONE).norm(dim=1)).all()


def test_the_bound_shortens_the_long_pushes_alone():
    x0_hat = draws()
    free, bounded = (
        moved(near(SafetyGuidedFlow, TWO, gamma=0.7, bound=bound), x0_hat)[0] - x0_hat for bound in (None, 0.4)
    )
    length = free.norm(dim=1, keepdim=True)
    assert 5 < (length > 0.4).sum() < 45
    torch.testing.assert_close(bounded, torch.where(length > 0.4, 0.4 / length, 1.0) * free, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [SafetyGuidedFlow, SafeDenoiser])
def test_outside_its_window_nothing_moves(method):
    x0_hat = torch.full((1, 2), 0.5, dtype=torch.double)
    settings = {"gamma": 0.5} if method is SafetyGuidedFlow else {"bandwidth": 1.0, "threshold": 0.0}
    guidance = near(method, ONE, window=(0.8, 0.5), **settings)
    # ten steps: they start from 1, 0.9, ..., 0.1
    assert [bool(moved(guidance, x0_hat, at(index))[1]) for index in range(10)] == [2 <= i <= 5 for i in range(10)]


def test_gamma_is_the_one_that_leaves_a_twentieth_at_the_4th_to_6th_neighbour():
    ring = torch.linspace(0, 2 * torch.pi, 13, dtype=torch.double)[:-1]
    images = torch.stack([ring.cos(), ring.sin()], 1)
    # of 12 on a ring, the neighbours come in pairs: the 4th is two places away, the 5th and 6th three
    two, three = (float((images[places] - images[0]).square().sum()) for places in (2, 3))
    gamma = References(images).gamma
    assert gamma * (two + 2 * three) / 3 == pytest.approx(-math.log(0.05))


# ----------------------------------------------------------------------------------------------------- Safe Denoiser


def test_the_released_safe_denoiser_is_its_formula():
    x0_hat = draws(200)
    end, scale = moved(near(SafeDenoiser, TWO, bandwidth=0.8, threshold=0.3), x0_hat)
    kernel = (-(x0_hat.unsqueeze(1) - TWO).square().sum(2) / (2 * 0.8**2)).exp()
    mass = kernel.sum(1, keepdim=True)
    push = torch.where(mass > 0.3, 0.33 * (kernel @ TWO) / mass, 0.0)
    assert 20 < (mass > 0.3).sum() < 180
    torch.testing.assert_close(end, x0_hat - push, rtol=0, atol=1e-10)
    torch.testing.assert_close(scale, 0.33 * (mass > 0.3).squeeze(1).double())


def test_the_threshold_is_what_95_of_100_references_reach_by_the_others():
    images = draws(100)
    kernel = (-torch.cdist(images, images).square() / (2 * 0.2**2)).exp().fill_diagonal_(0)
    reached = float(kernel.sum(1).quantile(0.05))
    by_itself, explicit = (near(SafeDenoiser, images, bandwidth=0.2, threshold=each) for each in (None, reached))
    x0_hat = 2 * BatchNoise((400, 2), seed=4, dtype=torch.double)()
    _, scale = moved(by_itself, x0_hat)
    assert 50 < (scale > 0).sum() < 350
    assert torch.equal(scale, moved(explicit, x0_hat)[1])


@pytest.mark.parametrize("t", [900, 400, 100])
@pytest.mark.parametrize(("scale", "dimensions"), [(1.0, 2), (2.5, 2), (1.0, 64)])
def test_with_the_true_odds_and_the_true_unsafe_denoiser_it_is_dynamic_negative_guidance(scale, dimensions, t):
    """A class of points: as many references as it has are all there is to know of it."""
    points = across([[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5], [0.0, -1.5]], dimensions)
    mixture = GaussianMixture(LINEAR, points, 0.0, [0.2, 0.3, 0.25, 0.25], classes=[[2, 3], [0], [1]])
    safe = near(OracleSafeDenoiser, mixture.means[[2, 3]], scale=scale)
    oracle, x_t, step = OracleNegativeGuidance(scale), 1.5 * draws(256, dimensions), at(t=t, s=t - 10)
    given = mixture.predictor(safe, [0]).predict(x_t, t, safe.needs)
    assert given.negatives.shape[1] == 0
    guided = safe.guide(given, safe.start(x_t, 1), step)
    expected = oracle.guide(mixture.predictor(oracle, [0]).predict(x_t, t, oracle.needs), None, step)
    # the odds are scaled in fp32
    torch.testing.assert_close(guided.eps, expected.eps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(guided.scale, expected.scale.double())
    torch.testing.assert_close(guided.posterior, expected.posterior)


@pytest.mark.parametrize("t", [800, 400, 200])
def test_many_draws_of_a_class_give_its_denoiser(t):
    mixture = GaussianMixture(LINEAR, [[-1.0, 0.5], [1.0, 0.0]], [0.4, 0.3])
    images = mixture.means[0] + 0.4 * draws(40_000)
    safe, step = near(OracleSafeDenoiser, images), at(t=t, s=t - 10)
    alpha, sigma = step.transition.alpha_t, step.transition.sigma_t
    x_t = alpha * (mixture.means[0] + 0.4 * BatchNoise((32, 2), 5, torch.double)())
    x_t = x_t + sigma * BatchNoise((32, 2), 6, torch.double)()
    level = torch.full((32,), t)
    exact = (x_t - sigma * mixture.eps(x_t, level, torch.zeros(32, dtype=torch.long))) / alpha
    # importance sampling of 40,000 draws, of which some hundred to all count; the spread of the denoised is 0.4
    torch.testing.assert_close(safe.unsafe(x_t, step), exact, rtol=0, atol=0.04)


def test_without_a_posterior_it_says_what_is_missing():
    with pytest.raises(SettingError, match="wrap the predictor in WithPosterior"):
        moved(near(OracleSafeDenoiser), draws())


# -------------------------------------------------------------------------------------------------------- references


PIXELS = torch.randint(256, (7, 1, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def stored(tmp_path):
    """Stores a tensor or something else, and gives the file's path."""

    def store(content, name="images.pt"):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return store


def images(references: str, shape: tuple[int, ...] = (1, 4, 5)) -> Tensor:
    return ShieldedDiffusion(references=references).images(torch.empty(2, *shape)).images


def test_pixels_are_read_as_the_values_that_networks_know(stored):
    assert torch.equal(images(stored(PIXELS)), to_float(PIXELS))
    assert torch.equal(images(stored(to_float(PIXELS).double(), "floats.pt")), to_float(PIXELS))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_png_files_is_read_in_the_order_of_their_names(channels, tmp_path):
    pixels = PIXELS.expand(7, channels, 4, 5)
    for number, image in enumerate(pixels):
        (tmp_path / f"{number:08}.png").write_bytes(to_png(image))
    for overview in ("grid.png", "trajectories.png"):
        (tmp_path / overview).write_bytes(to_png(pixels.repeat(1, 1, 3, 3)[0]))
    (tmp_path / "config.yaml").write_text("seed_everything: 0")
    assert torch.equal(images(str(tmp_path), (channels, 4, 5)), to_float(pixels))


def test_they_are_read_once(stored, tmp_path):
    path, like = stored(PIXELS), torch.empty(2, 1, 4, 5)
    guidance = ShieldedDiffusion(references=path)
    assert guidance.images(like) is guidance.images(like)
    assert guidance.images(like.double()).images.dtype == torch.double


@pytest.mark.parametrize("method", [SafeDenoiser, ShieldedDiffusion])
def test_what_the_references_alone_say_is_found_once(method, monkeypatch):
    quantile, found = torch.quantile, []
    monkeypatch.setattr(torch, "quantile", lambda *args: found.append(quantile(*args)) or found[-1])
    guidance, references = method(references="images"), References(draws(50))
    for index in range(3):
        guidance.push(draws(5), references, at(index))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (PIXELS[:0], r"must be images of \(1, 4, 5\); the tensor is \(0, 1, 4, 5\)"),
        (PIXELS.transpose(2, 3), r"must be images of \(1, 4, 5\); the tensor is \(7, 1, 5, 4\)"),
        (PIXELS[0, 0, 0, 0], r"must be images of \(1, 4, 5\); the tensor is \(\)"),
        (PIXELS.long(), "must hold one tensor of uint8 pixels, or of floats"),
        ({"images": PIXELS}, "must hold one tensor of uint8 pixels, or of floats"),
        (shutil, "is no .pt file of one tensor"),
    ],
)
def test_a_file_of_something_else_is_refused_when_sampling_starts(content, reason, stored, tmp_path):
    if content is shutil:
        (tmp_path / "images.pt").write_text("no tensor")
        path = str(tmp_path / "images.pt")
    else:
        path = stored(content)
    for method in METHODS:
        with pytest.raises(SettingError, match=reason) as error:
            method(references=path).start(torch.empty(2, 1, 4, 5), 1)
        assert "\n" not in str(error.value)


def test_so_is_a_folder_without_images_or_with_images_of_several_shapes(tmp_path):
    with pytest.raises(SettingError, match="a folder must hold PNG files, all of one shape"):
        images(str(tmp_path))
    (tmp_path / "0.png").write_bytes(to_png(PIXELS[0]))
    (tmp_path / "1.png").write_bytes(to_png(PIXELS[0].transpose(1, 2)))
    with pytest.raises(SettingError, match="a folder must hold PNG files, all of one shape"):
        images(str(tmp_path))


@pytest.mark.parametrize("name", ["", "nowhere", "mnist/ones.pt"])
def test_so_is_a_name_that_leads_nowhere(name):
    with pytest.raises(SettingError, match=f"references '{name}': no such .pt file and no such folder"):
        images(name)


def test_a_local_file_wins_over_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.references("mnist/zeros.pt").is_absolute()
    for place in ("checkpoints/mnist/zeros.pt", "mnist/zeros.pt"):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        torch.save(PIXELS, path)
        assert shipped.references("mnist/zeros.pt").absolute() == path


def test_too_few_references_to_tell_a_scale_by_say_what_to_set():
    one, few = near(ShieldedDiffusion, ONE), near(SafetyGuidedFlow, TWO)
    with pytest.raises(SettingError, match="name the radius, bandwidth or gamma"):
        moved(one, draws())
    with pytest.raises(SettingError, match="fewer than 5, or all alike: name the gamma or bandwidth"):
        moved(few, draws())
    with pytest.raises(SettingError, match="fewer than 5, or all alike"):
        moved(near(SafeDenoiser, ONE.expand(9, 2)), draws())


def test_what_ships_are_the_first_256_zeros_of_the_training_set(real_data):
    from torchvision.datasets import MNIST

    training = MNIST(str(real_data), train=True)
    zeros = training.data[training.targets == 0][:256].unsqueeze(1)
    shape = (1, 28, 28)
    assert torch.equal(
        read(shipped.references("mnist/zeros.pt"), shape, torch.float32, torch.device("cpu")).images, to_float(zeros)
    )


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("method", "setting", "reason"),
    [
        (ShieldedDiffusion, {"radius": 0.0}, "radius must be positive and finite, or null"),
        (SafetyGuidedFlow, {"gamma": -1.0}, "gamma must be positive and finite, or null"),
        (SafetyGuidedFlow, {"bound": 0.0}, "bound must be positive and finite, or null"),
        (SafetyGuidedFlow, {"window": (0.2, 0.8)}, "window must be two levels from 1 .* down to 0"),
        (SafeDenoiser, {"window": (1.2, 0.8)}, "window must be two levels from 1 .* down to 0"),
        (SafeDenoiser, {"bandwidth": 0.0}, "bandwidth must be positive and finite, or null"),
        (SafeDenoiser, {"threshold": -1.0}, "threshold must be at least 0"),
        (OracleSafeDenoiser, {"cap": 1.0}, r"cap must be inside \(0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(method, setting, reason):
    with pytest.raises(SettingError, match=reason):
        near(method, **setting)
