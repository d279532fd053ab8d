"""The README keeps its promises: its tables are the measured ones, its tree is the tree. See test_docs.py."""

import re
from pathlib import Path

import pytest

from experiments.readme import PAGES, filled

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_the_measured_ones(page: Path) -> None:
    text = page.read_text()
    assert "<!-- end -->" in text
    assert filled(text) == text, "make readme"


def test_tree_names_files_that_exist() -> None:
    (tree,) = re.findall(r"```\n(hrrformer/.*?)```", README, re.DOTALL)
    folder, named = "", set()
    for line in tree.splitlines():
        if not line.startswith(" "):
            folder = line.split()[0]
            assert (ROOT / folder).is_dir()
            continue
        for name in re.findall(r"[a-z_]+(?:\.py|/)", line):
            assert (ROOT / folder / name).exists(), f"{folder}{name}"
            named.add(folder + name)
    modules = {
        f"{package}/{path.name}"
        for package in ("hrrformer", "lra_tasks")
        for path in (ROOT / package).glob("*.py")
    }
    assert not {m for m in modules if Path(m).name not in ("__init__.py", "version.py", "errors.py")} - named
