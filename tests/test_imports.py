"""What an import brings along, and what is public."""

import subprocess
import sys

import imports
import pytest

HEAVY = ("lightning", "torchvision", "jsonargparse", "diffusers", "matplotlib", "tensorboard")
PUBLIC_SUBCLASSES = """
import inspect
from dng_lightning import guidance, posterior, sampling

def concrete(kind):
    for subclass in kind.__subclasses__():
        if not inspect.isabstract(subclass):
            yield subclass
        yield from concrete(subclass)

for base, module in ((guidance.Guidance, guidance), (posterior.Posterior, posterior)):
    hidden = {kind.__name__ for kind in concrete(base)} - {*module.__all__, *sampling.__all__}
    assert not hidden, hidden
"""


def run(code: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_core_comes_without_lightning_and_torchvision():
    statements = [
        "from dng_lightning.storage import resources",
        "import dng_lightning.schedule",
        "import dng_lightning.posterior",
        "import dng_lightning.guidance",
        "import dng_lightning.sampling",
        "from dng_lightning import DynamicNegativeGuidance, TrackedPosterior, LinearSchedule, sample",
    ]
    each = "\n".join(f"{code}; assert not {set(HEAVY)} & set(sys.modules), {code!r}" for code in statements)
    run(f"import sys\n{each}")


def test_guided_comes_without_them_too():
    """The extra's libraries are imported when they are used; ``scripts/benchmarks/imports.py`` measures the time."""
    import_guided = "import sys; from dng_lightning.text_to_image import guided"
    run(f"{import_guided}; assert not {set(HEAVY) | {'transformers'}} & set(sys.modules)")
    measured = list(imports.measure(quick=True))
    assert [measurement.case for measurement in measured] == list(imports.STATEMENTS)
    assert all(value >= 1 for measurement in measured for value in measurement.values)


@pytest.mark.slow
def test_what_a_user_may_choose_names_nothing_internal():
    """Neither of the core alone nor with the command line."""
    run(
        PUBLIC_SUBCLASSES
        + "\nimport dng_lightning.cli, dng_lightning.modules, dng_lightning.callbacks"
        + PUBLIC_SUBCLASSES
    )
