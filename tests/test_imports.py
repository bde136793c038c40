"""What an import brings along, and what is public."""

import subprocess
import sys

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


def test_guided_comes_without_them_too_and_about_as_fast_as_torch():
    """The extra's libraries are imported when they are used."""
    code = f"""
import sys, time
times = [time.process_time()]
import torch
times.append(time.process_time())
from dng_lightning.text_to_image import guided
times.append(time.process_time())
assert not {set(HEAVY) | {"transformers"}} & set(sys.modules)
print((times[2] - times[0]) / (times[1] - times[0]))
"""
    # the first may have to read and compile; the others are for a machine that is busy
    assert any(float(run(code)) <= 1.5 for _ in range(4))


@pytest.mark.slow
def test_what_a_user_may_choose_names_nothing_internal():
    """Neither of the core alone nor with the command line."""
    run(
        PUBLIC_SUBCLASSES
        + "\nimport dng_lightning.cli, dng_lightning.modules, dng_lightning.callbacks"
        + PUBLIC_SUBCLASSES
    )
