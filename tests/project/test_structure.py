"""The structure of the packages: imports run downwards, folders stay small, functions stay short."""

import ast
import itertools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the bottom to the top: a module imports only from earlier lines and from its own.
LAYERS = {
    "hrrformer": [
        ["version", "variant", "fft", "spectral"],
        ["algebra"],
        ["passes", "causal", "experimental"],
        ["arguments", "closed_form", "reference"],
        ["attention", "memory"],
        ["adapter"],
        ["linen", "nnx"],
        ["__init__"],
    ],
    "lra_tasks": [
        ["errors"],
        ["files", "config", "plugins", "progress"],
        ["task"],
        ["sources"],
        ["tasks"],
        ["presets"],
        ["model"],
        ["data"],
        ["training"],
        ["reporting"],
        ["comparison", "bench"],
        ["cli"],
        ["__main__", "__init__"],
    ],
}
MOST_AT_THE_TOP = 12  # modules of lra_tasks
MOST_LINES = 100  # of a function without its docstring


def modules(package):
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def imported(path, known):
    """Returns the package's modules that a module imports, also in functions, but not for annotations."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing_only:
            for alias in node.names:
                for name in (f"{node.module}.{alias.name}", node.module):
                    if name in known:
                        yield name
                        break


def layer(package, module):
    name = module.split(".")[1] if "." in module else "__init__"
    return next(number for number, names in enumerate(LAYERS[package]) if name in names)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_run_downwards(package):
    known = modules(package)
    upwards = [
        f"{module} imports {other}"
        for module, path in known.items()
        for other in imported(path, known)
        if layer(package, other) > layer(package, module)
    ]
    assert not upwards


@pytest.mark.parametrize("package", LAYERS)
def test_imports_are_not_circular(package):
    known = modules(package)
    below = {module: set(imported(path, known)) - {module} for module, path in known.items()}
    while leaves := [module for module in below if not below[module] & below.keys()]:
        for module in leaves:
            del below[module]
    assert not below


def test_few_modules_at_the_top():
    names = [path.name for path in (ROOT / "lra_tasks").glob("*.py") if path.name != "__init__.py"]
    assert len(names) <= MOST_AT_THE_TOP, names


def functions():
    for path in itertools.chain.from_iterable(modules(package).values() for package in LAYERS):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                documented = ast.get_docstring(node) is not None
                docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
                yield f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1 - docstring


def test_functions_are_short():
    assert not {name: lines for name, lines in functions() if lines > MOST_LINES}
