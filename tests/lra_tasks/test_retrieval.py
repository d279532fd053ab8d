"""Retrieval: lines of the release, pairs of this project, baseline rules, and a model with two inputs."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import textwrap
import tracemalloc
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import arena, sources, sources_retrieval
from hypothesis import given
from hypothesis import strategies as st

from lra_tasks import Config, ModelConfig, Settings, train
from lra_tasks.data.batches import training_batches
from lra_tasks.data.dataset import load
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import MissingData, UsageError
from lra_tasks.model.encoder import Classifier, num_parameters
from lra_tasks.tasks.retrieval import builder as retrieval_builder
from lra_tasks.tasks.retrieval import task as retrieval
from lra_tasks.tasks.retrieval.acl_pairs import Paper, make_pairs, read_citations, read_papers
from lra_tasks.tasks.retrieval.task import read_row, references
from lra_tasks.training.step import Trainer

RETRIEVAL = dataclasses.replace(retrieval.TASK, disk_bytes=0)  # of small files
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="session")
def acl_files():
    return sources_retrieval.acl()


@pytest.fixture(scope="session")
def graph(acl_files):
    """Returns papers and citations."""
    papers, edges = (content.splitlines() for content in acl_files.values())
    papers = read_papers("papers.jsonl", papers)
    return papers, read_citations("edges.tsv", edges, papers)


@pytest.fixture(scope="session")
def acl_folder(acl_files, tmp_path_factory):
    return sources.as_folder(acl_files, tmp_path_factory.mktemp("acl"))


@pytest.fixture(scope="session")
def prepared(acl_folder, tmp_path_factory):
    """Returns a data folder with the smoke dataset; tests must not change it."""
    root = tmp_path_factory.mktemp("data")
    prepare(RETRIEVAL, root, variant="smoke", manual_dir=acl_folder)
    return root


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.array_record*")}


# Lines of the release


@pytest.mark.parametrize(
    ("line", "pair", "label"),
    [
        (b"1\ta\tb\tone\tother\n", (b"one", b"other"), 1),
        (b"0\ta\tb\tone\tother\r\n", (b"one", b"other"), 0),
        (b"1.0\ta\tb\tone\tother", (b"one", b"other"), 1),
        (b"0.0\t\t\tb'one\\n'\tb\"other\"\n", (b"b'one\\n'", b'b"other"'), 0),
        (b'1\ta\tb\t"one ""1"""\t caf\xc3\xa9 \n', (b'"one ""1"""', b" caf\xc3\xa9 "), 1),
    ],
)
def test_a_row_is_read(line, pair, label):
    assert read_row(line) == (pair, label)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"\n", "it has 1 fields, expected 5: label, id1, id2, text1, text2"),
        (b"1\ta\tb\tone\n", "it has 4 fields"),
        (b"1\ta\tb\tone\tother\t\n", "it has 6 fields"),
        (b"label\tid1\tid2\ttext1\ttext2\n", "the label is 'label', expected 0 or 1"),
        (b"2\ta\tb\tone\tother\n", "the label is '2'"),
        (b"0.5\ta\tb\tone\tother\n", r"the label is '0.5'"),
        (b"\xff\ta\tb\tone\tother\n", "the label is '\ufffd'"),
        (b"1\ta\tb\t\tother\n", "text1 is empty"),
        (b"1\ta\tb\tone\t \n", "text2 is empty"),
        (b"1\ta\tb\tone\tb''\n", "text2 is empty"),
    ],
)
def test_a_wrong_row_is_refused(line, why):
    with pytest.raises(UsageError, match=why):
        read_row(line)


# Pairs of this project


@pytest.mark.parametrize("limits", [None, {"train": 128, "validation": 32, "test": 32}])
def test_pairs(graph, limits):
    papers, citations = graph
    pairs = make_pairs(papers, citations, limits)
    linked = {frozenset(citation) for citation in citations}
    seen = set()
    for split in SPLITS:
        cites, does_not = ([pair[:2] for pair in pairs.splits[split] if pair[2] == label] for label in (1, 0))
        assert len(cites) == len(does_not) == (limits[split] if limits else len(cites)) > 30
        assert {(a.id, b.id) for a, b in cites} <= set(citations)
        assert not any(frozenset((a.id, b.id)) in linked or a == b for a, b in does_not)
        assert len({frozenset((a.id, b.id)) for a, b in cites + does_not}) == 2 * len(cites)
        for side in (0, 1):
            assert Counter(pair[side] for pair in cites) == Counter(pair[side] for pair in does_not)
        years = [Counter(a.year - b.year for a, b in pairs) for pairs in (cites, does_not)]
        assert (years[1] - years[0]).total() == pairs.other_years[split]
        assert limits or pairs.other_years[split] < 0.2 * len(cites)
        ids = {paper.id for pair in cites for paper in pair}
        assert not ids & seen
        seen |= ids
        first = [label for *_, label in pairs.splits[split][:60]]
        assert 15 < sum(first) < 45  # the beginning is like the rest
    assert pairs.papers == {"train": 420, "validation": 60, "test": 120}


def test_pairs_depend_on_the_graph_alone(graph):
    """The pairs are the same on every machine and Python version: published results depend on them."""
    papers, citations = graph
    turned = make_pairs(dict(reversed(papers.items())), citations[::-1])
    pairs = make_pairs(papers, citations)
    assert turned == pairs
    text = repr([(a.id, b.id, label) for split in SPLITS for a, b, label in pairs.splits[split]])
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN


GOLDEN = "612558dbd26c049f641dd0c5c367a3fada71a0dacc2c76990edfab6e4d7d7c97"


def with_text(papers, id, text):
    """Returns the papers with one added or replaced."""
    return papers | {id: Paper(id, 2005, text)}


def partners(pairs, id, labels=(0, 1)):
    """Returns the papers that form a pair with one paper."""
    found = (pair for split in SPLITS for pair in pairs.splits[split] if pair[2] in labels)
    return {other.id for *both, _ in found for other in both if id in {p.id for p in both} and other.id != id}


HUB = sources_retrieval.name_of(1)  # a paper with many citations


def test_near_empty_papers_are_left_out(graph):
    papers, citations = graph
    for size, left_out in ((999, 1), (1_000, 0)):
        pairs = make_pairs(with_text(papers, HUB, papers[HUB].text[:size]), citations)
        assert list(map(len, pairs.left_out.values())) == [left_out, 0]
        assert len(partners(pairs, HUB)) == 0 if left_out else len(partners(pairs, HUB)) > 10


def test_papers_with_the_same_text_count_once(graph):
    papers, citations = graph
    words = papers[HUB].text.split()
    refused = partners(make_pairs(papers, citations), HUB, labels=[0])
    twin = "Q00-1000"
    for share, left_out in ((1.0, 1), (0.9, 1), (0.4, 0)):
        text = " ".join(
            words[: int(share * len(words))] + papers[sources_retrieval.name_of(300)].text.split()
        )
        both = with_text(papers, twin, text[: len(papers[HUB].text)])
        pairs = make_pairs(both, citations + [(twin, id) for id in sorted(refused)])
        assert list(map(len, pairs.left_out.values())) == [0, left_out]
        if left_out:  # a citation by a twin excludes a non-citing pair of the paper with its text
            assert not partners(pairs, twin)
            assert len(refused) > 5
            assert not refused & partners(pairs, HUB, labels=[0])


def test_two_papers_that_cite_each_other_form_one_pair(graph):
    papers, citations = graph
    both = citations + [(b, a) for a, b in citations]
    once, twice = make_pairs(papers, citations), make_pairs(papers, both)
    assert make_pairs(papers, both[::-1]) == twice
    for split in SPLITS:
        pairs = [frozenset((a.id, b.id)) for a, b, _ in twice.splits[split]]
        assert len(set(pairs)) == len(pairs) == len(once.splits[split])


def test_too_few_citations_are_refused(graph):
    papers, citations = graph
    with pytest.raises(
        UsageError, match=r"needs 99 citations between .* validation split; got 75 from 600 papers"
    ):
        make_pairs(papers, citations, {"train": 10, "validation": 99, "test": 10})
    with pytest.raises(UsageError, match=r"needs 1 citations between .* train split; got 0 from 600 papers"):
        make_pairs(papers, [])


def test_papers_that_all_cite_each_other_are_refused(graph):
    papers = dict(list(graph[0].items())[:60])
    message = r"train split of retrieval leave no paper that P00-10.. could form a non-citing pair"
    with pytest.raises(UsageError, match=message):
        make_pairs(papers, [(a, b) for a in papers for b in papers if a > b])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "papers.jsonl, line 2: expected a JSON object with id, year and text"),
        (b"[]", "papers.jsonl, line 2: expected a JSON object"),
        (b'{"id": "P2", "year": "2000"}', r"papers.jsonl, line 2: .*'text'"),
        (b'{"id": "P2", "year": "soon", "text": "t"}', "papers.jsonl, line 2: .*'soon'"),
        (b'{"id": "P2", "year": "2000", "text": 7}', "papers.jsonl, line 2: .*text is not a string"),
        (b'{"id": "P2", "year": "2000", "text": "\\ud800"}', "papers.jsonl, line 2: .*surrogate"),
        (b'{"id": "P1", "year": "2000", "text": "t"}', "papers.jsonl, line 2: the paper P1 is a repetition"),
    ],
)
def test_wrong_papers_are_refused(line, message):
    with pytest.raises(UsageError, match=message):
        read_papers("papers.jsonl", [b'{"id": "P1", "year": "2000", "text": "t"}', line])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"P1\n", "edges.tsv, line 2: expected citing id, tab, cited id"),
        (b"P1\tP2\tP3\n", "edges.tsv, line 2: expected"),
        (b"P1\tP9\n", "edges.tsv, line 2: there is no paper P9"),
    ],
)
def test_wrong_citations_are_refused(line, message):
    papers = {id: Paper(id, 2000, "") for id in ("P1", "P2", "P3")}
    assert read_citations("edges.tsv", [b"P1\tP2\r\n", b"P2\tP3"], papers) == [("P1", "P2"), ("P2", "P3")]
    with pytest.raises(UsageError, match=message):
        read_citations("edges.tsv", [b"P1\tP2\n", line], papers)


# The dataset of this project's pairs


def test_smoke_dataset(prepared, graph):
    papers, citations = graph
    pairs = make_pairs(papers, citations, {"train": 128, "validation": 32, "test": 32})
    for split in SPLITS:
        source = load(RETRIEVAL, split, prepared, variant="smoke")
        wanted = pairs.splits[split]
        assert len(source) == len(wanted) == {"train": 256, "validation": 64, "test": 64}[split]
        for i in (0, 1, len(wanted) - 1):
            example = source[i]
            assert [retrieval.render(tokens) for tokens in example["tokens"]] == [
                p.text for p in wanted[i][:2]
            ]
            assert example["label"] == wanted[i][2]
            assert min(tokens.min() for tokens in example["tokens"]) > 0
    manifest = source.manifest
    assert set(manifest["metadata"]) == {
        "origin", "license", "sha256", "papers", "left_out", "other_years", "unofficial"
    }  # fmt: skip
    assert manifest["contents"]["splits"]["test"]["labels"] == {"0": 32, "1": 32}
    assert manifest["contents"]["repeats"] == {}
    assert RETRIEVAL.title("smoke") == "retrieval/smoke"


def test_an_archive_gives_the_same_dataset(prepared, acl_files, tmp_path):
    sources.as_archive(dict(reversed(acl_files.items())), tmp_path / "acl-pairs-raw.tar.xz")
    folder = prepare(RETRIEVAL, tmp_path / "data", variant="smoke", manual_dir=tmp_path)
    assert shards(folder) == shards(prepared / folder.relative_to(tmp_path / "data"))


def test_papers_and_citations_that_other_programs_saved(prepared, acl_files, tmp_path):
    papers, edges = acl_files.values()
    edges = b"".join(b'"%s"\t"%s"\r\n' % tuple(line.split(b"\t")) for line in edges.splitlines())
    saved = zip(acl_files, (papers, edges), strict=True)
    files = {name: b"\xef\xbb\xbf" + content + b"\n" for name, content in saved}
    sources.as_folder(sources.with_added(files), tmp_path / "files")
    folder = prepare(RETRIEVAL, tmp_path / "data", variant="smoke", manual_dir=tmp_path / "files")
    assert shards(folder) == shards(prepared / folder.relative_to(tmp_path / "data"))
    left_out = json.loads((folder / "manifest.json").read_text())["metadata"]["left_out"]
    assert left_out["blank lines"] == {
        "count": 2, "first": ["papers.jsonl, line 601", "edges.tsv, line 6001"]
    }  # fmt: skip


def test_all_pairs(acl_folder, graph, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval_builder, "ACL_SHARD", 1_000)
    folder = prepare(RETRIEVAL, tmp_path, variant="acl", manual_dir=acl_folder.parent)
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = {split: len(pairs) for split, pairs in make_pairs(*graph).splits.items()}
    assert manifest["num_examples"] == counts
    assert manifest["metadata"]["unofficial"] == (
        "pairs of our own from ACL Anthology papers, not the arena's Retrieval; the SHA-256 of papers.jsonl "
        "and edges.tsv is not that of this project's own files"
    )
    assert len(list(folder.glob("*train*"))) == -(-counts["train"] // 1_000)


def test_pairs_from_the_official_files_are_unofficial(acl_files, acl_folder, tmp_path, monkeypatch):
    digests = {
        name.rpartition("/")[2]: hashlib.sha256(content).hexdigest() for name, content in acl_files.items()
    }
    monkeypatch.setattr(retrieval_builder, "ACL_SHA256", digests)
    folder = prepare(RETRIEVAL, tmp_path, variant="smoke", manual_dir=acl_folder)
    metadata = json.loads((folder / "manifest.json").read_text())["metadata"]
    assert metadata["unofficial"] == "pairs of our own from ACL Anthology papers, not the arena's Retrieval"


def test_missing_acl_files_are_reported(acl_files, tmp_path):
    with pytest.raises(
        MissingData, match=r"need papers and citations. Put acl-pairs-raw.tar.xz, or its papers"
    ):
        prepare(RETRIEVAL, tmp_path, variant="acl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        MissingData, match=r"acl-pairs-raw.tar.xz is missing in .*empty. Put acl-pairs-raw.tar.xz"
    ):
        prepare(RETRIEVAL, tmp_path, variant="acl", manual_dir=tmp_path / "empty")
    name, content = next(iter(acl_files.items()))
    sources.as_archive({name: content}, tmp_path / "acl-pairs-raw.tar.gz")
    with pytest.raises(MissingData, match=r"edges.tsv is missing in .*acl-pairs-raw.tar.gz. Put"):
        prepare(RETRIEVAL, tmp_path, variant="acl", manual_dir=tmp_path)
    assert not (tmp_path / "lra_retrieval" / "acl").exists()


def test_tensorflow_is_not_imported(acl_folder, tmp_path):
    code = """
        import sys
        from lra_tasks.data.batches import training_batches
        from lra_tasks.data.dataset import load
        from lra_tasks.data.prepare import prepare
        from lra_tasks.tasks.retrieval.task import TASK
        assert not {"numpy", "jax", "tensorflow_datasets"} & set(sys.modules) - {"numpy"}
        prepare(TASK, sys.argv[1], variant="smoke", manual_dir=sys.argv[2])
        source = load(TASK, "test", sys.argv[1], variant="smoke")
        next(training_batches(source, length=100, batch_size=4, seed=0))
        TASK.references(source, source)
        assert "tensorflow" not in sys.modules
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), tmp_path, acl_folder]
    subprocess.run(command, env=arena.environment(), check=True)


# The arena's release


@pytest.fixture(scope="session")
def release_data(tmp_path_factory):
    """Returns a data folder with the release, read from a folder; tests must not change it."""
    root = tmp_path_factory.mktemp("release")
    sources.as_folder(sources_retrieval.release(), root / "files")
    prepare(RETRIEVAL, root / "data", manual_dir=root / "files", unofficial=True)
    return root / "data"


def test_release(release_data):
    files = sources_retrieval.release()
    for split, name in retrieval_builder.RELEASE_FILES.items():
        content = files[f"lra_release/lra_release/tsv_data/{name}"]
        source = load(RETRIEVAL, split, release_data)
        rows = [line.split(b"\t") for line in content.splitlines()]
        assert len(source) == len(rows) == {"train": 12, "validation": 4, "test": 4}[split]
        for example, row in zip(source, rows, strict=True):
            texts = [(tokens - 1).astype(np.uint8).tobytes() for tokens in example["tokens"]]
            assert texts == row[3:]
            assert texts[0].startswith(b"b'")
            assert example["label"] == float(row[0])
        assert source.manifest["metadata"]["sha256"][name] == hashlib.sha256(content).hexdigest()
    assert source.manifest["metadata"]["origin"] == "the Long Range Arena's release"
    assert source.manifest["metadata"]["left_out"] == {}
    unofficial = "12 / 4 / 4 examples, the arena's are 147,086 / 18,090 / 17,437"
    assert source.manifest["metadata"]["unofficial"] == unofficial
    assert RETRIEVAL.title("default") == "retrieval"


def test_a_release_of_another_size_is_refused(tmp_path):
    sources.as_folder(sources_retrieval.release(), tmp_path / "files")
    message = (
        r"retrieval give 12 / 4 / 4 examples .* expected the arena's 147,086 .*; nothing was kept\..* --un"
    )
    with pytest.raises(UsageError, match=message):
        prepare(RETRIEVAL, tmp_path / "data", manual_dir=tmp_path / "files")
    assert not (tmp_path / "data" / "lra_retrieval" / "default").exists()


def test_a_file_of_the_release_that_cannot_be_read_is_named(tmp_path, unreadable):
    sources.as_folder(sources_retrieval.release(), tmp_path / "files")
    folder = tmp_path / "files" / "lra_release" / "lra_release" / "tsv_data"
    unreadable(folder / "new_aan_pairs.eval.tsv")
    with pytest.raises(UsageError, match=rf"^{folder}/new_aan_pairs.eval.tsv cannot be read: Permission"):
        prepare(RETRIEVAL, tmp_path / "data", manual_dir=folder)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", ["lra_release.gz", "lra_release-1.0.tar", "lra_release"])
def test_the_release_is_read_from_an_archive(release_data, tmp_path, name, order):
    files = dict(list(sources_retrieval.release(label="{}").items())[::order])
    sources.as_archive(files, tmp_path / "files" / name)
    folder = prepare(RETRIEVAL, tmp_path / "data", manual_dir=tmp_path / "files", unofficial=True)
    assert shards(folder) == shards(release_data / folder.relative_to(tmp_path / "data"))
    assert [path.name for path in (tmp_path / "files").iterdir()] == [name]


@pytest.mark.parametrize(
    "place", ["", "tsv_data", "lra_release/tsv_data", "lra_release/lra_release/tsv_data"]
)
def test_the_release_is_found_wherever_it_was_unpacked(release_data, tmp_path, place):
    content = {name.rpartition("/")[2]: content for name, content in sources_retrieval.release().items()}
    for name in retrieval_builder.RELEASE_FILES.values():
        (tmp_path / "files" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / place / name).write_bytes(content[name])
    folder = prepare(RETRIEVAL, tmp_path / "data", manual_dir=tmp_path / "files", unofficial=True)
    assert shards(folder) == shards(release_data / folder.relative_to(tmp_path / "data"))


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_release_that_other_programs_saved(release_data, tmp_path, kind):
    files = sources_retrieval.release()
    for name in files:
        files[name] = b"\xef\xbb\xbf" + files[name] + b"\r\n"
    write = sources.as_folder if kind == "folder" else sources.as_archive
    write(sources.with_added(files), tmp_path / "files" / "lra_release.tar")
    folder = prepare(RETRIEVAL, tmp_path / "data", manual_dir=tmp_path / "files", unofficial=True)
    assert shards(folder) == shards(release_data / folder.relative_to(tmp_path / "data"))
    left_out = json.loads((folder / "manifest.json").read_text())["metadata"]["left_out"]
    assert left_out["blank lines"]["count"] == 3
    assert left_out.keys() == {"blank lines", "hidden or system files"}


def test_pairs_that_the_release_repeats_are_kept(tmp_path):
    files = sources_retrieval.release()
    name = "lra_release/lra_release/tsv_data/new_aan_pairs.eval.tsv"
    files[name] += files[name] + files[name.replace("eval", "train")]
    sources.as_folder(files, tmp_path / "files")
    folder = prepare(RETRIEVAL, tmp_path / "data", manual_dir=tmp_path / "files", unofficial=True)
    repeats = json.loads((folder / "manifest.json").read_text())["contents"]["repeats"]
    assert {pair: number for pair, (number, _) in repeats.items()} == {
        "validation": 4,
        "train/validation": 12,
    }


def test_a_shard_is_small(tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval_builder, "RELEASE_SHARD", 5)
    sources.as_folder(sources_retrieval.release(), tmp_path / "files")
    folder = prepare(RETRIEVAL, tmp_path / "data", manual_dir=tmp_path / "files", unofficial=True)
    assert len(list(folder.glob("*train*"))) == 3
    assert [example["index"] for example in load(RETRIEVAL, "train", tmp_path / "data")] == list(range(12))


def with_malformed(folder, lines, malformed):
    """Prepares a release with `lines` training lines; the last `malformed` of them lack fields."""
    files = sources_retrieval.release(train=lines - malformed)
    files["lra_release/lra_release/tsv_data/new_aan_pairs.train.tsv"] += b"1.0\tonly\n" * malformed
    sources.as_folder(files, folder / "files")
    return prepare(RETRIEVAL, folder / "data", manual_dir=folder / "files", unofficial=True)


def test_a_few_malformed_lines_are_left_out(tmp_path):
    with_malformed(tmp_path, 2_000, 2)
    source = load(RETRIEVAL, "train", tmp_path / "data")
    assert len(source) == 1_998
    first = [
        f"new_aan_pairs.train.tsv, line {number}: it has 2 fields, expected 5: label, id1, id2, text1, text2"
        for number in (1999, 2000)
    ]
    left_out = source.manifest["metadata"]["left_out"]
    assert left_out == {"unreadable lines": {"count": 2, "first": first}}


@pytest.mark.parametrize(("lines", "malformed"), [(999, 1), (2_000, 3)])
def test_more_malformed_lines_are_refused(tmp_path, lines, malformed):
    first = lines - malformed + 1
    message = f"{malformed} of the first {lines:,} lines of new_aan_pairs.train.tsv .* read: line {first}: it"
    with pytest.raises(UsageError, match=message):
        with_malformed(tmp_path, lines, malformed)
    assert not (tmp_path / "data" / "lra_retrieval" / "default").exists()


def test_many_malformed_lines_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval_builder, "MOST_MALFORMED", 1)
    with pytest.raises(UsageError, match="2 of the first 2,999 lines"):
        with_malformed(tmp_path, 3_000, 3)


def test_a_missing_release_is_reported(tmp_path):
    with pytest.raises(MissingData, match=r"needs the arena's files.* lra_release.gz .*--manual-dir FOLDER"):
        prepare(RETRIEVAL, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        MissingData, match=r"The arena's files are missing in .*empty.* lra_release.gz .*--manual-dir"
    ):
        prepare(RETRIEVAL, tmp_path, manual_dir=tmp_path / "empty")


def test_an_incomplete_release_is_refused(tmp_path):
    files = sources_retrieval.release()
    sources.as_archive(dict(list(files.items())[:-1]), tmp_path / "lra_release.gz")
    with pytest.raises(MissingData, match=r"new_aan_pairs.eval.tsv is missing in .*lra_release.gz"):
        prepare(RETRIEVAL, tmp_path, manual_dir=tmp_path)
    twice = [*files.items(), ("elsewhere/new_aan_pairs.eval.tsv", b"")]
    sources.as_archive(twice, tmp_path / "lra_release.gz")
    with pytest.raises(UsageError, match=r"lra_release.gz has two files new_aan_pairs.eval.tsv"):
        prepare(RETRIEVAL, tmp_path, manual_dir=tmp_path)
    whole = sources.as_archive(files, tmp_path / "lra_release.gz").read_bytes()
    (tmp_path / "lra_release.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"lra_release.gz cannot be read as a tar archive"):
        prepare(RETRIEVAL, tmp_path, manual_dir=tmp_path)
    sources.as_folder(files | {name: b"" for name in files if "eval" in name}, tmp_path / "files")
    with pytest.raises(UsageError, match=r"a split of it would be empty"):
        prepare(RETRIEVAL, tmp_path, manual_dir=tmp_path / "files", unofficial=True)


# Baseline rules


def examples(*rows):
    return [
        {
            "tokens": tuple(np.frombuffer(text, np.uint8).astype(np.uint16) + 1 for text in texts),
            "label": label,
        }
        for *texts, label in rows
    ]


def test_references_by_hand():
    """Every rule finds the label in one set and in no other; it reads 4,000 bytes and no more."""
    sets = {
        "length of the first text less the second's": [
            (b"a" * (10 + i), b"b" * 10, i > 5) for i in range(12)
        ],
        "share of words in both texts": [
            (b"one two three four", b"one two three four" if i % 2 else b"one 2 3 four", i % 2)
            for i in range(12)
        ],
    }
    for name, rows in sets.items():
        lines = references(examples(*rows), examples(*rows))
        assert list(lines)[:2] == ["chance", "majority class"]
        assert lines["chance"] == lines["majority class"] == 50
        assert lines[name] == 100
    beyond = [(b"a" * (4_000 + i), b"b" * 4_000 + b" a", i % 2) for i in range(12)]
    assert set(references(examples(*beyond), examples(*beyond)).values()) == {50.0}


def test_references_do_not_store_whole_documents():
    """Documents of the release have some 50 kB."""

    class Long(list):
        def __getitem__(self, i):
            size = 100_000 + i
            return {"tokens": (np.full(size, 98, np.uint16), np.full(size, 99, np.uint16)), "label": i % 2}

    train = Long(range(100))
    references(train, examples((b"a", b"b", 1)))  # imports and caches
    tracemalloc.start()
    references(train, examples((b"a", b"b", 1)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000  # whole documents take 40 MB


def test_references_on_papers(prepared):
    splits = [load(RETRIEVAL, split, prepared, variant="smoke") for split in ("train", "test")]
    lines = references(*splits)
    assert lines["rare words in both texts (TF-IDF cosine)"] > 60
    assert lines["title and authors of the second text in the first"] > 60
    assert all(0 <= score <= 100 for score in lines.values())
    assert len(lines) == 6


def test_scores_by_hand(monkeypatch):
    rows = [(b"A b", b"b, C" + b" " * 300 + b"a", 1), (b"a d", b"e f", 0)]
    found = []
    monkeypatch.setattr(
        retrieval, "_threshold", lambda scores, labels: found.append(scores.tolist()) or (0.0, 1)
    )
    references(examples(*rows), examples(*rows))
    worth = dict(zip("abcdef", np.log(5 / np.array([4, 3, 2, 2, 2, 2])), strict=True))
    shared = np.hypot(worth["a"], worth["b"])
    assert found == [
        [-302, -0],
        [pytest.approx(2 / 3), 0],
        [pytest.approx(shared / np.hypot(shared, worth["c"])), 0],
        [pytest.approx(worth["b"]), 0],
    ]


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=1, max_size=12))
def test_threshold_is_the_best(rows):
    scores, labels = np.array(rows).T
    threshold, above = retrieval._threshold(scores.astype(float), labels)
    hits = np.sum(np.where(scores > threshold, above, 1 - above) == labels)
    best = max(
        np.sum(np.where(scores > t, side, 1 - side) == labels) for t in range(-4, 4) for side in (0, 1)
    )
    assert hits == best


# A model with two inputs

T = 24


def make_config(mixer="hrr", **model):
    sizes = {"width": 12, "num_heads": 2, "num_layers": 1, "mlp_features": 10, "dropout_rate": 0.0}
    settings = Settings(
        variant="smoke",
        length=T,
        batch_size=8,
        num_steps=4,
        eval_every=4,
        eval_examples=16,
        model=ModelConfig(**sizes | model),
    )
    return Config(settings=settings, task="retrieval", mixer=mixer)


def build(num_inputs=2, **model):
    config = make_config(**model)
    return Classifier(
        config.settings.model,
        config.mixer,
        length=T,
        vocab_size=257,
        num_classes=2,
        num_inputs=num_inputs,
        rngs=nnx.Rngs(0),
    )


@nnx.jit
def classify(model, tokens, mask):
    return model(tokens, mask, deterministic=True)


def pairs_of(sizes, length=T, seed=0):
    tokens = np.random.default_rng(seed).integers(1, 257, (len(sizes), 2, length)).astype(np.int32)
    mask = np.arange(length) < np.array(sizes)[..., None]
    return jnp.asarray(tokens * mask), jnp.asarray(mask)


SIZES = [(5, 11), (11, 5), (1, 7), (11, 11)]


@pytest.mark.parametrize(("mixer", "pooling"), [("hrr", "mean"), ("softmax", "mean"), ("softmax", "cls")])
def test_padding_of_either_input_changes_nothing(mixer, pooling):
    model = build(mixer=mixer, pooling=pooling)
    tokens, mask = pairs_of(SIZES, 11)
    expected = classify(model, tokens, mask)
    longer = ((0, 0), (0, 0), (0, 9))
    for side in (0, 1):
        other = tokens.at[:, side].set(jnp.where(mask[:, side], tokens[:, side], 7))
        np.testing.assert_array_equal(classify(model, other, mask), expected)
        padded = jnp.pad(other, longer, constant_values=3), jnp.pad(mask, longer)
        np.testing.assert_allclose(classify(model, *padded), expected, atol=2e-6)
        changed = tokens.at[:, side, 0].set(tokens[:, side, 0] % 256 + 1)
        assert (jnp.abs(classify(model, changed, mask) - expected).max(axis=-1) > 1e-5).all()


def test_head_by_hand():
    """One encoder maps both inputs; swapping them reverses the difference and changes nothing else."""
    model = build()
    tokens, mask = pairs_of(SIZES)

    @nnx.jit
    def encode(model, tokens, mask):
        return model.norm(model.encode(tokens, mask, deterministic=True))

    @nnx.jit
    def head(model, first, second):
        features = jnp.concatenate([first, second, first * second, first - second], axis=-1)
        return model.head_out(nnx.gelu(model.head_in(features)))

    first, second = (encode(model, tokens[:, side], mask[:, side]) for side in (0, 1))
    assert jnp.abs(head(model, first, second) - head(model, second, first)).max() > 1e-3
    np.testing.assert_allclose(classify(model, tokens, mask), head(model, first, second), atol=2e-6)
    swapped = classify(model, tokens[:, ::-1], mask[:, ::-1])
    np.testing.assert_allclose(swapped, head(model, second, first), atol=2e-6)


def test_pairs_of_a_batch_are_independent():
    model = build()
    tokens, mask = pairs_of(SIZES)
    both = classify(model, tokens, mask)
    np.testing.assert_allclose(classify(model, tokens[2:3], mask[2:3]), both[2:3], atol=2e-6)


def test_number_of_parameters():
    def count(num_inputs):
        def make():
            return build(num_inputs)

        return num_parameters(nnx.state(nnx.eval_shape(make), nnx.Param))

    assert count(2) - count(1) == 3 * 12 * 10  # one encoder; the head reads four vectors of 12 and not one


def test_gradients_come_from_both_inputs():
    model = build(mixer="softmax")
    tokens, mask = pairs_of(SIZES)
    tokens = jnp.where(mask, tokens % 100 + jnp.array([1, 101])[:, None], 0)  # no token on both sides

    def loss(model):
        logits = model(tokens, mask, deterministic=True)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1, 1, 0])))

    gradient = nnx.jit(nnx.grad(loss))(model)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    rows = jnp.abs(gradient["embedding"]["embedding"][...]).max(axis=-1)
    for side in (0, 1):
        used = np.unique(tokens[:, side][mask[:, side]])
        assert (rows[used] > 0).all()
    assert rows[0] == 0  # the padding


def test_four_devices_equal_one(prepared):
    config = make_config()
    trainer = Trainer(config, RETRIEVAL)
    state = trainer.init()
    source = load(RETRIEVAL, "train", prepared, variant="smoke")
    batch = next(training_batches(source, length=T, batch_size=8, seed=0))
    assert batch["tokens"].shape == (8, 2, T)
    sharded = trainer.shard(batch)
    assert len(sharded["tokens"].sharding.device_set) == jax.device_count() == 4
    model = build()
    nnx.update(model, jax.device_put(jax.device_get(state.params), jax.devices()[0]))
    logits = classify(model, jnp.asarray(batch["tokens"]), jnp.asarray(batch["mask"]))
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(batch["label"])).mean()
    _, (loss, correct, norm) = trainer.compile_training(state)(state, sharded)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(correct) == (logits.argmax(-1) == batch["label"]).sum()
    assert np.isfinite(norm)


def test_a_run(prepared, tmp_path):
    summary = train(make_config(), tmp_path / "run", data_dir=prepared)
    assert summary["best_step"] == 4
    assert 0 <= summary["test_accuracy"] <= 100
