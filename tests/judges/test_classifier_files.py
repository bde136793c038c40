"""Classifiers in TorchScript and ONNX files, and a network of one's own."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_judges import IMAGES, PIXELS, PLAIN, Net, weights_of
from torch import Tensor, nn

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.features import ClassifierFeatures, fingerprint
from dng_lightning.judges import (
    ModuleClassifier,
    ONNXClassifier,
    Preprocessing,
    TorchScriptClassifier,
)
from dng_lightning.modules.judges import load_classifier

# --- files that bring their network along ---


class WithFeatures(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    @torch.jit.export
    def features(self, x: Tensor) -> Tensor:
        return self.hidden(x)


@pytest.mark.parametrize("kind", ["traced", "features", "pair"])
def test_torchscript(kind: str, net: Net, tmp_path: Path):
    class Pair(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return self.head(self.hidden(x)), self.hidden(x)

    shown, path = PLAIN((IMAGES + 1) / 2), str(tmp_path / "mine.pt")
    given: nn.Module = {"traced": Net, "features": WithFeatures, "pair": Pair}[kind]()
    given.load_state_dict(net.state_dict())
    script = torch.jit.script(given) if kind == "features" else torch.jit.trace(given, shown)
    torch.jit.save(script, path)
    judge = TorchScriptClassifier(path, list("abcd"), PLAIN)
    assert torch.allclose(judge(IMAGES), net(shown), atol=1e-6)
    assert hasattr(judge, "num_features") == (kind != "traced")
    if kind != "traced":
        assert torch.allclose(ClassifierFeatures(judge, judge.name)(PIXELS), net.hidden(shown), atol=1e-6)
    with pytest.raises(
        SettingError, match=r"mine.pt does not say its classes .* by class_path TorchScriptClassifier with"
    ):
        load_classifier(path)


def test_torchscript_that_is_something_else(tmp_path: Path, net: Net):
    with pytest.raises(SettingError, match=r"is no TorchScript file: .*; write one with"):
        TorchScriptClassifier(weights_of(net, tmp_path / "mine.pt"), list("abcd"), PLAIN)
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 8, 8)), tmp_path / "whole.pt")
    with pytest.raises(SettingError, match=r"does not take the preprocessed images: set preprocessing.size"):
        TorchScriptClassifier(str(tmp_path / "whole.pt"), list("abcd"), Preprocessing([0.0] * 3, [1.0] * 3))
    torch.jit.save(torch.jit.script(nn.Conv2d(1, 4, 3)), tmp_path / "grey.pt")
    with pytest.raises(SettingError, match=r"preprocessing.channels to 1 for grey ones: RuntimeError: .* 1 channels"):
        TorchScriptClassifier(str(tmp_path / "grey.pt"), list("abcd"), Preprocessing([0.0] * 3, [1.0] * 3))


def onnx_file(net: Net, path: Path, softmax: bool = False) -> str:
    """The network written node by node: exporters need further libraries."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
    tensors = [
        onnx.numpy_helper.from_array(value.numpy(), name.replace(".", "_")) for name, value in net.state_dict().items()
    ]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "hidden_1_weight", "hidden_1_bias"], ["linear"], transB=1),
        helper.make_node("Relu", ["linear"], ["features"]),
        helper.make_node("Gemm", ["features", "head_weight", "head_bias"], ["logits"], transB=1),
        helper.make_node("Softmax" if softmax else "Identity", ["logits"], ["output"]),
    ]
    image = helper.make_tensor_value_info("image", FLOAT, ["n", 3, 8, 8])
    outputs = [
        helper.make_tensor_value_info(name, FLOAT, ["n", width]) for name, width in (("output", 4), ("features", 5))
    ]
    graph = helper.make_graph(nodes, "classifier", [image], outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return str(path)


def test_onnx(net: Net, tmp_path: Path):
    shown, path = PLAIN((IMAGES + 1) / 2), onnx_file(net, tmp_path / "mine.onnx")
    judge = ONNXClassifier(path, list("abcd"), PLAIN, features="features")
    assert torch.allclose(judge(IMAGES), net(shown), atol=1e-5)
    assert torch.allclose(ClassifierFeatures(judge, judge.name)(PIXELS), net.hidden(shown), atol=1e-5)
    other = ONNXClassifier(onnx_file(Net(), tmp_path / "other.onnx"), list("abcd"), PLAIN, features="features")
    assert fingerprint(other) != fingerprint(judge)
    soft = ONNXClassifier(
        onnx_file(net, tmp_path / "soft.onnx", softmax=True), list("abcd"), PLAIN, outputs="probabilities"
    )
    assert torch.allclose(soft.probabilities(IMAGES), net(shown).softmax(1), atol=1e-5)


def test_onnx_that_is_something_else(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = onnx_file(net, tmp_path / "mine.onnx")
    with pytest.raises(SettingError, match=r"has no output 'neck': its outputs are output, features$"):
        ONNXClassifier(path, list("abcd"), PLAIN, features="neck")
    (tmp_path / "damaged.onnx").write_bytes(b"nothing")
    for file in ("damaged.onnx", "nowhere.onnx"):
        with pytest.raises(SettingError, match=f"{file} is no ONNX file: "):
            ONNXClassifier(str(tmp_path / file), list("abcd"), PLAIN)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingError, match=r"needs onnxruntime: pip install 'dng-lightning\[onnx\]'$"):
        ONNXClassifier(path, list("abcd"), PLAIN)


# --- a network of one's own ---


class Code:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("this code ran",)


def test_a_module_by_class_path(net: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    judge = ModuleClassifier(Net(), weights_of(net, tmp_path / "mine.pth"), list("abcd"), PLAIN)
    assert torch.equal(judge(IMAGES), net(PLAIN((IMAGES + 1) / 2)))
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in net.state_dict().items()}}, tmp_path / "ddp.pt"
    )
    assert torch.equal(ModuleClassifier(Net(), str(tmp_path / "ddp.pt"), list("abcd"), PLAIN)(IMAGES), judge(IMAGES))
    torch.save({"model": net, "code": Code()}, tmp_path / "pickle.pth")
    with pytest.raises(
        SettingError, match=r"pickle.pth is refused, because it contains code; if you trust it, convert it"
    ):
        ModuleClassifier(Net(), str(tmp_path / "pickle.pth"), list("abcd"), PLAIN)
    assert "this code ran" not in capsys.readouterr().out
    with pytest.raises(SettingError, match=r"pth does not say its classes .* by class_path ModuleClassifier with"):
        load_classifier(str(tmp_path / "mine.pth"))


def test_our_own_checkpoints_come_first():
    assert load_classifier("digits-classifier").class_names == tuple("0123456789")
    with pytest.raises(
        SettingError, match=r"^No checkpoint 'digit-classifier'.*Nor is it a classifier of torchvision, timm/"
    ):
        load_classifier("digit-classifier")
