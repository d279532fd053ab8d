"""The page and the picture of a grid: whole, escaped, without network, and usable in a browser."""

import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lra_tasks.model.mixers import MIXERS
from lra_tasks.reporting import plots
from lra_tasks.reporting.grid import Grid
from lra_tasks.reporting.page import write_page
from lra_tasks.reporting.results import Failure, Report, Row, Run, Trial

OWN = "my_mixers:Mean<b>&"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOO_LARGE = Failure("softmax", 0, "out of memory", 'needs "17" GB <now>')


def row(mixer, number, seeds):
    """Returns a row; the accuracies of the mixers differ by 1.5, so that 9.5 and 11 are among them."""
    runs = (
        Run(
            seed=seed,
            test_accuracy=9.5 + 1.5 * number + seed / 4,
            examples_per_second=100.0 * (number + 1),
            seconds=60.0,
            curve=tuple((10 * step, 5.0 + step + number, 6.0 * step) for step in range(1, 6)),
            best_step=None if seed else 40,
        )
        for seed in range(seeds)
    )
    return Row(mixer, tuple(runs), num_parameters=12_345 + number, peak_bytes=10**9)


def report(title, mixers, *, seeds=1, failures=(), trials=(), baselines=None):
    return Report(
        task=title.split("/")[0],
        title=title,
        rows=tuple(row(mixer, number, seeds) for number, mixer in enumerate(mixers)),
        baselines={"chance": 10.0, "majority class": 15.9} if baselines is None else baselines,
        num_test=2000,
        notes=(f"A note on {title}.",),
        environment={"python": "3.11.7", "versions": {"jax": "0.10.2"}, "devices": ["cpu"]},
        data={"origin": "drawn"},
        failures=failures,
        order=tuple(dict.fromkeys([*mixers, *(run.mixer for run in failures)])),
        trials=trials,
    )


def grid():
    """Returns a grid with each special case: failures, seeds, a name to escape, a missing task."""
    names = ("fnet", OWN, "hrr")
    trials = (Trial("hrr", 1e-3, 0, 12.5, 60.0), Trial("hrr", 1e-2, 0, None, None))
    return Grid(
        (
            report("listops", names, failures=(TOO_LARGE,), trials=trials),
            report("text", (*names, "softmax"), seeds=3, baselines={}),
            report("order", (), failures=(Failure("hrr", 1, "diverged", "The loss is NaN."),)),
        ),
        {"image": "image is not prepared: run `lra prepare image`."},
    )


class Page(HTMLParser):
    """The cells of the tables by row, the tags, the attributes, and the texts by tag."""

    VOID = ("meta", "use", "path", "rect", "br")

    def __init__(self, path):
        super().__init__()
        self.rows, self.found, self.open = [], [], []
        self.source = path.read_text()
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, name, given):
        self.found.append((name, dict(given)))
        if name not in self.VOID:
            self.open.append(name)
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, name, given):
        self.found.append((name, dict(given)))

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def attributes(self, name):
        return [given for tag, given in self.found if tag == name]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "grid.html"
    write_page(grid(), path)
    return path


@pytest.fixture(scope="module")
def page(path):
    return Page(path)


def test_table(page):
    last = page.rows.index(next(cells for cells in page.rows if cells[0] == "Mega"))
    rows = {cells[0].lstrip("●■▲◆▼★"): cells[1:] for cells in page.rows[: last + 1]}
    assert list(rows["mixer"]) == ["listops", "text", "order", "mean", "speed ×", "memory ×"]
    assert rows["hrr"][:2] == ["12.50", "12.75 ± 0.25 (3)"]
    assert rows[OWN][0] == "11.00"
    assert rows["softmax"][:3] == ["out of memory", "14.25 ± 0.25 (3)", "-"]
    assert rows["best simple rule"][:3] == ["15.90majority class", "-", "15.90majority class"]
    assert rows["Hrrformer, multi-layer"][:4] == ["39.98", "65.38", "-", "52.68"]
    assert sum("not measured here" in cell for cells in page.rows for cell in cells) == 1


def test_failures_are_explained(page):
    assert {"class": "none", "title": f"seed 0: {TOO_LARGE.message}"} in page.attributes("td")
    assert f"softmax, seed 0, out of memory: {html.escape(TOO_LARGE.message)}" in page.source
    assert "no finished run" in page.source
    assert "image was not run. image is not prepared" in page.source


def test_best_of_a_task_is_bold(page):
    bold = re.findall(r"<td><strong><span>([\d.]+)", page.source)
    assert bold == ["12.50", "14.25"]


def test_texts_are_escaped(page):
    assert "<b>" not in page.source
    assert {name for name, _ in page.found}.isdisjoint({"b", "now"})
    assert page.source.count(html.escape(OWN)) > 5


def test_page_needs_no_network(page):
    names = {"src", "href", "xlink:href"}
    links = [given[name] for _, given in page.found for name in names & given.keys()]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in page.source
    assert set(re.findall(r"url\((.)", page.source)) == {"#"}
    policy = [given["content"] for given in page.attributes("meta") if "http-equiv" in given]
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none'")


def test_pictures_have_names_and_colors_of_the_page(page):
    pictures = page.attributes("svg")
    assert [given["aria-label"] for given in pictures] == [
        "listops: test accuracy against training speed",
        "text: test accuracy against training speed",
        "listops: validation accuracy against time",
        "text: validation accuracy against time",
    ]
    assert all(given["role"] == "img" for given in pictures)
    drawn = "".join(re.findall(r"<svg.*?</svg>", page.source, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn, re.IGNORECASE)
    assert set(re.findall(r"var\((--[\w-]+)\)", drawn)) <= set(re.findall(r"(--[\w-]+):", page.source))
    filled = re.findall(r"<use [^>]*fill: var\(--mixer-(\d)\)", drawn)  # black too, which is the default
    assert set(filled) == {"0", "1", "2", "3"}
    assert f"<title>{html.escape(OWN)}: 11.25 ± 0.25 (3)</title>" in drawn
    names = re.findall(r' id="([^"]*)"', page.source)
    assert len(set(names)) == len(names)
    assert {name[1:] for name in re.findall(r'href="(#[^"]*)"', drawn)} <= set(names)


def test_tables_have_scopes_and_captions(page):
    tables, captions = page.attributes("table"), page.attributes("caption")
    assert len(tables) == len(captions) > 4
    assert all(given["scope"] in ("row", "col", "rowgroup") for given in page.attributes("th"))


@pytest.mark.parametrize("title", ["order", "listops/smoke"])
def test_page_without_published_rows(tmp_path, title):
    write_page(Grid((report(title, ("hrr", "none")),)), tmp_path / "grid.html")
    assert "not measured here" not in Page(tmp_path / "grid.html").source


def test_page_without_any_result(tmp_path):
    write_page(Grid((report("order", (), failures=(TOO_LARGE,)),)), tmp_path / "grid.html")
    page = Page(tmp_path / "grid.html")
    assert page.rows[1][1:] == ["out of memory", "-", "-"]
    assert not page.attributes("svg")


FINDINGS = """<script>
addEventListener("load", () => {
  const table = document.getElementById("grid");
  const order = () => [...table.tBodies[0].rows].map(row => row.querySelector(".name").textContent);
  const state = () => [...table.tHead.rows[0].cells].map(head => head.getAttribute("aria-sort"));
  const heads = [...table.tHead.querySelectorAll("button")];
  const found = {orders: [order()], states: [], errors: []};
  for (const column of [1, 1, 1, 0]) {
    heads[column].focus();
    document.activeElement.click();
    found.orders.push(order());
    found.states.push(state()[column]);
  }
  found.last = table.tBodies[1].rows.length;
  document.querySelector('.key li[data-mixer="2"] button').click();
  found.faded = [...document.querySelectorAll("svg .dim")].map(mark => mark.dataset.mixer);
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  found.width = innerWidth;
  found.page = document.documentElement.scrollWidth;
  found.table = table.offsetWidth;
  const output = document.createElement("output");
  output.textContent = JSON.stringify(found);
  parent.document.body.append(output);
});
</script>"""


FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,900"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to open the page in")
@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser(path, tmp_path, width):
    """Sorting by a button, fading, and no sideways scrolling of the page, in a frame: a window has 500 px."""
    page = path.read_text().replace("</body>", f"{FINDINGS}</body>")
    frame = f'<iframe srcdoc="{html.escape(page)}" style="width: {width}px; height: 800px; border: 0">'
    (tmp_path / "frame.html").write_text(f"<!doctype html><meta charset=utf-8><body>{frame}</iframe></body>")
    profile, opened = f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()
    command = [str(BROWSER), *FLAGS, profile, "--dump-dom", opened]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(html.unescape(re.findall(r"<output>(.*?)</output>", done.stdout)[0]))
    asked = ["fnet", OWN, "hrr", "softmax"]
    down, up = ["hrr", OWN, "fnet", "softmax"], asked  # a cell without a number is last
    assert found["orders"] == [asked, down, up, asked, ["fnet", "hrr", OWN, "softmax"]]
    assert found["states"] == ["descending", "ascending", "none", "ascending"]
    assert found["last"] == 1
    assert set(found["faded"]) == {"0", "1", "3"}
    assert found["page"] == found["width"] == width
    assert (found["table"] > width) == (width == 390)


@pytest.fixture
def figures(monkeypatch):
    """Returns the list of the figures that are saved."""
    found = []
    save = Figure.savefig

    def saved(figure, path, **options):
        found.append(figure)
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    return found


def texts_of(figure):
    """Returns the visible texts of a figure and their boxes."""
    figure.draw_without_rendering()
    both = [axis for axes in figure.axes if axes.axison for axis in (axes.xaxis, axes.yaxis)]
    ticks = {tick for axis in both for tick in axis.get_major_ticks()}
    hidden = ticks - {tick for axis in both for tick in axis._update_ticks()}
    labels = {label for tick in hidden for label in (tick.label1, tick.label2)}
    off = {text for axes in figure.axes if not axes.axison for text in axes.findobj(Text)}
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    return {text: Text.get_window_extent(text) for text in texts if text not in labels | off}


ALL = (*list(MIXERS)[:-1], "my_mixers:Mean:state=64,window=128")


@pytest.mark.parametrize(
    ("mixers", "tasks", "suffix"),
    [(ALL, 8, "png"), (ALL[:3], 1, "svg"), (ALL[:3], 5, "pdf")],
    ids=["17 mixers on 8 tasks", "3 mixers on 1 task", "3 mixers on 5 tasks"],
)
def test_texts_of_the_picture_of_a_grid_do_not_touch(tmp_path, figures, mixers, tasks, suffix):
    lost = (Failure("softmax", 0, "out of memory", ""), Failure("softmax", 1, "diverged", ""))
    finished = [mixer for mixer in mixers if mixer != "softmax"]
    rules = {"title and authors of the second text in the first": 37.5}
    reports = [report("listops/variant", mixers, baselines=rules)]
    reports += [
        report(f"task{number}/variant", finished, failures=lost, baselines=rules)
        for number in range(1, tasks)
    ]
    plots.draw_grid(Grid(tuple(reports)), tmp_path / f"grid.{suffix}")
    (figure,) = figures
    boxes = texts_of(figure)
    named = [(text.get_text(), box) for text, box in boxes.items()]
    touching = [(one, other) for (one, a), (other, b) in itertools.combinations(named, 2) if a.overlaps(b)]
    assert not touching
    assert not [text for text, box in named if box.x0 < 0 or box.x1 > figure.bbox.x1]
    texts = {" ".join(text.split()) for text, _ in named}
    assert {plots.label(mixer).replace(",", ", ") for mixer in mixers} <= texts
    assert "37.50 %: title and authors of the second text in the first" in texts
    assert ("out of memory, diverged" in texts) == (tasks > 1)
    assert (tmp_path / f"grid.{suffix}").read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")


def test_picture_of_a_report_names_failures(tmp_path, figures):
    for number, each in enumerate((grid().reports[0], report("listops", (), failures=(TOO_LARGE,)))):
        plots.draw(each, tmp_path / f"{number}.png")
    for figure, mixers in zip(figures, ({"fnet", "hrr", "softmax"}, {"softmax"}), strict=True):
        assert {text.get_text() for text in texts_of(figure)} >= {"out of memory", *mixers}


def test_dollar_signs_are_not_formulas(tmp_path):
    rules = {r"bag of $\no$ words": 9.0}
    plots.draw_grid(Grid((report("order", ("hrr",), baselines=rules),)), tmp_path / "grid.svg")
    assert r"bag of $\no$ words" in (tmp_path / "grid.svg").read_text()
