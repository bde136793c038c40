"""A mistake in a setting is one line on stderr that says what to change, exit code 2, and nothing is written or run."""

from pathlib import Path

import pytest
import torch
from complaints import GUIDANCE, complaint
from running import Dng

from dng_lightning.__main__ import main

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


@pytest.mark.parametrize("config", ["mnits.yaml", "nowhere/mnist.yaml"])
@pytest.mark.parametrize("command", ["predict", "fit"])
def test_unknown_configs(command: str, config: str, dng: Dng, capsys):
    line = complaint(dng, capsys, command, f"--config={config}")
    assert f"No config '{config}'" in line
    assert "The nearest: mnist" in line


@pytest.mark.parametrize(
    ("command", "setting", "line"),
    [
        ("fit", "--data=ImageFolde", "data: there is no class 'ImageFolde'; the nearest: ImageFolder,"),
        ("fit", "--data=mine.Clas", "data: there is no class 'mine.Clas'; the nearest: Class"),
        ("fit", "--data=nowhere.Class", "data: there is no class 'nowhere.Class' (No module named 'nowhere')"),
        ("fit", "--model.net=Unet", "model: net: there is no class 'Unet'; the nearest: UNet"),
        ("fit", "--model.optimizer=torch.optim.AdanW", "no class 'torch.optim.AdanW'; the nearest: AdamW"),
        ("fit", "--trainer.callbacks+=Exprt", "trainer.callbacks: there is no class 'Exprt'; the nearest: Export"),
        ("fit", "--trainer.logger=WandbLoger", "no class 'WandbLoger'; the nearest: WandbLogger"),
        ("predict", "--model.guidance=NegativePromptin", "model: guidance: there is no class 'NegativePromptin'"),
        ("predict", "--model.checkpoint.class_path=DifusersModel", "the nearest: DiffusersModel"),
    ],
)
def test_unknown_classes(command: str, setting: str, line: str, dng: Dng, capsys):
    Path("mine.py").write_text("class Class: pass\n")
    assert line in complaint(dng, capsys, command, setting)


def test_a_class_that_lacks_a_setting(dng: Dng, capsys):
    line = complaint(dng, capsys, "fit", "--trainer.logger=CSVLogger")
    assert line == "dng: error: trainer.logger: the following arguments are required: save_dir"


def test_a_config_that_is_no_yaml(dng: Dng, capsys):
    Path("broken.yaml").write_text("model: [unclosed")
    complaint(dng, capsys, "fit", "--config=broken.yaml")
    Path("other.yaml").write_text("optimiser: Adam\n")
    assert "optimiser" in complaint(dng, capsys, "fit", "--config=other.yaml")


def test_unknown_commands(dng: Dng, capsys):
    assert "invalid choice: 'sample'" in complaint(dng, capsys, "sample")


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
