"""Splits cut from a published training split: sizes, order, repeats, and sources of the files."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers import sources
from hypothesis import given
from hypothesis import strategies as st

from lra_tasks.data.prepare import prepare
from lra_tasks.errors import MissingData, UsageError
from lra_tasks.sources import carving
from lra_tasks.sources.archives import Official
from lra_tasks.sources.carving import CarvedConfig, Named, carve
from lra_tasks.tasks.image import task as image
from lra_tasks.tasks.text import task as text

SIZES = {"train": 16, "validation": 4, "test": 10}
NO_SERVER = "http://127.0.0.1:9"
TASKS = {"text": (text.TASK, sources.imdb), "image": (image.TASK, sources.cifar)}


def examples(split, count, num_classes=2):
    names = [f"{split}/{number}" for number in range(count)]
    return [Named(name, name.encode(), number % num_classes) for number, name in enumerate(names)]


def digest(split):
    return hashlib.sha256(b"".join(tokens + bytes([label]) for tokens, label in split[1])).hexdigest()


# The cut


def test_sizes_classes_and_order():
    splits = carve(examples("train", 20), examples("test", 10), SIZES, 2)
    for split, (size, cut) in splits.items():
        assert size == len(cut) == SIZES[split]
        assert [label for _, label in cut] == [0, 1] * (size // 2)  # the classes alternate
        assert cut != sorted(cut)
    train, validation, test = ({tokens for tokens, _ in cut} for _, cut in splits.values())
    assert train | validation == {example.tokens for example in examples("train", 20)}
    assert test == {example.tokens for example in examples("test", 10)}


def test_golden_order():
    """The order is the same on every Python version and for any order of files; published data need it."""
    train, test = examples("train", 20), examples("test", 10)
    splits = carve(train[::-1], test[::-1], SIZES, 2)
    assert splits == carve(train, test, SIZES, 2)
    assert [tokens.decode() for tokens, _ in splits["validation"][1]] == [
        "train/18",
        "train/15",
        "train/10",
        "train/9",
    ]
    assert digest(splits["train"]) == "3fbcb148d1edcb9aaf8d01c4f0f59e3864097397cd6ed69e649aeae1071a2b64"

    repeated = [example._replace(tokens=b"%d" % (i // 4)) for i, example in enumerate(train)]
    assert {tokens for tokens, _ in carve(repeated, test, SIZES, 2)["validation"][1]} == {b"2"}


def test_a_smaller_number_of_examples():
    splits = carve(examples("train", 90, 3), examples("test", 60, 3), SIZES, 3)
    assert {split: Counter(label for _, label in cut) for split, (_, cut) in splits.items()} == {
        "train": {0: 6, 1: 5, 2: 5},
        "validation": {0: 2, 1: 1, 2: 1},
        "test": {0: 4, 1: 3, 2: 3},
    }


@given(st.lists(st.integers(0, 12), min_size=40, max_size=40))
def test_repeats_stay_on_one_side(copies):
    """Texts 0 .. 12 are repeated, under both labels; sixty others occur once."""
    train = [Named(f"{i}", str(text).encode(), i % 2) for i, text in enumerate(copies)]
    train += [Named(f"{i}", f"once {i}".encode(), i % 2) for i in range(40, 100)]
    splits = carve(train, [], {"train": 80, "validation": 20, "test": 0}, 2)
    (_, train_cut), (_, validation) = splits["train"], splits["validation"]
    assert Counter(label for _, label in validation) == {0: 10, 1: 10}
    assert len(train_cut) == 80
    assert not {tokens for tokens, _ in train_cut} & {tokens for tokens, _ in validation}
    assert Counter(train_cut + validation) == Counter((tokens, label) for _, tokens, label in train)


# The sources


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param][0]


@pytest.fixture
def files(task):
    return TASKS[task.name][1]()


@pytest.fixture
def archive(task, files, tmp_path):
    name = task.builder_class().official.url.rpartition("/")[2]
    return sources.as_archive(files, tmp_path / "mine" / name)


def made(task, root, manual_dir, **options):
    folder = prepare(task, root, variant="smoke", manual_dir=manual_dir, **options)
    return json.loads((folder / "manifest.json").read_text())


def declare_official(monkeypatch, task, path, url):
    content = path.read_bytes()
    official = Official(url, len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(task.builder_class(), "official", official)


def test_folder_and_archives_give_the_same_dataset(task, files, archive, tmp_path):
    manifest = made(task, tmp_path / "a", archive.parent, unofficial=True)
    assert manifest["num_examples"] == {"train": 256, "validation": 64, "test": 64}
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert manifest["metadata"]["origin"] == archive.name
    assert manifest["metadata"]["sha256"] == digest
    unofficial = f"the archive {archive.name} with the SHA-256 {digest}, not the official {archive.name}"
    assert manifest["metadata"]["unofficial"] == unofficial

    backwards = tmp_path / "backwards" / f"{archive.name.partition('.')[0]}_mine.tar.xz"
    sources.as_archive(dict(reversed(files.items())), backwards)
    assert made(task, tmp_path / "b", backwards.parent, unofficial=True)["contents"] == manifest["contents"]

    top = sources.as_folder(files, tmp_path / "unpacked")
    for number, manual_dir in enumerate((top.parent, top)):
        from_folder = made(task, tmp_path / f"folder{number}", manual_dir, unofficial=True)
        assert from_folder["contents"] == manifest["contents"]
        assert from_folder["metadata"]["origin"] == top.name
        assert "sha256" not in from_folder["metadata"]
        expected = f"the folder {top.name}, which has no checksum, not the official {archive.name}"
        assert from_folder["metadata"]["unofficial"] == expected


def test_files_that_systems_add_change_nothing(task, files, archive, tmp_path):
    contents = made(task, tmp_path / "plain", archive.parent, unofficial=True)["contents"]
    archive.rename(tmp_path / "mine" / archive.name.partition(".")[0])  # unpacked by a program of macOS
    with_added = sources.with_added(files)
    sources.as_folder(with_added, tmp_path / "unpacked")
    sources.as_archive(with_added, tmp_path / "packed" / archive.name)
    for name, beside in (("mine", 0), ("unpacked", 10), ("packed", 10)):
        manifest = made(task, tmp_path / name, tmp_path / name, unofficial=True)
        assert manifest["contents"] == contents
        found = manifest["metadata"]["left_out"].get("hidden or system files", {"count": 0})
        assert found["count"] >= beside


def test_an_archive_that_cannot_be_read_is_named(task, archive, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(carving, "describe", refuse)
    with pytest.raises(UsageError, match=rf"^{archive} cannot be read: Permission denied\. "):
        made(task, tmp_path, archive.parent)


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_an_unofficial_source_needs_permission(task, files, archive, tmp_path, kind):
    manual_dir = archive.parent
    if kind == "folder":
        manual_dir = sources.as_folder(files, tmp_path / "unpacked").parent
    with pytest.raises(UsageError) as caught:
        made(task, tmp_path, manual_dir)
    official = task.builder_class().official
    for part in (str(manual_dir), f"the {kind} ", f"not the official {archive.name}", official.sha256):
        assert part in str(caught.value)
    assert "--unofficial" in str(caught.value)
    assert not (tmp_path / task.builder_class().name / "smoke").exists()


def test_the_official_archive_needs_no_permission(task, archive, tmp_path, monkeypatch):
    declare_official(monkeypatch, task, archive, f"{NO_SERVER}/{archive.name}")
    metadata = made(task, tmp_path, archive.parent)["metadata"]
    assert set(metadata) == {"origin", "sha256", "classes", "left_out"}
    assert len(metadata["classes"]) == task.num_classes


def test_the_official_archive_is_downloaded(task, archive, tmp_path, monkeypatch):
    url = f"{NO_SERVER}/{archive.name}"
    declare_official(monkeypatch, task, archive, url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(
        MissingData, match=rf"^{archive.name} .* could not be downloaded from {url}: .*--manual-dir"
    ):
        made(task, tmp_path / "data", None)
    with pytest.raises(
        MissingData, match=r"^.* or .*\.tar\* or .* is missing in .*nothing\. .* could not be downloaded"
    ):
        made(task, tmp_path / "data", tmp_path / "nothing")
    archive.rename(tmp_path / "data" / "downloads" / archive.name)  # as if it had been downloaded
    manifest = made(task, tmp_path / "data", None)
    assert manifest["metadata"]["origin"] == url
    assert "unofficial" not in manifest["metadata"]


def test_a_truncated_archive_is_refused(task, archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(UsageError, match=f"{archive.name} cannot be read as a tar archive"):
        made(task, tmp_path, archive.parent, unofficial=True)
    assert not (tmp_path / task.builder_class().name / "smoke").exists()


def test_official_checksums_equal_those_of_tfds(task):
    import tensorflow_datasets

    folder = Path(tensorflow_datasets.__file__).parent
    official = task.builder_class().official
    recorded = {"text": "datasets/imdb_reviews/checksums.tsv", "image": "url_checksums/cifar10.txt"}
    line = f"{official.url}\t{official.size}\t{official.sha256}\t"
    assert line in (folder / recorded[task.name]).read_text()


def test_the_whole_dataset_needs_all_examples(task, archive, tmp_path, monkeypatch):
    """The default variant, on a small source."""
    builder = task.builder_class()
    manual = {"manual_dir": archive.parent, "unofficial": True}
    with pytest.raises(UsageError, match=r"expected (12,500|30,730,000)\."):
        prepare(task, tmp_path, **manual)
    there = {"text": {"train": 320, "test": 80}, "image": {"train": 350, "test": 70}}[task.name]

    def config(train, test):
        sizes = {"train": train - 20, "validation": 20, "test": test}
        config = CarvedConfig(name="default", num_examples=sizes, whole=True)
        monkeypatch.setattr(builder, "BUILDER_CONFIGS", [config])
        monkeypatch.setattr(builder, "builder_configs", {"default": config})
        return sizes

    for wrong in ({"train": 300}, {"train": 400}, {"test": 60}, {"test": 100}):
        config(**there | wrong)
        with pytest.raises(UsageError, match=r"(class \w+|bytes); expected [\d,]+\."):
            prepare(task, tmp_path, **manual)
    sizes = config(**there)
    folder = prepare(task, tmp_path, **manual)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_examples"] == sizes
    for split, found in manifest["contents"]["splits"].items():
        assert set(found["labels"].values()) == {sizes[split] // task.num_classes}


def test_tensorflow_is_not_imported(tmp_path):
    code = """if True:
        import sys
        from lra_tasks.data.batches import training_batches
        from lra_tasks.data.dataset import load
        from lra_tasks.data.prepare import prepare
        from lra_tasks.tasks.image import task as image
        from lra_tasks.tasks.text import task as text
        for task in (text.TASK, image.TASK):
            prepare(task, sys.argv[1], variant="smoke", manual_dir=sys.argv[2], unofficial=True)
            train, test = (load(task, split, sys.argv[1], variant="smoke") for split in ("train", "test"))
            next(training_batches(train, length=1024, batch_size=4, seed=0))
            task.references(train, test)
        assert "tensorflow" not in sys.modules
    """
    sources.as_archive(sources.imdb(), tmp_path / "aclImdb_tiny.tar.gz")
    sources.as_archive(sources.cifar(), tmp_path / "cifar-10-binary-tiny.tar.gz")
    subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path / "data", tmp_path], check=True)


def test_records_import_nothing_heavy():
    code = (
        "import sys, lra_tasks.tasks.text.task, lra_tasks.tasks.image.task; "
        "heavy = {'numpy', 'jax', 'grain', 'tensorflow_datasets', 'requests'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
