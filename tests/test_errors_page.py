"""The page of mistakes says what the library says today."""

from __future__ import annotations

import pytest

from tests.errors import PAGE, page, release


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_page_of_mistakes_is_up_to_date():
    made, kept = page(), PAGE.read_text()
    if f"(torch {release()})" not in kept:
        pytest.skip("the page quotes messages of another release of torch; every line of it raised what it should")
    assert made == kept, "python -m tests.errors writes docs/errors.md anew"
