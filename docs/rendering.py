"""How Markdown and docstrings become the site's pages: hooks of MkDocs and an extension of mkdocstrings.

Formulas become MathML, which browsers draw by themselves; doctests become code; and the pictures that
experiments recorded appear beside the pages, which lie in another folder than they do.
"""

import html as entities
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parent.parent / "experiments" / "results"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
DOCTEST = re.compile(r"^>>> .+(?:\n.+)*", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    for picture in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace("](../experiments/results/", "](results/")


def on_page_content(html: str, **_: Any) -> str:
    def formula(match: re.Match[str]) -> str:
        tag, tex = match[1], entities.unescape(match[2])
        mathml = convert(tex.strip(), display="inline" if tag == "span" else "block")
        return f'<{tag} class="formula">{mathml}</{tag}>'

    return FORMULA.sub(formula, html)


class Doctests(griffe.Extension):
    """Fences doctests: Markdown takes `>>>` for a quotation of a quotation of a quotation."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
