"""Image: CIFAR-10 in gray, from verified files."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from helpers import sources

from lra_tasks.data.batches import evaluation_batches
from lra_tasks.data.dataset import load
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import MissingData, UsageError
from lra_tasks.tasks.image import builder as image_builder
from lra_tasks.tasks.image.task import CLASSES, TASK, gray, references, validate

TOP = "cifar-10-batches-bin"


def make(root, files, variant="smoke"):
    archive = sources.as_archive(files, root / "mine" / "cifar-10-binary.tar")
    return prepare(TASK, root, variant=variant, manual_dir=archive.parent, unofficial=True)


def exact(red, green, blue):
    weighted = Fraction("0.2989") * red + Fraction("0.5870") * green + Fraction("0.1140") * blue
    return floor(Fraction("255.5") * weighted / 255)


def gray_of(*color):
    return gray(*(np.array(value, np.uint8) for value in color)).item()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("image")
    make(root, sources.cifar())
    return root


# Gray


def test_gray_by_hand():
    assert gray_of(0, 0, 0) == 0
    assert gray_of(255, 255, 255) == 255  # 255.5 · 0.9999
    assert gray_of(255, 0, 0) == 76  # 76.37
    assert gray_of(0, 255, 0) == 149  # 149.98
    assert gray_of(0, 0, 255) == 29  # 29.13


@pytest.mark.parametrize("color", [(0, 122, 186), (3, 121, 122), (5, 171, 227), (6, 120, 58), (5, 49, 41)])
def test_gray_is_exact_where_float32_is_not(color):
    assert gray_of(*color) == exact(*color)
    red, green, blue = (np.float32(value) / np.float32(255) for value in color)
    weighted = red * np.float32(0.2989) + green * np.float32(0.587) + blue * np.float32(0.114)
    assert abs(int(weighted * np.float32(255.5)) - exact(*color)) <= 1


def test_gray_of_arrays():
    colors = np.random.default_rng(0).integers(0, 256, (3, 2000)).astype(np.uint8)
    expected = [exact(*map(int, color)) for color in colors.T]
    np.testing.assert_array_equal(gray(*colors), expected)
    assert gray(*colors).dtype == np.uint8


# Preparation


def test_pictures_equal_the_files(prepared):
    pictures = {}
    for name, content in sources.cifar().items():
        if name.endswith(".bin"):
            for record in np.frombuffer(content, np.uint8).reshape(-1, 3073):
                planes = record[1:].reshape(3, 32, 32)
                pictures[gray(*planes).tobytes()] = ("test" in name, record[0])
    assert len(pictures) == 420
    for split, size in {"train": 256, "validation": 64, "test": 64}.items():
        source = load(TASK, split, prepared, variant="smoke")
        assert [example["label"] for example in source] == (list(range(10)) * 26)[:size]
        for example in source:
            assert example["tokens"].dtype == np.uint8
            is_test, label = pictures.pop(example["tokens"].tobytes())
            assert (is_test, label) == (split == "test", example["label"])
            assert validate(example["tokens"], example["label"]) is None
    assert source.manifest["metadata"]["classes"] == list(CLASSES)


def test_a_picture_is_named_by_its_position_in_the_file(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(image_builder, "AT_ONCE", 16)
    make(tmp_path, sources.cifar())
    first, second = (load(TASK, "test", root, variant="smoke").manifest for root in (prepared, tmp_path))
    assert first["contents"] == second["contents"]


def test_pixels_are_in_raster_order(tmp_path):
    """A red, a green and a blue bar, one at the left, one at the top, one at the bottom right."""
    record = np.zeros((3, 32, 32), np.uint8)
    record[0, :, 0], record[1, 0, 1:], record[2, 31, 31] = 255, 255, 255
    files = sources.cifar()
    names = [name for name in files if name.endswith("test_batch.bin")]
    records = np.frombuffer(files[names[0]], np.uint8).reshape(-1, 3073).copy()
    records[records[:, 0] == 0, 1:] = record.ravel()
    make(tmp_path, files | {names[0]: records.tobytes()})
    picture = load(TASK, "test", tmp_path, variant="smoke")[0]["tokens"].reshape(32, 32)
    assert (picture[:, 0] == 76).all()
    assert (picture[0, 1:] == 149).all()
    assert picture[31, 31] == 29
    assert not picture[1:, 1:31].any()


def test_pictures_have_no_padding(prepared):
    batch = next(evaluation_batches(load(TASK, "test", prepared, variant="smoke"), length=1024, batch_size=8))
    assert batch["mask"].all()


def broken(name, content):
    return sources.cifar() | {f"{TOP}/{name}": content}


def without(name):
    files = sources.cifar()
    del files[f"{TOP}/{name}"]
    return files


def altered(position, value):
    content = bytearray(sources.cifar()[f"{TOP}/data_batch_2.bin"])
    content[position] = value
    return broken("data_batch_2.bin", bytes(content))


def relabelled():
    content = sources.cifar()[f"{TOP}/data_batch_2.bin"]
    return altered(0, (content[0] + 1) % 10)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (without("data_batch_3.bin"), MissingData, r"data_batch_3.bin is missing in .* The files of CIFAR"),
        (without("test_batch.bin"), MissingData, r"^test_batch.bin is missing"),
        (sources.imdb(), MissingData, r"^data_batch_1.bin, data_batch_2.bin,"),
        (broken("test_batch.bin", b""), UsageError, r"test_batch.bin in .*\.tar has 0 bytes; .* a multiple"),
        (broken("test_batch.bin", bytes(3074)), UsageError, r"has 3,074 bytes; expected a multiple of 3,073"),
        (altered(5 * 3073, 10), UsageError, r"Record 5 of data_batch_2.bin in .* has the label 10; .* to 9"),
        (relabelled(), UsageError, r"has unequal numbers of train examples per class: .*3[46].*3[46]"),
        (sources.cifar(train=6), UsageError, r"has 30 train examples of the class airplane; .*at least 33\."),
        (sources.cifar(test=6), UsageError, r"has 6 test examples of the class airplane; .*at least 7\."),
        (
            [*sources.cifar().items(), (f"{TOP}/copy/test_batch.bin", bytes(3073))],
            UsageError,
            r"two files test_batch.bin: .*/test_batch.bin and .*/copy/test_batch.bin\. Leave only the right",
        ),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(tmp_path, files, error, message):
    with pytest.raises(error, match=message):
        make(tmp_path, files)
    assert not (tmp_path / "lra_image" / "smoke").exists()


def test_the_whole_dataset_has_the_official_size(tmp_path):
    with pytest.raises(UsageError, match=r"data_batch_1.bin in .* has 215,110 bytes; expected 30,730,000\."):
        make(tmp_path, sources.cifar(), variant="default")


def test_pictures_that_are_equal_in_gray(tmp_path):
    """They are kept, on one side of the split."""
    files = sources.cifar()
    for number in range(1, 5):
        files[f"{TOP}/data_batch_{number}.bin"] = files[f"{TOP}/data_batch_5.bin"]
    files[f"{TOP}/test_batch.bin"] = files[f"{TOP}/data_batch_5.bin"]
    with pytest.raises(UsageError, match=r"written with .*'validation': 50"):
        make(tmp_path, files)  # groups of five: 64 pictures cannot be had
    files[f"{TOP}/data_batch_1.bin"] = sources.cifar(seed=1)[f"{TOP}/data_batch_1.bin"]
    make(tmp_path, files)
    repeats = load(TASK, "test", tmp_path, variant="smoke").manifest["contents"]["repeats"]
    assert "train/validation" not in repeats
    assert {"train", "validation", "train/test"} <= set(repeats)


def test_validate():
    assert validate(np.zeros(1023), 0) == "The picture has 1023 pixels, expected 1024."


# References


def test_references_by_hand():
    """Dark and light pictures, with stripes of two directions: gray values separate two of four classes."""

    def examples(*rows):
        return [{"tokens": picture.ravel().astype(np.uint8), "label": label} for picture, label in rows]

    across, down = np.indices((32, 32)) % 2
    rows = [(100 * across, 0), (100 * down, 1), (100 * across + 50, 2), (100 * down + 50, 3)]
    lines = references(examples(*rows), examples(*rows, rows[0]))
    assert lines["chance"] == 25
    assert lines["majority class"] == 40  # of equally many, the first
    assert lines["naive Bayes on gray values"] == 60  # 0 and 1 look alike, so do 2 and 3
    assert lines["nearest mean picture"] == 100
    assert lines["linear least squares on pixels"] == 100


def test_least_squares_include_a_constant():
    def examples(*levels):
        return [{"tokens": np.full(1024, level, np.uint8), "label": i % 2} for i, level in enumerate(levels)]

    lines = references(examples(200, 202, 201, 203), examples(200, 203))
    assert lines["linear least squares on pixels"] == 100
