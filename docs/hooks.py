"""Adds the model cards, the benchmarks and the configurations of the repository to the documentation site.

They stay where the repository has them, so that a link between any two of these files works in both places: on the
site ``docs`` is the root, and ``checkpoints``, ``scripts/benchmarks`` and ``configs`` are folders in it.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FOLDERS = {
    "checkpoints": (".md", ".png", ".csv", ".yaml"),
    "scripts/benchmarks": (".md", ".png"),
    "configs": (".yaml",),
}

OUT_OF_DOCS = re.compile(rf"(\]\((?:\.\./)*)\.\./(?={'|'.join(FOLDERS)})")
INTO_DOCS = re.compile(r"(\]\((?:\.\./)+)docs/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files."""
    root = Path(config.config_file_path).parent
    for folder, kinds in FOLDERS.items():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in kinds:
                files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links of the repository into links of the site."""
    return INTO_DOCS.sub(r"\1", markdown) if page.file.generated_by else OUT_OF_DOCS.sub(r"\1", markdown)
