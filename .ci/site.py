"""Hooks that build the documentation site with mkdocs.

The README becomes the home page, links that leave docs/ become plain text, and reStructuredText
roles and links in docstrings become links.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://|#)([^)\s]+)\)")


# ``:func:`~package.name` `` and `` `text <address>`_ `` after Markdown has turned them into code.
_ROLE = re.compile(r":(?:func|class|data|mod|meth|attr):<code>(~?)([^<]+)</code>")
_REST_LINK = re.compile(r"<code>([^<]+?)\s*&lt;(https?://[^&]+)&gt;</code>_")


def on_files(files, config):
    """Make the README the home page, with links relative to docs/."""
    text = (ROOT / "README.md").read_text()
    text = _LINK.sub(lambda link: f"[{link[1]}]({_from_docs(link[2])})", text)
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links to files outside the site into plain text."""
    return _LINK.sub(lambda link: link[1] if link[2].startswith("../") else link[0], markdown)


def on_page_content(html, page, config, files):
    """Turn references in docstrings into links."""

    def reference(role):
        short = role[2].rpartition(".")[2]
        shown = short if role[1] else role[2]
        found = f'id="composer_attn.{short}"' in html
        return (
            f'<a href="#composer_attn.{short}"><code>{shown}</code></a>'
            if found
            else (f"<code>{shown}</code>")
        )

    return _REST_LINK.sub(r'<a href="\2">\1</a>', _ROLE.sub(reference, html))


def _from_docs(target: str) -> str:
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
