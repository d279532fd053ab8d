"""Pathfinder: what a picture shows by its geometry, by its pixels, and by following a snake in it."""

import functools
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import sources
from PIL import Image
from scipy import ndimage

from lra_tasks.data.batches import evaluation_batches
from lra_tasks.data.dataset import load
from lra_tasks.data.prepare import prepare
from lra_tasks.errors import MissingData, UsageError
from lra_tasks.sources.threads import in_threads
from lra_tasks.tasks.pathfinder import drawing
from lra_tasks.tasks.pathfinder import release as release_files
from lra_tasks.tasks.pathfinder.drawing import images, scene
from lra_tasks.tasks.pathfinder.references import directions, find_discs, references
from lra_tasks.tasks.pathfinder.release import read_metadata, read_pictures
from lra_tasks.tasks.pathfinder.sizes import RADII
from lra_tasks.tasks.pathfinder.task import PATHFINDER, PATHX, validate

KINDS = [(32, 6), (32, 9), (32, 14), (64, 6), (64, 14), (128, 6), (128, 14), (256, 9), (256, 14)]
# The arena's parameters for 32, 64, 128 and 256 pixels.
LENGTH = {32: 2, 64: 5, 128: 5, 256: 5}
THICKNESS = {32: 0.5, 64: 1, 128: 1.5, 256: 2}
MARGINS = {32: {1}, 64: {1}, 128: {2, 3}, 256: {3}}
CONTINUITY = {32: 1, 64: 1.8, 128: 1.8, 256: 1.8}
DISTRACTOR_PADDLES = {32: 20, 64: 22, 128: 35, 256: 30}
LEVEL = {32: 1.5, 64: 0.8, 128: 0.9, 256: 1}
GOLDEN = {
    (32, 6): "71fa764c7062e0bcf874adfc1df095b8",
    (32, 9): "7b253bf95e0d4d6b9e74b4f1503d23f5",
    (32, 14): "cbd07b13fed1d178ce4353337a6b7af8",
    (64, 6): "0e5491233517feb00073e1736b6847a0",
    (64, 9): "dc7379e9e80edf5fa23b3dbc9d84199e",
    (64, 14): "175dbea02d009a5d01cf5bbc2d4275c9",
    (128, 6): "282321f0b4d1c81f315bd5131c7242e5",
    (128, 9): "31df4e41a9311f19b2362050fad2faab",
    (128, 14): "c97e5aa09e27ae87b7bc1bd35c29908f",
    (256, 6): "8fdb1534830d728f454bdad6f138c2c7",
    (256, 9): "00f8b7444105a0b62bd2aefe997640cf",
    (256, 14): "0a2b27b3ac7f15942621b20b7f0b7543",
}


@functools.cache
def drawn(size, contour_length, number):
    """Pictures (number, size, size), labels and scenes of seed 1."""
    made = images(size, contour_length, 1, 0, number)
    scenes = [scene(size, contour_length, 1, index) for index in range(number)]
    return made["tokens"].reshape(-1, size, size), made["label"], scenes


def number_of(size, contour_length):
    return {(32, 14): 2000, (128, 14): 300}.get((size, contour_length), 100)


# The same pictures everywhere


def test_random_numbers():
    """The published sequence of splitmix64 from the state 1234567."""
    states = (np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) + np.uint64(1234567)
    assert [int(drawing._mixed(state)) for state in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def digest(size, contour_length):
    made = images(size, contour_length, 0, 0, 20)
    return hashlib.sha256(made["tokens"].tobytes() + made["label"].tobytes()).hexdigest()[:32]


@pytest.mark.parametrize(("size", "contour_length"), GOLDEN)
def test_golden_digest(size, contour_length):
    """The same pictures on every Python; the published data depend on them."""
    assert digest(size, contour_length) == GOLDEN[size, contour_length]


def test_golden_digest_of_plain_machine_code():
    """No vector instructions, no optimisation: nothing is left to the compiler."""
    code = "import test_pathfinder as t; assert t.digest(32, 14) == t.GOLDEN[32, 14]"
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_OPT": "0", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | plain)


def test_tables_do_not_hang_on_the_last_bit():
    """No entry is so near to a half that another machine's sine could round it the other way."""
    cosines = np.cos(2 * np.pi * np.arange(drawing.TURN) / drawing.TURN) * 2**drawing.COSINE_BITS
    np.testing.assert_array_equal(drawing._COSINES, np.round(cosines))
    assert np.abs(cosines % 1 - 0.5).min() > 1e-6
    for window in (2.5, 3):
        x = (np.arange(2 * window * drawing.STEPS * 16) + 0.5) / (drawing.STEPS * 16) - window
        parts = np.concatenate([[0], np.cumsum(np.sinc(x) * np.sinc(x / window))[15::16]])
        integral = parts / parts[-1] * 2**drawing.INTEGRAL_BITS
        np.testing.assert_array_equal(
            drawing._lanczos_integral(round(window * drawing.UNIT)), integral.round()
        )
        assert np.abs(integral[:-1] % 1 - 0.5).min() > 1e-6


def test_pure_function_of_kind_seed_and_number():
    pictures, labels, _ = drawn(32, 14, 2000)
    made = images(32, 14, 1, 995, 1001)
    np.testing.assert_array_equal(made["tokens"].reshape(-1, 32, 32), pictures[995:1001])
    np.testing.assert_array_equal(made["label"], labels[995:1001])
    firsts = [images(32, length, seed, 0, 4) for length in (6, 9, 14) for seed in (-1, 0, 1, 2**80)]
    for one, other in itertools.combinations(firsts, 2):
        assert (one["tokens"] != other["tokens"]).any(1).all()
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_labels_are_balanced_in_every_even_number():
    labels = images(32, 6, 0, 0, 3000)["label"]
    assert set(labels[::2] + labels[1::2]) == {1}
    assert 0.46 < labels[::2].mean() < 0.54
    for lag in (1, 2, 3):
        assert abs(np.corrcoef(labels[:-2:2][lag:], labels[:-2:2][:-lag])[0, 1]) < 0.08


@pytest.mark.parametrize("asked", [(33, 14), (32, 5)])
def test_unknown_kind(asked):
    with pytest.raises(UsageError, match=r"no Pathfinder pictures of .* Sizes are 32, 64, 128, 256, lengths"):
        images(*asked, 0, 0, 1)


def test_unknown_number():
    with pytest.raises(UsageError, match="numbered from 0; asked for were -1 to 2"):
        images(32, 14, 0, -1, 3)


# What they show, by their geometry


def distances_to_lines(points, lines):
    """From points (P, 2) to line segments (L, 2, 2): (P, L)."""
    along = lines[:, 1] - lines[:, 0]
    offset = points[:, None] - lines[:, 0]
    part = np.clip((offset * along).sum(-1) / (along**2).sum(-1), 0, 1)
    return np.linalg.norm(offset - part[..., None] * along, axis=-1)


def cross(lines):
    """Which of the line segments (L, 2, 2) cross: (L, L)."""

    def side(line, point):
        along, offset = line[1] - line[0], point - line[0]
        return np.sign(along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0])

    a = np.moveaxis(lines, 0, 1)[:, :, None]
    b = np.moveaxis(lines, 0, 1)[:, None]
    return (side(a, b[0]) != side(a, b[1])) & (side(b, a[0]) != side(b, a[1]))


def clearances(lines):
    """Distances between line segments (L, 2, 2): (L, L)."""
    distances = np.minimum(distances_to_lines(lines[:, 0], lines), distances_to_lines(lines[:, 1], lines))
    return np.where(cross(lines), 0, np.minimum(distances, distances.T))


def snake_of(disc, shown):
    """The long snakes that have an end in the middle of the disc."""
    found = []
    for snake in (0, 1):
        paddles = shown.paddles[shown.snakes == snake]
        found += [snake] * any((end == disc).all() for end in (paddles[0, 0], paddles[-1, 1]))
    return found


@pytest.mark.parametrize(("size", "contour_length"), KINDS)
def test_label_is_whether_one_snake_has_both_discs(size, contour_length):
    _, labels, scenes = drawn(size, contour_length, number_of(size, contour_length))
    for label, shown in zip(labels, scenes, strict=True):
        (first,), (second,) = (snake_of(disc, shown) for disc in shown.discs)
        assert (first == second) == label == shown.label
        (elsewhere,) = snake_of(shown.elsewhere, shown)
        assert elsewhere != second


@pytest.mark.parametrize(("size", "contour_length"), KINDS)
def test_snakes(size, contour_length):
    """Numbers and lengths of paddles, gaps, turns, the frame, and distances between what is not joined."""
    _, _, scenes = drawn(size, contour_length, number_of(size, contour_length))
    widest, margins, turns = 90 / CONTINUITY[size], set(), []
    for shown in scenes:
        lines = shown.paddles
        numbers = np.bincount(shown.snakes)
        assert numbers[0] == numbers[1] == contour_length
        assert set(numbers[2:]) <= {0, contour_length // 3}
        assert np.count_nonzero(numbers[2:]) <= DISTRACTOR_PADDLES[size] // (contour_length // 3)
        assert (lines > RADII[size]).all()
        assert (lines < size - RADII[size]).all()
        along = lines[:, 1] - lines[:, 0]
        np.testing.assert_allclose(np.linalg.norm(along, axis=1), LENGTH[size], atol=0.02)

        joined = np.flatnonzero(np.diff(shown.snakes) == 0)
        unit = along / np.linalg.norm(along, axis=1, keepdims=True)
        gaps = lines[joined + 1, 0] - lines[joined, 1]
        fitting = []
        for margin in MARGINS[size]:
            straight = gaps - margin * unit[joined + 1]  # before the turn
            length = (straight * unit[joined]).sum(1)
            exact = np.abs(straight - length[:, None] * unit[joined]).max() < 0.04
            if exact and margin - 1.03 < length.min() and length.max() < margin + 0.03:
                fitting.append(margin)
            assert np.linalg.norm(gaps, axis=1).max() < 2 * margin + 0.03 or not exact
        (margin,) = fitting
        margins.add(margin)
        turn = np.degrees(np.arccos(np.clip((unit[joined] * unit[joined + 1]).sum(1), -1, 1)))
        assert turn.max() < widest + 0.6
        turns.append(turn)

        distances = clearances(lines)
        np.fill_diagonal(distances, np.inf)
        distances[joined, joined + 1] = distances[joined + 1, joined] = np.inf
        assert distances.min() > 2 * margin + max(THICKNESS[size], 0.98)  # ink keeps 2 · margin apart
    assert margins == MARGINS[size]
    assert np.concatenate(turns).max() > 0.8 * widest


@pytest.mark.parametrize(("size", "contour_length"), KINDS)
def test_discs_do_not_touch(size, contour_length):
    """They touch nothing but the end they are on, and not each other; a hidden paddle leads to the next."""
    _, _, scenes = drawn(size, contour_length, number_of(size, contour_length))
    for shown in scenes:
        for disc in shown.discs:
            ends = np.linalg.norm(shown.paddles - disc, axis=-1)
            paddle, end = np.unravel_index(ends.argmin(), ends.shape)
            joined = paddle + 1 - 2 * end
            distances = distances_to_lines(disc[None], shown.paddles)[0]
            others = np.delete(distances, [paddle, joined])
            assert others.min() > RADII[size] + THICKNESS[size] / 2 + 0.98
            if RADII[size] >= LENGTH[size]:
                assert others.min() > distances[joined] + 0.9
        assert np.linalg.norm(np.subtract(*shown.discs)) > 2 * RADII[size] + 0.99


@pytest.mark.parametrize(("size", "contour_length"), KINDS)
def test_distance_between_discs_tells_nothing(size, contour_length):
    _, _, scenes = drawn(size, contour_length, number_of(size, contour_length))
    for shown in scenes:
        here, there = (np.linalg.norm(place - shown.discs[0]) for place in (shown.discs[1], shown.elsewhere))
        assert abs(here - there) < 1.02


def test_turns_are_distributed_as_they_should_be():
    """The law of a turn, taken where nothing is in its way: density cos² between the bounds."""
    state = np.array([5], np.uint64)
    turns = np.array([drawing._drawn_turn(state, drawing.TURN // 4) for _ in range(20_000)]) / (
        drawing.TURN / 4
    )
    assert -1 < turns.min() < -0.9
    assert 0.9 < turns.max() < 1
    x = np.linspace(-0.95, 0.95, 39)
    expected = (x + 1) / 2 + np.sin(np.pi * x) / (2 * np.pi)
    np.testing.assert_allclose((turns[:, None] <= x).mean(0), expected, atol=0.012)


# What they show, by their pixels


def lanczos_coverage(v, half, window):
    """The part of a Lanczos kernel around v that falls on -half .. half, by quadrature; at least 0."""
    x = np.linspace(-window, window, 6001)
    parts = np.cumsum(np.sinc(x) * np.sinc(x / window))
    parts /= parts[-1]
    return np.maximum(np.interp(v + half, x, parts) - np.interp(v - half, x, parts), 0)


def rendered(shown, size):
    """The picture of a scene, in floating point and straight from the definition."""
    window = 2.5 if size == 32 else 3
    middles = np.arange(size) + 0.5
    picture = np.zeros((size, size))
    for start, end in shown.paddles:
        unit = (end - start) / np.linalg.norm(end - start)
        dx, dy = middles - (start + end)[0] / 2, (middles - (start + end)[1] / 2)[:, None]
        along = lanczos_coverage(dx * unit[0] + dy * unit[1], LENGTH[size] / 2 + 0.25, window)
        across = lanczos_coverage(dy * unit[0] - dx * unit[1], THICKNESS[size] / 2, window)
        picture = np.maximum(picture, np.minimum(along * across, 1) * LEVEL[size])
    for x, y in shown.discs:
        distance = np.hypot(middles - x, (middles - y)[:, None])
        picture = np.maximum(picture, lanczos_coverage(distance, RADII[size], window))
    return 255 * np.minimum(picture, 1)


@pytest.mark.parametrize(("size", "contour_length"), KINDS)
def test_pictures_are_their_scenes(size, contour_length):
    pictures, _, scenes = drawn(size, contour_length, number_of(size, contour_length))
    for picture, shown in list(zip(pictures, scenes, strict=True))[: 1200 // size]:
        difference = np.abs(picture - rendered(shown, size))
        assert difference.max() < 8
        assert difference.mean() < 0.5


@pytest.mark.parametrize(("size", "contour_length"), KINDS)
def test_discs_are_found_in_the_pixels(size, contour_length):
    pictures, _, scenes = drawn(size, contour_length, number_of(size, contour_length))
    pictures = pictures[: 40_000 // size]
    for picture, found, shown in zip(pictures, find_discs(pictures), scenes, strict=False):
        errors = np.abs(found[:, None] - shown.discs).max(-1)
        assert min(np.diag(errors).max(), np.diag(errors[::-1]).max()) < 0.75
        for x, y in found:
            assert picture[int(y), int(x)] > 245


def test_paddles_are_darker_than_discs():
    for size, brightest in {32: 210, 64: 204, 128: 230, 256: 255}.items():
        pictures, _, _ = drawn(size, 14, number_of(size, 14))
        rows, columns = np.mgrid[:size, :size] + 0.5
        for picture, discs in zip(pictures, find_discs(pictures), strict=True):
            apart = np.min([np.hypot(columns - x, rows - y) for x, y in discs], 0) > RADII[size] + 1.5
            assert picture[apart].max() <= brightest


@pytest.mark.parametrize(("size", "share"), [(32, 65.6), (128, 87.1)])
def test_share_of_black_is_the_arenas(size, share):
    pictures, _, _ = drawn(size, 14, number_of(size, 14))
    assert abs(100 * (pictures == 0).mean() - share) < 1.5


def strokes(picture, discs):
    """The ends (number, 2, 2) of what is bright outside the discs: of a whole stroke those of its paddle."""
    size, radius = len(picture), RADII[len(picture)]
    rows, columns = np.mgrid[:size, :size] + 0.5
    light = np.where(picture > 100, picture, 0).astype(float)
    for x, y in discs:
        light[np.hypot(columns - x, rows - y) < radius + 0.75] = 0
    areas, number = ndimage.label(light > 0, np.ones((3, 3)))
    ends, amounts = np.zeros((number, 2, 2)), ndimage.sum(light, areas, np.arange(1, number + 1))
    for i in range(number):
        on = areas == i + 1
        points = np.stack([columns[on], rows[on]], 1)
        offset = points - np.average(points, 0, light[on])
        axis = np.linalg.eigh((offset.T * light[on]) @ offset)[1][:, 1]
        along = offset @ axis
        whole = amounts[i] > 0.8 * np.median(amounts)
        reach = np.array([-2.5, 2.5]) if whole else np.array([along.min(), along.max()])
        ends[i] = points[0] - offset[0] + reach[:, None] * axis
    return ends


def followed(picture, contour_length):
    """Looks at nothing but the picture: does the snake of the one disc lead to the other disc?

    From a disc it goes to the nearest stroke, from a stroke's other end to the next, until the second disc is
    near or nothing is.
    """
    size, radius = len(picture), RADII[len(picture)]
    rows, columns = np.mgrid[:size, :size] + 0.5
    discs = []
    for x, y in find_discs(picture[None])[0]:
        light = picture * (np.hypot(columns - x, rows - y) < radius + 0.7)
        discs.append(np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum())
    here, goal = discs
    ends = strokes(picture, discs)
    near = 11.5 if radius >= 5 else radius + 2.2  # where a disc hides a paddle, the goal is a step away
    left = np.ones(len(ends), bool)
    for number in range(contour_length + 1):
        distances = np.where(left[:, None], np.linalg.norm(ends - here, axis=-1), np.inf)
        stroke, end = np.unravel_index(distances.argmin(), distances.shape)
        to_stroke, to_goal = distances[stroke, end], np.linalg.norm(goal - here)
        if number and to_goal < near and (to_goal < to_stroke or to_stroke > 7.5):
            return 1
        if number and to_stroke > 7.5:
            return 0
        left[stroke] = False
        here = ends[stroke, 1 - end]
    return 0


@pytest.mark.parametrize(("size", "contour_length"), [(128, 6), (128, 14), (256, 9), (256, 14)])
def test_following_the_snake_in_the_picture_gives_the_label(size, contour_length):
    pictures, labels, _ = drawn(size, contour_length, number_of(size, contour_length))
    np.testing.assert_array_equal([followed(picture, contour_length) for picture in pictures], labels)


# The reference lines


def test_directions_by_hand():
    """Two discs side by side, one stroke up from the left one, one to the right from the right one."""
    picture = np.zeros((1, 64, 64), np.uint8)
    rows, columns = np.mgrid[:64, :64] + 0.5
    for x in (20.5, 40.5):
        picture[0, np.hypot(columns - x, rows - 30.5) < 2.5] = 255
    picture[0, 25:30, 20] = 150
    picture[0, 30, 41:46] = 150
    discs = find_discs(picture)
    assert sorted(discs[0].tolist()) == [[20.5, 30.5], [40.5, 30.5]]
    discs = np.array([[[20.5, 30.5], [40.5, 30.5]]])
    for turned in range(4):
        found = directions(np.rot90(picture, turned, (1, 2)), discs)
        np.testing.assert_allclose(found % 0.75, [[0.25, 0]], atol=0.01)
        discs = np.stack([discs[..., 1], 64 - discs[..., 0]], -1)  # a quarter to the left
    mirrored = directions(picture[:, ::-1], [0, 64.4] + discs * [1, -1])  # and discs not quite found
    np.testing.assert_allclose(mirrored % 0.75, [[0.25, 0]], atol=0.03)


def examples(pictures, labels):
    pairs = zip(pictures, labels, strict=True)
    return [{"tokens": picture.ravel(), "label": int(label)} for picture, label in pairs]


def test_references_of_our_pictures():
    """Distance alone is worth nothing; the directions at the discs are, at 128 pixels."""
    pictures, labels, _ = drawn(32, 14, 2000)
    lines = references(examples(pictures[:1000], labels[:1000]), examples(pictures[1000:], labels[1000:]))
    assert lines["chance"] == lines["majority class"] == 50
    assert 44 < lines["distance between the discs"] < 56


def test_references_see_a_rule_that_is_there():
    """With labels made from the distance between the discs, the line on it tells them."""
    pictures, _, scenes = drawn(32, 14, 2000)
    distances = np.array([np.linalg.norm(np.subtract(*shown.discs)) for shown in scenes])
    labels = distances > np.median(distances)
    lines = references(examples(pictures[:1500], labels[:1500]), examples(pictures[1500:], labels[1500:]))
    assert lines["distance between the discs"] > 95
    assert lines["distance and directions at the discs"] > 80


def test_problems():
    assert validate(np.zeros(1024, np.uint8), 1) is None
    assert validate(np.zeros(128 * 128, np.uint8), 0) is None
    assert "has 1000 pixels" in str(validate(np.zeros(1000, np.uint8), 0))
    assert "label is 2" in str(validate(np.zeros(1024, np.uint8), 2))


# The arena's release


@pytest.fixture
def release(tmp_path, monkeypatch):
    """Four metadata files of ten pictures each; picture 7 of file 10 has no bytes."""
    monkeypatch.setattr(release_files, "RELEASE_PICTURES", 40)
    made = images(32, 14, 3, 0, 40)
    folder = tmp_path / "mine" / "pathfinder32" / "curv_contour_length_14"
    (folder / "metadata").mkdir(parents=True)
    for file, number in enumerate((2, 10, 1, 0)):
        (folder / "imgs" / str(number)).mkdir(parents=True)
        lines = []
        for i in range(10):
            row = 10 * file + i
            picture = folder / "imgs" / str(number) / f"sample_{i}.png"
            Image.fromarray(made["tokens"][row].reshape(32, 32)).save(picture)
            lines.append(f"imgs/{number} sample_{i}.png {i} {made['label'][row]} 1.0 14 4 2 0.5 1 1\n")
        (folder / "metadata" / f"{number}.npy").write_text("".join(lines))
    (folder / "imgs" / "10" / "sample_7.png").write_bytes(b"")
    order = [*range(30, 40), *range(20, 30), *range(10), *range(10, 20)]  # files 0, 1, 2, 10
    order.remove(17)
    rows = [(made["tokens"][row].tobytes(), int(made["label"][row])) for row in order]
    return folder, rows


def rewrite(release, file, old, new):
    path = release[0] / "metadata" / file
    path.write_text(path.read_text().replace(old, new, 1))


def prepare_release(release, tmp_path, manual_dir=None, unofficial=True):
    return prepare(
        PATHFINDER,
        tmp_path / "data",
        variant="release-32-14",
        manual_dir=manual_dir or release[0].parents[1],
        unofficial=unofficial,
    )


def test_release(release, tmp_path):
    """Order of the files by number, 8, 1 and 1 tenths of the rows, what is empty left out and named."""
    _, rows = release
    prepare_release(release, tmp_path)
    read = []
    for split, number in {"train": 32, "validation": 4, "test": 3}.items():
        source = load(PATHFINDER, split, tmp_path / "data", variant="release-32-14")
        assert len(source) == number
        read += [(example["tokens"].tobytes(), example["label"]) for example in source]
    assert read == rows
    assert source.manifest["metadata"]["left_out"] == {
        "empty": {"count": 1, "first": ["imgs/10/sample_7.png"]}
    }


def test_a_release_that_other_programs_saved(release, tmp_path):
    expected = json.loads((prepare_release(release, tmp_path) / "manifest.json").read_text())
    folder = tmp_path / "all" / "lra_release" / "lra_release" / "pathfinder32" / release[0].name
    shutil.copytree(release[0], folder)
    files = {str(path.relative_to(folder)): b"" for path in folder.rglob("*") if path.is_file()}
    for name in sources.with_added(files).keys() - files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"of a system")
    metadata = folder / "metadata" / "1.npy"
    metadata.write_bytes(b"\xef\xbb\xbf" + metadata.read_bytes() + b"\r\n")
    made = prepare_release(release, tmp_path / "again", manual_dir=tmp_path / "all")
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["contents"] == expected["contents"]
    left_out = manifest["metadata"]["left_out"]
    assert {reason: found["count"] for reason, found in left_out.items() if "system" not in reason} == {
        "empty": 1,
        "blank lines": 1,
    }
    assert left_out["hidden or system files"]["count"] >= 44


def test_pictures_of_another_number_need_leave(release, tmp_path, monkeypatch):
    monkeypatch.setattr(release_files, "RELEASE_PICTURES", 200_000)
    with pytest.raises(UsageError, match=r"_14 has 40 pictures, the release has 200,000; .*--unofficial"):
        prepare_release(release, tmp_path, unofficial=False)
    folder = prepare_release(release, tmp_path)
    unofficial = json.loads((folder / "manifest.json").read_text())["metadata"]["unofficial"]
    assert unofficial.startswith("40 pictures, the release has 200,000; 32 / 4 / 3 examples, the arena's")


def test_two_folders_of_pictures_are_refused(release, tmp_path):
    copy = tmp_path / "mine" / "copy" / "pathfinder32" / release[0].name
    shutil.copytree(release[0], copy)
    with pytest.raises(UsageError, match=rf"mine has {release[0]} and {copy}, expected one of them"):
        prepare_release(release, tmp_path)


def as_array(release, dtype):
    path = release[0] / "metadata" / "1.npy"
    rows = [line.split() for line in path.read_text().splitlines()]
    np.save(path, np.array(rows, dtype))
    return path


@pytest.mark.parametrize("dtype", ["S", "U"])
def test_metadata_as_an_array_of_strings(release, dtype):
    path = release[0] / "metadata" / "1.npy"
    expected = read_metadata(path, 14)
    assert len(expected) == 10
    assert read_metadata(as_array(release, dtype), 14) == expected


def test_metadata_as_a_pickle_are_refused(release):
    with pytest.raises(UsageError, match=r"1\.npy cannot be read: Object arrays .* Expected text, or"):
        read_metadata(as_array(release, object), 14)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x93NUMPY\x01", r"1\.npy cannot be read"),
        (b"imgs/1 sample_0.png 0 1 1.0\n", r"1\.npy, row 1: .* found 'imgs/1 sample_0.png 0 1 1.0'"),
        (b"imgs/2 sample_0.png 0 1 1.0 14\n", r"1\.npy, row 1: expected imgs/1"),
        (b"imgs/1 ../../secret.png 0 1 1.0 14\n", r"1\.npy, row 1: expected imgs/1"),
        (b"imgs/1 a.png 0 1 1.0 14\nimgs/1 b.png 1 2 1.0 14\n", r"row 2: the label is '2', expected 0 or 1"),
        (b"imgs/1 a.png 0 1 1.0 9\n", r"row 1: the contour length is '9', not 14"),
        (b"\xff\xfe\n", r"1\.npy, row 1: expected imgs/1"),
    ],
)
def test_metadata_that_are_wrong(release, content, message):
    path = release[0] / "metadata" / "1.npy"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_metadata(path, 14)


def test_metadata_as_an_array_of_numbers(release):
    path = release[0] / "metadata" / "1.npy"
    np.save(path, np.zeros((3, 11)))
    with pytest.raises(UsageError, match=r"1\.npy has float64 \(3, 11\), expected rows of strings"):
        read_metadata(path, 14)


def missing_picture(release):
    (release[0] / "imgs" / "1" / "sample_4.png").unlink()


def more_pictures(release):
    (release[0] / "imgs" / "1" / "sample_10.png").write_bytes(b"")


def twice_listed(release):
    rewrite(release, "1.npy", "sample_4.png", "sample_5.png")


def fewer_files(release):
    (release[0] / "metadata" / "1.npy").unlink()


def no_metadata(release):
    for path in (release[0] / "metadata").iterdir():
        path.unlink()


def other_size(release):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(release[0] / "imgs" / "1" / "sample_4.png")


def colour(release):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(release[0] / "imgs" / "1" / "sample_4.png")


def no_picture(release):
    (release[0] / "imgs" / "1" / "sample_4.png").write_bytes(b"nothing")


def cut_short(release):
    path = release[0] / "imgs" / "1" / "sample_4.png"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (missing_picture, MissingData, r"1/sample_4\.png is missing; .*1\.npy lists it"),
        (more_pictures, UsageError, r"1 has sample_10\.png, which .*1\.npy does not list"),
        (twice_listed, MissingData, r"1/sample_5\.png is missing"),
        (fewer_files, UsageError, r"imgs/1 has sample_0\.png, which .*metadata/1\.npy does not list"),
        (no_metadata, MissingData, r"metadata/K\.npy, K a number, is missing"),
        (other_size, UsageError, r"sample_4\.png is L 64 × 64, expected L 32 × 32"),
        (colour, UsageError, r"sample_4\.png is RGB 32 × 32, expected L 32 × 32"),
        (no_picture, UsageError, r"sample_4\.png cannot be read"),
        (cut_short, UsageError, r"sample_4\.png cannot be read"),
    ],
)
def test_release_that_is_wrong(release, tmp_path, change, error, message):
    change(release)
    with pytest.raises(error, match=message):
        prepare_release(release, tmp_path)
    assert not list((tmp_path / "data").glob("lra_pathfinder/release*"))


def test_release_that_is_not_there(tmp_path):
    for manual_dir in (None, tmp_path):
        with pytest.raises(MissingData, match=r"folder that has pathfinder128/curv_baseline: --manual-dir"):
            prepare(PATHX, tmp_path / "data", variant="release-128-6", manual_dir=manual_dir)


def test_read_pictures_leaves_out_what_is_empty(release):
    folder, _ = release
    paths = [(folder / "imgs" / "10" / f"sample_{i}.png", i % 2) for i in (6, 7, 8)]
    assert [label for _, label in read_pictures(32, paths)] == [0, 0]


# Preparation


@pytest.mark.parametrize(("task", "size"), [(PATHFINDER, 32), (PATHX, 128)])
def test_prepared_pictures_are_the_drawn_ones(tmp_path, task, size):
    prepare(task, tmp_path, variant=f"smoke-{size}")
    start = 0
    for split, number in {"train": 256, "validation": 64, "test": 64}.items():
        source = load(task, split, tmp_path, variant=f"smoke-{size}")
        made = images(size, 14, 0, start, start + number)
        np.testing.assert_array_equal([example["tokens"] for example in source], made["tokens"])
        assert [example["label"] for example in source] == made["label"].tolist()
        assert sum(example["label"] for example in source) == number // 2
        assert all(validate(example["tokens"], example["label"]) is None for example in source)
        start += number
    assert source.manifest["metadata"] == {"origin": "lra_tasks.tasks.pathfinder.drawing.images", "seed": 0}
    batch = next(evaluation_batches(source, length=task.length, batch_size=8))
    assert batch["mask"].all()


def test_threads_keep_the_order_and_stay_near_the_reader():
    begun = []

    def double(number):
        begun.append(number)
        if number == 500:
            raise ValueError("500")
        return 2 * number

    results = in_threads(double, range(1000))
    assert list(itertools.islice(results, 100)) == list(range(0, 200, 2))
    assert len(begun) < 100 + 10 * os.cpu_count()
    with pytest.raises(ValueError, match="500"):
        list(results)
    assert len(begun) < 600 + 10 * os.cpu_count()
    assert list(in_threads(double, [])) == []


def test_tasks():
    for task, size in ((PATHFINDER, 32), (PATHX, 128)):
        builder = task.builder_class()
        config = builder.config_named(task.variant)
        assert (config.size, config.contour_length, config.num_examples) == (size, 14, task.num_examples)
        assert all(builder.config_named(name) is not None for name in task.equivalent_variants)
        assert task.length == size * size
    names = {config.name for config in builder.BUILDER_CONFIGS}
    assert len(names) == 26
    assert {"64-6", "256-9", "release-256-14", "smoke-32", "smoke-128"} < names
    for config in builder.BUILDER_CONFIGS:
        assert all(number % 2 == 0 for number in (config.num_examples or {}).values())


def test_the_record_imports_nothing_heavy():
    code = (
        "import sys, lra_tasks.tasks.pathfinder.task; "
        "heavy = {'numpy', 'numba', 'PIL', 'jax', 'tensorflow_datasets'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
