"""`lra bench attention` and `lra bench train`: what they count, say and draw; never how fast a machine is."""

import dataclasses
import functools
import itertools
import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import arena, oracle
from matplotlib.figure import Figure

from experiments import attention_cost
from experiments.attention_cost import TARGETS, verdicts
from lra_tasks.bench import attention as bench
from lra_tasks.bench import baselines, peak, plot, roofline
from lra_tasks.bench import measure as costing
from lra_tasks.bench import train as steps
from lra_tasks.bench.attention import AttentionSettings, bench_attention
from lra_tasks.bench.plot import Line, plot_attention, plot_train
from lra_tasks.bench.train import TrainSettings, bench_train
from lra_tasks.cli.bench import num_bytes, print_attention, print_train
from lra_tasks.cli.console import print_table
from lra_tasks.errors import UsageError
from lra_tasks.reporting.style import spread

PNG = b"\x89PNG"
TINY = AttentionSettings(lengths=(16, 32), width=16, num_heads=2, batch_size=2, repeats=3, seconds=60.0)
MIXERS = ("hrr", "none")
NAMES = ("hrr-fft", "hrr-matmul", "authors", "softmax", "projections")


@pytest.fixture(scope="module", autouse=True)
def small():
    """Measures the machine no longer than it must."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "COPIED", 64)
        patch.setattr(roofline, "SIDE", 8)
        patch.setattr(bench, "SHORTEST", 16)
        yield


@pytest.fixture(scope="module")
def result(small):
    return bench_attention(TINY)


@pytest.fixture(scope="module")
def longest(small):
    settings = dataclasses.replace(TINY, levels=("core",), contestants=("authors", "softmax"), repeats=1)
    return bench_attention(settings, memory=100_000)["longest"]


@pytest.fixture(scope="module")
def trained():
    return bench_train(
        TrainSettings(mixers=MIXERS, lengths=(16, 32), batch_size=4, preset="smoke", repeats=3)
    )


def rows(result, **wanted):
    return [row for row in result["rows"] if all(row[name] == value for name, value in wanted.items())]


# The contestants


@pytest.mark.parametrize("shape", [(1, 5, 2, 8), (2, 7, 3, 5)])
def test_the_authors_formulation_is_the_layer(shape):
    query, key, value = np.random.default_rng(0).standard_normal((3, *shape))
    expected, _ = oracle.hrr_attention(query, key, value)
    found = baselines.authors(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_the_authors_gradient_is_the_layer_s():
    query, key, value, cotangent = np.random.default_rng(1).standard_normal((4, 1, 5, 2, 8))
    expected = oracle.gradients(query, key, value, cotangent, np.zeros((1, 2, 5)))
    both = baselines.program("core", "both", baselines.authors, 2)
    _, found = both(*(jnp.asarray(x, jnp.float32) for x in (query, key, value, cotangent)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_every_implementation_stands_for_itself():
    assert {"hrr", "hrr-pallas", "softmax-cudnn", *NAMES} == set(baselines.known())
    query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 8))
    for name in ("hrr", "hrr-fft", "hrr-matmul", "hrr-pallas"):
        found = baselines.contestant(name)(query, key, value)
        np.testing.assert_allclose(found, baselines.authors(query, key, value), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "more"), [("cpu", set()), ("gpu", {"hrr-pallas", "softmax-cudnn"}), ("tpu", {"hrr-pallas"})]
)
def test_what_a_platform_runs(monkeypatch, platform, more):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert set(baselines.default_names()) == {*NAMES, *more}


def test_temporary_memory():
    """In T·D floats: the projections 2.0 and 6.0, the authors 14.1, ours."""
    found = {}
    for name in ("projections", "authors", "hrr-matmul", "hrr-fft"):
        for direction in baselines.PASSES:
            compiled = bench._compile("layer", direction, name, 4096, AttentionSettings())
            found[name, direction] = costing.counts(compiled).temp_bytes / (4 * 4096 * 512)
    assert found["projections", "forward"] == pytest.approx(2.0, abs=0.05)
    assert found["projections", "both"] == pytest.approx(6.0, abs=0.05)
    assert found["authors", "both"] == pytest.approx(14.1, abs=0.1)
    for name in ("hrr-matmul", "hrr-fft"):
        assert found[name, "forward"] < 2.5
        assert found[name, "both"] < 6.5


def test_the_projections_do_the_work_of_four():
    """24 T·D² FLOPs forward and backward: XLA must not find that two of them have the same gradient."""
    compiled = bench._compile("layer", "both", "projections", 4096, AttentionSettings())
    assert costing.counts(compiled).flops == pytest.approx(24 * 4096 * 512**2, rel=0.01)


def test_the_floor_is_its_formula():
    size = 1000 * 64
    assert roofline.floor_counts("core", "forward", 1000, 64, 16) == (3 * 2.5 * 4 * size, 5 * size)
    flops, numbers = roofline.floor_counts("layer", "both", 1000, 64, 16)
    assert flops == 6 * 2.5 * 4 * size + 24 * size * 64
    assert numbers == 26 * size + 12 * 64**2
    assert roofline.floor_counts("core", "both", 1000, 64, 16) == (6 * 2.5 * 4 * size, (2 + 3 + 7) * size)
    rates = {"flops_per_second": 10.0, "bytes_per_second": 100.0}
    assert roofline.floor_seconds(50.0, 25.0, 4, rates) == 5.0
    assert roofline.floor_seconds(5.0, 100.0, 4, rates) == 4.0


# Costs


def test_exponents_of_power_laws():
    assert costing.exponent({t: 3e-9 * t**2 for t in (256, 512, 1024)}) == pytest.approx(2.0)
    # At the shorter lengths fixed costs hide the law.
    points = {t: 1.0 if t < 1024 else t / 1024 for t in (128, 256, 512, 1024, 2048, 4096, 8192)}
    assert costing.exponent(points) == pytest.approx(1.0)
    assert costing.exponent({1024: 1.0}) is None
    assert costing.exponent({}) is None


def test_times_to_expect():
    assert costing.expected_seconds({}, 64) is None
    assert costing.expected_seconds({16: 1.0}, 64) == pytest.approx(4.0)
    assert costing.expected_seconds({16: 1.0, 32: 4.0}, 64) == pytest.approx(16.0)
    assert costing.expected_seconds({16: 1.0, 32: 1.0}, 64) == pytest.approx(2.0)  # as T at least


def test_a_loop_is_counted_once():
    shape = jax.ShapeDtypeStruct((9, 8, 8), jnp.float32)
    looped = jax.jit(lambda x: jax.lax.map(lambda matrix: matrix @ matrix, x)).lower(shape).compile()
    counts = costing.counts(looped)
    assert "loop" in counts.uncounted
    assert (counts.flops, counts.bytes_accessed) == (None, None)
    plain = jax.jit(lambda x: x + 1.0).lower(shape).compile()
    counts = costing.counts(plain)
    assert (counts.uncounted, counts.total_bytes) == ("", 2 * 9 * 8 * 8 * 4 + counts.temp_bytes)
    assert counts.flops == 9 * 8 * 8


def test_what_is_not_counted_is_said_once(result, capsys):
    loop = "a loop's body is counted once"
    some = [
        row | {"flops": None, "bytes_accessed": None, "uncounted": loop}
        if "hrr" in row["contestant"]
        else row
        for row in result["rows"]
    ]
    print_attention(result | {"rows": some})
    out = capsys.readouterr().out
    assert " ".join(out.split()).count(loop) == 1
    line = re.search(r"^hrr-fft .* %$", out, re.MULTILINE)
    assert line is not None
    assert line[0].split()[-3:-1] == ["-", "-"] or line[0].split()[-4:-2] == ["-", "-"]


def test_rounds_are_shuffled_and_end(monkeypatch):
    now, order = [0.0], []

    def call(name, took):
        order.append(name)
        now[0] += took

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    calls = {name: functools.partial(call, name, took) for name, took in (("a", 1.0), ("b", 2.0), ("c", 9.0))}
    times, lost = costing.measure(calls, repeats=50, seconds=8.0, seed=0)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}  # three rounds in any case
    assert lost["c"].kind == "slow"
    assert order[:3] == ["a", "b", "c"]
    again = list(order)
    order.clear()
    costing.measure(calls, repeats=50, seconds=8.0, seed=0)
    assert order == again
    order.clear()
    times, _ = costing.measure(calls, repeats=50, seconds=30.0, seed=0)
    assert [len(taken) for taken in times.values()] == [3] * 3
    assert len({tuple(order[start : start + 3]) for start in range(3, 12, 3)}) > 1


def test_out_of_memory_is_no_crash():
    def exhausted():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    times, lost = costing.measure({"a": lambda: 0, "b": exhausted}, repeats=1, seconds=9.0, seed=0)
    assert len(times["a"]) == 1
    assert lost == {"b": costing.Missing("memory", "ran out of memory")}

    def broken():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        costing.measure({"a": broken}, repeats=1, seconds=9.0, seed=0)


def exhaust(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


ONE = AttentionSettings(levels=("core",), contestants=("authors",), lengths=(8,), width=8, num_heads=1)
ONE_STEP = TrainSettings(mixers=("none",), lengths=(16,), batch_size=4, preset="smoke")


def test_inputs_that_do_not_fit_are_rows(monkeypatch):
    monkeypatch.setattr(bench, "draw", exhaust)
    for row in bench_attention(ONE)["rows"]:
        assert (row["missing"], row["note"]) == ("memory", "ran out of memory while inputs were drawn")
        assert row["temp_bytes"] is not None


@pytest.mark.parametrize("place", ["draw", "timed"])
def test_a_call_apart_that_does_not_fit_is_a_row(monkeypatch, place):
    monkeypatch.setattr(*((bench, "draw") if place == "draw" else (costing, "timed")), exhaust)
    row = bench.one_call("hrr", dataclasses.asdict(ONE))
    assert (row["missing"], row["note"][:17]) == ("memory", "ran out of memory")
    assert row["total_bytes"] > 0


@pytest.mark.parametrize("place", ["compile", "init"])
def test_training_that_does_not_fit_is_a_row(monkeypatch, place):
    whole, calls = steps.Program.init, itertools.count()

    def init(self):
        return exhaust() if next(calls) % 2 else whole(self)  # the first call only learns the shapes

    monkeypatch.setattr(steps.Program, place, init if place == "init" else exhaust)
    result = bench_train(ONE_STEP)
    (row,) = result["rows"]
    assert (row["missing"], row["seconds"]) == ("memory", None)
    assert (row["total_bytes"] is None) == (place == "compile")
    apart = steps.one_step(dataclasses.asdict(ONE_STEP))
    assert (apart["missing"], "seconds" in apart) == ("memory", False)
    print_train(result)


def test_a_step_apart_that_does_not_fit_is_a_row(monkeypatch):
    monkeypatch.setattr(costing, "timed", exhaust)
    row = steps.one_step(dataclasses.asdict(ONE_STEP))
    assert (row["missing"], row["note"]) == ("memory", "ran out of memory")


def test_what_was_too_slow_is_not_run_again(monkeypatch):
    made = []

    def timed(call):
        made.append(call)
        return 40.0

    monkeypatch.setattr(costing, "timed", timed)
    monkeypatch.setattr(bench, "machine_rates", lambda _: {"bytes_per_second": 1.0, "flops_per_second": 1.0})
    found = bench_attention(dataclasses.replace(ONE, lengths=(8, 16, 32)))["rows"]
    assert [row["missing"] for row in found] == ["slow"] * 6
    assert [row["slow_seconds"] for row in found] == [40.0] * 2 + [None] * 4
    assert len(made) == 2
    made.clear()
    found = bench_train(dataclasses.replace(ONE_STEP, lengths=(16, 32)))["rows"]
    assert ([row["missing"] for row in found], len(made)) == (["slow"] * 2, 1)


# `lra bench attention`


def test_there_is_a_row_for_everything(result):
    assert json.loads(json.dumps(result)) == json.loads(json.dumps(result, allow_nan=False))
    keys = [(r["level"], r["direction"], r["length"], r["contestant"]) for r in result["rows"]]
    assert len(set(keys)) == len(keys) == 2 * 2 * (len(NAMES) + len(NAMES) - 1)
    assert not [key for key in keys if key[0] == "core" and key[3] == "projections"]
    for row in rows(result, missing=""):
        assert row["seconds"] > 0
        assert row["quartiles"][0] <= row["seconds"] <= row["quartiles"][1]
        assert (row["rounds"], row["note"]) == (3, "")
        assert row["temp_bytes"] == row["temp_floats"] * 4 * 2 * row["length"] * 16
        assert row["floor_share"] == pytest.approx(100 * row["floor_seconds"] / row["seconds"])
    for level, reference in baselines.REFERENCE.items():
        assert all(row["ratio"] == 1.0 for row in rows(result, level=level, contestant=reference))
    assert {"devices", "versions"} <= result["environment"].keys()
    assert result["exponents"]["layer"]["both"].keys() == set(NAMES)


def test_the_longest_length_that_fits(longest):
    authors, softmax = longest
    assert (authors["contestant"], softmax["contestant"], authors["level"]) == ("authors", "softmax", "core")
    assert softmax["length"] < authors["length"]
    for row in longest:
        step = (1 << (row["length"].bit_length() - 1)) // 8
        compiled = bench._compile("core", "both", row["contestant"], row["length"] + step, TINY)
        assert row["total_bytes"] <= 100_000 < costing.counts(compiled).total_bytes
    none = bench.longest_length("core", "authors", 9, TINY, bench.Silent())
    assert (none["length"], none["total_bytes"]) == (None, None)


def test_what_ended_the_search(monkeypatch):
    none = bench.longest_length("core", "authors", 9, TINY, bench.Silent())
    assert none["note"] == "not even T = 16 fits, and shorter was not tried"
    monkeypatch.setattr(bench, "LONGEST", 64)
    all_fit = bench.longest_length("core", "authors", 1 << 40, TINY, bench.Silent())
    assert (all_fit["length"], all_fit["note"]) == (64, "longer than T = 64 was not tried")


def test_the_machine_is_measured_twice(monkeypatch):
    rates = [{"bytes_per_second": 1.0, "flops_per_second": 4.0}]
    rates.append({"bytes_per_second": 2.0, "flops_per_second": 3.0})
    monkeypatch.setattr(bench, "machine_rates", lambda _: rates.pop())
    found = bench_attention(dataclasses.replace(ONE, lengths=(8, 16), repeats=1))["rates"]
    assert (found, rates) == ({"bytes_per_second": 2.0, "flops_per_second": 4.0}, [])


def test_a_million_tokens_have_the_device_first(monkeypatch):
    order = []
    environment = bench.environment

    def apart(name, settings, *, progress):
        order.append(f"{name} apart")
        return {}

    def here(name, call):
        return lambda *_: [order.append(name), call()][1]

    monkeypatch.setattr(bench, "measure_apart", apart)
    monkeypatch.setattr(bench, "environment", here("environment", environment))
    monkeypatch.setattr(jax, "default_backend", here("backend", lambda: "cpu"))
    found = bench_attention(million=True)["settings"]
    assert order[0] == "hrr apart"
    used = [found[name] for name in ("levels", "contestants", "lengths", "width", "num_heads", "batch_size")]
    assert used == [("layer",), ("hrr",), (1 << 20,), 64, 1, 1]
    with pytest.raises(UsageError, match="--memory searches lengths"):
        bench_attention(million=True, memory=9)


def test_what_does_not_fit_is_a_row(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "free_bytes", lambda: 100_000)
    result = bench_attention(
        AttentionSettings(
            levels=("layer",),
            contestants=("softmax", "projections"),
            lengths=(16, 64, 128),
            width=16,
            num_heads=2,
            repeats=1,
            seconds=60.0,
        )
    )
    (lost,) = rows(result, contestant="softmax", direction="both", length=128)
    assert (lost["missing"], lost["seconds"], lost["ratio"]) == ("memory", None, None)
    assert re.fullmatch(r"needs \S+ GB of memory, \S+ are free", lost["note"])
    assert lost["temp_bytes"] > 100_000
    assert all(row["seconds"] for row in rows(result, contestant="projections"))
    print_attention(result)
    assert re.search(r"softmax, forward \+ backward, T = \d+: needs", capsys.readouterr().out)
    plot_attention(result, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes().startswith(PNG)


def test_what_would_take_too_long_is_a_row(monkeypatch):
    monkeypatch.setattr(costing, "expected_seconds", lambda points, length: 99.0 if points else None)
    settings = AttentionSettings(levels=("core",), contestants=("authors",), lengths=(8, 16), repeats=1)
    first, *_, last = bench_attention(settings)["rows"]
    assert first["missing"] == ""
    assert (last["missing"], last["note"]) == (
        "slow",
        "would take about 99 s a call, more than --seconds 30",
    )


def test_softmax_has_rounds_of_its_own_after_all_others(monkeypatch):
    rounds = []
    measure = costing.measure

    def noted(calls, **options):
        rounds.append({name for _, name in calls})
        return measure(calls, **options)

    monkeypatch.setattr(costing, "measure", noted)
    settings = AttentionSettings(
        contestants=("softmax", "hrr", "authors", "projections"),
        lengths=(16, 8),
        width=8,
        num_heads=1,
        repeats=1,
    )
    rows = bench_attention(settings)["rows"]
    layer, core = {"hrr", "authors", "projections"}, {"hrr", "authors"}
    after = [{"softmax", "projections"}] * 2 + [{"softmax", "authors"}] * 2
    assert rounds == [layer, layer, core, core, *after]
    assert [(row["level"], row["length"], row["direction"], row["contestant"]) for row in rows] == [
        (level, length, direction, name)
        for level in ("layer", "core")
        for length in (8, 16)
        for direction in ("forward", "both")
        for name in settings.contestants
        if (level, name) != ("core", "projections")
    ]
    assert all(row["ratio"] is not None and row["rounds"] == 1 for row in rows)


def test_training_steps_of_softmax_come_after_the_others(monkeypatch):
    rounds = []
    measure = costing.measure

    def noted(calls, **options):
        rounds.append(set(calls))
        return measure(calls, **options)

    monkeypatch.setattr(costing, "measure", noted)
    settings = TrainSettings(
        mixers=("softmax", "hrr", "none"), lengths=(16,), batch_size=8, preset="smoke", repeats=1
    )
    rows = bench_train(settings)["rows"]
    assert rounds == [{"hrr", "none"}, {"softmax", "none"}]
    assert [row["mixer"] for row in rows] == ["softmax", "hrr", "none"]
    assert all(row["ratio"] is not None for row in rows)


def test_what_does_not_compile_is_a_row(monkeypatch):
    def refuse(query, key, value):
        raise NotImplementedError("no such machine here\nand more")

    monkeypatch.setitem(baselines.OTHERS, "softmax", refuse)
    settings = AttentionSettings(levels=("core",), contestants=("softmax",), lengths=(8,), repeats=1)
    for row in bench_attention(settings)["rows"]:
        assert (row["missing"], row["note"]) == ("refused", "does not compile here: no such machine here")
        assert row["temp_bytes"] is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_numbers(dtype):
    settings = AttentionSettings(
        contestants=("hrr", "authors"), lengths=(8,), width=8, num_heads=1, dtype=dtype, repeats=1
    )
    assert {row["missing"] for row in bench_attention(settings)["rows"]} == {""}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 0}, "--width must be at least 1; got 0"),
        ({"num_heads": 3}, "--heads must divide --width, 512; got 3"),
        ({"lengths": ()}, "--lengths must name at least one"),
        ({"levels": ()}, "--level must name at least one"),
        ({"contestants": ("projections",)}, "--contestants projections names none at --level core"),
        ({"lengths": (8, -1)}, "--lengths must be at least 1; got -1"),
        ({"seconds": 0.0}, "--seconds must be positive; got 0"),
        ({"dtype": "int8"}, "--dtype must be one of float32, .*; got 'int8'"),
        ({"levels": ("cor",)}, "--level must be one of layer, core; got 'cor'"),
        ({"contestants": ("autors",)}, "There is no contestant 'autors'. Did you mean 'authors'"),
    ],
)
def test_settings_that_are_refused(fields, words):
    with pytest.raises(UsageError, match=words):
        AttentionSettings(**fields)


@pytest.mark.parametrize(("text", "size"), [("24GiB", 24 * 2**30), ("1.5 GB", 1_500_000_000), ("9kB", 9000)])
def test_sizes(text, size):
    assert num_bytes(text) == size
    with pytest.raises(UsageError, match="--memory is '24'; expected a number with GiB"):
        num_bytes("24")


def test_tables_fit(result, longest, trained, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    wide = [
        dict(row, length=row["length"] << (3 * n), seconds=12345.6, ratio=1027.0, temp_floats=1027.0)
        for row in result["rows"]
        for n in range(6)
    ]
    print_attention(result | {"rows": wide, "longest": longest})
    print_train(trained)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    for words in ("layer, forward + backward: milliseconds", "Longest T", "Training steps per second"):
        assert words in out


@pytest.mark.parametrize("width", [60, 80])
def test_names_and_cells_of_tables_are_whole(result, trained, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    longest, cell = "softmax-cudnn", "refused"
    many = [
        dict(
            row,
            contestant=row["contestant"].replace("softmax", longest),
            length=1000 << n,
            seconds=None if row["contestant"] == "softmax" and n else 12345.6,
            missing=cell if row["contestant"] == "softmax" and n else "",
            quartiles=(12345.6, 12345.6),
        )
        for row in rows(result, length=16)
        for n in range(8)
    ]
    powers = {
        level: {
            direction: {name.replace("softmax", longest): value for name, value in by_name.items()}
            for direction, by_name in by_direction.items()
        }
        for level, by_direction in result["exponents"].items()
    }
    print_attention(result | {"rows": many, "exponents": powers})
    own = "package.module:MixerOfMyOwn"
    print_train(
        trained
        | {
            "rows": [dict(trained["rows"][0], mixer=own, length=1000 << n) for n in range(8)],
            "exponents": {own: {"seconds": None, "temp_bytes": None}},
        }
    )
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    first = [line[0] for line in lines if line]
    assert max(map(len, out.splitlines())) <= width
    assert first.count(own) >= 5
    assert first.count(longest) >= 2 * 2 * 2 + 2
    # Seven lengths in two levels, two passes and the tables of times.
    assert sum(line.count(cell) for line in lines if line and line[0] == longest) == 7 * 2 * 2
    assert {"1,000", "8,000", "125K"} <= {word for line in lines for word in line}
    assert "12,345,600-12,345,600" in {word for line in lines for word in line}


def test_pictures(result, trained, tmp_path):
    plot_attention(result, tmp_path / "attention.png")
    plot_train(trained, tmp_path / "train.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(PNG)
    with pytest.raises(UsageError, match="cannot be written"):
        plot_train(trained, tmp_path / "nowhere" / "train.png")


def test_what_is_wider_than_the_terminal_is_printed_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    name = "a_module_of_mine.mixers:LocalConvolutionWithGates"
    print_table(("run", ":x:", "mixer"), [("mine", ":key:", name)], numbers=True)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 40
    assert name in "".join(line.split()[-1] for line in out.splitlines())
    assert "mine  :key:" in out


def test_no_name_is_written_over_another():
    """Lines that end near each other, at one length or at two, and one that ends long before."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    values = {1 << n: 1e-3 * (1 << n) for n in range(10, 18)}
    early = {length: value for length, value in values.items() if length <= 1 << 12}
    lines = {
        "hrr": Line({n: 1.05 * value for n, value in values.items()}, 1.0),
        "projections": Line(values, 1.0),
        "authors": Line({n: value for n, value in values.items() if n <= 1 << 16}, 1.0, "then too slow"),
        "softmax": Line(early, 2.0, "then too slow"),
    }
    plot._draw(axes, lines, dict.fromkeys(lines, "black"), lambda value, _: f"{value:g}")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_names_stand_apart():
    places = spread([0.0, 1.0, 2.0, 30.0, 31.0], 10.0)
    assert places == sorted(places)
    assert min(b - a for a, b in itertools.pairwise(places)) >= 10.0 - 1e-9
    assert spread([0.0, 100.0], 10.0) == [0.0, 100.0]


# Processes of their own


def test_a_process_of_its_own():
    settings = AttentionSettings(contestants=("hrr",), lengths=(16,), width=8, num_heads=1)
    row = bench.measure_apart("hrr", settings, progress=bench.Silent())
    assert (row["contestant"], row["length"], row["width"], row["missing"]) == ("hrr", 16, 8, "")
    assert row["seconds"] > 0
    assert row["peak_rss_bytes"] > row["total_bytes"] > 0


def test_a_process_that_fails():
    with pytest.raises(RuntimeError, match="AttributeError"):
        peak.run_apart("os:nothing", {})
    with pytest.raises(peak.Killed, match="SIGABRT"):
        peak.run_apart("os:abort", {})


# `lra bench train`


def test_steps_are_measured(trained):
    assert json.loads(json.dumps(trained))["rows"]
    assert [(row["length"], row["mixer"]) for row in trained["rows"]] == [
        (length, mixer) for length in (16, 32) for mixer in MIXERS
    ]
    for row in trained["rows"]:
        assert row["steps_per_second"] == pytest.approx(1 / row["seconds"])
        assert row["examples_per_second"] == pytest.approx(4 / row["seconds"])
        assert row["total_bytes"] > row["temp_bytes"] > 0
    assert all(row["ratio"] == 1.0 for row in trained["rows"] if row["mixer"] == "none")
    assert trained["exponents"].keys() == set(MIXERS)


def test_a_step_that_does_not_fit_is_a_row(monkeypatch):
    monkeypatch.setattr(steps, "free_bytes", lambda: 1000)
    settings = TrainSettings(mixers=("none",), lengths=(16,), batch_size=4, preset="smoke")
    (row,) = bench_train(settings)["rows"]
    assert (row["missing"], row["seconds"]) == ("memory", None)
    assert row["total_bytes"] > 1000


def test_training_settings_that_are_refused():
    for fields, words in (
        ({"batch_size": 0}, "--batch-size must be at least 1; got 0"),
        ({"mixers": ()}, "--mixers must name at least one"),
        ({"seconds": -1.0}, "--seconds must be positive; got -1"),
    ):
        with pytest.raises(UsageError, match=words):
            TrainSettings(**fields)
    with pytest.raises(UsageError, match="There is no mixer 'hr'"):
        bench_train(TrainSettings(mixers=("hr",)))


# The commands and the experiment


def test_the_commands(tmp_path):
    shared = ("--repeats", "1", "--json", "a.json", "--plot", "a.png")
    sizes = ("--lengths", "8", "16", "--width", "8", "--heads", "1", "--level", "core")
    result = arena.lra(
        "bench", "attention", "--contestants", "hrr", *sizes, *shared, cwd=tmp_path, env={"COLUMNS": "80"}
    )
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert json.loads((tmp_path / "a.json").read_text())["settings"]["contestants"] == ["hrr"]
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert "Written to a.json" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "what to measure: data, attention, train"),
        (("atention",), "'attention'"),
        (("attention", "--contestants", "sofmax"), "'softmax'"),
        (("attention", "--memory", "lots"), "--memory is 'lots'"),
        (("attention", "--million", "--plot", "a.png"), "--plot"),
        (("attention", "--million", "--batch-size", "2"), "--batch-size"),
        (("attention", "--plot", "a.jpg"), "--plot must name a .png file; got a.jpg"),
        (("attention", "--json", "nowhere/a.json"), "there is no folder nowhere"),
        (("attention", "--level"), "--level"),
        (("attention", "--level", "core", "--contestants", "projections"), "none at --level core"),
        (("train", "--plot", "nowhere/a.png"), "there is no folder nowhere"),
        (("data", "--json", "nowhere/a.json"), "there is no folder nowhere"),
        (("train", "--mixers", "hr"), "'hrr'"),
    ],
)
def test_the_commands_refuse(arguments, words):
    result = arena.lra("bench", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("what", ["data", "attention", "train"])
def test_help(what):
    result = arena.lra("bench", what, "--help", env={"COLUMNS": "60"})
    assert result.returncode == 0
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_verdicts():
    def row(level, direction, length, floats, ratio):
        return {
            "contestant": "hrr",
            "level": level,
            "direction": direction,
            "length": length,
            "temp_floats": floats,
            "ratio": ratio,
        }

    measured = [
        row("layer", "both", 1024, 6.0, 3.0),
        row("layer", "both", 4096, 7.1, 1.4),
        row("layer", "forward", 4096, 2.5, 1.0),
        row("core", "both", 4096, 5.0, None),
    ]
    apart = [{"peak_rss_bytes": 2**34, "seconds": 1.0}, {"peak_rss_bytes": 2**33, "seconds": 1.0}]
    found = verdicts(measured, apart)
    assert [line["met"] for line in found] == [False, True, True, False, True]
    assert [line["measured"] for line in found] == [7.1, 2.5, 1.4, None, 16.0]
    assert len(found) == len(TARGETS) + 1
    assert verdicts([], [])[-1]["met"] is False


def test_what_runs_apart_runs_before_the_sweep(monkeypatch):
    order = []

    def stop(*_, million=False, **__):
        order.append("million" if million else "sweep")
        if not million:
            raise RuntimeError("stopped")
        return {"million": []}

    monkeypatch.setattr(attention_cost, "train_apart", lambda *_, **__: order.append("step"))
    monkeypatch.setattr(attention_cost, "bench_attention", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        attention_cost.main()
    assert order == ["step", "million", "sweep"]
