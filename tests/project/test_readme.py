"""Tests of the generated tables of the README and the results page; test_docs.py tests the rest."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.readme import PAGES, RESULTS, filled
from lra_tasks import Settings, preset
from lra_tasks.config import from_json


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_match_the_measurements(page: Path) -> None:
    text = page.read_text()
    assert "<!-- end -->" in text
    assert filled(text) == text, "make readme"


def recorded(settings: dict[str, Any]) -> Settings:
    return from_json(json.dumps({"settings": settings, "task": ""})).settings


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*_race-*.json")), ids=lambda path: path.stem)
def test_a_race_was_run_with_the_settings_of_its_name(path: Path) -> None:
    module, _, race = path.stem.partition("-")
    races = importlib.import_module(f"experiments.{module}").RACES
    assert recorded(json.loads(path.read_text())["settings"]) == races[race].settings, "record it again"


def test_the_memory_of_a_preset_was_measured_with_its_settings() -> None:
    settings = json.loads((RESULTS / "pathx_memory.json").read_text())["settings"]
    for name in settings:
        assert recorded(settings[name]) == preset("pathx", name), "record it again"
