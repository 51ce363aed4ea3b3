"""Hooks of mkdocs: pages may link to files of the repository that lie outside docs/.

Such a link works on a code host and in an editor. On the site the file is copied to `repository/<path>`, and the link
is changed to point there. A Markdown file from outside docs/ becomes a page of its own.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS, OUTSIDE = "docs", "repository"
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside docs/ that a page links to, and what those pages link to in turn."""
    pages = [f"{DOCS}/{file.src_uri}" for file in files.documentation_pages()]
    for page in pages:
        for target in _targets((ROOT / page).read_text(encoding="utf-8"), page):
            uri = _site_uri(target)
            if target.startswith(f"{DOCS}/") or not (ROOT / target).is_file() or files.get_file_from_path(uri):
                continue
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
            if target.endswith(".md"):
                pages.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that lead out of docs/, or back into it, to where the file is on the site."""
    uri = page.file.src_uri
    source = uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else f"{DOCS}/{uri}"

    def moved(match: re.Match[str]) -> str:
        opening, link, anchor, closing = match.groups()
        target = _resolve(link, source)
        if not (ROOT / target).is_file():
            return match[0]
        new = posixpath.relpath(_site_uri(target), posixpath.dirname(uri) or ".")
        return f"{opening}{new}{anchor or ''}{closing}"

    return LINK.sub(moved, markdown)


def _targets(markdown: str, page: str) -> list[str]:
    return [_resolve(match[2], page) for match in LINK.finditer(markdown)]


def _resolve(link: str, page: str) -> str:
    """The path in the repository that `link` means on the page at `page`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _site_uri(target: str) -> str:
    """Where the repository's file `target` is on the site."""
    return target.removeprefix(f"{DOCS}/") if target.startswith(f"{DOCS}/") else f"{OUTSIDE}/{target}"
