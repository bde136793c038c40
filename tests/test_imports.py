"""What an import brings along, and what is public."""

import subprocess
import sys

import pytest

HEAVY = ("lightning", "torchvision", "jsonargparse", "diffusers", "matplotlib", "tensorboard")
PUBLIC_SUBCLASSES = """
import inspect
from dng_lightning import guidance, posterior

def concrete(kind):
    for subclass in kind.__subclasses__():
        if not inspect.isabstract(subclass):
            yield subclass
        yield from concrete(subclass)

for base, module in ((guidance.Guidance, guidance), (posterior.Posterior, posterior)):
    hidden = {kind.__name__ for kind in concrete(base)} - set(module.__all__)
    assert not hidden, hidden
"""


def run(code: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import dng_lightning.guidance",
        "import dng_lightning.posterior",
        "import dng_lightning.sampling",
        "import dng_lightning.schedule",
        "from dng_lightning import DynamicNegativeGuidance, TrackedPosterior, LinearSchedule, sample",
        "from dng_lightning import resources",
    ],
)
def test_the_core_comes_without_lightning_and_torchvision(statement):
    assert run(f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])") == ""


def test_guided_comes_without_them_too_and_about_as_fast_as_torch():
    """The extra's libraries are imported when they are used."""
    statement = "from dng_lightning.text_to_image import guided"
    heavy = (*HEAVY, "transformers")
    assert run(f"import sys; {statement}; print(*[name for name in {heavy} if name in sys.modules])") == ""
    seconds = "import time; start = time.process_time(); {}; print(time.process_time() - start)"
    run(seconds.format(statement))  # whatever has to be read or compiled for the first time

    def least(what: str) -> float:
        return min(float(run(seconds.format(what))) for _ in range(3))

    assert least(statement) <= 1.5 * least("import torch")


def test_the_core_names_nothing_internal_among_what_a_user_may_choose():
    run(PUBLIC_SUBCLASSES)


@pytest.mark.slow
def test_nor_does_the_command_line():
    run("import dng_lightning.cli, dng_lightning.modules, dng_lightning.callbacks" + PUBLIC_SUBCLASSES)
