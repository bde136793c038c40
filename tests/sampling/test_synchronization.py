"""The host does not wait for the device in a step: seen on the data-less tensors of a GPU that torch makes anywhere."""

import traceback
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from test_axes import BY_POSTERIOR, GUIDANCES, POSTERIORS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import dng_lightning
from dng_lightning.guidance import Guidance
from dng_lightning.guidance.reference_guidance import ReferenceGuidance
from dng_lightning.guidance.references import References
from dng_lightning.modules import DiffusionModule
from dng_lightning.networks import UNet
from dng_lightning.sampling import (
    ClassConditionalPredictor,
    ImageNoise,
    Sampler,
    WithClassifier,
    WithObserver,
    WithProbe,
)
from dng_lightning.sampling.sampler import follow, with_schedule

SHAPE, SETTINGS = (1, 8, 8), {"radius": 1.0, "gamma": 1.0, "bandwidth": 1.0, "threshold": 1.0}  # of references
aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """Notes where the host reads a number of the device, or waits for a copy between the two.

    On a CPU it notes what would be such a copy: the tensors that are made from numbers of the host.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.places = device, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_there = bool(args) and isinstance(args[0], Tensor) and args[0].device.type == self.device
        if is_there and func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.lift_fresh.default):
            self.note()
        # What depends on the numbers is made up
        if func is aten._local_scalar_dense.default:
            return True
        if func is aten.nonzero.default:
            return torch.zeros(args[0].numel(), args[0].ndim, dtype=torch.long, device=args[0].device)
        result = func(*args, **kwargs)
        devices = {tensor.device for tensor in (result, *args) if isinstance(tensor, Tensor)}
        is_waiting = func in (aten._to_copy.default, aten.copy_.default) and not kwargs.get("non_blocking")
        if is_waiting and len(devices) > 1:
            self.note()
        return result

    def note(self) -> None:
        """Note the line of the package."""
        (folder,) = dng_lightning.__path__
        line = [frame for frame in traceback.extract_stack() if frame.filename.startswith(folder)][-1]
        self.places.append(f"{line.filename.removeprefix(folder)}:{line.lineno} {line.line}")


def waits(guidance: Guidance) -> list[str]:
    """Where the host waits in the second of three steps of 3 images with two forbidden classes."""
    needs = guidance.needs()
    device = "cpu" if needs.classifier == "gradient" else "cuda"  # autograd needs a GPU
    if isinstance(guidance, ReferenceGuidance):
        names = {field.name for field in fields(guidance)}
        found = {name: value for name, value in SETTINGS.items() if name in names}  # else from the references, once
        guidance = replace(guidance, references=References(torch.randn(6, *SHAPE)), **found)
    model = DiffusionModule(UNet(1, 3, channels=[8], attention=[]))
    chain, guidance = Sampler(3).chain(model.schedule), with_schedule(guidance, model.schedule)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with torch.device(device):
            model.net = UNet(1, 3, channels=[8], attention=[]).eval()
        toward_class = needs.class_labels or (needs.null and not needs.negatives)
        labels = torch.ones(3, dtype=torch.long, device=device) if toward_class else None
        predictor: Any = ClassConditionalPredictor(model, model.null_class, [0, 2], labels)
        predictor = WithObserver(predictor, lambda x: x.flatten(1)[:, :2].sigmoid())
        predictor = WithClassifier(predictor, lambda x, level: x.flatten(1)[:, :3].log_softmax(1), [0, 2])
        if not toward_class:
            predictor = WithProbe(predictor, lambda x, level: x.flatten(1)[:, :3].log_softmax(1), "middle1", [0, 2])

        def noise() -> Tensor:
            return torch.randn(3, *SHAPE, device=device)

        x = noise()
        with Waits("none"):
            x, state = follow(chain[:1], x, guidance.start(x, 2), predictor, guidance, noise)
        with Waits(device) as found:
            follow(chain[1:2], x, state, predictor, guidance, noise)
    return found.places


class Operations(TorchDispatchMode):
    """Notes the operations that make or copy a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = list[tuple[Any, Any]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func is not torch.ops.prim.device.default:
            self.noted.append((func, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_noise_is_drawn_into_one_buffer_which_is_copied_without_waiting(device: str):
    """One draw an image and no stack of them; what is copied to a GPU without waiting lies in pinned memory."""
    noise = ImageNoise(range(5), SHAPE, device)
    with FakeTensorMode(allow_non_fake_inputs=True), Waits("cuda") as waiting, Operations() as operations:
        assert noise().shape == (5, *SHAPE)
    buffer, *others = operations.noted
    assert buffer[0] is aten.empty.memory_format
    assert buffer[1]["pin_memory"] == (device == "cuda")
    draws, copies = others[:5], others[5:]
    assert {func for func, _ in draws} == {aten.normal_.default}
    assert [(func, settings["non_blocking"]) for func, settings in copies] == [(aten._to_copy.default, True)] * len(
        copies
    )
    assert len(copies) == (device == "cuda")
    assert waiting.places == []


SELECTIVE = "/sampling/predictors.py"  # evaluating a condition for some images alone takes their number
NAMES = [name for name in GUIDANCES if not name.startswith("AdaptiveNegative") and name != "ShieldedDiffusion"]


@pytest.mark.parametrize("name", NAMES)
def test_no_guidance_waits(name: str):
    assert waits(GUIDANCES[name]) == []


@pytest.mark.parametrize("name", [name for name in POSTERIORS if name != "observer"])
def test_no_posterior_waits(name: str):
    assert waits(BY_POSTERIOR["DynamicNegativeGuidance"](POSTERIORS[name])) == []


@pytest.mark.parametrize("guidance", [
    BY_POSTERIOR["DynamicNegativeGuidance, skipping"](POSTERIORS["tracked"]),
    BY_POSTERIOR["DynamicNegativeGuidance"](POSTERIORS["observer"]),
    *(guidance for name, guidance in GUIDANCES.items() if name.startswith("AdaptiveNegative")),
])  # fmt: skip
def test_what_skips_images_waits_once(guidance: Guidance):
    (place,) = waits(guidance)
    assert place.startswith(SELECTIVE)


def test_finding_the_near_references_waits_once():
    (place,) = waits(GUIDANCES["ShieldedDiffusion"])
    assert place.startswith("/guidance/spell.py")
