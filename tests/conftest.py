"""Fixtures for the whole suite."""

import contextlib
import itertools
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning  # noqa: F401  # first: typing may hand out another library's Union[float, int] for its Union[int, float]
import pytest
import torch
import yaml
from browser import Page, chromium, slowness
from matplotlib.figure import Figure
from running import OVERLAYS, QUIET, Dng, DngProcess, Fitted, fit_settings, rendered_figures
from tiny_diffusion import tiny
from tiny_vision_language import tiny_vision_language

from dng_lightning.__main__ import main
from dng_lightning.data import CIFAR10, MNIST
from dng_lightning.data.pixels import to_png
from dng_lightning.evaluation.features import ClassifierFeatures
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.modules import ClassifierModule
from dng_lightning.storage import resources
from scripts.captioned_digits.attributes import VALUES

# What takes nine tenths of the time: the command line, several processes, whole studies, long chains.
SLOW = """
    test_cli test_docs test_ddp test_bad_input test_overlays test_predict test_results_writer test_removal test_imports
    test_diffusers_format test_classifier test_diffusion test_attribute_classifier test_study test_training test_export
    test_captioned_digits test_dashboards test_results_dashboard test_guided_sampling test_calibration_writer
    test_scheduler_bridge test_image_folder test_extremes test_tracked test_open_settings test_base_module
    test_observed_sampling test_text_to_image_cli test_ema test_text_to_image test_skipping test_feedback test_attention
    test_probe test_particles test_self_filter test_pipeline_sampler test_pipeline_folders
    test_families test_attention_families test_flux2 test_modular_flow
    test_flow_schedulers test_second_order test_solver_schedulers
    test_synchronization test_judges_of_commands test_pretrained_classifiers test_other_models
    test_next_command test_front_door test_edm test_classifier_training test_diffusion_networks
    test_classifier_files test_decoded_images
    test_latent_transformers test_untrusted test_portrait_reader
    test_precision test_interruption test_faults test_damaged_files test_environment test_kills
""".split()  # noqa: SIM905  # one a line would be a page


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of whole files as slow."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`pytest -n 2` gives a file to one process, so that what its tests share is made once; in the order of folders."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log) if config.getvalue("dist") == "load" else None


# On cores that others use too (pytest -n 2) torch's threads wait for each other, and everything takes ten times longer.
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


@pytest.fixture(scope="session", autouse=True)
def blank_figures() -> Iterator[None]:
    """Figures are made and written but blank: rendering would take half of the time of `dng test`.

    What looks at their pixels uses ``rendered``, or ``rendered_figures`` in a fixture of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def rendered() -> Iterator[None]:
    """The figures of a module's tests have content."""
    with rendered_figures():
        yield


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the real MNIST and CIFAR-10, unpacked from beside the checkout."""
    prepare = SHARED / "prepare.py"
    if not prepare.exists():
        pytest.skip(f"REAL DATA MISSING: no {prepare}, so nothing here was tried on the real MNIST and CIFAR-10")
    root = tmp_path_factory.mktemp("real_data")
    subprocess.run([sys.executable, str(prepare), str(root)], check=True)
    return root


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder of the model `digits`, which is in the repository but not in the wheel."""
    return CHECKPOINTS / "digits"


@pytest.fixture(scope="session")
def fake_mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root, named `data`, with 200 training and 200 test images of noise as MNIST, FashionMNIST and CIFAR-10.

    Beside it is a folder `photos` of 60 images in three classes.
    """
    root = tmp_path_factory.mktemp("fake_mnist") / "data"
    draws = torch.Generator().manual_seed(0)  # the same noise whichever tests ran before
    for name, part, count in itertools.product(("MNIST", "FashionMNIST"), ("train", "t10k"), [200]):
        folder = root / name / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (count, 28, 28), generator=draws, dtype=torch.uint8)
        labels = torch.arange(count) % 10
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels.to(torch.uint8))):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.numpy().tobytes())
    (root / "cifar-10-batches-bin").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = torch.randint(256, (40, 1 + 3072), generator=draws, dtype=torch.uint8)
        records[:, 0] = torch.arange(40) % 10
        (root / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(records.numpy().tobytes())
    for number in range(60):
        file = root.parent / "photos" / ("cat", "dog", "horse")[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(to_png(torch.randint(256, (3, 16, 16), generator=draws, dtype=torch.uint8)))
    return root


@pytest.fixture(scope="session")
def dng() -> Dng:
    """`dng(*args)`: the command line in this process, on the CPU and without Lightning's progress bar."""

    def call(command: str, *args: object) -> None:
        main([command, *map(str, args), *(QUIET if command in ("fit", "validate", "test", "predict") else [])])

    return call


@pytest.fixture(scope="session")
def dng_process() -> DngProcess:
    """`dng_process(*args, cwd=...)`: the command line in a process of its own, or a script in its place."""

    def call(*args: object, cwd: Path, script: Path | None = None) -> "subprocess.CompletedProcess[str]":
        start = [str(script)] if script else ["-m", "dng_lightning"]
        root = str(Path(__file__).resolve().parents[1])  # for scripts.captioned_digits
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        command = [sys.executable, *start, *map(str, args)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

    return call


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of Inception's shape."""
    reason = "TORCH-FIDELITY MISSING: Inception features were not tried; pip install torch-fidelity"
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason=reason)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: None)
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        net = inception.FeatureExtractorInceptionV3("inception", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(net.state_dict(), path)
    return path


def fit_tiny(dng: Dng, folder: Path, *settings: str) -> Path:
    """A real training of sixty steps; v-prediction, because of an eps network so young every pixel would saturate."""
    net = ["--model.net.channels=[16]", "--model.net.attention=[]", "--model.prediction=v"]
    steps = ["--trainer.max_steps=60", "--trainer.limit_val_batches=1", "--trainer.check_val_every_n_epoch=1"]
    dng("fit", "--config=digits.yaml", *net, *steps, *settings, f"--trainer.default_root_dir={folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(dng: Dng, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a class-conditional model of 8x8 digits, trained by `dng fit`."""
    return fit_tiny(dng, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_single_class(dng: Dng, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unconditional model of the digit 0 alone."""
    settings = ["--data.include_classes=0", "--model.net.num_classes=0", "--trainer.max_steps=12"]
    callbacks = "--trainer.callbacks=[{class_path: EMA}, {class_path: Export}]"
    return fit_tiny(dng, tmp_path_factory.mktemp("tiny_0"), *settings, callbacks)


@pytest.fixture(scope="session")
def tiny_noisy_classifier(dng: Dng, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a noise-conditional classifier of 8x8 digits."""
    folder = tmp_path_factory.mktemp("tiny_noisy")
    noisy = ["--model.net.embedding=8", "--model.schedule=LinearSchedule", "--model.net.channels=[8]"]
    settings = [
        *noisy,
        "--trainer.max_steps=40",
        "--trainer.limit_val_batches=1",
        f"--trainer.default_root_dir={folder}",
    ]
    dng("fit", "--config=digits_classifier.yaml", *settings)
    return folder


@pytest.fixture(scope="session")
def from_tiny(tiny_checkpoint: Path) -> list[str]:
    """What makes `dng predict` and `dng test` run in no time: the tiny model and few steps."""
    return [f"--model.checkpoint={tiny_checkpoint}", "--model.classifier=digits-classifier", "--model.steps=3"]


@pytest.fixture(scope="session")
def fitted(dng: Dng, fake_mnist: Path) -> Fitted:
    """`fitted(name)`: the default output folder of a shipped configuration, where it was fitted, tiny, if needed."""
    place = fake_mnist.parent

    def fit(name: str) -> Path:
        trainer = yaml.safe_load(resources.config(name).read_text())["trainer"]
        folder = place / trainer["default_root_dir"]
        if folder.exists():
            return folder
        if name in ("captioned_digits", "captioned_digits_autoencoder"):
            read_attributes(dng, fit, place)
        if name == "captioned_digits":
            fit("captioned_digits_autoencoder")
        family = name.partition("_")[0]
        judged = any("classifier" in callback.get("init_args", {}) for callback in trainer["callbacks"])
        if judged and family in ("mnist", "cifar10"):  # local names win over shipped ones
            shutil.copytree(fit(f"{family}_classifier"), place / f"{family}-classifier", dirs_exist_ok=True)
        if name == "mnist_probe":
            shutil.copytree(fit("mnist"), place / "mnist", dirs_exist_ok=True)
        epochs = max(2, trainer.get("check_val_every_n_epoch", 1))  # as many as it takes to come to a validation
        with contextlib.chdir(place):
            configs = [f"--config={part}.yaml" for part in OVERLAYS.get(name, [name])]
            dng("fit", *configs, *fit_settings(name), f"--trainer.max_steps={epochs}")
        return folder

    return fit


def read_attributes(dng: Dng, fit: Fitted, place: Path) -> None:
    """Fit tiny classifiers of all attributes, under the names of the shipped ones, which they win over."""
    base = "captioned_digits_classifier"
    for attribute in VALUES:
        local = place / f"captioned-digits-{attribute}"
        if local.exists():
            continue
        if attribute == "digit":
            fit(base)
        else:
            configs = [f"--config={name}.yaml" for name in (base, f"captioned_digits_{attribute}")]
            with contextlib.chdir(place):
                dng("fit", *configs, *fit_settings(base), "--trainer.max_steps=1")
        shutil.copytree(place / "logs" / local.name, local)


@pytest.fixture(scope="session")
def place(fitted: Fitted) -> Path:
    """A folder with fake data and with tiny models under the names of the shipped ones, which they win over."""
    place = fitted("mnist").parents[1]
    for name in ("mnist", "mnist_without_0", "mnist_only_0", "mnist_noisy_classifier", "mnist_probe"):
        shutil.copytree(fitted(name), place / name.replace("_", "-"), dirs_exist_ok=True)
    shutil.copytree(place / "mnist-classifier", place / "mnist-observer", dirs_exist_ok=True)
    data, classifier = (
        MNIST(root=str(place / "data"), val_size=20),
        ClassifierModule.load(str(place / "mnist-classifier")),
    )
    data.setup()
    extractor = ClassifierFeatures(classifier, "mnist-classifier")
    ReferenceStatistics.compute(data, extractor, classifier).save(place / "mnist" / "real-mnist-classifier.pt")
    return place


@pytest.fixture(scope="session")
def cifar10_place(place: Path, fitted: Fitted) -> Path:
    """`place`, with tiny models of CIFAR-10 besides, the paper's base network among them."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra diffusers)")
    for name in ("cifar10_small", "cifar10_without_airplane"):
        shutil.copytree(fitted(name), place / name.replace("_", "-"))
    shutil.copytree(place / "cifar10-classifier", place / "cifar10-observer")
    fitted("cifar10_only_airplane")
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    network = diffusers.UNet2DModel(32, 3, 3, layers_per_block=1, norm_num_groups=4, **blocks)
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(place / "google" / "ddpm-cifar10-32")
    data = CIFAR10(root=str(place / "data"), val_size=20)
    data.setup()
    classifier = ClassifierModule.load(str(place / "cifar10-classifier"))
    extractor = ClassifierFeatures(classifier, "cifar10-classifier")
    ReferenceStatistics.compute(data, extractor, classifier).save(
        place / "cifar10-small" / ReferenceStatistics.file(extractor)
    )
    return place


@pytest.fixture(scope="session")
def text_to_image_place(place: Path) -> Path:
    """`place`, with a tiny Stable Diffusion and a tiny vision-language model under the names of the real ones."""
    for library in ("diffusers", "transformers"):
        pytest.importorskip(library, reason=f"{library} is not installed (extra text-to-image)")
    for name in ("stable-diffusion-v1-5/stable-diffusion-v1-5", "CompVis/stable-diffusion-v1-4"):
        tiny(place / name)
    tiny_vision_language(place / "Qwen" / "Qwen2.5-VL-7B-Instruct")
    return place


@pytest.fixture(scope="session")
def captioned_place(place: Path, fitted: Fitted) -> Path:
    """`place`, with a tiny text-to-image model of coloured digits, and classifiers of their attributes."""
    for library in ("diffusers", "transformers"):
        pytest.importorskip(library, reason=f"{library} is not installed (extra text-to-image)")
    shutil.copytree(fitted("captioned_digits"), place / "captioned-digits", dirs_exist_ok=True)
    for reader, observer in (("digit", "observer"), ("colour", "colour-observer")):
        shutil.copytree(
            place / f"captioned-digits-{reader}", place / f"captioned-digits-{observer}", dirs_exist_ok=True
        )
    return place


@pytest.fixture(scope="session")
def portraits_place(place: Path, fitted: Fitted) -> Path:
    """`place`, with a tiny text-to-image model of portraits, and classifiers of their attributes."""
    for library in ("dicebear", "diffusers", "ftfy", "transformers"):
        pytest.importorskip(library, reason=f"{library} is not installed (extras portraits and text-to-image)")
    for name in ("portraits", "portraits-correlated"):
        shutil.copytree(fitted("portraits"), place / name, dirs_exist_ok=True)
    for name in ("attributes", "observer"):
        shutil.copytree(fitted("portraits_classifier"), place / f"portraits-{name}", dirs_exist_ok=True)
    return place


@pytest.fixture
def in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is `place`."""
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="session")
def browser() -> str:
    """The program."""
    if program := shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"):
        return program
    pytest.skip("CHROMIUM MISSING: nobody looked at the dashboards (apt-get install chromium)")


@pytest.fixture(scope="module")
def page(browser: str, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Of a Chromium that starts once the module's ``url`` can be opened."""
    with chromium(browser, tmp_path_factory.mktemp("profile"), seconds=40 * slowness()) as page:
        yield page
