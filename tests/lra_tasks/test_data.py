"""Datasets: prepared whole or not at all, checked when opened, batched without loss."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grain
import numpy as np
import pytest
from helpers import arena, sources

from lra_tasks.data import prepare as preparation
from lra_tasks.data.batches import evaluation_batches, padded_lengths, training_batches
from lra_tasks.data.dataset import load
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import UsageError
from lra_tasks.tasks import get_task
from lra_tasks.tasks.listops import grammar
from lra_tasks.tasks.listops.builder import ListOps

LISTOPS = get_task("listops")
SMOKE = Path("lra_listops", "smoke", "1.0.0")


def left_over(root):
    return sorted(path.name for path in (root / "lra_listops").iterdir())


def run(code, *arguments, **options):
    """Runs a script in a fresh Python that finds what this one finds."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, **options)


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.array_record*")}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data folder with the smoke dataset, made in this process."""
    root = tmp_path_factory.mktemp("data")
    prepare(LISTOPS, root, variant="smoke")
    return root


@pytest.fixture
def copy(prepared, tmp_path):
    """A copy of `prepared` to spoil."""
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def source(prepared):
    return load(LISTOPS, "validation", prepared, variant="smoke")


class Examples(list):
    """Examples of the given lengths, token ids from 0 up."""

    def __init__(self, *lengths):
        super().__init__(
            {"tokens": np.arange(size, dtype=np.uint8), "label": i % 10, "index": i}
            for i, size in enumerate(lengths)
        )


# Preparation


def test_examples_are_the_generators(prepared):
    begin = 0
    for split, count in {"train": 2000, "validation": 256, "test": 256}.items():
        source = load(LISTOPS, split, prepared, variant="smoke")
        assert len(source) == source.manifest["num_examples"][split] == count
        for i in (0, 1, count - 1):
            tokens, label = grammar.expression(0, begin + i)
            assert source[i]["tokens"].dtype == np.uint8
            assert source[i]["tokens"].tobytes() == tokens
            assert (source[i]["label"], source[i]["index"]) == (label, i)
        begin += count


def test_expressions_differ_within_and_across_splits(prepared):
    splits = [
        {example["tokens"].tobytes() for example in load(LISTOPS, split, prepared, variant="smoke")}
        for split in ("train", "validation", "test")
    ]
    assert [len(split) for split in splits] == [2000, 256, 256]
    assert len(set.union(*splits)) == 2512


def test_manifest(prepared):
    manifest = json.loads((prepared / SMOKE / "manifest.json").read_text())
    assert manifest["dataset"] == str(SMOKE)
    assert manifest["metadata"] == {"origin": "lra_tasks.tasks.listops.grammar.expression", "seed": 0}
    assert set(manifest["versions"]) == {"python", "tensorflow-datasets", "array_record", "numpy"}
    assert set(manifest["files"]) == {path.name for path in (prepared / SMOKE).iterdir()} - {"manifest.json"}


def test_same_bytes_from_two_processes_without_tensorflow_or_network(prepared, tmp_path):
    code = """
        import socket, sys
        def refuse(*arguments):
            raise AssertionError(f"network: {arguments}")
        socket.getaddrinfo = socket.socket.connect = refuse
        from lra_tasks.data.batches import evaluation_batches, training_batches
        from lra_tasks.data.dataset import load
        from lra_tasks.data.prepare import prepare
        from lra_tasks.progress import Silent
        from lra_tasks.tasks import get_task
        task = get_task("listops")
        calls = []
        class Listener(Silent):
            def show(self, *call):
                calls.append(call)
        prepare(task, sys.argv[1], variant="smoke", progress=Listener())
        stages = [message for message, _, _ in calls]
        assert list(dict.fromkeys(stages))[:2] == ["writing listops", "reading listops back"], stages
        assert calls == sorted(calls, key=lambda call: (stages.index(call[0]), call[1])), calls
        assert ("writing listops", 2304, 2512) in calls and len(calls) > 10, calls
        source = load(task, "validation", sys.argv[1], variant="smoke")
        next(training_batches(source, length=100, batch_size=4, seed=0))
        next(evaluation_batches(source, length=100, batch_size=4))
        task.references(source, source)
        assert "tensorflow" not in sys.modules
    """
    assert run(code, tmp_path).wait(60) == 0
    assert len(shards(prepared / SMOKE)) == 3
    assert shards(tmp_path / SMOKE) == shards(prepared / SMOKE)


def test_a_whole_dataset_is_kept(copy):
    before = (copy / SMOKE).stat().st_ino
    calls = []
    folder = prepare(LISTOPS, copy, variant="smoke", progress=arena.Hook(lambda *call: calls.append(call)))
    assert folder == copy / SMOKE
    assert folder.stat().st_ino == before
    assert calls == [(f"listops is prepared in {folder}", 2512, 2512)]


def test_overwrite_mends(copy):
    next((copy / SMOKE).glob("*test*")).unlink()
    with pytest.raises(UsageError, match="--overwrite --variant smoke --data-dir"):
        prepare(LISTOPS, copy, variant="smoke")
    prepare(LISTOPS, copy, variant="smoke", overwrite=True)
    assert len(load(LISTOPS, "test", copy, variant="smoke")) == 256
    assert left_over(copy) == [".smoke.lock", "smoke"]


def test_data_dir_from_the_environment(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert prepare(LISTOPS, variant="smoke") == prepared / SMOKE
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(prepared / "nobody"))
    with pytest.raises(
        UsageError, match=r"nobody/tensorflow_datasets/lra.*Run `lra prepare listops`, or name .* --data-dir"
    ):
        load(LISTOPS, "test")


def test_unknown_names(prepared):
    with pytest.raises(UsageError, match=r"no split 'valid'. Did you mean 'validation'"):
        load(LISTOPS, "valid", prepared)
    with pytest.raises(UsageError, match=r"no listops variant 'smok'. Did you mean 'smoke'"):
        prepare(LISTOPS, prepared, variant="smok")


# Interruptions


@contextlib.contextmanager
def stopped_preparation(root):
    """A process that pauses in the middle of a preparation."""
    code = """
        import sys, time
        from lra_tasks.data.prepare import prepare
        from lra_tasks.progress import Silent
        class Stop(Silent):
            def show(self, message, done=0, total=0, note=""):
                if done >= 500:
                    print("stopped", flush=True)
                    time.sleep(60)
        prepare("listops", sys.argv[1], variant="smoke", progress=Stop())
    """
    process = run(code, root, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == "stopped\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_second_preparation_and_kill(tmp_path):
    with stopped_preparation(tmp_path) as process:
        with pytest.raises(UsageError, match=f"by process {process.pid};"):
            prepare(LISTOPS, tmp_path, variant="smoke")
        process.send_signal(signal.SIGKILL)
        process.wait()
        staging = tmp_path / "lra_listops" / ".incomplete-smoke"
        assert any(staging.rglob("*")), "the process was to leave something half"
        assert not (tmp_path / SMOKE).exists()
        with pytest.raises(
            UsageError, match=r"is not prepared in .* Run `lra prepare listops --variant smoke"
        ):
            load(LISTOPS, "train", tmp_path, variant="smoke")
    prepare(LISTOPS, tmp_path, variant="smoke")
    assert left_over(tmp_path) == [".smoke.lock", "smoke"]
    assert len(load(LISTOPS, "train", tmp_path, variant="smoke")) == 2000


def test_leftovers_are_not_taken_over(prepared, tmp_path):
    staged = tmp_path / "lra_listops" / ".incomplete-smoke" / SMOKE
    shutil.copytree(prepared / SMOKE, staged)
    (staged / "stray").touch()
    folder = prepare(LISTOPS, tmp_path, variant="smoke")
    assert {path.name for path in folder.iterdir()} == {path.name for path in (prepared / SMOKE).iterdir()}


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/lra_listops/smoke/1.0.0: .*Not a directory.* 100 MB free"):
        prepare(LISTOPS, tmp_path / "file", variant="smoke")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_failure_while_writing(tmp_path, monkeypatch, code):
    def fail(path):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(preparation, "describe", fail)
    with pytest.raises(UsageError, match=f"cannot be prepared in .*{os.strerror(code)}"):
        prepare(LISTOPS, tmp_path, variant="smoke")
    assert left_over(tmp_path) == [".smoke.lock"]


def test_disk_full_under_the_record_writer(tmp_path):
    """A limit on the size of a file stops the C++ writer as a full disk does."""
    code = """
        import resource, sys
        from lra_tasks.data.prepare import prepare
        from lra_tasks.errors import UsageError
        from lra_tasks.tasks import get_task
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            prepare(get_task("listops"), sys.argv[1], variant="smoke")
        except UsageError as error:
            print(error)
    """
    process = run(code, tmp_path, stdout=subprocess.PIPE)
    assert "cannot be prepared in" in process.communicate(timeout=60)[0]
    assert left_over(tmp_path) == [".smoke.lock"]


def test_too_little_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5_000_000))
    with pytest.raises(UsageError, match=r"only 5 MB are free there\. That folder"):
        prepare(LISTOPS, tmp_path)


def test_lost_records_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        preparation, "count_records", lambda builder: {"train": 1999, "validation": 256, "test": 256}
    )
    with pytest.raises(UsageError, match=r"written with \{'train': 1999.* expected \{'train': 2000"):
        prepare(LISTOPS, tmp_path, variant="smoke")
    assert not (tmp_path / SMOKE).exists()


def test_repeated_expressions_are_refused(tmp_path, monkeypatch):
    draw = grammar.expression
    monkeypatch.setattr(grammar, "expression", lambda seed, index: draw(seed, index % 2000))
    with pytest.raises(UsageError, match="Example 0 of validation repeats example 0 of train"):
        prepare(LISTOPS, tmp_path, variant="smoke")


# Damage


def truncate(folder):
    file = next(folder.glob("*validation*"))
    os.truncate(file, file.stat().st_size - 1)
    return file.name, "bytes, expected"


def flip(folder):
    file = next(folder.glob("*train*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file.name, "was altered"


def remove(folder):
    file = next(folder.glob("*train*"))
    file.unlink()
    return file.name, "is missing"


def alter_the_features(folder):
    file = folder / "features.json"
    file.write_text(file.read_text().replace("uint8", "int16"))
    return file.name, "was altered"


def remove_the_manifest(folder):
    (folder / "manifest.json").unlink()
    return "manifest.json", "not whole"


def empty_the_manifest(folder):
    (folder / "manifest.json").write_text("")
    return "manifest.json", "cannot be read"


def strip_the_manifest(folder):
    (folder / "manifest.json").write_text("{}")
    return "manifest.json", "cannot be read"


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        remove,
        alter_the_features,
        remove_the_manifest,
        empty_the_manifest,
        strip_the_manifest,
    ],
)
def test_damage_is_named(copy, damage):
    name, what = damage(copy / SMOKE)
    with pytest.raises(UsageError) as caught:
        load(LISTOPS, "train", copy, variant="smoke")
    command = f"`lra prepare listops --overwrite --variant smoke --data-dir {copy}`"
    for part in (str(copy / SMOKE), name, what, command):
        assert part in str(caught.value)


# The arena's release


@pytest.fixture
def release(tmp_path):
    """Files as the arena's, with the round brackets of the original."""
    rows = {
        "basic_train.tsv": [
            "( ( ( [MAX 3 ) 4 ) ] )\t4",
            "( ( ( [MIN 3 ) 4 ) ] )\t3",
            "( ( ( [SM 9 ) 4 ) ] )\t3",
        ],
        "basic_val.tsv": ["( ( ( [MED 2 ) 4 ) ] )\t3"],
        "basic_test.tsv": ["( ( ( [SM 9 ) ( ( ( [MED 1 ) 4 ) ] ) ) ] )\t1", "( ( ( [SM 9 ) 9 ) ] )\t8"],
    }
    folder = tmp_path / "listops-1000"
    folder.mkdir()
    for name, lines in rows.items():
        (folder / name).write_text("\n".join(["Source\tTarget", *lines, ""]))
    return folder


def prepare_release(root, folder):
    return prepare(LISTOPS, root, variant="release", manual_dir=folder, unofficial=True)


def test_release(tmp_path, release):
    prepare_release(tmp_path, release)
    test = load(LISTOPS, "test", tmp_path, variant="release")
    assert [grammar.render(example["tokens"]) for example in test] == ["[SM 9 [MED 1 4 ] ]", "[SM 9 9 ]"]
    assert [example["label"] for example in test] == [1, 8]
    assert test.manifest["num_examples"] == {"train": 3, "validation": 1, "test": 2}
    assert test.manifest["metadata"]["origin"] == "the Long Range Arena's release"
    assert set(test.manifest["metadata"]["sha256"]) == {path.name for path in release.iterdir()}
    unofficial = "3 / 1 / 2 examples, the arena's are 96,000 / 2,000 / 2,000"
    assert test.manifest["metadata"]["unofficial"] == unofficial
    (metadata,) = (tmp_path / "lra_listops" / "release").glob("*/metadata.json")
    assert json.loads(metadata.read_text()) == test.manifest["metadata"]


def test_a_release_that_other_programs_saved(tmp_path, release):
    """A spreadsheet adds a byte order mark and quotes, an editor blank lines, macOS files of its own."""
    expected = json.loads((prepare_release(tmp_path / "plain", release) / "manifest.json").read_text())
    files = {}
    for path in release.iterdir():
        rows = [[f'"{field}"' for field in line.split("\t")] for line in path.read_text().splitlines()]
        text = "\ufeff" + "".join("\t".join(row) + "\r\n" for row in rows) + "\r\n"
        files[f"lra_release/listops-1000/{path.name}"] = text.encode()
    files = sources.with_added(files)
    sources.as_folder(files, tmp_path / "unpacked")
    sources.as_archive(files, tmp_path / "packed" / "lra_release")
    sources.as_archive(files, tmp_path / "gzipped" / "lra_release.gz")
    for name in ("unpacked", "packed", "gzipped"):
        folder = prepare_release(tmp_path / f"of {name}", tmp_path / name)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["contents"] == expected["contents"]
        left_out = manifest["metadata"]["left_out"]
        assert left_out["blank lines"]["count"] == 3
        assert "basic_val.tsv, line 3" in left_out["blank lines"]["first"]
        assert left_out["hidden or system files"]["count"] >= 6


def test_a_release_of_other_numbers_needs_leave(tmp_path, release):
    with pytest.raises(UsageError) as caught:
        prepare(LISTOPS, tmp_path, variant="release", manual_dir=release)
    for words in ("listops give 3 / 1 / 2 examples", "arena's 96,000 / 2,000 / 2,000;", "--unofficial takes"):
        assert words in str(caught.value)
    assert not (tmp_path / "lra_listops" / "release").exists()


def test_what_made_a_source_unofficial_is_kept(tmp_path, release, monkeypatch):
    def read(builder):
        builder.info.metadata["unofficial"] = "a copy"
        return splits(builder)

    splits = ListOps.read
    monkeypatch.setattr(ListOps, "read", read)
    prepare_release(tmp_path, release)
    metadata = load(LISTOPS, "test", tmp_path, variant="release").manifest["metadata"]
    assert metadata["unofficial"].startswith("a copy; 3 / 1 / 2 examples, ")


def test_a_release_of_the_right_numbers_needs_none(tmp_path, release):
    whole = dataclasses.replace(LISTOPS, num_examples={"train": 3, "validation": 1, "test": 2})
    prepare(whole, tmp_path, variant="release", manual_dir=release)
    assert "unofficial" not in load(whole, "test", tmp_path, variant="release").manifest["metadata"]


def test_a_source_that_cannot_be_read_is_named(tmp_path, release, unreadable):
    unreadable(release / "basic_val.tsv")
    with pytest.raises(UsageError, match=r"^\S+basic_val.tsv cannot be read: Permission denied\. "):
        prepare_release(tmp_path, release)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("basic_train.tsv", "\t4", "\t5", r"basic_train.tsv, line 2: the label is 5, the expression is 4"),
        ("basic_val.tsv", "[MED 2", "[FIRST 2", r"basic_val.tsv, line 2: '\[FIRST', symbol 1"),
        ("basic_val.tsv", "Source\tTarget", "a\tb", r"basic_val.tsv, line 1: the columns are 'a\\tb'"),
        ("basic_val.tsv", "[MED 2", "[MIN 3", "Example 0 of validation repeats example 1 of train"),
    ],
)
def test_release_that_is_wrong(tmp_path, release, name, old, new, message):
    (release / name).write_text((release / name).read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        prepare_release(tmp_path, release)
    assert not (tmp_path / "lra_listops" / "release").exists()


def test_release_that_is_not_there(tmp_path, release):
    with pytest.raises(UsageError, match="--manual-dir FOLDER"):
        prepare_release(tmp_path, None)
    with pytest.raises(UsageError, match=r"folder .*nowhere does not exist"):
        prepare_release(tmp_path, tmp_path / "nowhere")
    (release / "basic_test.tsv").unlink()
    with pytest.raises(UsageError, match=r"basic_test.tsv is missing in .*listops-1000"):
        prepare_release(tmp_path, release)


# Reading and batching


def test_source_is_a_sequence(source):
    assert [example["index"] for example in source] == list(range(256))
    assert [example["index"] for example in source.__getitems__([5, 3])] == [5, 3]
    for index in (-1, 256):
        with pytest.raises(IndexError, match=f"index must be between 0 and 255, .*got {index}"):
            source[index]


def test_threads_may_share_a_source(prepared):
    shared = load(LISTOPS, "train", prepared, variant="smoke")
    expected = [example["tokens"].tobytes() for example in shared]
    shared = load(LISTOPS, "train", prepared, variant="smoke")  # whose files no thread has opened
    order = np.random.default_rng(0).permutation(2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: (i, shared[i]["tokens"].tobytes()), order))
    assert all(tokens == expected[i] for i, tokens in found)


def test_in_memory_gives_the_same_batches(prepared):
    batches = [
        next(training_batches(source, length=700, batch_size=16, seed=3))
        for source in (
            load(LISTOPS, "train", prepared, variant="smoke"),
            load(LISTOPS, "train", prepared, variant="smoke", in_memory=True),
        )
    ]
    for name in ("tokens", "mask", "label", "index"):
        np.testing.assert_array_equal(batches[0][name], batches[1][name])


def test_padding_and_mask():
    batch = next(evaluation_batches(Examples(3, 6, 9), length=6, batch_size=3))
    np.testing.assert_array_equal(
        batch["tokens"], [[0, 1, 2, 0, 0, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    )
    np.testing.assert_array_equal(batch["mask"], [[True] * 3 + [False] * 3, [True] * 6, [True] * 6])
    np.testing.assert_array_equal(batch["label"], [0, 1, 2])
    dtypes = {name: str(array.dtype) for name, array in batch.items()}
    assert dtypes == {
        "tokens": "int32", "mask": "bool", "label": "int32", "index": "int64", "weight": "float32"
    }  # fmt: skip


def test_training_batches_carry_their_examples(source):
    batch = next(training_batches(source, length=1000, batch_size=8, seed=0))
    assert batch["tokens"].shape == batch["mask"].shape == (8, 1000)
    for row, index in enumerate(batch["index"]):
        tokens = source[int(index)]["tokens"][:1000]
        np.testing.assert_array_equal(batch["tokens"][row][batch["mask"][row]], tokens)
        assert batch["mask"][row].sum() == len(tokens)
        assert batch["label"][row] == source[int(index)]["label"]


@pytest.mark.parametrize("buckets", [1, 4])
def test_every_epoch_has_every_example_once(buckets):
    batches = training_batches(
        Examples(*range(1, 31)), length=20, batch_size=4, seed=0, buckets=buckets, prefetch=1
    )
    order = np.concatenate([batch["index"] for batch in itertools.islice(batches, 15)])
    first, second = order[:30], order[30:]
    np.testing.assert_array_equal(np.sort(first), np.arange(30))
    np.testing.assert_array_equal(np.sort(second), np.arange(30))
    assert (first != second).any()
    assert (first != np.arange(30)).any()


def test_one_bucket_is_the_plain_shuffle():
    batches = training_batches(Examples(*range(1, 31)), length=20, batch_size=4, seed=3)
    plain = grain.MapDataset.range(30).seed(3).shuffle().repeat()
    assert [int(i) for batch in itertools.islice(batches, 15) for i in batch["index"]] == [
        plain[k] for k in range(60)
    ]


def test_a_batch_is_padded_to_the_bucket_of_its_longest_example():
    """All batches but those between two buckets or two epochs have examples of one bucket."""
    sizes = np.random.default_rng(0).integers(1, 30, 202)
    source, buckets = Examples(*sizes), np.array([7, 14, 21, 28])
    assert padded_lengths(28, 4) == tuple(buckets)
    assert padded_lengths(2, 3) == (1, 2)
    padded = buckets[np.searchsorted(buckets, np.minimum(sizes, 28))]
    training = training_batches(source, length=28, batch_size=4, seed=0, buckets=4)
    for batches in (
        list(itertools.islice(training, 101)),  # two epochs
        list(evaluation_batches(source, length=28, batch_size=4, buckets=4)),
    ):
        assert max(np.bincount(np.concatenate([b["index"] for b in batches])[:202])) == 1
        for batch in batches:
            chosen = batch["index"][batch["index"] >= 0]
            assert batch["tokens"].shape == batch["mask"].shape == (4, padded[chosen].max())
            for row, index in enumerate(chosen):
                np.testing.assert_array_equal(
                    batch["tokens"][row][batch["mask"][row]], source[index]["tokens"][:28]
                )
        mixed = sum(len(set(padded[batch["index"]])) > 1 for batch in batches)
        assert mixed <= len(batches) // 50 * 3 + 1
    lengths = [batch["tokens"].shape[1] for batch in batches]
    assert lengths == sorted(lengths)


def test_order_depends_on_the_seed():
    def order(seed):
        return next(training_batches(Examples(*[2] * 30), length=2, batch_size=30, seed=seed))["index"]

    np.testing.assert_array_equal(order(1), order(1))
    assert (order(1) != order(2)).any()


@pytest.mark.parametrize("buckets", [1, 4])
def test_resumed_equals_uninterrupted(buckets):
    def start(num_threads=2):
        return training_batches(
            Examples(*range(1, 31)),
            length=20,
            batch_size=7,
            seed=5,
            buckets=buckets,
            num_threads=num_threads,
        )

    batches = start()
    for _ in range(6):  # into the second epoch
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    assert state == {"next_index": 6}
    expected = list(itertools.islice(batches, 8))
    resumed = start(num_threads=1)
    next(resumed)
    resumed.set_state(state)
    for batch, wanted in zip(itertools.islice(resumed, 8), expected, strict=True):
        for name in ("tokens", "mask", "label", "index"):
            np.testing.assert_array_equal(batch[name], wanted[name])


def test_last_evaluation_batch_is_filled_up():
    batches = list(evaluation_batches(Examples(1, 2, 3, 4, 5), length=5, batch_size=3))
    assert [batch["weight"].tolist() for batch in batches] == [[1, 1, 1], [1, 1, 0]]
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, -1]]
    assert batches[1]["mask"].any(axis=1).all()


def test_evaluation_limit():
    for limit, total in ((1, 1), (4, 4), (99, 5), (None, 5)):
        batches = list(evaluation_batches(Examples(1, 2, 3, 4, 5), length=5, batch_size=3, limit=limit))
        assert sum(batch["weight"].sum() for batch in batches) == total
        assert {len(batch["label"]) for batch in batches} == {3}


@pytest.mark.parametrize(
    "wrong", [{"length": 0}, {"batch_size": 0}, {"buckets": 0}, {"seed": -1}, {"seed": 2**32}]
)
def test_batch_arguments(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        training_batches(Examples(1), **{"length": 1, "batch_size": 1, "seed": 0} | wrong)
    with pytest.raises(UsageError, match=r"no example"):
        training_batches(Examples(), length=1, batch_size=1, seed=0)
    with pytest.raises(UsageError, match="limit must be at least 1; got 0"):
        evaluation_batches(Examples(1), length=1, batch_size=1, limit=0)
