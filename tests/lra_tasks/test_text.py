"""Text: reviews as bytes, from verified files."""

import re
import tracemalloc

import numpy as np
import pytest
from helpers import sources

from lra_tasks.data.dataset import load
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import UsageError
from lra_tasks.tasks.byte_tokens import render
from lra_tasks.tasks.text.builder import MAX_BYTES
from lra_tasks.tasks.text.task import TASK, references, validate


def make(root, files, config="smoke"):
    archive = sources.as_archive(files, root / "mine" / "aclImdb.tar")
    return prepare(TASK, root, variant=config, manual_dir=archive.parent, unofficial=True)


def rename(files, old, new):
    """Returns the files with a new name for the first one that matches the pattern `old`."""
    name = next(name for name in files if re.search(old, name))
    return {re.sub(old, new, key) if key == name else key: content for key, content in files.items()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    make(root, sources.imdb())
    return root


def test_reviews_equal_the_files(prepared):
    files = sources.imdb()
    reviews = {
        content: (name.split("/")[1], int(name.split("/")[2] == "pos"))
        for name, content in files.items()
        if re.fullmatch(r"aclImdb/(train|test)/(pos|neg)/.*", name)
    }
    for split in ("train", "validation", "test"):
        source = load(TASK, split, prepared, variant="smoke")
        assert [example["label"] for example in source] == [0, 1] * (len(source) // 2)
        for example in source:
            assert example["tokens"].dtype == np.uint16
            content = (example["tokens"] - 1).astype(np.uint8).tobytes()
            assert reviews.pop(content) == ("test" if split == "test" else "train", example["label"])
            assert render(np.pad(example["tokens"], (0, 3))) == content.decode()
            assert validate(example["tokens"], example["label"]) is None
    assert len(reviews) == 400 - 384  # each occurs once
    assert source.manifest["metadata"]["classes"] == ["negative", "positive"]


def test_bytes_are_not_changed(tmp_path):
    files = sources.imdb()
    for name in files:
        if name.startswith("aclImdb/train/neg/"):
            files[name] += b" <br /><br />A\xc3\xa9\x00\r\n"
    make(tmp_path, files)
    tokens = load(TASK, "train", tmp_path, variant="smoke")[0]["tokens"]
    assert tokens[-6:].tolist() == [66, 0xC4, 0xAA, 1, 14, 11]
    assert "<br /><br />A" in render(tokens)


def test_render_and_validate():
    tokens = np.frombuffer("caf\xe9".encode(), np.uint8).astype(np.uint16) + 1
    assert render(tokens) == "caf\xe9"
    assert render(tokens[:-1]) == "caf\ufffd"
    assert (
        validate(tokens[:-1], 0)
        == "Byte 3 of the review, counted from 0, is not UTF-8: unexpected end of data."
    )
    assert validate(tokens[:0], 0) == "The review is empty."


def test_repeats_stay_on_one_side(tmp_path):
    files = sources.imdb()
    train = [name for name in files if re.search("train/(pos|neg)", name)]
    test = [name for name in files if re.search("test/(pos|neg)", name)]
    for number in range(0, len(train), 2):
        files[train[number + 1]] = files[train[number]]
    for number in range(0, len(test), 4):
        files[test[number + 1]] = files[test[number]]
        files[test[number + 2]] = files[train[number]]
    make(tmp_path, files)
    repeats = load(TASK, "test", tmp_path, variant="smoke").manifest["contents"]["repeats"]
    assert set(repeats) == {"train", "validation", "test", "train/test", "validation/test"}
    assert (repeats["train"][0], repeats["validation"][0]) == (128, 32)


REFUSED = [
    (r"pos/7_(\d+)", r"pos/7-\1", r"has aclImdb/train/pos/7-\d+\.txt; expected a name like 0_10.txt"),
    (r"neg/7_\d+\.txt", "neg/notes.md", r"has aclImdb/train/neg/notes.md; expected a name like 0_4.txt"),
    (r"neg/7_", "neg/07_", r"has aclImdb/train/neg/07_\d.txt; expected a name"),
    (r"pos/7_\d+", "pos/7_6", r"train/pos/7_6.txt; expected a rating of 7 to 10"),
    (r"neg/7_\d+", "neg/7_5", r"train/neg/7_5.txt; expected a rating of 1 to 4"),
    (r"neg/7_\d+", "neg/7_0", r"train/neg/7_0.txt; expected a rating of 1 to 4"),
    (r"pos/7_\d+", "pos/999_7", r"has no review with the ID 7 in train/pos, but higher ones"),
    (r"train/pos/159_.*", "none", r"has 159 train examples of the class positive; expected at least 160\."),
    (r"test/neg/39_.*", "none", r"has unequal numbers of test examples per class: .*0: 39, 1: 40"),
]


@pytest.mark.parametrize(("old", "new", "message"), REFUSED)
def test_wrong_names_are_refused(tmp_path, old, new, message):
    with pytest.raises(UsageError, match=message):
        make(tmp_path, rename(sources.imdb(), old, new))
    assert not (tmp_path / "lra_text" / "smoke").exists()


def test_two_reviews_with_one_id_are_refused(tmp_path):
    files = list(sources.imdb().items())
    files.append(("aclImdb/test/pos/3_7.txt", b"Again."))
    with pytest.raises(UsageError, match=r"has aclImdb/test/pos/3_7.txt and another review with the ID 3"):
        make(tmp_path, files)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty\."),
        (bytes(MAX_BYTES + 1), r"has more than 100,000 bytes"),
        ("caf\xe9 and so on".encode("latin-1"), r"is not UTF-8 from byte 3 on"),
    ],
)
def test_wrong_contents_are_refused(tmp_path, content, message):
    files = sources.imdb()
    name = next(name for name in files if "test/pos/5_" in name)
    with pytest.raises(UsageError, match=rf"{name} in .*aclImdb.tar {message}"):
        make(tmp_path, files | {name: content})


def test_another_archive_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"has 0 train examples of the class negative; expected at least 160"
    ):
        make(tmp_path, sources.cifar())


def test_too_few_reviews_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has 159 train examples of the class negative; .* at least 160\."):
        make(tmp_path, sources.imdb(train=159))


def test_references_by_hand():
    """Train has two words; bytes, pairs and words classify the test reviews differently."""

    def examples(*rows):
        return [
            {"tokens": np.frombuffer(review.encode(), np.uint8).astype(np.uint16) + 1, "label": label}
            for review, label in rows
        ]

    train = examples(("ab ab", 1), ("ba ba", 0), ("ab", 1), ("ba", 0))
    # Bytes: equal up to order, so all are negative. Pairs: "abb" has ab. Words: only whole known words.
    test = examples(("ab", 1), ("abb", 1), ("ba", 0), ("xy", 0))
    assert references(train, test) == {
        "chance": 50.0,
        "majority class": 50.0,
        "naive Bayes on bytes": 50.0,
        "naive Bayes on byte pairs": 100.0,
        "naive Bayes on words": 75.0,
    }


def test_references_store_small_integers():
    """50,000 reviews of 4,000 tokens; int64 needs four times the memory of the stored type."""
    examples = [{"tokens": np.full(4_000, 98, np.uint16), "label": i % 2} for i in range(1_000)]
    references(examples, examples)  # imports and caches
    tracemalloc.start()
    references(examples, examples)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


def test_references_read_the_same_bytes_as_a_model():
    def examples(*rows):
        return [{"tokens": np.array(tokens, np.uint16), "label": label} for tokens, label in rows]

    train = examples(([98] * 10, 0), ([99] * 10, 1))
    hidden = examples(([98] * 4000 + [99] * 5000, 0), ([99] * 4000 + [98] * 5000, 1))
    assert references(train, hidden)["naive Bayes on bytes"] == 100
