import io
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dng_lightning.data.pixels import to_float
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.features import ClassifierFeatures, fingerprint
from dng_lightning.modules.classifier import ClassifierModule
from dng_lightning.modules.judges import load_features
from dng_lightning.networks.classifier import ImageClassifier

PIXELS = torch.randint(256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture
def classifier() -> ClassifierModule:
    return ClassifierModule.load("digits-classifier")


def test_they_are_what_the_classifier_decides_by(classifier: ClassifierModule):
    extractor = ClassifierFeatures(classifier, "digits-classifier")
    features = extractor(PIXELS)
    assert (extractor.name, features.shape) == ("digits-classifier", (6, extractor.num_features))
    torch.testing.assert_close(classifier.net.head(features), classifier(to_float(PIXELS)))


def test_full_precision_and_evaluation_mode_whatever_the_trainer_runs_in(classifier: ClassifierModule):
    extractor = ClassifierFeatures(classifier, "digits-classifier")
    expected = extractor(PIXELS)
    classifier.train().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        features = extractor(PIXELS)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert classifier.net.training
    assert torch.equal(features, expected)


def test_half_precision_weights_give_single_precision_features(classifier: ClassifierModule):
    expected = ClassifierFeatures(classifier, "digits-classifier")(PIXELS)
    features = ClassifierFeatures(classifier.to(torch.bfloat16), "digits-classifier")(PIXELS)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=0.1, atol=0.1)


def test_an_extractor_is_no_part_of_the_module_that_holds_it(classifier: ClassifierModule):
    holder = nn.Module()
    holder.features = ClassifierFeatures(classifier, "digits-classifier")
    assert not holder.state_dict()
    assert holder.features.to("cpu") is holder.features


def test_the_fingerprint_tells_weights_apart(classifier: ClassifierModule):
    first = ClassifierFeatures(classifier, "a").fingerprint
    assert ClassifierFeatures(ClassifierModule.load("digits-classifier"), "b").fingerprint == first
    with torch.no_grad():
        classifier.net.head[1].bias[3] += 1e-6
    assert fingerprint(classifier.net) != first
    norm = nn.BatchNorm1d(2)
    before = fingerprint(norm)
    norm.running_mean += 1
    assert fingerprint(norm) != before
    assert fingerprint(nn.Linear(2, 1).to(torch.bfloat16))


def test_a_classifier_without_features():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net.num_classes = 10
    with pytest.raises(SettingError, match=r"^the classifier mine \(Sequential\) has no features: give its net"):
        ClassifierFeatures(ClassifierModule(net), "mine")
    assert ClassifierFeatures(ClassifierModule(ImageClassifier(1, 10, features=7)), "mine").num_features == 7


# --- Inception ---


def test_inception_features(inception_weights: Path):
    extractor = load_features("inception", str(inception_weights))
    features = extractor(PIXELS[:2])
    assert (extractor.name, extractor.num_features) == ("inception-2048", 2048)
    assert (features.shape, features.dtype) == ((2, 2048), torch.float32)
    assert float((features[0] - features[1]).abs().max()) > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extractor(PIXELS[:2].repeat(1, 3, 1, 1)), features)  # grey is colour of three equal channels
    assert extractor.fingerprint == fingerprint(extractor.net)


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this code ran",)


def test_weights_that_are_none(inception_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "other.pth"
    with pytest.raises(SettingError, match=r"^no weights of inception from .*other.pth: .*No such file"):
        load_features("inception", str(file))
    torch.save(nn.Linear(2, 1).state_dict(), file)
    with pytest.raises(SettingError, match=r"^no weights of inception from .*other.pth"):
        load_features("inception", str(file))
    torch.save({"weight": Code()}, file)
    with pytest.raises(SettingError, match=r"^no weights of inception from .*other.pth"):
        load_features("inception", str(file))
    assert "this code ran" not in capsys.readouterr().out


def test_weights_that_cannot_be_downloaded(inception_weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fail(*args: object, **kwargs: object) -> io.BytesIO:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SettingError, match=r"^no weights of inception in torch.hub's cache, .*no route to host"):
        load_features("inception")


def test_inception_needs_torch_fidelity(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(SettingError, match=r"^the features inception needs torch_fidelity: pip install"):
        load_features("inception")


# --- DINOv2, CLIP and classifiers ---


class TinyDinoV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 14, 14)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 224, 224)
        return self.patches(x).mean((2, 3))


def test_dinov2_features(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch_fidelity", reason="TORCH-FIDELITY MISSING (extra fid)")
    loaded = []

    def load(repository: str, model: str) -> nn.Module:
        loaded.append((repository, model))
        return TinyDinoV2()

    monkeypatch.setattr(torch.hub, "load", load)
    extractor = load_features("dinov2-vit-b-14")
    assert loaded == [("facebookresearch/dinov2", "dinov2_vitb14")]
    assert (extractor.name, extractor.num_features) == ("dinov2-vit-b-14", 6)
    assert extractor(PIXELS[:2]).shape == (2, 6)
    assert torch.equal(extractor(PIXELS[:2]), extractor(PIXELS[:2].repeat(1, 3, 1, 1)))
    with pytest.raises(SettingError, match=r"^dinov2-vit-b-14 comes from torch.hub's cache, not from a file"):
        load_features("dinov2-vit-b-14", "weights.pth")


def clip_file(path: Path) -> str:
    """A vision transformer of one layer of 64 in the layout of CLIP's authors: TorchScript that holds parameters."""
    clip = pytest.importorskip("torch_fidelity.feature_extractor_clip", reason="TORCH-FIDELITY MISSING (extra fid)")
    torch.manual_seed(0)
    holder = nn.Module()
    for name, tensor in clip.CLIPVisual(16, 64, 1, 64, 32).state_dict().items():
        *parents, last = name.split(".")
        place = holder
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        place.register_parameter(last, nn.Parameter(tensor))
    holder.text_projection = nn.Parameter(torch.zeros(1, 16))
    torch.jit.save(torch.jit.script(holder), path)
    return str(path)


def test_clip_features(tmp_path: Path):
    extractor = load_features("clip-vit-b-32", clip_file(tmp_path / "clip.pt"))
    features = extractor(PIXELS[:2])
    assert (extractor.name, features.shape, features.dtype) == ("clip-vit-b-32", (2, 16), torch.float32)
    assert float((features[0] - features[1]).abs().max()) > 0


@pytest.mark.parametrize("name", ["dinov2-vit-b-14", "clip-vit-b-32"])
def test_extractors_that_cannot_be_downloaded(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("torch_fidelity", reason="TORCH-FIDELITY MISSING (extra fid)")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    line = rf"^no weights of {name} in torch.hub's cache, and they cannot be downloaded: \S"
    with pytest.raises(SettingError, match=line):
        load_features(name)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(
        SettingError, match=rf"^the features {name} needs torch_fidelity: pip install 'dng-lightning\[fid"
    ):
        load_features(name)


def test_features_of_another_classifier(classifier: ClassifierModule):
    extractor = load_features("digits-classifier")
    assert (extractor.name, extractor.fingerprint) == ("digits-classifier", fingerprint(classifier.net))
    with pytest.raises(SettingError, match=r"^features dinov3 are not classifier, inception.*: No checkpoint 'dinov3'"):
        load_features("dinov3")
