"""Writes the measured tables into README.md and docs/results.md, from the JSON in experiments/results.

    make readme

The text between a marker and `<!-- end -->` is generated from `experiments/results/NAME.json`:

- `<!-- table: NAME -->` the table of a report;
- `<!-- results: NAME -->` the whole report;
- `<!-- memory: NAME -->` the memory of a training step, by preset and mixer;
- `<!-- cost: NAME -->` targets and measurements;
- `<!-- longest: NAME -->` the longest sequences that fit.

`tests/project/test_readme.py` fails while a page and results disagree.
"""

import json
import re
from pathlib import Path
from typing import Any

from lra_tasks import Report

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
BLOCK = re.compile(r"(<!-- (table|results|memory|cost|longest): ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Returns a page's text with every block of results generated again."""
    return BLOCK.sub(lambda match: f"{match[1]}{_block(match[2], match[3])}{match[4]}", text)


def _block(kind: str, name: str) -> str:
    result = json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())
    if kind == "memory":
        return _memory(result)
    if kind == "cost":
        return _cost(result)
    if kind == "longest":
        return _longest(result)
    report = Report.from_json(result["report"])
    if kind == "table":
        return report.table()
    lines = [report.markdown()]
    sizes = result["temp_bytes"]
    if not sizes:
        return lines[0]
    lengths = list(next(iter(sizes.values())))
    lines.append("Temporary memory of one compiled training step, by length:\n")
    lines.append("| T | " + " | ".join(sizes) + " |\n|---:|" + "---:|" * len(sizes))
    for length in lengths:
        cells = " | ".join(f"{sizes[mixer][length] / 1e6:,.0f} MB" for mixer in sizes)
        lines.append(f"| {int(length):,} | {cells} |")
    return "\n".join(lines) + "\n"


def _memory(result: dict[str, Any]) -> str:
    mixers = list(next(iter(result["bytes"].values())))
    lines = [f"| preset | batch | {' | '.join(mixers)} |", "|---|---:|" + "---:|" * len(mixers)]
    for name, sizes in result["bytes"].items():
        cells = " | ".join(f"{size / 1e9:,.2f} GB" for size in sizes.values())
        lines.append(f"| {name} | {result['batch_size'][name]} | {cells} |")
    return "\n".join(lines) + "\n"


def _cost(result: dict[str, Any]) -> str:
    lines = ["| what | at most | measured | met? |", "|---|---:|---:|---|"]
    for row in result["targets"]:
        measured = "-" if row["measured"] is None else f"{row['measured']:.2f}"
        met = "yes" if row["met"] else "no"
        lines.append(f"| {row['target']} | {row['bound']:.2f} | {measured} | {met} |")
    return "\n".join(lines) + "\n"


def _longest(result: dict[str, Any]) -> str:
    lines = ["| layer | attention | longest T | needs |", "|---|---|---:|---:|"]
    for row in result["rows"]:
        heads = "head" if row["num_heads"] == 1 else "heads"
        layer = f"D = {row['width']}, {row['num_heads']} {heads}"
        length, size = f"{row['length']:,}", f"{row['total_bytes'] / 2**30:.1f} GiB"
        lines.append(f"| {layer} | {row['contestant']} | {length} | {size} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
