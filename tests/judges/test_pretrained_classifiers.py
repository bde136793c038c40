"""Classifiers of other libraries as judges; every file is made here, with random weights."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
import yaml
from safetensors.torch import save_file
from tiny_judges import IMAGES, PIXELS, PLAIN, Net, weights_of
from torch import nn

from dng_lightning import judges
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.features import ClassifierFeatures, fingerprint
from dng_lightning.judges import (
    Preprocessing,
    PretrainedClassifier,
    TimmClassifier,
    TorchvisionClassifier,
    TransformersClassifier,
)
from dng_lightning.modules.judges import load_classifier


def judge_of(net: nn.Module, names: str = "abcd", **settings: object) -> PretrainedClassifier:
    judge = PretrainedClassifier("mine", net, names, settings.pop("classes", None), PLAIN, **settings)  # type: ignore[arg-type]
    judge.watch_head(None)
    return judge


# --- what all of them share ---


def test_logits_and_features_are_the_network_s(net: Net):
    judge, shown = judge_of(net), PLAIN((IMAGES + 1) / 2)
    with torch.no_grad():
        assert torch.equal(judge(IMAGES), net(shown))
        assert torch.equal(judge.features(IMAGES), net.hidden(shown))
    assert judge.num_features == 5
    found = judge.label(IMAGES)
    assert torch.equal(found.labels, net(shown).argmax(1))
    assert torch.equal(found.confidence, net(shown).softmax(1).max(1).values)


def test_probabilities_of_mapped_classes_add_up(net: Net):
    theirs = judge_of(net).probabilities(IMAGES)
    judge = judge_of(net, classes={"x": ["a", "c"], "y": "b"})
    assert judge.class_names == ("x", "y")
    ours = torch.stack([theirs[:, [0, 2]].sum(1), theirs[:, 1]], 1)
    assert torch.allclose(judge.probabilities(IMAGES), ours / ours.sum(1, keepdim=True))
    judge.sort_into(("y", "x"), (3, 32, 32))  # in the order of the diffusion model
    assert torch.allclose(judge.probabilities(IMAGES), (ours / ours.sum(1, keepdim=True)).flip(1))


def test_any_number_and_size_of_images_grey_or_coloured(net: Net):
    judge = judge_of(net)
    many = torch.rand(150, 3, 16, 16) * 2 - 1
    each = torch.cat([judge(image[None]) for image in many])
    assert torch.allclose(judge(many), each, atol=1e-6)
    grey = many[:, :1]
    assert torch.equal(judge(grey), judge(grey.repeat(1, 3, 1, 1)))
    takes_grey = PretrainedClassifier(
        "grey", Net(channels=1), "abcd", None, Preprocessing([0.0], [1.0], 8, channels=1), 1
    )
    assert torch.allclose(takes_grey(grey.repeat(1, 3, 1, 1)), takes_grey(grey), atol=1e-3)  # 0.299 + 0.587 + 0.114


def test_full_precision_and_evaluation_mode_whatever_the_trainer_runs_in():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))
    judge = judge_of(net)
    expected = judge.label(IMAGES).confidence
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(judge.label(IMAGES.bfloat16().float()).confidence, judge.label(IMAGES.bfloat16()).confidence)
        assert torch.equal(judge.label(IMAGES).confidence, expected)
    assert not any(weight.requires_grad for weight in judge.parameters())


def test_the_fingerprint_is_of_weights_mapping_and_preprocessing(net: Net):
    first = fingerprint(judge_of(net))
    assert fingerprint(judge_of(net)) == first
    assert fingerprint(judge_of(net, classes={"x": "a", "y": "b"})) != first
    other = PretrainedClassifier("mine", net, "abcd", None, Preprocessing([0.1] * 3, [1.0] * 3, 8))
    assert fingerprint(other) != first
    with torch.no_grad():
        net.head.bias[0] += 1
    assert fingerprint(judge_of(net)) != first


def test_features_for_a_frechet_distance(net: Net):
    extractor = ClassifierFeatures(judge_of(net), "mine")
    assert (extractor.name, extractor.num_features) == ("mine", 5)
    assert torch.equal(extractor(PIXELS), judge_of(net).features(IMAGES))


def test_a_head_that_is_a_convolution_is_averaged():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    judge = judge_of(net)
    assert torch.allclose(judge.features(IMAGES), net[0](PLAIN((IMAGES + 1) / 2)).mean((2, 3)), atol=1e-6)
    judge.watch_head("0")  # by name; its input has three channels
    assert judge.num_features == 3


def test_settings_that_do_not_fit_are_named(net: Net):
    with pytest.raises(
        SettingError, match=r"^mine has no layer 'neck': set its head to a linear layer, such as hidden.1"
    ):
        judge_of(net).watch_head("neck")
    with pytest.raises(SettingError, match=r"^mine has 4 outputs and 3 class_names: name all of its classes$"):
        judge_of(net, "abc").label(IMAGES)
    whole = PretrainedClassifier("mine", net, "abcd", None, Preprocessing([0.0] * 3, [1.0] * 3))
    with pytest.raises(SettingError, match=r"^mine cannot judge images of \(3, 32, 32\): mat1 and mat2"):
        whole.sort_into("abcd", (3, 32, 32))
    with pytest.raises(
        SettingError,
        match=r"^preprocessing: mean and std must be 3 numbers each, as many as preprocessing.channels, std",
    ):
        Preprocessing([0.0], [1.0])
    no_head = PretrainedClassifier("mine", net, "abcd", None, PLAIN)
    with pytest.raises(
        SettingError, match=r"^the classifier mine \(PretrainedClassifier\) has no features: set its head"
    ):
        ClassifierFeatures(no_head, "mine")


# --- torchvision ---


@pytest.fixture(scope="module")
def shufflenet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.shufflenet_v2_x0_5(weights=None).eval()


@pytest.fixture
def torch_home(tmp_path: Path, shufflenet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of downloads that has weights of one network; the net is out of reach."""
    file = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(shufflenet.state_dict(), tmp_path / "hub" / "checkpoints" / file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", no_connection)
    return tmp_path


def no_connection(*_: object, **__: object) -> None:
    raise socket.gaierror(-2, "Name or service not known")


def test_torchvision_by_name(torch_home: Path, shufflenet: nn.Module):
    judge = load_classifier("shufflenet_v2_x0_5")
    assert isinstance(judge, TorchvisionClassifier)
    shown = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms()(PIXELS)
    assert torch.allclose(judge(IMAGES), shufflenet(shown), atol=0.02)  # theirs rounds to whole pixels after resizing
    assert (judge.num_features, judge.own_names[404], judge.name) == (
        1024,
        "airliner",
        "torchvision-shufflenet_v2_x0_5",
    )
    classes = {"plane": ["airliner", "warplane"], "cat": ["tabby", "tiger cat", "Egyptian cat"]}
    mapped = TorchvisionClassifier("shufflenet_v2_x0_5", classes=classes)
    mapped.sort_into(["cat", "plane"], (3, 32, 32))
    assert mapped.groups == ((281, 282, 285), (404, 895))


def test_the_mapping_of_the_documentation(torch_home: Path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "your-judge.md").read_text()
    classifier = yaml.safe_load(page.split("```yaml")[1].split("```")[0])["model"]["init_args"]["classifier"]
    settings = classifier["init_args"] | {"model": "shufflenet_v2_x0_5"}  # of the same classes
    judge = getattr(judges, classifier["class_path"])(**settings)
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # CIFAR-10's
    judge.sort_into(names, (3, 32, 32))
    assert len(judge.groups) == 10
    assert judge.groups[0] == (404, 895)
    assert judge.groups[-1][-1] == 864  # a tow truck


def test_torchvision_by_file(tmp_path: Path):
    net = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=4).eval()
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, tmp_path / "mine.safetensors")
    (tmp_path / "names.txt").write_text("a\nb\n\nc\nd\n")
    for names in (list("abcd"), str(tmp_path / "names.txt")):
        settings = {"class_names": names, "preprocessing": Preprocessing([0.5] * 3, [0.5] * 3)}
        judge = TorchvisionClassifier("shufflenet_v2_x0_5", str(tmp_path / "mine.safetensors"), **settings)  # type: ignore[arg-type]
        assert judge.own_names == tuple("abcd")
        assert torch.allclose(judge(IMAGES), net(IMAGES), atol=1e-5)
    with pytest.raises(SettingError, match=r"mine.safetensors holds weights of another network than this ShuffleNetV2"):
        TorchvisionClassifier("shufflenet_v2_x0_5", str(tmp_path / "mine.safetensors"), ["a", "b"])


def test_torchvision_offline(torch_home: Path):
    with pytest.raises(
        SettingError, match=r"^torchvision's weights of squeezenet1_1 cannot be downloaded, set weights to a file"
    ):
        load_classifier("squeezenet1_1")
    with pytest.raises(SettingError, match=r"^torchvision has no classifier 'resnet19'"):
        TorchvisionClassifier("resnet19")
    with pytest.raises(SettingError, match=r"^no file of weights at .*/nowhere.pth$"):
        TorchvisionClassifier("squeezenet1_1", str(torch_home / "nowhere.pth"))


# --- timm ---


@pytest.fixture
def timm() -> SimpleNamespace:
    return pytest.importorskip("timm", reason="timm is not installed (extra timm)")  # type: ignore[no-any-return]


def test_timm_by_file_and_by_folder(timm: SimpleNamespace, tmp_path: Path):
    net = timm.create_model("test_resnet", num_classes=4).eval()
    judge = TimmClassifier("test_resnet", weights_of(net, tmp_path / "mine.pth"), list("abcd"))
    config = timm.data.resolve_model_data_config(net)
    shown = timm.data.create_transform(**config, is_training=False)((IMAGES + 1) / 2)
    assert torch.equal(judge(IMAGES), net(shown))
    assert torch.equal(judge.features(IMAGES), net.forward_head(net.forward_features(shown), pre_logits=True))
    timm.models.save_for_hf(net, tmp_path / "folder", model_config={"label_names": list("abcd")})
    folder = load_classifier(str(tmp_path / "folder"))
    assert isinstance(folder, TimmClassifier)
    assert torch.equal(folder(IMAGES), net(shown))
    assert folder.class_names == tuple("abcd")
    assert folder.name == "timm-folder"


def test_timm_by_name(timm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    made: list[dict[str, object]] = []
    create = timm.create_model

    def offline(name: str, pretrained: bool) -> nn.Module:
        made.append({"name": name, "pretrained": pretrained})
        return create(name.split(":")[-1].split("/")[-1])  # type: ignore[no-any-return]

    monkeypatch.setattr(timm, "create_model", offline)
    judge = load_classifier("timm/test_resnet.r160_in1k")
    assert (judge.class_names[404], len(judge.class_names)) == ("airliner", 1000)
    TimmClassifier("owner/test_resnet")
    assert made == [
        {"name": "test_resnet.r160_in1k", "pretrained": True},
        {"name": "hf-hub:owner/test_resnet", "pretrained": True},
    ]


def test_timm_offline_or_missing(timm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(socket, "getaddrinfo", no_connection)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingError, match=r"^timm cannot load resnet19, set weights to a file: Unknown model"):
        TimmClassifier("resnet19")
    with pytest.raises(SettingError, match=r"^timm cannot load test_vit.r160_in1k, set weights to a file: "):
        load_classifier("timm/test_vit.r160_in1k")
    monkeypatch.setitem(sys.modules, "timm", None)
    mend = r"^the classifier test_vit needs timm: pip install 'dng-lightning\[timm\]'$"
    with pytest.raises(SettingError, match=mend):
        load_classifier("timm/test_vit")


# --- transformers ---


@pytest.fixture
def transformers_folder(tmp_path: Path) -> Path:
    library = pytest.importorskip("transformers", reason="transformers is not installed (extra transformers)")
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    config = library.ResNetConfig(**sizes, id2label=dict(enumerate("abcd")))
    library.ResNetForImageClassification(config).eval().save_pretrained(tmp_path / "resnet")
    size = {"size": {"height": 16, "width": 16}, "do_normalize": True, "image_mean": [0.4] * 3, "image_std": [0.3] * 3}
    library.ViTImageProcessor(**size, resample=2).save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet"


def test_transformers_by_folder(transformers_folder: Path):
    import transformers

    judge = load_classifier(str(transformers_folder))
    assert isinstance(judge, TransformersClassifier)
    processor = transformers.AutoImageProcessor.from_pretrained(transformers_folder)
    net = transformers.AutoModelForImageClassification.from_pretrained(transformers_folder).eval()
    with torch.no_grad():
        found = net(processor(images=list(PIXELS), return_tensors="pt")["pixel_values"], output_hidden_states=True)
    assert torch.allclose(judge(IMAGES), found.logits, atol=0.01)  # theirs rounds to whole pixels after resizing
    assert torch.allclose(judge.features(IMAGES), found.hidden_states[-1].mean((2, 3)), atol=0.01)
    assert judge.class_names == tuple("abcd")
    assert judge.name == "transformers-resnet"


def test_transformers_offline_or_missing(transformers_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingError, match=r"^google/vit-base-patch16-224 is no image classifier of transformers: "):
        load_classifier("google/vit-base-patch16-224")
    (transformers_folder / "model.safetensors").unlink()
    with pytest.raises(SettingError, match=r"resnet is no image classifier of transformers: "):
        load_classifier(str(transformers_folder))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingError, match=r"resnet needs transformers: pip install 'dng-lightning\[transformers\]'$"):
        load_classifier(str(transformers_folder))
