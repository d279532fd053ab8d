"""The prose is plain American English: words and phrases that make a sentence hard to read are rare.

    python tests/project/test_prose.py         prints the rates per 10,000 words
    python tests/project/test_prose.py what    prints also every occurrence of "what"

Prose is the text of pages and notebooks, docstrings, comments, messages and names of tests. Code, text in
backticks, addresses and generated tables do not count.
"""

import ast
import functools
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("hrrformer", "lra_tasks")
WORD = re.compile(r"[^\W\d_][\w'’-]*")
MESSAGE_WORDS = 4  # a shorter string is a name or a label


class Rule(NamedTuple):
    """A pattern, its limit per 10,000 words, and a replacement."""

    pattern: str
    limit: float
    instead: str


UNITS = (
    "head|token|seed|class|layer|device|second|step|sequence|example|mixer|process|host|file|batch|core|task|"
    "row|line|column|round|call|length|split|shard|pixel|module|job"
)
COUNTED = (
    r"one|two|three|four|five|six|eight|ten|once|\d+(?:,\d{3})*(?:\.\d+)?|numbers?|vectors?|floats|bytes|operations|examples|"
    "pictures|words|ms|minutes|seconds|processes|steps|calls|rows|cells|tokens|weights?|parameters?|masks?"
)
NOT_COUNTED = (
    "of|in|for|from|by|with|to|at|on|as|is|are|if|and|or|that|than|has|have|gives?|makes?|takes?|gets?"
)
BRITISH = (
    r"colour\w*|behaviour\w*|favour\w*|neighbour\w*|honour\w*|flavour\w*|centre[ds]?|grey\w*|licence[ds]?|"
    r"fibre\w*|artefact\w*|analys(?:e|ed|es|ing)|catalogue\w*|programmes?|whilst|defence|judgement|learnt|spelt|"
    r"labelled|labelling|modelled|modelling|cancelled|cancelling|travell\w+|signalled|"
    r"(?:optim|initial|normal|regular|general|special|factor|vector|parametr|serial|visual|quant|minim|maxim|real|"
    r"util|summar|organ|recogn|synchron|random|token|discret|memor|emphas|character|categor|material|standard)is"
    r"(?:e|ed|es|er|ers|ing|ation|ations)"
)
RULES = {
    "what": Rule(r"what", 20, "name the noun"),
    "of which, whose, to which": Rule(r"of\s+which|whose|to\s+which", 8, "write two sentences"),
    "stand": Rule(r"stand(?:s|ing)?(?!-)|stood", 0, "is, is shown, is listed, represents"),
    # "There is no run in ..." is plain English; "a folder that is no run" is not.
    "is no": Rule(r"(?<!there )(?:is|are|was|were)\s+no(?!\s+longer)", 1, "is not a"),
    "go on": Rule(r"(?:go|goes|gone|going|went)\s+on", 0, "resume, continue"),
    "one a head": Rule(
        rf"(?:{COUNTED})(?:\s+(?!(?:{NOT_COUNTED})\b)\w+)?\s+an?\s+(?:{UNITS})", 0, "one per head"
    ),
    "British spelling": Rule(BRITISH, 0, "American spelling"),
}
PATTERNS = {name: re.compile(rf"\b(?:{rule.pattern})\b", re.IGNORECASE) for name, rule in RULES.items()}


class Passage(NamedTuple):
    """A text without its code, and the line of the file in which it begins."""

    part: str
    path: Path
    line: int
    text: str


def blank(match: re.Match[str]) -> str:
    """Returns blank lines for a removed match, so that later lines keep their numbers."""
    return " " + "\n" * match[0].count("\n")


CODE = re.compile(
    r"""
      ^```.*?^```                                        # a block of code
    | ^<!--\ (?:table|results|memory|cost|longest):.*?^<!--\ end\ -->  # a generated table
    | ^[ ]*(?:>>>|\.\.\.)[^\n]*                          # a doctest
    | `[^`]*`                                            # code within a line
    | \]\([^)]*\) | https?://\S+                         # addresses
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


def passages() -> Iterator[Passage]:
    """Yields all prose of the project."""
    for path in sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")}):
        part = "changelog" if path.name == "CHANGELOG.md" else "pages"
        yield Passage(part, path, 1, path.read_text())
    for folder in (*PACKAGES, "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            source = path.read_text()
            yield from of_strings(path, source, messages=folder in PACKAGES)
            yield from of_comments(path, source)
    for path in sorted((ROOT / "colab").glob("[0-9]_*.py")):
        yield from of_notebook(path)
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if found := re.match(r"\s*def test_(\w+)", line):
                yield Passage("test names", path, number, found[1].replace("_", " "))


def of_strings(path: Path, source: str, messages: bool) -> Iterator[Passage]:
    """Yields the docstrings of a module, help texts below fields among them, and its messages."""
    parts = set[int]()  # strings that are a docstring, or a part of a formatted message
    for node in ast.walk(ast.parse(source)):  # from the outside in
        text = ""
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts.add(id(node.value))
            if isinstance(node.value.value, str):
                yield Passage("docstrings", path, node.lineno, node.value.value)
        elif isinstance(node, ast.JoinedStr):
            parts |= {id(value) for value in node.values}
            values = (value.value if isinstance(value, ast.Constant) else "1" for value in node.values)
            text = "".join(map(str, values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        if messages and isinstance(node, ast.expr) and len(WORD.findall(text)) >= MESSAGE_WORDS:
            yield Passage("messages", path, node.lineno, text)


def of_comments(path: Path, source: str) -> Iterator[Passage]:
    """Yields comments; consecutive comment lines are one text."""
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            number = token.start[0]
            if block and (number != last + 1 or token.line[: token.start[1]].strip()):
                yield Passage("comments", path, first, "\n".join(block))
                block = []
            first = first if block else number
            block.append(token.string.lstrip("#! "))
            last = number
    if block:
        yield Passage("comments", path, first, "\n".join(block))


def of_notebook(path: Path) -> Iterator[Passage]:
    """Yields the text cells of a notebook's source."""
    cell: list[str] | None = None
    first = 0
    for number, line in enumerate([*path.read_text().splitlines(), "# %%"], 1):
        if line.startswith("# %%"):
            if cell is not None:
                yield Passage("notebooks", path, first, "\n".join(cell))
            cell, first = [] if line == "# %% [markdown]" else None, number + 1
        elif cell is not None:
            cell.append(line.removeprefix("#").strip())


@functools.cache
def prose() -> list[Passage]:
    """Returns all passages, read once."""
    return [passage._replace(text=CODE.sub(blank, passage.text)) for passage in passages()]


def words() -> Counter[str]:
    """Counts the words of each part."""
    counts: Counter[str] = Counter()
    for passage in prose():
        counts[passage.part] += len(WORD.findall(passage.text))
    return counts


def hits(name: str) -> list[tuple[Passage, str]]:
    """Returns the occurrences of a pattern: passage, and `file:line: text`."""
    found = []
    for passage in prose():
        for match in PATTERNS[name].finditer(passage.text):
            line = passage.line + passage.text.count("\n", 0, match.start())
            around = passage.text[max(0, match.start() - 40) : match.end() + 40]
            where = f"{passage.path.relative_to(ROOT)}:{line}"
            found.append((passage, f"{where}: …{' '.join(around.split())}…"))
    return found


@pytest.mark.parametrize("name", RULES)
def test_prose_is_plain(name: str) -> None:
    found, rule = hits(name), RULES[name]
    allowed = rule.limit * sum(words().values()) / 10_000
    number, listed = len(found), "\n".join(text for _, text in found)
    assert number <= allowed, (
        f"'{name}' occurs {number} times; {allowed:.0f} are allowed. Instead: {rule.instead}.\n{listed}"
    )


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("what", "What it costs", "whatever"),
        ("of which, whose, to which", "two files, one of\nwhich is new", "which of these"),
        ("stand", "it stands here", "stand-ins understand"),
        ("is no", "a folder that is no run", "There is no run; is no longer used; is not a run"),
        ("go on", "the run goes\non", "ongoing"),
        ("one a head", "H + 1 numbers a head, one vector a\ntoken", "one of a head; gives a token; a layer"),
        ("British spelling", "Normalised colours", "normalized colors, noise, precise, promise"),
    ],
)
def test_patterns_find_bad_and_not_good_examples(name: str, bad: str, good: str) -> None:
    assert PATTERNS[name].search(bad)
    assert not PATTERNS[name].search(good)


def test_every_part_is_read() -> None:
    assert set(words()) == {
        "pages", "changelog", "docstrings", "comments", "messages", "notebooks", "test names"
    }  # fmt: skip


def main() -> None:
    """Prints the rates per 10,000 words by part, and every hit of the rules named as arguments."""
    counts = words()
    names = list(RULES)
    print(f"{'':12}{'words':>8}" + "".join(f"{name:>27}" for name in names))
    found = {name: Counter(passage.part for passage, _ in hits(name)) for name in names}
    for part in (*counts, "all"):
        number = counts[part] or sum(counts.values())
        rates = (
            1e4 * (found[name][part] if part != "all" else sum(found[name].values())) / number
            for name in names
        )
        print(f"{part:12}{number:>8,}" + "".join(f"{rate:>27.1f}" for rate in rates))
    print(f"{'limit':20}" + "".join(f"{RULES[name].limit:>27g}" for name in names))
    for name in sys.argv[1:]:
        print(f"\n{name}:", *(text for _, text in hits(name)), sep="\n")


if __name__ == "__main__":
    main()
