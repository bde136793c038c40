"""The pages of the documentation, with their commands and examples."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
CHECKPOINTS = sorted(path for path in (ROOT / "checkpoints").iterdir() if path.is_dir())
CARDS = [folder / "README.md" for folder in CHECKPOINTS]


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(pages: list[Path]) -> list[list[str]]:
    """Those of the shell blocks, each once, without comments, and taken apart where ``&&`` joins them."""
    lines = [line for page in pages for text in blocks(page, "bash") for line in text.replace("\\\n", " ").splitlines()]
    parts = dict.fromkeys(part.strip() for line in lines for part in line.split("#")[0].split("&&"))
    return [shlex.split(part) for part in parts if part]


OURS = [words[1:] for words in commands(PAGES) if words[0] == "dng"]
OF_CARDS = [words[1:] for words in commands(CARDS) if words[0] == "dng" and words[1:] not in OURS]


SAVED = re.compile(r"`(\w+\.(?:py|yaml))`:\n\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)


def save_files(folder: Path) -> None:
    """Save the blocks that a page introduces by the name of a file."""
    for page in PAGES:
        for name, text in SAVED.findall(page.read_text()):
            (folder / name).write_text(text)
