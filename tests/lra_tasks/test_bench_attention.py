"""`lra bench attention` and `lra bench train`: counts, output and pictures; never the speed of a machine."""

import dataclasses
import functools
import itertools
import json
import os
import re
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import arena, oracle
from matplotlib.figure import Figure

from experiments import attention_cost
from experiments.attention_cost import TARGETS, verdicts
from hrrformer import hrr_attention
from lra_tasks.bench import attention as bench
from lra_tasks.bench import implementations, measure, roofline
from lra_tasks.bench import train as steps
from lra_tasks.bench.attention import bench_attention
from lra_tasks.bench.plot import draw, plot
from lra_tasks.bench.settings import AttentionSettings, Settings, TrainSettings
from lra_tasks.bench.train import bench_train
from lra_tasks.cli.bench import print_attention, print_train
from lra_tasks.errors import UsageError
from lra_tasks.model.mixers import MIXERS as BUILT_IN
from lra_tasks.model.mixers import MixerSpec, get_mixer
from lra_tasks.progress import Silent
from lra_tasks.training.memory import memory_bytes

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
    settings = dataclasses.replace(TINY, levels=("core",), implementations=("authors", "softmax"), repeats=1)
    return bench_attention(settings, memory=100_000)["longest"]


@pytest.fixture(scope="module")
def trained():
    return bench_train(
        TrainSettings(mixers=MIXERS, lengths=(16, 32), batch_size=4, preset="smoke", repeats=3)
    )


def rows(result, **wanted):
    return [row for row in result["rows"] if all(row[name] == value for name, value in wanted.items())]


# Implementations


@pytest.mark.parametrize("shape", [(1, 5, 2, 8), (2, 7, 3, 5)])
def test_the_authors_formulation_is_the_layer(shape):
    query, key, value = np.random.default_rng(0).standard_normal((3, *shape))
    expected, _ = oracle.hrr_attention(query, key, value)
    found = implementations.authors(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_the_authors_gradient_is_the_layer_s():
    query, key, value, cotangent = np.random.default_rng(1).standard_normal((4, 1, 5, 2, 8))
    expected = oracle.gradients(query, key, value, cotangent, np.zeros((1, 2, 5)))
    both = implementations.program("core", "both", implementations.authors)
    _, found = both(*(jnp.asarray(x, jnp.float32) for x in (query, key, value, cotangent)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_every_name_has_its_implementation():
    assert {"hrr", "hrr-pallas", "softmax-cudnn", *NAMES} == set(implementations.known())
    query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 8))
    for name in ("hrr", "hrr-fft", "hrr-matmul", "hrr-pallas"):
        found = implementations.implementation(name)(query, key, value)
        np.testing.assert_allclose(found, implementations.authors(query, key, value), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "more"), [("cpu", set()), ("gpu", {"hrr-pallas", "softmax-cudnn"}), ("tpu", {"hrr-pallas"})]
)
def test_defaults_of_a_platform(monkeypatch, platform, more):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert set(implementations.default_names()) == {*NAMES, *more}


def test_temporary_memory():
    """In T·D floats: the projections 2.0 and 6.0, the authors 14.1, ours."""
    found = {}
    for name in ("projections", "authors", "hrr-matmul", "hrr-fft"):
        for direction in implementations.PASSES:
            compiled = bench._compile("layer", direction, name, 4096, AttentionSettings())
            found[name, direction] = memory_bytes(compiled)[1] / (4 * 4096 * 512)
    assert found["projections", "forward"] == pytest.approx(2.0, abs=0.05)
    assert found["projections", "both"] == pytest.approx(6.0, abs=0.05)
    assert found["authors", "both"] == pytest.approx(14.1, abs=0.1)
    for name in ("hrr-matmul", "hrr-fft"):
        assert found[name, "forward"] < 2.5
        assert found[name, "both"] < 6.5


def test_the_projections_do_the_work_of_four():
    """24 T·D² FLOPs forward and backward: XLA must not find that two of them have the same gradient."""
    compiled = bench._compile("layer", "both", "projections", 4096, AttentionSettings())
    assert compiled.cost_analysis()["flops"] == pytest.approx(24 * 4096 * 512**2, rel=0.01)


def test_the_roofline_is_its_formula():
    size = 1000 * 64
    assert roofline.least_counts("core", "forward", 1000, 64, 16) == (3 * 2.5 * 4 * size, 5 * size)
    flops, numbers = roofline.least_counts("layer", "both", 1000, 64, 16)
    assert flops == 6 * 2.5 * 4 * size + 24 * size * 64
    assert numbers == 26 * size + 12 * 64**2
    assert roofline.least_counts("core", "both", 1000, 64, 16) == (6 * 2.5 * 4 * size, (2 + 3 + 7) * size)
    rates = {"flops_per_second": 10.0, "bytes_per_second": 100.0}
    assert roofline.least_seconds(50.0, 25.0, 4, rates) == 5.0
    assert roofline.least_seconds(5.0, 100.0, 4, rates) == 4.0


# Costs


def test_exponents_of_power_laws():
    assert measure.exponent({t: 3e-9 * t**2 for t in (256, 512, 1024, 2048)}) == 2.0
    # At the shorter lengths fixed costs hide the law.
    points = {t: 1.0 if t < 1024 else t / 1024 for t in (128, 256, 512, 1024, 2048, 4096, 8192)}
    assert measure.exponent(points) == 1.0
    assert measure.exponent({256: 1.0, 512: 2.0, 1024: 4.0}) is None
    assert measure.exponent({}) is None


def test_growth_is_printed_with_one_decimal_from_four_lengths_on(trained, capsys):
    lengths = (16, 32, 64, 128)
    many = [dict(trained["rows"][0], length=n, seconds=1e-3 * n**1.26) for n in lengths]
    print_train(trained | {"rows": many})
    assert "Growth of the time: hrr T^1.3." in capsys.readouterr().out
    print_train(trained | {"rows": many[:3]})
    assert "T^" not in capsys.readouterr().out


def in_rounds(calls, **settings):
    costs = {key: measure.Cost(length=8) for key in calls}
    taken = measure.in_rounds(calls, costs, Settings(lengths=(8,), **settings))
    return taken, {key: (cost.missing, cost.note) for key, cost in costs.items() if cost.missing}


def test_rounds_are_shuffled_and_end(monkeypatch):
    now, order = [0.0], []

    def call(name, took):
        order.append(name)
        now[0] += took

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    calls = {name: functools.partial(call, name, took) for name, took in (("a", 1.0), ("b", 2.0), ("c", 9.0))}
    times, lost = in_rounds(calls, repeats=50, seconds=8.0)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}  # three rounds in any case
    assert lost == {"c": ("slow", "took 9 s per call, more than 8 s")}
    assert order[:3] == ["a", "b", "c"]
    again = list(order)
    order.clear()
    in_rounds(calls, repeats=50, seconds=8.0)
    assert order == again
    order.clear()
    times, _ = in_rounds(calls, repeats=50, seconds=30.0)
    assert [len(taken) for taken in times.values()] == [3] * 3
    assert len({tuple(order[start : start + 3]) for start in range(3, 12, 3)}) > 1


def test_out_of_memory_is_not_a_crash():
    def exhausted():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    times, lost = in_rounds({"a": lambda: 0, "b": exhausted}, repeats=1, seconds=9.0)
    assert len(times["a"]) == 1
    assert lost == {"b": ("memory", "ran out of memory")}

    def broken():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        in_rounds({"a": broken}, repeats=1, seconds=9.0)


def exhaust(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


ONE = AttentionSettings(levels=("core",), implementations=("authors",), lengths=(8,), width=8, num_heads=1)
ONE_STEP = TrainSettings(mixers=("none",), lengths=(16,), batch_size=4, preset="smoke")


def test_inputs_that_do_not_fit_are_rows(monkeypatch):
    monkeypatch.setattr(bench, "_draw", exhaust)
    for row in bench_attention(ONE)["rows"]:
        assert (row["missing"], row["note"]) == ("memory", "ran out of memory while inputs were drawn")
        assert row["temp_bytes"] is not None


@pytest.mark.parametrize("place", ["draw", "timed"])
def test_a_call_apart_that_does_not_fit_is_a_row(monkeypatch, place):
    monkeypatch.setattr(*((bench, "_draw") if place == "draw" else (measure, "timed")), exhaust)
    row = bench.only_row(**dataclasses.asdict(ONE))
    assert (row["missing"], row["note"][:17]) == ("memory", "ran out of memory")
    assert row["total_bytes"] > 0


@pytest.mark.parametrize("place", ["compile_training", "init"])
def test_training_that_does_not_fit_is_a_row(monkeypatch, place):
    whole, calls = steps.Trainer.init, itertools.count()

    def init(self):
        return exhaust() if next(calls) % 2 else whole(self)  # the first call only learns the shapes

    monkeypatch.setattr(steps.Trainer, place, init if place == "init" else exhaust)
    result = bench_train(ONE_STEP)
    (row,) = result["rows"]
    assert (row["missing"], row["seconds"]) == ("memory", None)
    assert (row["total_bytes"] is None) == (place == "compile_training")
    apart = steps.only_row(**dataclasses.asdict(ONE_STEP))
    assert (apart["missing"], apart["seconds"]) == ("memory", None)
    print_train(result)


def test_a_step_apart_that_does_not_fit_is_a_row(monkeypatch):
    monkeypatch.setattr(measure, "timed", exhaust)
    row = steps.only_row(**dataclasses.asdict(ONE_STEP))
    assert (row["missing"], row["note"]) == ("memory", "ran out of memory")


def test_slow_calls_are_not_repeated(monkeypatch):
    made = []

    def timed(call):
        made.append(call)
        return 40.0

    monkeypatch.setattr(measure, "timed", timed)
    monkeypatch.setattr(bench, "machine_rates", lambda _: {"bytes_per_second": 1.0, "flops_per_second": 1.0})
    found = bench_attention(dataclasses.replace(ONE, lengths=(8, 16, 32)))["rows"]
    assert [row["missing"] for row in found] == ["slow"] * 6
    assert [row["note"] for row in found[2:]] == ["a call at T = 8 took too long"] * 4
    assert len(made) == 2
    made.clear()
    found = bench_train(dataclasses.replace(ONE_STEP, lengths=(16, 32)))["rows"]
    assert ([row["missing"] for row in found], len(made)) == (["slow"] * 2, 1)


# `lra bench attention`


def test_there_is_a_row_for_everything(result):
    assert json.loads(json.dumps(result)) == json.loads(json.dumps(result, allow_nan=False))
    keys = [(r["level"], r["direction"], r["length"], r["implementation"]) for r in result["rows"]]
    assert len(set(keys)) == len(keys) == 2 * 2 * (len(NAMES) + len(NAMES) - 1)
    assert not [key for key in keys if key[0] == "core" and key[3] == "projections"]
    for row in rows(result, missing=""):
        assert row["seconds"] > 0
        assert row["quartiles"][0] <= row["seconds"] <= row["quartiles"][1]
        assert (row["rounds"], row["note"]) == (3, "")
        assert row["temp_bytes"] == row["temp_floats"] * 4 * 2 * row["length"] * 16
        assert row["roofline_share"] == pytest.approx(100 * row["roofline_seconds"] / row["seconds"])
    for level, reference in implementations.REFERENCE.items():
        assert all(row["ratio"] == 1.0 for row in rows(result, level=level, implementation=reference))
    assert {"devices", "versions"} <= result["environment"].keys()


def test_the_longest_length_that_fits(longest):
    authors, softmax = longest
    assert (authors["implementation"], softmax["implementation"], authors["level"]) == (
        "authors",
        "softmax",
        "core",
    )
    assert softmax["length"] < authors["length"]
    for row in longest:
        step = (1 << (row["length"].bit_length() - 1)) // 8
        compiled = bench._compile("core", "both", row["implementation"], row["length"] + step, TINY)
        assert row["total_bytes"] <= 100_000 < memory_bytes(compiled)[0]
    none = bench.longest_length("core", "authors", 9, TINY, Silent())
    assert (none["length"], none["total_bytes"]) == (None, None)


def test_reasons_for_the_end_of_the_search(monkeypatch):
    none = bench.longest_length("core", "authors", 9, TINY, Silent())
    assert none["note"] == "T = 16 does not fit, and the search begins there"
    monkeypatch.setattr(bench, "LONGEST", 64)
    all_fit = bench.longest_length("core", "authors", 1 << 40, TINY, Silent())
    assert (all_fit["length"], all_fit["note"]) == (64, "the search ends at T = 64")


def test_the_machine_is_measured_twice(monkeypatch):
    rates = [{"bytes_per_second": 1.0, "flops_per_second": 4.0}]
    rates.append({"bytes_per_second": 2.0, "flops_per_second": 3.0})
    monkeypatch.setattr(bench, "machine_rates", lambda _: rates.pop())
    found = bench_attention(dataclasses.replace(ONE, lengths=(8, 16), repeats=1))["rates"]
    assert (found, rates) == ({"bytes_per_second": 2.0, "flops_per_second": 4.0}, [])


def test_a_million_tokens_have_the_device_first(monkeypatch):
    order = []
    environment = bench.environment

    def apart(name, settings, progress):
        order.append(f"{name} apart")
        return {}

    def here(name, call):
        return lambda *_: [order.append(name), call()][1]

    monkeypatch.setattr(bench, "in_own_process", apart)
    monkeypatch.setattr(bench, "environment", here("environment", environment))
    monkeypatch.setattr(jax, "default_backend", here("backend", lambda: "cpu"))
    found = bench_attention(million=True)["settings"]
    assert order[0] == "hrr apart"
    used = [
        found[name] for name in ("levels", "implementations", "lengths", "width", "num_heads", "batch_size")
    ]
    assert used == [("layer",), ("hrr",), (1 << 20,), 64, 1, 1]
    with pytest.raises(UsageError, match="give either memory or million"):
        bench_attention(million=True, memory=9)


def test_memory_that_is_too_small_is_a_row(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(measure, "free_bytes", lambda: 100_000)
    result = bench_attention(
        AttentionSettings(
            levels=("layer",),
            implementations=("softmax", "projections"),
            lengths=(16, 64, 128),
            width=16,
            num_heads=2,
            repeats=1,
            seconds=60.0,
        )
    )
    (lost,) = rows(result, implementation="softmax", direction="both", length=128)
    assert (lost["missing"], lost["seconds"], lost["ratio"]) == ("memory", None, None)
    assert re.fullmatch(r"needs \S+ GB of memory, \S+ are free", lost["note"])
    assert lost["temp_bytes"] > 100_000
    assert all(row["seconds"] for row in rows(result, implementation="projections"))
    print_attention(result)
    assert re.search(r"softmax, forward \+ backward, T = \d+: needs", capsys.readouterr().out)
    plot(result, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes().startswith(PNG)


def test_softmax_has_rounds_of_its_own_after_all_others(monkeypatch):
    rounds = []
    whole = measure.in_rounds

    def noted(calls, *options):
        rounds.append({name for _, name in calls})
        return whole(calls, *options)

    monkeypatch.setattr(measure, "in_rounds", noted)
    settings = AttentionSettings(
        implementations=("softmax", "hrr", "authors", "projections"),
        lengths=(16, 8),
        width=8,
        num_heads=1,
        repeats=1,
    )
    rows = bench_attention(settings)["rows"]
    layer, core = {"hrr", "authors", "projections"}, {"hrr", "authors"}
    after = [{"softmax", "projections"}] * 2 + [{"softmax", "authors"}] * 2
    assert rounds == [layer, layer, core, core, *after]
    assert [(row["level"], row["length"], row["direction"], row["implementation"]) for row in rows] == [
        (level, length, direction, name)
        for level in ("layer", "core")
        for length in (8, 16)
        for direction in ("forward", "both")
        for name in settings.implementations
        if (level, name) != ("core", "projections")
    ]
    assert all(row["ratio"] is not None and row["rounds"] == 1 for row in rows)


def test_training_steps_of_softmax_come_after_the_others(monkeypatch):
    rounds = []
    whole = measure.in_rounds

    def noted(calls, *options):
        rounds.append(set(calls))
        return whole(calls, *options)

    monkeypatch.setattr(measure, "in_rounds", noted)
    settings = TrainSettings(
        mixers=("softmax", "hrr", "none"), lengths=(16,), batch_size=8, preset="smoke", repeats=1
    )
    rows = bench_train(settings)["rows"]
    assert rounds == [{"hrr", "none"}, {"softmax", "none"}]
    assert [row["mixer"] for row in rows] == ["softmax", "hrr", "none"]
    assert all(row["ratio"] is not None for row in rows)


def test_programs_that_do_not_compile_are_rows(monkeypatch):
    def refuse(query, key, value):
        raise NotImplementedError("no such machine here\nand more")

    monkeypatch.setitem(implementations.OTHERS, "softmax", refuse)
    settings = AttentionSettings(levels=("core",), implementations=("softmax",), lengths=(8,), repeats=1)
    for row in bench_attention(settings)["rows"]:
        assert (row["missing"], row["note"]) == ("refused", "does not compile here: no such machine here")
        assert row["temp_bytes"] is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_numbers(dtype):
    settings = AttentionSettings(
        implementations=("hrr", "authors"), lengths=(8,), width=8, num_heads=1, dtype=dtype, repeats=1
    )
    assert {row["missing"] for row in bench_attention(settings)["rows"]} == {""}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 0}, "width must be at least 1; got 0"),
        ({"num_heads": 3}, "num_heads must divide width, 512; got 3"),
        ({"lengths": ()}, "lengths must name at least one"),
        ({"levels": ()}, "levels must name at least one"),
        ({"implementations": ("projections",)}, "projections cannot be measured at the level core"),
        ({"lengths": (8, -1)}, "lengths must be at least 1; got -1"),
        ({"seconds": 0.0}, "seconds must be positive; got 0"),
        ({"dtype": "int8"}, "dtype must be one of float32, .*; got 'int8'"),
        ({"levels": ("cor",)}, "levels must be one of layer, core; got 'cor'"),
        ({"implementations": ("autors",)}, "There is no implementation 'autors'. Did you mean 'authors'"),
    ],
)
def test_settings_that_are_refused(fields, words):
    with pytest.raises(UsageError, match=words):
        bench_attention(AttentionSettings(**fields))


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
    for words in ("layer, forward + backward: milliseconds", "Longest T", "Examples per second"):
        assert words in out


@pytest.mark.parametrize("width", [60, 80])
def test_names_and_cells_of_tables_are_whole(result, trained, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    longest, cell = "softmax-cudnn", "refused"
    many = [
        dict(
            row,
            implementation=row["implementation"].replace("softmax", longest),
            length=1000 << n,
            seconds=None if row["implementation"] == "softmax" and n else 12345.6,
            missing=cell if row["implementation"] == "softmax" and n else "",
            quartiles=(12345.6, 12345.6),
        )
        for row in rows(result, length=16)
        for n in range(8)
    ]
    print_attention(result | {"rows": many})
    own = "package.module:MixerOfMyOwn"
    print_train(
        trained
        | {
            "rows": [dict(trained["rows"][0], mixer=own, length=1000 << n) for n in range(8)],
            "settings": trained["settings"] | {"mixers": (own,)},
        }
    )
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert {own, longest, cell, "1,000", "8,000", "125K", "12,345,600-12,345,600"} <= set(out.split())


def test_pictures(result, trained, tmp_path):
    plot(result, tmp_path / "attention.png")
    plot(trained, tmp_path / "train.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(PNG)
    with pytest.raises(UsageError, match="cannot be written"):
        plot(trained, tmp_path / "nowhere" / "train.png")


def test_pictures_name_every_implementation_and_draw_hrr_on_top(result):
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    panels = figure.subplots(1, 2)
    some = rows(result, level="layer", direction="both")
    some = [row | {"missing": "slow"} if row["implementation"] == "softmax" else row for row in some]
    draw(figure, panels, some, "implementation")
    (legend,) = figure.legends
    names = {text.get_text() for text in legend.get_texts()}
    assert names == {*NAMES, "softmax (then too slow)"} - {"softmax"}
    assert panels[0].get_title() == "Time relative to projections"
    lines = {line.get_label(): line for line in panels[1].lines}
    assert lines["hrr-fft"].get_zorder() > lines["projections"].get_zorder()
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in panels)


# Processes of their own


def test_a_process_of_its_own():
    settings = AttentionSettings(implementations=("hrr",), lengths=(16,), width=8, num_heads=1)
    row = bench.in_own_process("hrr", settings, Silent())
    assert (row["implementation"], row["length"], row["width"], row["missing"]) == ("hrr", 16, 8, "")
    assert row["seconds"] > 0
    assert row["peak_rss_bytes"] > row["total_bytes"] > 0


def test_a_process_that_fails(monkeypatch, tmp_path):
    (tmp_path / "broken.py").write_text("def only_row(): raise AttributeError")
    (tmp_path / "killed.py").write_text("import os\ndef only_row(): os.abort()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([arena.environment()["PYTHONPATH"], str(tmp_path)]))
    nothing = SimpleNamespace()
    with pytest.raises(RuntimeError, match="AttributeError"):
        measure.in_own_process("broken", nothing, {}, Silent())
    killed = measure.in_own_process("killed", nothing, {"mixer": "hrr"}, Silent())
    assert (killed["mixer"], killed["missing"], killed["peak_rss_bytes"]) == ("hrr", "memory", None)
    assert "SIGABRT" in killed["note"]


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


def test_a_step_that_does_not_fit_is_a_row(monkeypatch):
    monkeypatch.setattr(measure, "free_bytes", lambda: 1000)
    settings = TrainSettings(mixers=("none",), lengths=(16,), batch_size=4, preset="smoke")
    (row,) = bench_train(settings)["rows"]
    assert (row["missing"], row["seconds"]) == ("memory", None)
    assert row["total_bytes"] > 1000


def test_training_settings_that_are_refused():
    for fields, words in (
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"mixers": ()}, "mixers must name at least one"),
        ({"seconds": -1.0}, "seconds must be positive; got -1"),
    ):
        with pytest.raises(UsageError, match=words):
            bench_train(TrainSettings(**fields))
    with pytest.raises(UsageError, match="There is no mixer 'hr'"):
        bench_train(TrainSettings(mixers=("hr",)))


# The commands and the experiment


def test_the_commands(tmp_path):
    shared = ("--repeats", "1", "--json", "a.json", "--plot", "a.png")
    sizes = ("--lengths", "8", "16", "--width", "8", "--num-heads", "1", "--levels", "core")
    result = arena.lra(
        "bench", "attention", "--implementations", "hrr", *sizes, *shared, cwd=tmp_path, env={"COLUMNS": "80"}
    )
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert json.loads((tmp_path / "a.json").read_text())["settings"]["implementations"] == ["hrr"]
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert "Written to a.json" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the name of a benchmark: data, attention, train"),
        (("atention",), "'attention'"),
        (("attention", "--implementations", "sofmax"), "'softmax'"),
        (("attention", "--memory", "lots"), "--memory"),
        (("attention", "--million", "--plot", "a.png"), "--plot"),
        (("attention", "--million", "--batch-size", "2"), "--batch-size"),
        (("attention", "--plot", "a.jpg"), "--plot must name a .png file; got a.jpg"),
        (("attention", "--json", "nowhere/a.json"), "the folder nowhere does not exist"),
        (("attention", "--levels"), "levels must name at least one"),
        (("attention", "--levels", "core", "--implementations", "projections"), "measured at the level core"),
        (("train", "--plot", "nowhere/a.png"), "the folder nowhere does not exist"),
        (("data", "--json", "nowhere/a.json"), "the folder nowhere does not exist"),
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
            "implementation": "hrr",
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


def test_own_processes_run_before_the_sweep(monkeypatch):
    order = []

    def stop(*_, million=False, **__):
        order.append("million" if million else "sweep")
        if not million:
            raise RuntimeError("stopped")
        return {"million": []}

    monkeypatch.setattr(attention_cost.train, "in_own_process", lambda *_: order.append("step"))
    monkeypatch.setattr(attention_cost, "bench_attention", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        attention_cost.main()
    assert order == ["step", "million", "sweep"]


def test_all_are_the_built_in_mixers(monkeypatch):
    monkeypatch.setattr(steps, "rows", lambda settings, progress: [])
    assert bench_train(TrainSettings(mixers=("all",)))["settings"]["mixers"] == tuple(BUILT_IN)


def test_hrr_takes_the_options_of_its_mixer():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 8, 2, 4))
    rescaled = implementations.implementation("hrr:rescale=True,temperature=0.5")(q, k, v)
    expected = hrr_attention(q, k, v, rescale=True, temperature=0.5)
    np.testing.assert_array_equal(rescaled, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hrr:rescal=True", "Did you mean 'rescale'"),
        ("hrr:rescale=1", "needs bool"),
        ("hrr:use_bias=True", "use_bias belongs to the layer"),
        ("authors:rescale=True", "authors has no options"),
        ("softmax:rescale=True", "has no option .rescale"),
        ("holografic", "Did you mean 'holographic'"),
        ("hrr-ft", "Did you mean 'hrr-fft'"),
        ("none", "a model without a layer"),
    ],
)
def test_names_and_options_that_do_not_exist_are_refused(name, message):
    with pytest.raises(UsageError, match=message):
        bench_attention(dataclasses.replace(TINY, implementations=(name,), levels=("layer",)))


def test_mixers_of_the_arena_are_layers_with_their_own_projections():
    names = ("projections", "holographic", "softmax:implementation=chunked")
    settings = dataclasses.replace(TINY, implementations=names, levels=("layer",), lengths=(16,), repeats=1)
    found = bench_attention(settings)["rows"]
    assert [row["implementation"] for row in found] == [*names, *names]
    assert all(row["seconds"] and row["ratio"] and row["temp_bytes"] for row in found)

    function, draw = implementations.subject("layer", "holographic", 16, settings)
    parameters, x, others = draw()
    spec = MixerSpec(16, 2, 16, 16, dropout_rate=0.0, dtype=jnp.float32)
    mixer = get_mixer("holographic")(spec, rngs=nnx.Rngs(settings.seed))
    expected = mixer(x, jnp.ones((2, 16), bool), deterministic=True, rngs=None)
    np.testing.assert_allclose(function(parameters, x, others), expected, rtol=1e-6, atol=1e-6)

    with pytest.raises(UsageError, match="measure --levels layer"):
        bench_attention(dataclasses.replace(settings, levels=("layer", "core")))
