"""The distribution: files of wheel and sdist, metadata, citation, and the modules that imports load."""

import email
import email.message
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from helpers import arena
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hrrformer import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def files(*folders, suffixes=(".py",), names=("py.typed", "page.html")):
    """Returns the files below folders of the tree with one of the suffixes or names, as relative paths."""
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in suffixes or path.name in names
    }


@pytest.fixture(scope="session")
def dist(tmp_path_factory):
    """Returns a folder with the sdist and the wheel built from it."""

    def make(folder):
        # Not isolated: an isolated build downloads its backend.
        arguments = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
        built = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout + built.stderr

    return arena.shared(tmp_path_factory, "dist", make)


@pytest.fixture
def wheel(dist):
    with zipfile.ZipFile(dist / f"hrrformer-{__version__}-py3-none-any.whl") as archive:
        yield archive


@pytest.fixture
def metadata(wheel) -> email.message.Message:
    return email.message_from_bytes(wheel.read(f"hrrformer-{__version__}.dist-info/METADATA"))


def test_nothing_else_is_built(dist):
    assert {path.name for path in dist.iterdir()} == {
        f"hrrformer-{__version__}-py3-none-any.whl",
        f"hrrformer-{__version__}.tar.gz",
    }


def test_files_of_the_wheel(wheel):
    info = f"hrrformer-{__version__}.dist-info"
    own = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    names = wheel.namelist()
    assert len(names) == len(set(names))
    assert set(names) == files("hrrformer", "lra_tasks") | own | {f"{info}/licenses/LICENSE"}
    assert {"hrrformer/py.typed", "lra_tasks/py.typed", "lra_tasks/tasks/listops/task.py"} <= set(names)
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert wheel.read("hrrformer/nnx.py") == (ROOT / "hrrformer" / "nnx.py").read_bytes()
    assert wheel.read(f"{info}/entry_points.txt").decode().split() == [
        "[console_scripts]", "lra", "=", "lra_tasks.cli.main:main"
    ]  # fmt: skip


def test_files_of_the_sdist(dist):
    with tarfile.open(dist / f"hrrformer-{__version__}.tar.gz") as archive:
        members = archive.getmembers()
    names = [str(Path(*Path(member.name).parts[1:])) for member in members]
    top = {
        "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO", "README.md",
        "pyproject.toml",
    }  # fmt: skip
    optional = {name for name in (".gitignore", "mkdocs.yml") if (ROOT / name).is_file()}
    packages = files("hrrformer", "lra_tasks")
    tests = files("tests", "experiments", suffixes=(".py", ".json", ".jsonl"))
    pages = files("docs", suffixes=(".md", ".py", ".css", ".svg", ".png"))
    notebooks = files("colab", suffixes=(".py", ".ipynb"))
    assert len(names) == len(set(names))
    assert set(names) == top | optional | packages | tests | pages | notebooks
    assert all(member.isfile() for member in members)


def test_metadata(metadata):
    assert metadata["Name"] == "hrrformer"
    assert metadata["Version"] == __version__
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert not [line for line in metadata.get_all("Classifier") if line.startswith("License ::")]
    assert metadata["Requires-Python"] == ">=3.11"
    links = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL"))
    assert links["Repository"] == "https://github.com/hrrformer/hrrformer"


def test_the_library_needs_jax_flax_and_jaxtyping_and_the_rest_is_extra(metadata):
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    extras = set(metadata.get_all("Provides-Extra"))
    assert extras == {"lra", "cuda12", "cuda13", "tpu", "tensorboard", "docs", "dev"}

    def names(extra):
        return {
            canonicalize_name(r.name)
            for r in required
            if r.marker is None or ("extra" in str(r.marker) and r.marker.evaluate({"extra": extra}))
        }

    library = names("")
    assert library == {"jax", "jaxlib", "flax", "jaxtyping"}  # jaxlib is a part of jax
    assert names("tensorboard") - library == {"tensorboardx"}
    assert {"tensorflow-datasets", "grain", "array-record", "tyro", "orbax-checkpoint"} <= names("lra")
    assert {"pytest", "ruff", "pyright", "build", "hatchling", "tensorboardx"} <= names("dev")
    assert {"mkdocs", "mkdocs-material", "mkdocstrings"} <= names("docs")
    for extra in ("cuda12", "cuda13", "tpu"):
        (jax,) = [r for r in required if r.extras == {extra}]
        assert jax.name == "jax"
        assert str(jax.marker) == f'extra == "{extra}"'
        assert names(extra) == library
    assert not [r for r in required if canonicalize_name(r.name) in ("tensorflow", "tensorboard", "torch")]


def test_the_description_is_the_readme_with_links_that_work(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload(decode=True).decode()  # pyright: ignore[reportAttributeAccessIssue]
    readme = (ROOT / "README.md").read_text()
    links = re.compile(r"\]\((.*?)\)")
    assert links.sub("", text) == links.sub("", readme)
    targets = links.findall(text)
    assert len(targets) == len(links.findall(readme))
    assert all(target.startswith(("https://", "#")) for target in targets)
    files = [
        target.partition(f"/v{__version__}/")[2].partition("#")[0]
        for target in targets
        if f"/v{__version__}/" in target
    ]
    assert len(files) >= 3
    assert all((ROOT / file).exists() for file in files if not file.endswith(".png"))


def test_versions_agree():
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    (newest, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == __version__


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"]
    assert citation["type"] == "software"
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert citation["abstract"] == PROJECT["description"] + "."
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert citation["authors"] == PROJECT["authors"]
    paper = citation["preferred-citation"]
    assert paper["title"] == "Recasting Self-Attention with Holographic Reduced Representations"
    assert [author["family-names"] for author in paper["authors"]] == [
        "Alam", "Raff", "Biderman", "Oates", "Holt"
    ]  # fmt: skip
    assert paper["year"] == 2023
    assert paper["url"] == PROJECT["urls"]["Paper"]


def loaded(statement):
    """Returns the top-level modules that a new process has loaded after a statement."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=arena.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in json.loads(ran.stdout)}


ARENA = {
    "lra_tasks", "tensorflow", "tensorflow_datasets", "grain", "array_record", "tyro", "matplotlib", "numba",
    "PIL", "tensorboardX",
}  # fmt: skip


def test_the_library_loads_nothing_of_the_arena():
    modules = loaded("import hrrformer")
    assert {"hrrformer", "jax", "jaxtyping"} <= modules
    assert not modules & (ARENA | {"flax", "optax", "orbax", "rich", "requests"})
    modules = loaded("import hrrformer.nnx, hrrformer.linen, hrrformer.experimental.pallas")
    assert "flax" in modules
    assert not modules & ARENA


def test_the_arena_never_loads_tensorflow_or_tensorboard():
    modules = loaded(
        "import lra_tasks, lra_tasks.tasks.listops.builder;"
        " [getattr(lra_tasks, name) for name in lra_tasks.__all__]"
    )
    assert {"lra_tasks", "tensorflow_datasets", "orbax"} <= modules
    assert not modules & {"tensorflow", "tensorboardX", "tensorboard"}


FILES_WITH_COMMANDS = [
    path
    for name in (
        "CONTRIBUTING.md",
        "RELEASING.md",
        ".ci/run",
        ".pre-commit-config.yaml",
        ".github/workflows/*.yml",
    )
    for path in sorted(ROOT.glob(name))
]  # the sdist does not contain all of them


@pytest.mark.parametrize("path", FILES_WITH_COMMANDS, ids=lambda path: path.name)
def test_documented_make_targets_exist(path):
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    told = re.findall(r"\bmake ((?:[a-z-]+ ?)+)(?=$|[`;&A-Z\"])", path.read_text(), re.MULTILINE)
    assert {target for targets in told for target in targets.split()} <= set(phony.split())
    if path.suffix in (".yml", ".yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="of the repository, not of the sdist")
def test_workflows():
    test, release = (
        yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
        for name in ("test.yml", "release.yml")
    )
    runs = [step["run"] for step in test["jobs"]["check"]["steps"] if "run" in step]
    assert runs == ["make lint", "make types", "make docs", "make check-wheel"]
    lowest = PROJECT["requires-python"].removeprefix(">=")
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert test["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    assert named[0] == lowest
    used = [
        step["uses"]
        for workflow in (test, release)
        for job in workflow["jobs"].values()
        for step in job.get("steps", [])
        if "uses" in step
    ]
    assert len(used) >= 8
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", action) for action in used)
