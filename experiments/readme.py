"""Writes the measured tables into README.md and docs/results.md, and draws the recorded pictures again.

    make readme

Everything comes from the JSON in experiments/results. The text between `<!-- table: NAME -->` and `<!-- end
-->` is replaced by the table of the report in NAME.json, the text after `<!-- results: NAME -->` by the whole
report, after `<!-- memory: NAME -->` by the memory of a training step by preset and mixer, after `<!-- cost:
NAME -->` by targets and measurements, and after `<!-- longest: NAME -->` by the longest sequences that fit.
After `<!-- grid: NAME -->` come the mixers × tasks of the runs in the folder NAME, and after `<!-- page: NAME
-->` the whole report on them. The pictures are those of the reports, of the grid and of attention's cost.
`tests/project/test_readme.py` fails while a page and the results disagree.
"""

import json
import re
from pathlib import Path
from typing import Any

from lra_tasks import Report
from lra_tasks.bench.plot import plot
from lra_tasks.reporting import plots
from lra_tasks.reporting.report import collect_grid

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
BLOCK = re.compile(
    r"(<!-- (table|results|memory|cost|longest|grid|page): ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL
)


def filled(text: str) -> str:
    """Returns a page's text with every block of results written again."""
    return BLOCK.sub(lambda match: f"{match[1]}{_block(match[2], match[3])}{match[4]}", text)


def _block(kind: str, name: str) -> str:
    if kind in ("grid", "page"):
        grid = collect_grid([RESULTS / name])
        return grid.table() if kind == "grid" else grid.markdown().replace("\n## ", "\n### ")
    result = json.loads((RESULTS / f"{name}.json").read_text())
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
    lines = ["| target | at most | measured | met? |", "|---|---:|---:|---|"]
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
        lines.append(f"| {layer} | {row['implementation']} | {length} | {size} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    for path in RESULTS.glob("*_race-*.json"):
        report = Report.from_json(json.loads(path.read_text())["report"])
        plots.draw(report, path.with_suffix(".png"))
    for name in ("quick", "cpu"):
        plots.draw_grid(collect_grid([RESULTS / name]), RESULTS / f"{name}.png")
    cost = RESULTS / "attention_cost.json"
    plot(json.loads(cost.read_text()), cost.with_suffix(".png"))
