"""Links from the pages to files of the repository that are not in docs/, for MkDocs.

On GitHub a page links to the parameter file as ../config/depth.yaml. MkDocs knows only what is in
docs/, so files that pages link to come along, each at its path in the repository, and the links are
written anew. A link to a file that is not there stays as it is, for MkDocs to complain about.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = 'docs/'
_LINK = re.compile(r'(?<=\]\()[^)#\s:]+(?=[)#])')


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the files that pages link to, and those that such pages link to."""
    pages = [file for file in files if file.is_documentation_page()]
    while pages:
        page = pages.pop()
        for link in _LINK.findall(page.content_string):
            path = _target(page.src_uri, link)
            known = files.get_file_from_path(_site_path(path)) is not None
            if not known and (ROOT / path).is_file() and not path.startswith('..'):
                added = File.generated(config, _site_path(path), abs_src_path=str(ROOT / path))
                files.append(added)
                if added.is_documentation_page():
                    pages.append(added)
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Write the links of a page as they are in the site."""
    here = page.file.src_uri

    def rewritten(link: re.Match[str]) -> str:
        target = _site_path(_target(here, link[0]))
        there = files.get_file_from_path(target) is not None
        return posixpath.relpath(target, posixpath.dirname(here)) if there else link[0]

    return _LINK.sub(rewritten, markdown)


def _target(page: str, link: str) -> str:
    """Return what a link of a page of the site means, as a path in the repository."""
    in_docs = (ROOT / DOCS / page).is_file()
    path = (DOCS if in_docs else '') + page
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _site_path(path: str) -> str:
    return path.removeprefix(DOCS)
