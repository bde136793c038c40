"""Fixtures for the whole suite."""

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
from browser import Page, chromium, slowness
from filelock import FileLock
from matplotlib.figure import Figure
from running import QUIET, Dng, DngProcess, rendered_figures

from dng_lightning.__main__ import main
from dng_lightning.data.pixels import to_png
from dng_lightning.evaluation.class_balance import kl_interval, kl_to_interval
from dng_lightning.evaluation.distribution_metrics import frechet_interval

pytest_plugins = ["tiny_models"]

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared" / "data"
CHECKPOINTS = TESTS.parent / "checkpoints"

# Folders and files that take nine tenths of the time: the command line, several processes, whole studies, long chains.
SLOW = """
    cli ddp docs predict results_writer scheduler_bridge
    test_attention test_attention_families test_attribute_classifier test_axes test_base_module test_calibration_writer
    test_captioned_digits test_classifier test_classifier_files test_classifier_training test_dashboards
    test_decoded_images test_diffusers_format test_diffusers_models test_diffusion test_diffusion_networks test_edm
    test_ema test_export test_extremes test_families test_feedback test_flow_schedulers test_flux2 test_guided_sampling
    test_hugging_face_stream test_image_folder test_imports test_judges_of_commands test_kills test_latent_transformers
    test_lucidrains test_modular_flow test_observed_sampling test_particles test_pipeline_folders test_pipeline_sampler
    test_portrait_reader test_pretrained_classifiers test_probe test_removal test_results_dashboard test_second_order
    test_self_filter test_skipping test_solver_schedulers test_study test_synchronization test_text_to_image
    test_text_to_image_cli test_tracked test_training
""".split()  # noqa: SIM905  # one a line would be a page


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of whole folders and files as slow."""
    for item in items:
        if not set(item.path.relative_to(TESTS).with_suffix("").parts).isdisjoint(SLOW):
            item.add_marker(pytest.mark.slow)


# Files that share what takes long to make. The first ones need a tiny model of every shipped configuration.
TOGETHER = [
    ("cli/shipped/", "docs/", "captioned_digits/", "test_shipped", "callbacks/test_calibration_writer"),
    ("callbacks/results_writer/",),
    ("cli/bad_input/", "predict/"),
    ("ddp/",),
    ("text_to_image/scheduler_bridge/",),
]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`pytest -n 2` gives files to a process, so that what their tests share is made once; in the order of folders."""
    from xdist.scheduler import LoadFileScheduling

    class LoadFilesTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            together = (files[0] for files in TOGETHER if file.removeprefix("tests/").startswith(files))
            return next(together, file)

    config.option.loadscopereorder = False
    return LoadFilesTogether(config, log) if config.getvalue("dist") == "load" else None


# On cores that others use too (pytest -n 2) torch's threads wait for each other, and everything takes ten times longer.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def blank_figures() -> Iterator[None]:
    """Figures are made and written but blank: rendering would take half of the time of `dng test`.

    What looks at their pixels uses ``rendered``, or ``rendered_figures`` in a fixture of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", lambda *_: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_resamples() -> Iterator[None]:
    """A tenth of the resamples for intervals, which would take a third of the time of `dng test`.

    The tests of the intervals themselves say how many they take.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frechet_interval, "__defaults__", (20, 0))
        patch.setattr(kl_interval, "__defaults__", ((), 200, 0))
        patch.setattr(kl_to_interval, "__defaults__", (200, 0))
        yield


@pytest.fixture(autouse=True)
def imports_of_one_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules that a test wrote and imported are forgotten: another test may write others of the same names."""
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(written):
            del sys.modules[name]


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
    shared = "PYTEST_XDIST_WORKER" in os.environ  # by the processes of `pytest -n 2`
    root = tmp_path_factory.getbasetemp().parent / "real_data" if shared else tmp_path_factory.mktemp("real_data")
    with FileLock(f"{root}.lock"):
        subprocess.run([sys.executable, str(prepare), str(root)], check=True)  # leaves what is there
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
