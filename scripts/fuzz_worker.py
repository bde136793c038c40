"""Runs cases of ``fuzz.py`` in this process: fuzz_worker.py RESULTS DONE ALL, with the cases as JSON on stdin."""

import contextlib
import faulthandler
import io
import json
import logging
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fuzz_cases import MAKERS
from tqdm import tqdm

from dng_lightning.__main__ import complaint, setting_error

LIMIT = 120  # seconds of a case
LONGEST = 400  # characters of a complaint
MEMORY = 12 * 2**30  # bytes of address space


class Hang(BaseException):
    """A case took too long."""


def outcome(run: Callable[[], None]) -> tuple[str, str, str]:
    """How a case ends, `ran` or `refused`; its complaint; and what is wrong with that, empty for nothing."""
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(LIMIT)
    faulthandler.dump_traceback_later(LIMIT + 30, exit=True)  # a hang that no signal ends
    said = ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(action="ignore"):
            run()
    except SystemExit as ended:
        lines = [line for line in err.getvalue().splitlines() if line.startswith("dng: error: ")]
        said = "" if ended.code in (0, None) else "\n".join(lines) or "no complaint"
    except Hang:
        return "hung", "", f"{out.getvalue()}hang"
    except Exception as error:
        mendable = setting_error(error)
        if mendable is None:
            return "failed", "", f"{out.getvalue()}{traceback.format_exc(limit=-4)}"
        said = complaint(mendable)
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    wrong = "no complaint" if said == "no complaint" else "several lines" if "\n" in said else ""
    wrong = wrong or (f"{len(said)} characters" if len(said) > LONGEST else "")
    return "refused" if said else "ran", said, f"{out.getvalue()}{wrong}: {said[:500]}" if wrong else ""


@contextlib.contextmanager
def confined() -> Iterator[Path]:
    """An empty working directory, without network and with bounded memory."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("sockets are disabled")

    def hang(*args: Any) -> None:
        raise Hang

    socket.socket.connect = refuse  # type: ignore[method-assign]
    signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def run(cases: Sequence[tuple[str, int]], results: Path, done: int, total: int) -> None:
    """Run cases; each appends a line to the results, and findings are printed."""
    progress = tqdm(total=total, initial=done, unit=" cases", mininterval=2)
    with confined() as folder, results.open("a") as file:
        for kind, number in cases:
            place = folder / "a" / "b" / "c"  # deep, for names such as ../../x
            place.mkdir(parents=True)
            with contextlib.chdir(place):
                began = time.perf_counter()
                case = MAKERS[kind](random.Random(f"{kind} {number}"))
                ended, said, found = outcome(case)
                seconds = round(time.perf_counter() - began, 3)
            shutil.rmtree(folder / "a", ignore_errors=True)
            result = {"kind": kind, "number": number, "outcome": ended, "seconds": seconds}
            print(json.dumps(result | {"said": said[:500], "found": found[-3000:]}), file=file, flush=True)
            progress.update()
            if found:
                progress.write(f"--- {kind} {number}: {found[-3000:]}")
    progress.close()


if __name__ == "__main__":
    run(
        [(kind, number) for kind, number in json.load(sys.stdin)], Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    )
