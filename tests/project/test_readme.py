"""Tests of the generated tables of the README and the results page; test_docs.py tests the rest."""

from pathlib import Path

import pytest

from experiments.readme import PAGES, filled


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_match_the_measurements(page: Path) -> None:
    text = page.read_text()
    assert "<!-- end -->" in text
    assert filled(text) == text, "make readme"
