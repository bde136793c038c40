"""Makes the files of a release: an archive of each checkpoint that the wheel leaves out, and released.json.

    python scripts/release_checkpoints.py --to release

An archive holds what sampling and evaluation need, without cards and studies. It is the same, byte by byte, as long as
these files are: dng_lightning/storage/download.py compares its SHA-256 with that in checkpoints/released.json.
"""

import argparse
import hashlib
import io
import json
import zipfile
from pathlib import Path

from dng_lightning.storage.files import write_whole

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
IN_THE_WHEEL = ("mnist", "mnist-classifier", "digits-classifier")
SUFFIXES = (".ckpt", ".pt", ".json", ".yaml", ".safetensors", ".txt", ".model")


def archive(folder: Path) -> bytes:
    """The archive of a checkpoint, with no date and no compression."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as zipped:
        for path in sorted(folder.rglob("*")):
            if path.suffix in SUFFIXES:
                zipped.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes())
    return content.getvalue()


def left_out() -> list[Path]:
    """The folders of the checkpoints that are not in the wheel."""
    return sorted(path for path in CHECKPOINTS.iterdir() if path.is_dir() and path.name not in IN_THE_WHEEL)


def main() -> None:
    """Write the archives and the digests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("release"), help="folder of the archives")
    target = parser.parse_args().to
    target.mkdir(parents=True, exist_ok=True)
    digests = {}
    for folder in left_out():
        content = archive(folder)
        write_whole(target / f"{folder.name}.zip", content)
        digests[folder.name] = hashlib.sha256(content).hexdigest()
    write_whole(CHECKPOINTS / "released.json", (json.dumps(digests, indent=1) + "\n").encode())
    print(f"written to {target}: {len(digests)} archives; their SHA-256 to {CHECKPOINTS / 'released.json'}")


if __name__ == "__main__":
    main()
