"""What the site has beside the pages of this folder, added when mkdocs builds it.

The generated pages of ``_pages``, and pages that lie elsewhere in the repository, such as the
results of the benchmarks. A link from a page to a file of the repository leads on the site to the
page that shows it, or that is made from it: so the same links work on both.
"""

import posixpath
import re
from pathlib import Path

import _pages

ROOT = Path(__file__).parent.parent

GENERATED = {
    "errors.md": _pages.error_index,
    "messages.md": _pages.messages_page,
    "api.md": _pages.api_page,
    "rooms.md": _pages.rooms_page,
}
# Where files outside docs/ lie on the site, or the page that is made from them.
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks/method.md",
    "benchmarks/RESULTS.md": "benchmarks/results.md",
    "examples/README.md": "examples/index.md",
    "notebooks/README.md": "notebooks/index.md",
    "fedjax_agg/__init__.py": "api.md",
    "fedjax_agg/wire/messages.py": "messages.md",
    "tests/errors.json": "errors.md",
}
# What pages show or link to, and is copied as it is.
COPIED = ("benchmarks/*.png", "examples/*.py", "notebooks/*.ipynb")
_LINK = re.compile(r"\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def place(path: str) -> str:
    """Where a file of the repository lies on the site."""
    return PLACES.get(path, path.removeprefix("docs/"))


def site_links(markdown: str, source: str) -> str:
    """The page that lies at ``source`` in the repository, with its links as the site has them."""
    here = posixpath.dirname(place(source)) or "."

    def moved(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        if (ROOT / path / "README.md").exists():
            path += "/README.md"
        if not (ROOT / path).is_file():
            return link[0]
        return f"]({posixpath.relpath(place(path), here)}{link['anchor'] or ''})"

    return _LINK.sub(moved, markdown)


def first_screen() -> str:
    """The README up to its first rule."""
    return (ROOT / "README.md").read_text().split("\n---\n")[0]


def on_files(files, config):
    """Adds the generated pages and the files outside docs/."""
    from mkdocs.structure.files import File

    for uri, make in GENERATED.items():
        content = site_links(make(), f"docs/{uri}")
        files.append(File.generated(config, uri, content=content))
    for source, uri in PLACES.items():
        if source.endswith(".md") and source != "README.md":
            content = site_links((ROOT / source).read_text(), source)
            files.append(File.generated(config, uri, content=content))
    for path in (path for pattern in COPIED for path in sorted(ROOT.glob(pattern))):
        uri = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites links, puts the README's first screen on the front page, and marks prompts."""
    uri = page.file.src_uri
    if page.file.generated_by is None:
        markdown = site_links(markdown, f"docs/{uri}")
    if uri == "index.md":
        markdown = f"{site_links(first_screen(), 'README.md')}\n\n{markdown}"
        page.meta["hide"] = ["navigation", "toc"]
    return markdown.replace("```python\n>>>", "```pycon\n>>>")
