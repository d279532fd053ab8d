"""The pictures of Pathfinder: dashed snakes on black, and a disc on two of their ends.

A snake is a chain of paddles, short straight strokes with gaps between them. Two long snakes, the targets,
and some short ones, the distractors, share the picture without touching. One disc marks an end of a target;
the second disc marks the other end of the same target (label 1) or an end of the other target (label 0). The
task is that of Linsley et al. (2018, arXiv 1805.08315), with the sizes, lengths and brightnesses that the
Long Range Arena (Tay et al. 2021, arXiv 2011.04006) gave it. The generator is our own.

Picture number i of (size, contour length, seed) is a pure function of these and the same on every machine:
random numbers, geometry and drawing are 64-bit integer arithmetic, including the two lookup tables. Numba
compiles it in some seconds per process. The machine code is not cached on disk, because the package's folder
may be read-only.

Geometry. Lengths are in pixels times `UNIT`, directions in `TURN` parts of a circle; x grows to the right, y
downwards, and the pixel in row r and column c is the square from (c, r) to (c + 1, r + 1). From the end of a
paddle a snake goes straight on for a margin, less up to a pixel, turns by an angle a of density
cos²(continuity · a), |a| < 90° / continuity, and goes another margin to the start of the next paddle. The gap
between neighboring paddles is thus 2 · margin at most. All other pairs of paddles keep their center lines
2 · margin + clearance apart, so the paddle nearest to the end of a paddle is always the next one of its own
snake.

The targets grow in turn. A snake without a place for its next paddle takes back a few paddles; so does one
of two complete snakes if the discs' places are wrong. After many setbacks the picture starts again.

Differences from the original generator:
- Snakes never touch or cross, and a disc touches a paddle only at its own end. In the original, some do.
- The two possible places of the second disc are equally far from the first disc, up to a pixel, and the label
  is drawn independently. So the distance between the discs is uninformative, and the picture of the other
  label is the same picture with one disc moved.
- Pictures 2j and 2j + 1 have different labels: every even number of pictures is balanced.
- Strokes have subpixel positions, and are filtered once and exactly.
"""

# Numba infers the types of compiled functions.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from lra_tasks.errors import UsageError
from lra_tasks.tasks.pathfinder.sizes import CONTOUR_LENGTHS, RADII, SIZES

UNIT = 256
TURN = 4096
COSINE_BITS = 14
STEPS = 64  # entries of the kernel's integral for each pixel
INTEGRAL_BITS = 15

TRIES = 16  # turns drawn before a snake is said to find no place
SETBACKS = 100  # of a pair of targets before it is given up
SETBACK = 4  # paddles taken back at most
PLACES = 20  # starts drawn for a distractor before the picture does without it


class _Spec(NamedTuple):
    """Parameters of a kind of picture, as the compiled functions take them.

    Attributes:
      size: Side of the picture in pixels.
      contour_length: Paddles of a target.
      distractors: Their number, room permitting.
      distractor_length: Paddles of a distractor.
      least_margin, most_margin: The two values of half the gap between neighboring paddles.
      length, thickness: Of a paddle.
      clearance: Additional distance of paddles that are not neighbors.
      end_clearance: The same if one of the two is at an end of a target.
      border: Least distance of a center line from the picture's edge.
      seed_distance: Between the ends that the two targets start with.
      widest_turn: Bound of the angle between neighboring paddles.
      radius: Of a disc.
      level: Brightness of a pixel that a paddle covers; a disc has 255.
      window: Reach of the Lanczos kernel that smooths all edges.
    """

    size: int
    contour_length: int
    distractors: int
    distractor_length: int
    least_margin: int
    most_margin: int
    length: int
    thickness: int
    clearance: int
    end_clearance: int
    border: int
    seed_distance: int
    widest_turn: int
    radius: int
    level: int
    window: int


# The arena's parameters, and five others:
# - clearance: leaves a pixel between a disc and other snakes. At 256 pixels a disc hides the paddle at its
#   own end, and the next paddle is still the nearest object;
# - border: leaves half a pixel between a disc and the picture's edge; at 256 pixels it is the arena's frame;
# - window: the arena's, but at 32 pixels, where it leaves too little black unless snakes may overlap;
# - STROKE: the arena's strokes are half a pixel longer than the paddles they are for, as both end points
#   belong to them at twice the resolution;
# - SLACK: the arena's gaps vary by more than a pixel, as it rounds the ends of a step to whole pixels.
STROKE = UNIT // 2
SLACK = UNIT
_PIXELS = {  # in columns: pictures of 32, 64, 128 and 256 pixels
    "least_margin":  (1, 1, 2, 3),
    "most_margin":   (1, 1, 3, 3),
    "length":        (2, 5, 5, 5),
    "thickness":     (0.5, 1, 1.5, 2),
    "clearance":     (1, 2, 2, 2.5),
    "end_clearance": (1, 2, 2, 6),
    "border":        (2.25, 3, 4, 25),
    "seed_distance": (7, 12, 20, 27),
    "window":        (2.5, 3, 3, 3),
}  # fmt: skip
_CONTINUITY = (1, 1.8, 1.8, 1.8)
_LEVEL = (1.5, 0.8, 0.9, 1)
_DISTRACTOR_PADDLES = (20, 22, 35, 30)


def _spec(size: int, contour_length: int) -> _Spec:
    if size not in SIZES or contour_length not in CONTOUR_LENGTHS:
        raise UsageError(
            f"There are no Pathfinder pictures of {size} pixels and contour length {contour_length}. "
            f"Sizes are {', '.join(map(str, SIZES))}, lengths {', '.join(map(str, CONTOUR_LENGTHS))}."
        )
    column = SIZES.index(size)
    distractor_length = contour_length // 3
    return _Spec(
        size=size,
        contour_length=contour_length,
        distractors=_DISTRACTOR_PADDLES[column] // distractor_length,
        distractor_length=distractor_length,
        widest_turn=round(TURN / 4 / _CONTINUITY[column]),
        radius=round(RADII[size] * UNIT),
        level=round(255 * _LEVEL[column]),
        **{name: round(row[column] * UNIT) for name, row in _PIXELS.items()},
    )


def _cosines() -> np.ndarray:
    """cos(2π i / TURN) · 2**COSINE_BITS to the nearest integer, i = 0 .. TURN - 1."""
    return np.array([round(math.cos(2 * math.pi * i / TURN) * 2**COSINE_BITS) for i in range(TURN)], np.int64)


@functools.cache
def _lanczos_integral(window: int) -> np.ndarray:
    """∫ sinc(x) sinc(x / window) dx from -window to i / STEPS - window, of the whole, · 2**INTEGRAL_BITS."""
    fine = 16  # midpoints summed for each entry
    total, sums = 0.0, [0.0]
    for i in range(2 * window * STEPS // UNIT):
        for j in range(fine):
            x = math.pi * ((i + (j + 0.5) / fine) / STEPS - window / UNIT)
            total += math.sin(x) * math.sin(x * UNIT / window) / (x * x)
        sums.append(total)
    return np.array([round(part / total * 2**INTEGRAL_BITS) for part in sums], np.int64)


_COSINES = _cosines()
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@numba.njit
def _mixed(z):
    """The output function of splitmix64 (Steele et al. 2014): every bit of z reaches every bit of it."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit
def _below(state, bound):
    """Draws an integer 0 .. bound - 1, bound ≤ 2**31, and moves the state on."""
    state[0] += _GOLDEN
    return (np.int64(_mixed(state[0]) >> np.uint64(32)) * bound) >> 32


@numba.njit
def _drawn_turn(state, widest):
    """Draws an angle of density cos²(90° · angle / widest), |angle| < widest, by rejection."""
    while True:
        angle = _below(state, TURN // 2 - 1) - (TURN // 4 - 1)
        cosine = _COSINES[angle % TURN]
        if _below(state, 1 << (2 * COSINE_BITS)) < cosine * cosine:
            return angle * widest // (TURN // 4)


@numba.njit
def _ahead(x, y, direction, distance):
    """The point at `distance` from (x, y)."""
    half = 1 << (COSINE_BITS - 1)
    cosine, sine = _COSINES[direction], _COSINES[(direction - TURN // 4) % TURN]
    return x + ((distance * cosine + half) >> COSINE_BITS), y + ((distance * sine + half) >> COSINE_BITS)


@numba.njit
def _is_near(x, y, paddle, reach):
    """Whether (x, y) is nearer than `reach` to the center line of a paddle."""
    dx, dy = paddle[2] - paddle[0], paddle[3] - paddle[1]
    px, py = x - paddle[0], y - paddle[1]
    along, square = px * dx + py * dy, dx * dx + dy * dy
    if along <= 0:
        return px * px + py * py < reach * reach
    if along >= square:
        qx, qy = x - paddle[2], y - paddle[3]
        return qx * qx + qy * qy < reach * reach
    across = px * dy - py * dx
    return across * across < reach * reach * square


@numba.njit
def _place(spec, margin, paddles, row, x, y, direction, snake, previous):
    """Puts a paddle that starts at (x, y) into `row`, if it fits; `previous` is its neighbor's row or -1."""
    new = paddles[row]
    new[0], new[1] = x, y
    new[2], new[3] = _ahead(x, y, direction, spec.length)
    new[4] = direction
    for i in range(4):
        if not spec.border <= new[i] <= spec.size * UNIT - spec.border:
            return False
    is_end = row < 2 or 0 <= row - 2 * (spec.contour_length - 1) < 2
    far = 2 * margin + spec.end_clearance + 2 * spec.length
    for i in range(len(paddles)):
        other = paddles[i]
        if other[5] < 0 or i == previous or abs(other[0] - x) > far or abs(other[1] - y) > far:
            continue
        ends = is_end or i < 2 or 0 <= i - 2 * (spec.contour_length - 1) < 2
        reach = 2 * margin + (spec.end_clearance if ends else spec.clearance)
        # If two center lines cross, an end of one is within half a length, less than the reach, of the other.
        for end in range(0, 4, 2):
            near = _is_near(new[end], new[end + 1], other, reach)
            if near or _is_near(other[end], other[end + 1], new, reach):
                return False
    new[5] = snake
    return True


@numba.njit
def _extend(state, spec, margin, paddles, row, previous):
    """Draws turns until the paddle that follows `previous` fits into `row`, or gives up."""
    last = paddles[previous]
    x, y = _ahead(last[2], last[3], last[4], margin - _below(state, SLACK + 1))
    for _ in range(TRIES):
        direction = (last[4] + _drawn_turn(state, spec.widest_turn)) % TURN
        start_x, start_y = _ahead(x, y, direction, margin)
        if _place(spec, margin, paddles, row, start_x, start_y, direction, last[5], previous):
            return True
    return False


@numba.njit
def _root(square):
    """The integer square root of a number below 2**36."""
    root, bit = 0, 1 << 17
    while bit:
        if (root + bit) * (root + bit) <= square:
            root += bit
        bit >>= 1
    return root


@numba.njit
def _distance(a, b):
    return _root((a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1]))


@numba.njit
def _find_discs(state, spec, paddles, discs):
    """Chooses, for complete targets, the disc's place on one end, its partner for label 1 and for label 0."""
    choice = _below(state, 4)
    for i in range(4):
        snake, end = (choice + i) % 2, (choice + i) // 2 % 2
        for place in range(3):
            target = 1 - snake if place == 2 else snake
            last = end if place == 0 else 1 - end  # the snake's last end, or its first
            row = target + last * (2 * spec.contour_length - 2)
            discs[place, 0], discs[place, 1] = paddles[row, 2 * last], paddles[row, 2 * last + 1]
        same, other = _distance(discs[0], discs[1]), _distance(discs[0], discs[2])
        if abs(same - other) <= UNIT and min(same, other) >= 2 * spec.radius + UNIT:
            return True
    return False


@numba.njit
def _targets(state, spec, margin, paddles, discs):
    """Grows the targets, paddle i of target k in row 2i + k, and chooses the discs' places; or gives up."""
    for i in range(len(paddles)):
        paddles[i, 5] = -1
    middle = spec.size * UNIT - 4 * spec.seed_distance
    x = 2 * spec.seed_distance + _below(state, middle + 1)
    y = 2 * spec.seed_distance + _below(state, middle + 1)
    for target in range(2):
        if not _place(spec, margin, paddles, target, x, y, _below(state, TURN), target, -1):
            return False
        x, y = _ahead(x, y, _below(state, TURN), spec.seed_distance)
    num = np.ones(2, np.int64)
    setbacks = 0
    while setbacks < SETBACKS:
        target = _below(state, 2) if num[0] == num[1] else 0 if num[0] < num[1] else 1
        row = 2 * num[target] + target
        if num[target] == spec.contour_length:
            if _find_discs(state, spec, paddles, discs):
                return True
        elif _extend(state, spec, margin, paddles, row, row - 2):
            num[target] += 1
            continue
        setbacks += 1
        num[target] = max(1, num[target] - 1 - _below(state, SETBACK))
        for i in range(2 * num[target] + target, row, 2):
            paddles[i, 5] = -1
    return False


@numba.njit
def _distractor(state, spec, margin, paddles, row, snake):
    """Draws one distractor into the rows from `row` on, or gives up."""
    x, y = _below(state, spec.size * UNIT), _below(state, spec.size * UNIT)
    if not _place(spec, margin, paddles, row, x, y, _below(state, TURN), snake, -1):
        return False
    for i in range(row + 1, row + spec.distractor_length):
        if not _extend(state, spec, margin, paddles, i, i - 1):
            for j in range(row, i):
                paddles[j, 5] = -1
            return False
    return True


@numba.njit
def _scene(state, spec, paddles, discs):
    """Fills rows of (start x, start y, end x, end y, direction, snake or -1), and three places of discs."""
    margin = spec.most_margin if _below(state, 2) else spec.least_margin
    while not _targets(state, spec, margin, paddles, discs):
        pass
    for i in range(spec.distractors):
        row = 2 * spec.contour_length + i * spec.distractor_length
        for _ in range(PLACES):
            if _distractor(state, spec, margin, paddles, row, 2 + i):
                break


@numba.njit
def _covered(integral, window, v, half):
    """The part of the kernel around v that falls on -half .. half, at least 0."""
    low = min(max((v - half + window) * STEPS // UNIT, 0), len(integral) - 1)
    high = min(max((v + half + window) * STEPS // UNIT, 0), len(integral) - 1)
    return max(integral[high] - integral[low], 0)


@numba.njit
def _paint(picture, spec, integral, x, y, direction, half_length, half_thickness, level):
    """Paints a stroke, or a disc if its length is 0, with its middle at (x, y), where it is the brightest."""
    cosine, sine = _COSINES[direction], _COSINES[(direction - TURN // 4) % TURN]
    reach = half_length + half_thickness + spec.window
    for row in range(max((y - reach) // UNIT, 0), min((y + reach) // UNIT + 1, spec.size)):
        for column in range(max((x - reach) // UNIT, 0), min((x + reach) // UNIT + 1, spec.size)):
            dx, dy = column * UNIT + UNIT // 2 - x, row * UNIT + UNIT // 2 - y
            if half_length:
                along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
                ink = _covered(integral, spec.window, along >> COSINE_BITS, half_length)
                ink *= _covered(integral, spec.window, across >> COSINE_BITS, half_thickness)
            else:
                ink = _covered(integral, spec.window, _root(dx * dx + dy * dy), half_thickness)
                ink <<= INTEGRAL_BITS
            whole = 1 << (2 * INTEGRAL_BITS)
            ink = min((min(ink, whole) * level + whole // 2) >> (2 * INTEGRAL_BITS), 255)
            pixel = row * spec.size + column
            picture[pixel] = max(picture[pixel], ink)


@numba.njit(nogil=True)  # several threads draw at once
def _draw(keys, start, spec, integral, paddles, discs, tokens, labels):
    """Draws pictures start, start + 1, .. into the rows of `tokens`; the last one's scene stays behind."""
    state = np.empty(1, np.uint64)
    for i in range(len(tokens)):
        index = start + i
        state[0] = _mixed(keys[0] + np.uint64(index) * _GOLDEN)
        _scene(state, spec, paddles, discs)
        state[0] = _mixed(keys[1] + np.uint64(index // 2) * _GOLDEN)
        labels[i] = index % 2 ^ _below(state, 2)
        length, thickness = (spec.length + STROKE) // 2, spec.thickness // 2
        for paddle in paddles:
            if paddle[5] >= 0:
                x, y = (paddle[0] + paddle[2]) // 2, (paddle[1] + paddle[3]) // 2
                _paint(tokens[i], spec, integral, x, y, paddle[4], length, thickness, spec.level)
        for place in (0, 2 - labels[i]):
            _paint(tokens[i], spec, integral, discs[place, 0], discs[place, 1], 0, 0, spec.radius, 255)


def _pictures(size: int, contour_length: int, seed: int, start: int, stop: int) -> tuple[np.ndarray, ...]:
    """Tokens and labels of the pictures, and rows of paddles and three places of discs of the last one."""
    spec = _spec(size, contour_length)
    if not 0 <= start <= stop:
        raise UsageError(f"Pictures are numbered from 0; asked for were {start} to {stop - 1}.")
    digest = hashlib.sha256(f"pathfinder:{size}:{contour_length}:{seed}".encode()).digest()
    keys = np.frombuffer(digest, "<u8").astype(np.uint64)
    paddles = np.zeros((2 * contour_length + spec.distractors * spec.distractor_length, 6), np.int64)
    discs = np.zeros((3, 2), np.int64)
    tokens = np.zeros((stop - start, size * size), np.uint8)
    labels = np.zeros(stop - start, np.int64)
    _draw(keys, start, spec, _lanczos_integral(spec.window), paddles, discs, tokens, labels)
    return tokens, labels, paddles, discs


def images(size: int, contour_length: int, seed: int, start: int, stop: int) -> dict[str, np.ndarray]:
    """Draws pictures start .. stop - 1 of (size, contour length, seed).

    Args:
      size: Side of the pictures in pixels, 32, 64, 128 or 256.
      contour_length: Paddles of each of the two long snakes, 6, 9 or 14.
      seed: Any int.
      start, stop: Ints ≥ 0; neighboring pictures are independent except for their labels.

    Returns:
      "tokens", uint8 (stop - start, size · size), gray pixels row by row, 0 is black; and "label", int64
      (stop - start,), 1 if both discs are on one snake. One of the pictures 2j and 2j + 1 has the label 1.
      The first call in a process takes some seconds longer.

    Raises:
      UsageError: If the size, contour length or number is impossible.

    >>> pictures = images(size=32, contour_length=14, seed=0, start=0, stop=2)
    >>> pictures["tokens"].shape, int(pictures["label"].sum())
    ((2, 1024), 1)
    """
    tokens, labels, _, _ = _pictures(size, contour_length, seed, start, stop)
    return {"tokens": tokens, "label": labels}


@dataclass(frozen=True)
class Scene:
    """The geometry of a picture in pixels; x grows to the right, y downwards.

    Attributes:
      paddles: Center lines, float64 (number of paddles, 2, 2): start and end, x and y; in order along each
        snake.
      snakes: Snake of each paddle, int64 (number of paddles,): 0 and 1 are the long ones.
      discs: Centers of the two discs, float64 (2, 2).
      elsewhere: Center of the second disc in the picture of the other label, float64 (2,).
      label: 1 if both discs are on one snake, or 0.
    """

    paddles: np.ndarray
    snakes: np.ndarray
    discs: np.ndarray
    elsewhere: np.ndarray
    label: int


def scene(size: int, contour_length: int, seed: int, index: int) -> Scene:
    """Returns the geometry of picture number `index`, for tests and for showing the answer.

    Args:
      size, contour_length, seed: As of `images`.
      index: Number of the picture.

    >>> scene(size=32, contour_length=14, seed=0, index=0).discs.shape
    (2, 2)
    """
    _, labels, paddles, discs = _pictures(size, contour_length, seed, index, index + 1)
    paddles = paddles[paddles[:, 5] >= 0]
    paddles = paddles[np.argsort(paddles[:, 5], kind="stable")]
    label = int(labels[0])
    return Scene(
        paddles=paddles[:, :4].reshape(-1, 2, 2) / UNIT,
        snakes=paddles[:, 5],
        discs=discs[[0, 2 - label]] / UNIT,
        elsewhere=discs[1 + label] / UNIT,
        label=label,
    )
