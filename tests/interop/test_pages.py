"""The pages that move a loop over from another library run as they are written."""

import doctest
from pathlib import Path

import jax
import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.mark.slow
@pytest.mark.default_dtypes
@pytest.mark.parametrize("library", ["fedjax", "tff", "flower"])
def test_the_page_runs_as_it_is_written(library):
    # What a user types is under no strict mode.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        page = DOCS / f"from_{library}.md"
        failed, attempted = doctest.testfile(str(page), module_relative=False)
    assert attempted > 10
    assert failed == 0
