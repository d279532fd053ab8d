"""The page of a grid: one HTML file with table, pictures and all details, for a browser without network."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from lra_tasks.files import replace
from lra_tasks.reporting.grid import Grid
from lra_tasks.reporting.panels import GLYPHS, curve_panel, speed_panel
from lra_tasks.reporting.results import COLUMNS, Report
from lra_tasks.reporting.style import colors, on_dark

TEMPLATE = Path(__file__).with_suffix(".html")


class Html(str):
    """Text that is HTML already; `tag` escapes all other text."""


def write_page(grid: Grid, path: Path) -> None:
    """Writes a grid as one HTML file that needs no other file and no network.

    Args:
      grid: The grid.
      path: HTML file.

    Raises:
      UsageError: The file cannot be written.
    """
    title = f"{_count(len(grid.mixers), 'mixer')} on {_count(len(grid.reports), 'task')}"
    finished = [report for report in grid.reports if report.rows]
    shades = list(enumerate(colors(grid.mixers).values()))
    parts = {
        "title": tag("title", f"{title}: Long Range Arena"),
        "light": "".join(f"--mixer-{number}: {color};" for number, color in shades),
        "dark": "".join(f"--mixer-{number}: {on_dark(color)};" for number, color in shades),
        "heading": tag("h1", title),
        "lead": tag("p", _measured(grid)),
        "table": _table(grid),
        "notes": _list(grid.remarks()),
        "files": _files(grid),
        "key": _key(grid),
        "speed": "".join(_figure(each, speed_panel(grid, each), _rule(grid, each)) for each in finished),
        "curves": "".join(_figure(each, curve_panel(grid, each)) for each in finished),
        "tasks": "".join(_details(grid, report) for report in grid.reports),
    }
    replace(path, Template(TEMPLATE.read_text(encoding="utf-8")).substitute(parts))


def tag(name: str, *content: str, **attributes: str | int | None) -> Html:
    """Returns an element; an attribute `class_` is written as class, `aria_label` as aria-label.

    >>> tag("td", "a < b", Html("<br>"), class_="best", title=None)
    '<td class="best">a &lt; b<br></td>'
    """
    inside = "".join(each if isinstance(each, Html) else escape(each) for each in content)
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>{inside}</{name}>")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _list(sentences: Sequence[str]) -> str:
    return tag("ul", *(tag("li", sentence) for sentence in sentences)) if sentences else ""


def _measured(grid: Grid) -> str:
    """Returns a sentence on devices and versions."""
    known = [report.environment for report in grid.reports if report.environment]
    devices = dict.fromkeys(device for each in known for device in each.get("devices", ()))
    names = ("hrrformer", "jax", "flax")
    versions = dict.fromkeys(
        ", ".join(f"{name} {each['versions'][name]}" for name in names if name in each.get("versions", {}))
        for each in known
    )
    return f"Measured on {', '.join(devices) or 'an unknown device'}, with {'; '.join(versions)}."


def _rule(grid: Grid, report: Report) -> str:
    rule = grid.rule(report)
    return f"dashed: {rule}, {report.baselines[rule]:.2f} %" if rule else ""


def _mark(grid: Grid, mixer: str) -> Html:
    """Returns the mark of a mixer in all pictures."""
    number = grid.mixers.index(mixer)
    mark = GLYPHS[number % len(GLYPHS)]
    return tag("span", mark, class_="mark", style=f"color: var(--mixer-{number})", aria_hidden="true")


def _key(grid: Grid) -> Html:
    items = (
        tag("li", _mark(grid, mixer), mixer, data_mixer=number) for number, mixer in enumerate(grid.mixers)
    )
    return tag("ul", *items, class_="key")


def _head(name: str, *before: Html) -> Html:
    return tag("th", *before, tag("span", name, class_="name"), scope="row")


def _number(text: str) -> Html:
    """Returns an accuracy or ratio with its spread in small type."""
    value, space, spread = text.partition(" ")
    return tag("span", value, tag("small", space + spread)) if spread[:1] in ("±", "[") else tag("span", text)


def _table(grid: Grid) -> Html:
    """Returns the table of mixers × tasks, the simple rules and the published accuracies."""
    rows: list[Html] = []
    for mixer, *texts in grid.cells():
        cells = [_cell(grid, mixer, *each) for each in zip(grid.reports, texts, strict=False)]
        others = (tag("td", _number(text)) for text in texts[len(cells) :])
        rows.append(tag("tr", _head(mixer, _mark(grid, mixer)), *cells, *others))
    name, *scores = grid.simple_rules()
    rules = [grid.rule(report) or "" for report in grid.reports] + [""] * len(scores)
    best = (
        tag("td", score, tag("small", rule, class_="rule"))
        for score, rule in zip(scores, rules, strict=False)
    )
    bodies = [tag("tbody", *rows), tag("tbody", tag("tr", _head(name), *best), class_="rules")]
    header = grid.header()
    if published := grid.published():
        words = "Published, not measured here (Tay et al. 2021 and later papers, full training)"
        head = tag("th", tag("span", words, class_="wide"), colspan=len(header), scope="rowgroup")
        bodies.append(tag("tbody", tag("tr", head), *map(_row, published), class_="published"))
    return _box("Test accuracy in percent; bold: the best mixer of a task", header, bodies, id="grid")


def _row(texts: Sequence[str]) -> Html:
    return tag("tr", _head(texts[0]), *(tag("td", text) for text in texts[1:]))


def _box(caption: str, header: Sequence[str], bodies: Sequence[Html], **attributes: str) -> Html:
    """Returns a table in a box that scrolls sideways."""
    heads = tag("tr", *(tag("th", name, scope="col") for name in header))
    title = tag("caption", tag("span", caption, class_="wide"))
    table = tag("table", title, tag("thead", heads), *bodies, **attributes)
    return tag("div", table, class_="box", tabindex=0, role="region", aria_label=caption)


def _plain(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    return _box(caption, header, [tag("tbody", *map(_row, rows))])


def _cell(grid: Grid, mixer: str, report: Report, text: str) -> Html:
    """Returns the cell of a mixer on a task, with the messages of its failures as tooltip."""
    failures = [failure for failure in report.failures if failure.mixer == mixer]
    told = "\n".join(f"seed {failure.seed}: {failure.message}" for failure in failures) or None
    if grid.row(mixer, report) is None:
        return tag("td", text, class_="none", title=told)
    partly = tag("small", report.reasons(mixer), class_="rule") if failures else ""
    number = tag("strong", _number(text)) if grid.best(report) == mixer else _number(text)
    return tag("td", number, partly, title=told)


def _figure(report: Report, svg: str, words: str = "") -> Html:
    caption = tag("figcaption", tag("strong", report.title), " ", tag("small", words))
    return tag("figure", caption, Html(svg))


def _details(grid: Grid, report: Report) -> Html:
    """Returns everything on one task, folded."""
    steps = {
        row.mixer: ", ".join("-" if run.best_step is None else f"{run.best_step:,}" for run in row.runs)
        for row in report.rows
    }
    rows = [(*cells, steps.get(cells[0], "-")) for cells in report.cells()]
    parts = [_plain(f"{report.title}, one row per mixer", (*COLUMNS, "best step per seed"), rows)]
    if report.trials:
        parts.append(_plain("Validation accuracy per learning rate", *report.rate_cells()))
    if report.baselines:
        scores = [(name, f"{score:.2f}") for name, score in report.baselines.items()]
        parts.append(_plain("Simple rules, on the same test split", ("rule", "accuracy, %"), scores))
    if report.failures:
        texts = [f"{each.mixer}, seed {each.seed}, {each.reason}: {each.message}" for each in report.failures]
        parts += [tag("h3", "Runs that could not finish"), Html(_list(texts))]
    parts += [tag("h3", "Notes"), Html(_list(report.notes))] if report.notes else []
    for title, values in ("Environment of the first run", report.environment), ("Data", report.data):
        terms = (tag("dt", name) + tag("dd", _text(value)) for name, value in values.items())
        parts += [tag("h3", title), tag("dl", *map(Html, terms))] if values else []
    best = grid.best(report)
    words = f"best: {best}, {grid.accuracy(best, report)}" if best else "no finished run"
    head = tag("summary", tag("h3", report.title), " ", tag("small", words))
    return tag("details", head, *parts)


def _text(value: object) -> str:
    """Returns a value of a report's dictionaries on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _files(grid: Grid) -> Html:
    """Returns links to the runs as CSV and the table as LaTeX; the page contains both."""
    links = [
        tag("a", words, download=name, href=f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}")
        for words, name, kind, text in (
            ("the runs as CSV", "grid.csv", "text/csv", grid.csv()),
            ("the table as LaTeX", "grid.tex", "text/x-tex", grid.latex()),
        )
    ]
    return tag("p", "Save ", links[0], " · ", links[1])
