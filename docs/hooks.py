"""What the site does beside MkDocs: formulas as MathML, and links of pages to files outside of docs/.

Pages are written for GitHub, where these links and ```` ```math ```` fences work as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()(?:\.\./)+[^\s)]*(?=\))")
ARG = re.compile(r"\\arg(?![a-z])")
PROGRAM = re.compile(r"^( *```python) \w+$", re.MULTILINE)
PICTURES = (".png", ".svg")


def math(source: str, *_: Any, **__: Any) -> str:
    """The fence `math`: LaTeX as a block of MathML, which browsers draw without JavaScript."""
    known = ARG.sub(r"\\operatorname{arg}", source)  # latex2mathml has no \arg
    return f'<div class="math">{convert(known, display="block")}</div>'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    fence = {"name": "math", "class": "math", "format": math}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links that the site has too, and Python whose fence has a second word, the name of a program."""
    folder = Path(page.file.abs_src_path or "").parent

    def replace(link: re.Match[str]) -> str:
        path, hash, anchor = link[0].partition("#")
        target = (folder / path).resolve()
        if target.is_relative_to(config.docs_dir):
            return link[0]
        if not target.is_relative_to(ROOT) or not target.exists():
            raise PluginError(f"{page.file.src_uri} has a link to {link[0]}, which is not there")
        if target.suffix in PICTURES:
            return shown(target, page, config, files)
        return f"{repository(target, config)}{hash}{anchor}"

    return LINK.sub(replace, PROGRAM.sub(r"\1", markdown))


def repository(target: Path, config: MkDocsConfig) -> str:
    """The address of a file or folder in the repository."""
    kind = "tree" if target.is_dir() else "blob"
    return f"{config.repo_url}/{kind}/main/{target.relative_to(ROOT).as_posix()}"


def shown(picture: Path, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The address of a picture, which is copied into the site, from a page."""
    uri = f"images/{picture.name}"
    if files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return "../" * page.file.src_uri.count("/") + uri
