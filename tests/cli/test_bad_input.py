"""A mistake is one line on stderr that says what to mend, exit code 2, and nothing is written or run."""

import contextlib
import importlib
import io
import pickle
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning_utilities.core.imports import RequirementCache
from running import Dng, DngProcess, closed_pipe

from dng_lightning.__main__ import main
from dng_lightning.data import Digits
from dng_lightning.evaluation.features import ClassifierFeatures
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.modules import ClassifierModule, DiffusionModule

GUIDANCE = "--model.guidance=DynamicNegativeGuidance"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


class Touch:
    """What a pickle must not do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def complaint(dng: Dng, capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line that `dng` ends with; nothing else may have happened."""
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().parent.rglob("*")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        dng(*args)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith("INFO")]  # Lightning's greeting
    assert len(lines) == 1, err
    assert lines[0].startswith("dng: error: ")
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().parent.rglob("*")} == before
    return lines[0]


# --- settings of the sampler ---


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--model.forbidden=unicorn", "no class 'unicorn'; the checkpoint knows 0, 1, 2"),
        ("--model.forbidden=10", "no class"),
        ("--model.forbidden=a: b", "no class 'a: b'"),
        ("--model.forbidden={}", "no class '{}'"),
        ("--model.forbidden=null", "forbidden names no class"),
        ("--model.forbidden=-1", "no class"),
        ("--model.forbidden=[3,11]", "no class"),
        ("--model.forbidden=[3,3]", "named twice"),
        ("--model.class_labels=unicorn", "no class 'unicorn'"),
        ("--model.steps=0", "steps must be at least 1; got 0"),
        ("--model.steps=-5", "steps must be at least 1; got -5"),
        ("--model.steps=1001", "steps must be between 1 and 1000"),
        ("--model.steps=many", "Expected a <class 'int'>. Got value: many"),
        ("--model.eta=1.5", "eta must be in [0, 1]"),
        ("--model.clip=0", "clip must be positive"),
        ("--model.variance=gamma", "gamma"),
        ("--model.nonsense=1", "nonsense"),
        ("--model.negative_checkpoints=[nowhere]", "No checkpoint 'nowhere'"),
        ("--model.classifier=nowhere", "No checkpoint 'nowhere'"),
        ("--data.num_samples=0", "data.num_samples must be at least 1; got 0"),
        ("--data.first_seed=-1", "data.first_seed must be at least 0"),
        ("--data.batch_size=0", "data.batch_size must be at least 1"),
        ("--ckpt_path=last.ckpt", "--model.checkpoint last.ckpt"),
    ],
)
def test_settings_of_the_sampler(setting: str, message: str, dng: Dng, from_tiny: list[str], capsys):
    assert message in complaint(dng, capsys, "predict", *from_tiny, setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["posterior.temperature=-1"], "temperature must be at least 0 and finite; got -1"),
        (["posterior.prior=0"], "prior must be inside (0, 1); got [0.0]"),
        (["posterior.prior=1"], "prior must be inside (0, 1)"),
        (["posterior.prior=1.5"], "prior must be inside (0, 1)"),
        (["posterior.prior=.nan"], "prior must be inside (0, 1)"),
        (["posterior.prior=0.5", "posterior.p_max=0.4"], "p_max must be at least the prior"),
        (["posterior.p_max=1"], "p_max must be at least the prior and below 1"),
        (["posterior.p_min=0.5"], "p_min must be between 0 and the prior"),
        (["scale=-1"], "scale must be at least 0"),
        (["scale=.inf"], "scale must be at least 0"),
        (["posterior.prior=[0.1,0.2]"], "prior must be one number or one for each of the 1 forbidden conditions"),
        (["posterior.prior=0.6", "forbidden=[1,2]"], "sum to 1.2, above p_max"),
    ],
)
def test_settings_of_the_guidance(settings: list[str], message: str, dng: Dng, from_tiny: list[str], capsys):
    given = [f"--model.{'' if 'forbidden' in setting else 'guidance.'}{setting}" for setting in settings]
    tracked = "--model.guidance.posterior=TrackedPosterior"
    assert message in complaint(dng, capsys, "predict", *from_tiny, GUIDANCE, tracked, *given)


@pytest.mark.parametrize("method", ["ClassifierFreeGuidance", "CFGPlusPlus", "FeedbackGuidance"])
def test_a_guidance_toward_a_class_without_one(method: str, dng: Dng, from_tiny: list[str], capsys):
    line = complaint(dng, capsys, "predict", *from_tiny, f"--model.guidance={method}", "--model.guidance.scale=1")
    assert f'{method} guides toward a class: set class_labels to one, or to "all"' in line


def test_to_avoid_nothing_or_all_that_is_wanted(dng: Dng, from_tiny: list[str], capsys):
    assert "forbidden names no class" in complaint(dng, capsys, "predict", *from_tiny, "--model.forbidden=[]")
    line = complaint(dng, capsys, "predict", *from_tiny, "--model.forbidden=[3,4]", "--model.class_labels=3")
    assert "every class of class_labels is forbidden" in line


def test_an_overlay_of_predict_is_no_training(dng: Dng, capsys):
    assert "training_step" in complaint(dng, capsys, "fit", "--config=perp_neg.yaml")


def test_a_negative_network_of_another_class(dng: Dng, from_tiny: list[str], tiny_single_class: Path, capsys):
    for checkpoint, forbidden in ((tiny_single_class, 3), (from_tiny[0].partition("=")[2], 0)):
        pair = [f"--model.negative_checkpoints=[{checkpoint}]", "--model.guidance.posterior=TrackedPosterior"]
        line = complaint(dng, capsys, "predict", *from_tiny, *pair, f"--model.forbidden={forbidden}")
        assert f"not on {forbidden} alone" in line


def test_several_mistakes_are_one_line_too(dng: Dng, from_tiny: list[str], capsys):
    complaint(
        dng, capsys, "predict", *from_tiny, "--model.forbidden=unicorn", "--model.steps=0", "--data.num_samples=0"
    )


def test_a_class_that_the_checkpoint_never_saw(dng: Dng, from_tiny: list[str], tiny_checkpoint: Path, capsys):
    stored = torch.load(tiny_checkpoint / "model.ckpt", weights_only=True)
    stored["trained_on"]["seen_classes"].remove(3)
    torch.save(stored, "without-3.ckpt")
    checkpoint = "--model.checkpoint=without-3.ckpt"
    for setting in ("--model.forbidden=3", "--model.class_labels=3"):
        assert "never saw class '3'" in complaint(dng, capsys, "predict", *from_tiny, checkpoint, setting)


def test_an_unconditional_model_has_no_negative_of_its_own(
    dng: Dng, from_tiny: list[str], tiny_single_class: Path, capsys
):
    line = complaint(dng, capsys, "predict", *from_tiny, f"--model.checkpoint={tiny_single_class}")
    assert "is unconditional: name negative_checkpoints" in line or "never saw" in line


# --- checkpoints ---


def damaged(kind: str, good: Path) -> bytes:
    whole = good.read_bytes()
    contents = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "short": whole[:-1],
        "text": b"These are not the weights that you are looking for.\n",
        "image": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "archive": b"",
    }
    if kind == "archive":
        with zipfile.ZipFile("any.zip", "w") as archive:
            archive.writestr("weights.txt", "0.5")
        return Path("any.zip").read_bytes()
    return contents[kind]


@pytest.mark.parametrize("kind", ["empty", "half", "short", "text", "image", "archive"])
def test_damaged_checkpoints(kind: str, dng: Dng, from_tiny: list[str], tiny_checkpoint: Path, capsys):
    Path("damaged.ckpt").write_bytes(damaged(kind, tiny_checkpoint / "model.ckpt"))
    for setting in ("checkpoint", "classifier"):
        line = complaint(dng, capsys, "predict", *from_tiny, f"--model.{setting}=damaged.ckpt")
        assert "damaged.ckpt is " in line
    assert "damaged.ckpt is " in complaint(dng, capsys, "fit", "--ckpt_path=damaged.ckpt")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n",
            "a pointer of Git LFS: run git lfs",
        ),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page, not the file itself"),
        (b"", "empty"),
    ],
)
def test_what_a_download_leaves_in_the_place_of_weights(
    content: bytes, kind: str, dng: Dng, from_tiny: list[str], capsys
):
    for name in ("file.ckpt", "file.safetensors", "file.pt"):
        Path(name).write_bytes(content)
        for setting in ("checkpoint", "classifier"):
            assert f"{name} is {kind}" in complaint(dng, capsys, "predict", *from_tiny, f"--model.{setting}={name}")
    assert f"file.ckpt is {kind}" in complaint(dng, capsys, "fit", "--ckpt_path=file.ckpt")


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, [1, 2], torch.zeros(3), {"hyper_parameters": {"net": 1}}])
def test_foreign_checkpoints(content: object, dng: Dng, from_tiny: list[str], capsys):
    torch.save(content, "foreign.ckpt")
    line = complaint(dng, capsys, "predict", *from_tiny, "--model.checkpoint=foreign.ckpt")
    assert "foreign.ckpt is no checkpoint of a DiffusionModule" in line


def test_one_kind_of_model_in_the_place_of_the_other(dng: Dng, from_tiny: list[str], tiny_checkpoint: Path, capsys):
    for setting, other in (("checkpoint", "digits-classifier"), ("classifier", tiny_checkpoint)):
        line = complaint(dng, capsys, "predict", *from_tiny, f"--model.{setting}={other}")
        assert "is no checkpoint of a" in line


ORACLE = [GUIDANCE, "--model.guidance.posterior=ClassifierPosterior"]


def test_an_oracle_needs_a_classifier_of_the_model_s_noisy_images(
    dng: Dng, from_tiny: list[str], tiny_noisy_classifier: Path, capsys
):
    def refused(*settings: object) -> str:
        return complaint(dng, capsys, "predict", *from_tiny, *settings)

    assert "DynamicNegativeGuidance, classifier needs p(c | x_t): " in refused(*ORACLE)
    assert "p_max must be in (0, 1); got 1" in refused(*ORACLE, "--model.guidance.posterior.p_max=1")
    assert "digits-classifier classifies clean images" in refused(
        *ORACLE, "--model.noise_conditional_classifier=digits-classifier"
    )
    assert "classifies noisy images" in refused(f"--model.classifier={tiny_noisy_classifier}")

    stored = torch.load(tiny_noisy_classifier / "model.ckpt", weights_only=True)
    data, schedule = stored["trained_on"], stored["hyper_parameters"]["schedule"]
    others = {
        "has other classes than": {"trained_on": data | {"class_names": [*data["class_names"][1:], "ten"]}},
        "has other classes in its training than": {"trained_on": data | {"seen_classes": [1, 2, 3]}},
        "has images of another shape than": {"trained_on": data | {"image_shape": [1, 16, 16]}},
        "has another noise schedule than": {
            "hyper_parameters": stored["hyper_parameters"] | {"schedule": schedule | {"init_args": {"steps": 999}}}
        },
    }
    for message, change in others.items():
        torch.save(stored | change, "other.ckpt")
        line = refused(*ORACLE, "--model.noise_conditional_classifier=other.ckpt")
        assert f"noise_conditional_classifier other {message}" in line


def test_missing_checkpoints(dng: Dng, from_tiny: list[str], capsys):
    line = complaint(dng, capsys, "predict", *from_tiny, "--model.checkpoint=mnits")
    assert f"No checkpoint 'mnits': not at {Path.cwd() / 'mnits'}, nor among the " in line
    for command in ("fit", "validate"):
        assert "No checkpoint 'gone.ckpt'" in complaint(dng, capsys, command, "--ckpt_path=gone.ckpt")


def evil(kind: str, path: Path, good: Path, marker: Path) -> None:
    """A file that touches `marker` when it is read by whoever trusts it."""
    stored = torch.load(good, weights_only=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(stored | {"state_dict": Touch(marker)}))
    elif kind == "zip":
        torch.save(stored | {"extra": Touch(marker)}, path)
    else:
        touch = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(marker)]}}
        places = {"network": {"net": touch}, "schedule": {"schedule": touch}, "optimizer": {"optimizer": touch}}
        places["instantiator"] = {"_instantiator": "subprocess.run", "args": ["touch", str(marker)]}
        torch.save(stored | {"hyper_parameters": stored["hyper_parameters"] | places[kind]}, path)


@pytest.mark.parametrize("kind", ["pickle", "zip", "network", "schedule", "optimizer", "instantiator"])
def test_code_in_a_checkpoint_is_not_run(kind: str, dng: Dng, from_tiny: list[str], tiny_checkpoint: Path, capsys):
    marker = Path.cwd() / "i-ran"
    evil(kind, Path("evil.ckpt"), tiny_checkpoint / "model.ckpt", marker)
    line = complaint(dng, capsys, "predict", *from_tiny, "--model.checkpoint=evil.ckpt")
    assert "evil.ckpt is " in line
    if kind in ("pickle", "zip"):
        assert "carries code" in line
        assert "carries code" in complaint(dng, capsys, "fit", "--ckpt_path=evil.ckpt")
    assert not marker.exists()


def test_the_code_would_have_run(tiny_checkpoint: Path):
    """Else the test above would prove nothing."""
    for kind in ("pickle", "zip"):
        marker = Path.cwd() / f"ran-{kind}"
        evil(kind, Path("evil.ckpt"), tiny_checkpoint / "model.ckpt", marker)
        with contextlib.suppress(RuntimeError):  # too late
            torch.load("evil.ckpt", weights_only=False)
        assert marker.exists()


# --- folders, configurations, data ---


@pytest.mark.parametrize("command", ["predict", "test", "fit"])
def test_a_folder_that_cannot_be_written_to(command: str, dng: Dng, from_tiny: list[str], capsys):
    Path("a-file").write_text("in the way")
    for folder in ("a-file", "a-file/below", "a-file/far/below"):
        settings = [*(from_tiny if command != "fit" else []), f"--trainer.default_root_dir={folder}"]
        line = complaint(dng, capsys, command, *settings)
        assert line == f"dng: error: cannot write to {folder}: name another --trainer.default_root_dir"


@pytest.mark.parametrize("config", ["mnits.yaml", "nowhere/mnist.yaml"])
@pytest.mark.parametrize("command", ["predict", "fit"])
def test_unknown_configs(command: str, config: str, dng: Dng, capsys):
    line = complaint(dng, capsys, command, f"--config={config}")
    assert f"No config '{config}'" in line
    assert "The nearest: mnist" in line


def test_a_config_that_is_no_yaml(dng: Dng, capsys):
    Path("broken.yaml").write_text("model: [unclosed")
    complaint(dng, capsys, "fit", "--config=broken.yaml")
    Path("other.yaml").write_text("optimiser: Adam\n")
    assert "optimiser" in complaint(dng, capsys, "fit", "--config=other.yaml")


def test_unknown_commands(dng: Dng, capsys):
    assert "invalid choice: 'sample'" in complaint(dng, capsys, "sample")


@pytest.mark.parametrize("config", ["mnist", "fashion_mnist", "mnist_only_0", "mnist_classifier"])
def test_data_that_are_not_there(config: str, dng: Dng, capsys):
    settings = ["--data.download=false", "--data.root=nowhere", "--trainer.callbacks=[{class_path: EMA}]"]
    line = complaint(dng, capsys, "fit", f"--config={config}", *settings)
    assert f"in {Path.cwd() / 'nowhere'} (data.download is false)" in line
    assert "--data.root" in line


def test_a_training_whose_samples_cannot_be_guided(dng: Dng, capsys):
    """`digits.yaml` samples without the digit 0."""
    assert "never saw class '0'" in complaint(dng, capsys, "fit", "--data.exclude_classes=0")
    assert "unconditional; set forbidden to null" in complaint(dng, capsys, "fit", "--model.net.num_classes=0")
    for method in ("ClassifierGuidance", "ClassifierFreeGuidance"):
        sampling = f"[{{class_path: GuidedSampling, init_args: {{guidance: {method}}}}}]"
        line = complaint(dng, capsys, "fit", f"--trainer.callbacks={sampling}")
        assert f"GuidedSampling has no class label, text, classifier or observer: {method} is not for it" in line
    schedule = ["--model.schedule=LinearSchedule", "--model.schedule.steps=49"]
    assert "steps must be between 1 and 49" in complaint(dng, capsys, "fit", *schedule)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--data.include_classes=unicorn", "no class 'unicorn'; Digits knows 0, 1, 2"),
        ("--data.batch_size=0", "batch_size"),
        ("--data.num_workers=-1", "data.num_workers must be at least 0; got -1"),
        ("--seed_everything=-1", "seed_everything: -1 is not in bounds"),
        ("--model.condition_dropout=2", "condition_dropout must be in [0, 1]"),
        ("--model.schedule.steps=0", "linear schedule needs steps >= 1"),
        ("--trainer.callbacks.decay=2", "decay must be in [0, 1)"),
    ],
)
def test_settings_of_a_training(setting: str, message: str, dng: Dng, capsys):
    schedule = ["--model.schedule=LinearSchedule"] if "schedule" in setting else []
    callbacks = ["--trainer.callbacks=[{class_path: EMA, init_args: {decay: 2}}]"] if "decay" in setting else []
    settings = [] if "decay" in setting else [setting]
    assert message in complaint(dng, capsys, "fit", *schedule, *callbacks, *settings)


def test_an_optimizer_for_gpus(dng: Dng, capsys):
    short = ["--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.max_steps=1", "--trainer.logger=false"]
    with pytest.raises(SystemExit) as ended:
        dng("fit", *short, "--model.optimizer.capturable=true", "--trainer.callbacks=[]")
    assert ended.value.code == 2
    assert "dng: error: If capturable=True" in capsys.readouterr().err


def test_a_metric_that_there_is_not(dng: Dng, capsys):
    short = ["--model.net.channels=[8]", "--model.net.attention=[]", "--trainer.limit_train_batches=1"]
    short += ["--trainer.limit_val_batches=1", "--trainer.check_val_every_n_epoch=1", "--trainer.logger=false"]
    stopping = "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: val/los}}]"
    with pytest.raises(SystemExit) as ended:
        dng("fit", *short, stopping, "--trainer.enable_checkpointing=false")
    assert ended.value.code == 2
    assert "dng: error: Early stopping conditioned on metric `val/los`" in capsys.readouterr().err


@pytest.mark.parametrize(("logger", "library"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_a_logger_that_is_not_installed(logger: str, library: str, dng: Dng, capsys, monkeypatch):
    module = importlib.import_module(WandbLogger.__module__ if library == "wandb" else MLFlowLogger.__module__)
    for name in ("_WANDB_AVAILABLE", "_MLFLOW_AVAILABLE", "_MLFLOW_SKINNY_AVAILABLE"):
        missing = RequirementCache(f"{library}>=9999", name)  # a version that does not exist
        monkeypatch.setattr(module, name, missing, raising=False)
    line = complaint(dng, capsys, "fit", f"--trainer.logger={logger}")
    assert f"dng: error: Requirement '{library}" in line


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_what_a_logger_s_library_complains_of(library: str, dng: Dng, capsys, monkeypatch):
    """No account, an unknown server, a backend of the past."""
    mistake = type("UsageError", (Exception,), {"__module__": f"{library}.errors"})

    def refused(*args: object) -> None:
        raise mistake("No API key configured.\nUse `login`")

    monkeypatch.setattr("dng_lightning.__main__.run", refused)
    assert complaint(dng, capsys, "fit") == "dng: error: trainer.logger: No API key configured."


# --- comparisons ---


@pytest.fixture
def digits_here(digits: Path) -> list[str]:
    """The model `digits` in a folder of its own, which has nothing beside it."""
    Path("digits").mkdir()
    shutil.copy(digits / "model.ckpt", "digits")
    return [
        "--model.checkpoint=digits",
        "--model.classifier=digits-classifier",
        "--model.steps=2",
        "--data.num_samples=8",
    ]


@pytest.fixture(scope="module")
def statistics() -> ReferenceStatistics:
    data, classifier = Digits(), ClassifierModule.load("digits-classifier")
    data.setup()
    return ReferenceStatistics.compute(data, ClassifierFeatures(classifier, "digits-classifier"), classifier)


def test_a_comparison_needs_a_classifier_and_a_class_that_is_left(dng: Dng, digits_here: list[str], capsys):
    def refused(*settings: object) -> str:
        return complaint(dng, capsys, "test", *digits_here, *settings)

    assert "needs a classifier to label the images: set model.classifier" in refused("--model.classifier=null")
    every = [f"--model.forbidden={list(range(10))}", "--model.guidances=[Unguided]", "--model.guidance=Unguided"]
    assert "model.forbidden names every class: leave one" in refused(*every, "--data.reference_data=Digits")
    assert "(setting noise_conditional_classifier)" in refused("--model.guidances=[ClassifierGuidance]")


def test_a_comparison_needs_real_images_that_fit(
    dng: Dng, digits_here: list[str], statistics: ReferenceStatistics, capsys
):
    def refused(*settings: object) -> str:
        return complaint(dng, capsys, "test", *digits_here, *settings)

    line = refused()
    assert "no statistics of real images at digits/real-digits-classifier.pt: name their data set" in line
    assert "--data.reference_data MNIST" in line
    assert "--trainer.callbacks.features null" in line
    # the data set itself; the statistics are not computed, let alone written
    assert "data.reference_data: MNIST has other images than the model" in refused("--data.reference_data=MNIST")
    assert "data.reference_data: CIFAR10 has other images than the model" in refused("--data.reference_data=CIFAR10")
    # what lies beside the checkpoint
    samples = statistics.samples[::200], statistics.sample_labels[::200]
    others = {
        "the statistics are of Letters, which has other classes": {
            "data": "Letters",
            "class_names": tuple("abcdefghij"),
        },
        "of images (1, 16, 16) instead of (1, 8, 8)": {"image_shape": (1, 16, 16)},
        "hold features of vgg, not of digits-classifier": {"extractor": "vgg"},
        "were made with other weights of digits-classifier": {"fingerprint": "0" * 12},
        "hold 1 features instead of": {
            "means": statistics.means[:, :1],
            "covariances": statistics.covariances[:, :1, :1],
        }
        | {"samples": statistics.samples[:, :1]},
        "hold less than 4 real images of Digits that are not forbidden": {
            "samples": samples[0][:3],
            "sample_labels": samples[1][:3],
        },
    }
    for message, changed in others.items():
        replace(statistics, **changed).save("digits/real-digits-classifier.pt")
        assert message in refused()
    Path("digits/real-digits-classifier.pt").write_bytes(b"anything")
    assert "digits/real-digits-classifier.pt holds no statistics of real images" in refused()


def test_features_that_there_are_not(dng: Dng, digits_here: list[str], monkeypatch, capsys):
    def refused(*settings: object) -> str:
        return complaint(dng, capsys, "test", *digits_here, "--data.reference_data=Digits", *settings)

    line = refused("--trainer.callbacks.features=nonsense")
    assert "features nonsense are not classifier, inception, dinov2-vit-s-14, " in line
    assert "or null: No checkpoint 'nonsense'" in line
    inception = "--trainer.callbacks.features=inception"
    line = refused(inception, "--trainer.callbacks.feature_weights=nowhere.pth")
    assert "no weights of inception from nowhere.pth: " in line
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert "the features inception needs torch_fidelity: pip install" in refused(inception)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_images_are_refused_before_any_is_drawn(n: int, dng: Dng, digits_here: list[str], capsys):
    line = complaint(dng, capsys, "test", *digits_here, "--data.reference_data=Digits", f"--data.num_samples={n}")
    assert f"precision and recall need 4 images; got {n}: raise data.num_samples" in line


def test_a_retrained_model_that_is_none(dng: Dng, digits_here: list[str], capsys):
    def refused(*settings: object) -> str:
        return complaint(dng, capsys, "test", *digits_here, "--data.reference_data=Digits", *settings)

    assert "retrained_checkpoint digits was trained with a forbidden class" in refused(
        "--model.retrained_checkpoint=digits"
    )
    assert "No checkpoint 'nowhere'" in refused("--model.retrained_checkpoint=nowhere")
    stored = torch.load("digits/model.ckpt", weights_only=True)
    data = stored["trained_on"] | {"seen_classes": list(range(1, 10))}
    others = {
        "other classes than digits": data | {"class_names": [*data["class_names"][1:], "ten"]},
        "images of another shape than digits ((1, 16, 16), not (1, 8, 8))": data | {"image_shape": [1, 16, 16]},
    }
    for message, other in others.items():
        torch.save(stored | {"trained_on": other}, "other.ckpt")
        assert f"retrained other has {message}: name another" in refused("--model.retrained_checkpoint=other.ckpt")


# --- the process ---


def test_all_that_a_shell_sees(dng_process: DngProcess, tmp_path: Path):
    settings = ["--model.checkpoint=nowhere", "--trainer.accelerator=cpu"]
    done = dng_process("predict", *settings, cwd=tmp_path / "here")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("dng: error: No checkpoint 'nowhere'")
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_terminal_without_the_characters_of_the_tables(encoding: str, dng: Dng, from_tiny: list[str], monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    dng("predict", *from_tiny, "--data.num_samples=2")
    assert b"0 ?" in terminal.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_reader_that_leaves_before_the_table(dng: Dng, from_tiny: list[str], monkeypatch):
    """As `head -0` does."""
    with closed_pipe() as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        dng("predict", *from_tiny, "--data.num_samples=1", "--trainer.default_root_dir=drawn")
    assert {"00000000.png", "labels.csv", "grid.png"} <= {path.name for path in Path("drawn").iterdir()}


def test_a_traceback_can_be_had(dng: Dng, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(Exception, match="No checkpoint 'nowhere'"):
        dng("predict", "--model.checkpoint=nowhere")


def test_our_own_mistakes_are_not_hidden(dng: Dng, from_tiny: list[str], monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(DiffusionModule, "forward", broken)
    with pytest.raises(ZeroDivisionError):
        dng("predict", *from_tiny, "--data.num_samples=1")


# --- kinds that scripts/fuzz.py found ---


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--model.guidance.scale=null", "Got value: None"),
        ("--model.guidance.scale=1e308", "scale must be at least 0"),
        ("--model.guidance.scale=1e30", "not finite: lower the guidance's scale"),
        ("--trainer.accelerator=abacus", "trainer: "),
        ("--trainer.strategy=no_such", "trainer: "),
        ("--trainer.strategy=ddp_spawn", "trainer.strategy ddp_spawn is not supported: give auto or ddp"),
        ("--trainer.strategy=ddp_fork", "trainer.strategy ddp_fork is not supported: give auto or ddp"),
        ("--trainer.strategy=model_parallel", "trainer"),
        ("--trainer.devices=-7", "trainer: "),
        ("--trainer.num_nodes=0", "trainer: "),
        (f"--model.steps={'x' * 5000}", "Got value: xxx"),
    ],
)
def test_settings_that_other_libraries_complain_of(setting: str, message: str, dng: Dng, from_tiny: list[str], capsys):
    guidance = "--model.guidance=NegativePrompting"
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["predict", *from_tiny, guidance, "--data.num_samples=1", "--trainer.logger=false", setting])
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    assert message in line
    assert len(line) <= 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: {}".encode("utf-16"), "is no text in UTF-8"),
        (b"a: &a [*a]", "aliases expand"),
        (b"a: &a [1,1]\n" + b"".join(b"%c: &%c [*%c,*%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 120)), "aliases"),
        (b"model:\n  steps: 1\n  steps: 2", "steps is set twice in the mapping of line 2"),
        (b"[" * 5000, "nested too deeply"),
        (
            b"model: {init_args: {guidance: {class_path: NegativePrompting, init_args: {scale: null}}}}",
            "cannot be null",
        ),
    ],
)
def test_configurations_that_no_parser_reads(content: bytes, message: str, dng: Dng, capsys):
    Path("case.yaml").write_bytes(content)
    assert message in complaint(dng, capsys, "predict", "--config=case.yaml")


def test_a_network_that_does_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch, capsys):
    def no_memory(*args: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr("dng_lightning.__main__.run", no_memory)
    with pytest.raises(SystemExit):
        main(["predict"])
    assert "dng: error: not enough memory: lower data.batch_size" in capsys.readouterr().err
