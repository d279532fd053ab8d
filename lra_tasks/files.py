"""Files that are there whole or not at all."""

import json
from pathlib import Path
from typing import Any


def replace(path: Path, text: str) -> None:
    """Writes a text file beside its place and renames it: a kill leaves the old one or the new one."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON in the same way."""
    replace(path, json.dumps(content, indent=2) + "\n")
