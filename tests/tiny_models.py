"""Tiny models, trained by the command line, and folders in which they have the names of the shipped ones."""

import contextlib
import shutil
from pathlib import Path

import lightning  # noqa: F401  # first: typing may hand out another library's Union[float, int] for its Union[int, float]
import pytest
import yaml
from running import OVERLAYS, Dng, Fitted, fit_settings
from tiny_diffusion import tiny
from tiny_vision_language import tiny_vision_language

from dng_lightning.data import CIFAR10, MNIST
from dng_lightning.evaluation.features import ClassifierFeatures
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.modules import ClassifierModule
from dng_lightning.storage import resources
from scripts.captioned_digits.attributes import VALUES


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
        if name.endswith("_probe"):
            model = yaml.safe_load(resources.config(name).read_text())["model"]["init_args"]["diffusion_checkpoint"]
            shutil.copytree(fit(model.replace("-", "_")), place / model, dirs_exist_ok=True)
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
    for name in ("cifar10_small", "cifar10_without_airplane", "cifar10_probe"):
        shutil.copytree(fitted(name), place / name.replace("_", "-"), dirs_exist_ok=True)
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
