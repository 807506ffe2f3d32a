"""The site: its pages run as they are written, and what is generated for it is complete.

The generators of ``docs/_pages.py`` need no mkdocs; a strict build of the site, in ``.ci/run``,
checks the links.
"""

import doctest
import importlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_agg as fa

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Pages that others run: tests/test_testing.py and tests/interop/test_pages.py.
ELSEWHERE = {
    "add_a_codec.md",
    "add_a_protocol.md",
    "bytes.md",
    "from_fedjax.md",
    "from_flower.md",
    "from_tff.md",
    "inverse-transforms.md",
}
SLOW = ("dropouts.md", "planning.md", "sweeps.md", "ten-minutes.md", "views.md")
PAGES = ["which-protocol.md", *(pytest.param(page, marks=pytest.mark.slow) for page in SLOW)]


@pytest.fixture(scope="module")
def pages():
    """The module that makes pages, imported as mkdocs does it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module("_pages")


@pytest.fixture(scope="module")
def hooks(pages):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module("_hooks")


@pytest.mark.default_dtypes
@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs_as_it_is_written(page):
    # What a user types is under no strict mode, and may change how arrays print.
    promote, rank = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with promote, rank, np.printoptions():
        failed, attempted = doctest.testfile(str(DOCS / page), module_relative=False)
    assert attempted > 5
    assert failed == 0


def test_no_page_with_prompts_is_forgotten():
    with_prompts = {page.name for page in DOCS.glob("*.md") if ">>> " in page.read_text()}
    assert with_prompts == {"which-protocol.md", *SLOW, *ELSEWHERE}


def test_the_error_index_has_every_tag_and_every_message(pages):
    text = pages.error_index()
    rows = json.loads((ROOT / "tests" / "errors.json").read_text())
    assert len(rows) > 100
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == sorted({row["tag"] for row in rows})
    for row in rows:
        assert f">>> {row['code']}\n{row['type']}: {row['message']}\n" in text


@pytest.mark.slow
def test_the_page_of_messages_has_every_type_at_its_stages(pages):
    text = pages.messages_page()
    assert len(pages.message_types()) >= 10
    for kind in pages.message_types():
        assert f"\n### {kind.__name__}\n" in text
        assert f"(#{kind.__name__.lower()})" in text, "it is in no table"
    secagg = text.split("## SecAgg")[1].split("## LightSecAgg")[0]
    stages = re.findall(r"^\| \*(\w+)\*", secagg, re.MULTILINE)
    assert stages == ["advertise", "share", "upload", "attest", "unmask"]
    assert "| *share* | [SealedShares](#sealedshares) | [SealedShares](#sealedshares) |" in secagg


def test_the_reference_has_every_name_with_its_arguments_and_example(pages):
    text = pages.api_page()
    assert re.findall(r"^## fa\.(.*)$", text, re.MULTILINE) == fa.__all__
    secure_mean = text.split("## fa.secure_mean\n")[1].split("\n## ")[0]
    assert "    protocol=Plain(group=Ring(bits=32)),\n" in secure_mean
    assert "- `weights`: one for each client, [n]." in secure_mean
    assert "**Formal Guarantees**\n\nLaw 1:" in secure_mean
    assert "```pycon\n>>> import jax.numpy as jnp\n" in secure_mean
    assert "### federated.FedAvg\n" in pages.rooms_page()
    # Nor does a default show where it lies in memory.
    assert " at 0x" not in text + pages.rooms_page()


@pytest.mark.parametrize(
    ("source", "link", "moved"),
    [
        ("README.md", "docs/bytes.md", "bytes.md"),
        ("README.md", "notebooks", "notebooks/index.md"),
        ("README.md", "examples/hosts.py", "examples/hosts.py"),
        ("docs/bytes.md", "dropouts.md#too-many", "dropouts.md#too-many"),
        ("docs/limits.md", "../benchmarks/RESULTS.md", "benchmarks/results.md"),
        ("docs/limits.md", "../README.md", "index.md"),
        ("docs/limits.md", "../tests/errors.json", "errors.md"),
        ("examples/README.md", "../docs/digits.png", "../digits.png"),
        ("benchmarks/RESULTS.md", "README.md", "method.md"),
        ("docs/limits.md", "no_such_file.md", "no_such_file.md"),
        ("docs/limits.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_a_link_to_a_file_of_the_repository_leads_to_its_page(hooks, source, link, moved):
    assert hooks.site_links(f"see [this]({link}).", source) == f"see [this]({moved})."


def test_the_front_page_begins_as_the_readme_does(hooks):
    assert hooks.first_screen().startswith("# fedjax_agg\n")
    assert "I want to" in hooks.first_screen()
