"""Recall and order: labels by hand, the law of the generators, variants of any size, a run."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from lra_tasks import check, compare, load, prepare, preset
from lra_tasks.cli.show import show
from lra_tasks.data.dataset import open_dataset
from lra_tasks.errors import UsageError
from lra_tasks.tasks import ARENA, DIAGNOSTICS, TASKS
from lra_tasks.tasks.order import task as order
from lra_tasks.tasks.recall import task as recall

MODULES = {"recall": recall, "order": order}
NUMBER = 2_000
LENGTH = 64


@pytest.fixture(scope="module", params=MODULES)
def module(request):
    return MODULES[request.param]


@pytest.fixture(scope="module")
def drawn(module):
    return [module.example(0, index, LENGTH) for index in range(NUMBER)]


def tokens_of(module, text):
    """Returns the token ids of a rendered sequence."""
    symbols = text.split() if module is recall else text
    return [module.SYMBOLS.index(symbol) for symbol in symbols]


def oracle(module, tokens):
    """Returns the label of an example from its text."""
    text = module.render(tokens)
    if module is order:
        return int(text.index("B") < text.index("A"))
    query, *words = text.split()
    return int(dict(word.split("=") for word in words if "=" in word)[query.removesuffix("?")])


def test_they_are_not_of_the_arena():
    assert [task.name for task in DIAGNOSTICS] == ["recall", "order"]
    assert not {task.name for task in DIAGNOSTICS} & {task.name for task in ARENA}
    assert not any(task.published for task in DIAGNOSTICS)


@pytest.mark.parametrize(
    ("module", "text", "label"),
    [
        (recall, "9? a 3=5 b c 9=0", 0),
        (recall, "3? 3=5 9=0 a", 5),
        (recall, "15? 15=7", 7),
        (order, "aAbbB", 0),
        (order, "BaaA", 1),
        (order, "aBaaaaAa", 1),
    ],
)
def test_worked_by_hand(module, text, label):
    tokens = tokens_of(module, text)
    assert module.answer(tokens) == label == oracle(module, tokens)
    assert module.render([*tokens, 0, 0]) == text
    assert module.validate(np.array(tokens, np.uint8), label) is None
    assert f"The label is {1 - label}" in module.validate(tokens, 1 - label)


@pytest.mark.parametrize(
    ("module", "tokens", "message"),
    [
        (recall, [], "is empty"),
        (recall, tokens_of(recall, "a 3=5 b"), "must be a query, 1 to 24; got the id"),
        (recall, tokens_of(recall, "3? 3=5 3?"), "after the first must have ids 25 to 232; got 4"),
        (recall, [*tokens_of(recall, "3? 3=5"), 233], "got 233"),
        (recall, tokens_of(recall, "4? 3=5"), "asks for key 4, and no pair has it"),
        (recall, tokens_of(recall, "3? 3=5 3=6"), "occurs in two pairs"),
        (recall, tokens_of(recall, "3? 3=5 4=5"), "occurs in two pairs"),
        (order, [], "got 0 and 0 times"),
        (order, tokens_of(order, "aAbA"), "got 2 and 0 times"),
        (order, [*tokens_of(order, "AaB"), 0], "ids are 1 to 18"),
        (order, tokens_of(order, "ABaaaaaa"), "at least a quarter of 8 tokens apart; got 1"),
    ],
)  # fmt: skip
def test_sequences_that_are_wrong(module, tokens, message):
    with pytest.raises(UsageError, match=message):
        module.answer(tokens)
    assert message in module.validate(tokens, 0)


def test_golden_digests(module):
    """The same examples on every Python: datasets and recorded results depend on them."""
    digest = hashlib.sha256()
    for tokens, label in (module.example(0, index, LENGTH) for index in range(200)):
        digest.update(tokens + bytes([label]))
    golden = {
        recall: "01d4dd6e99e10142faa23c205f7156a77875b76639b22fa259a23265d4898140",
        order: "e62563b2346f69e94062830e660a845b27d887c222e143098db3a5448483106e",
    }
    assert digest.hexdigest() == golden[module]


def test_pure_function_of_seed_and_index(module, drawn):
    assert [module.example(0, index, LENGTH) for index in (599, 7, 300)] == [
        drawn[599],
        drawn[7],
        drawn[300],
    ]
    assert module.example(1, 7, LENGTH) != drawn[7] != module.example(0, 17, LENGTH)
    assert len({tokens for tokens, _ in drawn}) == NUMBER


def test_labels_are_right_and_balanced(module, drawn):
    assert all(module.answer(tokens) == label == oracle(module, tokens) for tokens, label in drawn)
    counts = Counter(label for _, label in drawn)
    assert set(counts.values()) == {NUMBER // TASKS[module.TASK.name].num_classes}


def test_lengths_and_noise_are_uniform(module, drawn):
    lengths = Counter(len(tokens) for tokens, _ in drawn)
    assert set(lengths) == set(range(LENGTH // 2, LENGTH + 1))
    assert max(lengths.values()) < 2 * NUMBER / len(lengths)
    first = len(module.SYMBOLS) - module.NOISE
    counts = np.bincount(np.frombuffer(b"".join(tokens for tokens, _ in drawn), np.uint8))[first:]
    np.testing.assert_allclose(counts / counts.sum(), 1 / module.NOISE, rtol=0.05)


@pytest.mark.parametrize("pairs", [2, 8])
def test_places_keys_and_the_asked_pair_are_uniform(pairs):
    places, keys, asked = [], [], []
    for index in range(NUMBER):
        tokens, label = recall.example(0, index, LENGTH, pairs)
        found = [i for i, token in enumerate(tokens) if recall.FIRST_PAIR <= token < recall.FIRST_NOISE]
        own = [divmod(tokens[i] - recall.FIRST_PAIR, recall.VALUES) for i in found]
        assert len(own) == len(dict(own)) == len({value for _, value in own}) == pairs
        places += [(i - 1) / (len(tokens) - 2) for i in found]  # the first token is the query
        keys += [key for key, _ in own]
        asked.append([value for _, value in own].index(label))
    np.testing.assert_allclose(np.histogram(places, 4, (0, 1))[0] / len(places), 1 / 4, atol=0.03)
    np.testing.assert_allclose(np.bincount(keys) / len(keys), 1 / recall.KEYS, atol=0.015)
    np.testing.assert_allclose(np.bincount(asked) / NUMBER, 1 / pairs, atol=0.03)


def test_marks_are_uniform_among_distant_places():
    first, gaps = [], []
    for index in range(NUMBER):
        tokens, _ = order.example(0, index, LENGTH)
        marks = sorted((tokens.index(order.A), tokens.index(order.B)))
        gaps.append((marks[1] - marks[0]) / len(tokens))
        first.append(marks[0] / len(tokens))
    assert min(gaps) >= 0.25
    assert min(first) > 0  # the first token is noise
    # The place of the first mark has the density 2 (3/4 - x) / (3/4)² between 0 and 3/4, but for 1 / n.
    assert np.mean(first) == pytest.approx(1 / 4, abs=0.03)
    assert np.mean(gaps) == pytest.approx(1 / 2, abs=0.02)


def rows(module, *texts):
    examples = (tokens_of(module, text) for text in texts)
    return [{"tokens": np.array(tokens), "label": module.answer(tokens)} for tokens in examples]


def test_references_of_recall_by_hand():
    train = rows(recall, "1? 1=3", "2? 2=3", "1? 1=4")
    test = rows(recall, "2? 1=4 a 2=3", "2? a 2=4 b 5=3", "7? 5=0 6=1 7=3 8=2", "5? 5=6 6=5 7=4 8=7")
    assert recall.references(train, test) == {
        "chance": 50.0,
        "majority class": 50.0,  # 3
        "any value of the sequence": 37.5,  # 1/2, 1/2, 1/4, 1/4
        "the value nearest to the query": 50.0,
    }


def test_references_of_order_by_hand():
    train = rows(order, "AaB", "AaB", "BbA", "BbA")
    test = rows(order, "AaaaB", "aaAaaB", "aaaAaB", "BbbbA")
    assert order.references(train, test) == {
        "chance": 50.0,
        "majority class": 75.0,  # A first
        "naive Bayes on tokens": 100.0,  # a for A first, b for B first
        "A in the first half comes first": 75.0,  # wrong for the third
    }


@pytest.mark.parametrize(
    ("task", "variant", "message"),
    [
        ("recall", "16", "length of at least 32 and 2 to 8 pairs; got 16 and 6"),
        ("recall", "64-9", "got 64 and 9"),
        ("recall", "64-4-4", "no recall variant '64-4-4'.*any LENGTH-PAIRS"),
        ("recall", "064", "no recall variant '064'. Did you mean '64'"),
        ("order", "31", "must be at least 32; got 31"),
        ("order", "64-4", "no order variant '64-4'.*any LENGTH"),
    ],
)
def test_sizes_that_no_example_has(tmp_path, task, variant, message):
    with pytest.raises(UsageError, match=message):
        prepare(task, tmp_path, variant=variant)
    assert not list(tmp_path.iterdir())


def test_any_size_is_a_variant(module):
    """A dataset of other sizes needs no entry in the list, and messages name the listed ones."""
    builder = module.TASK.builder_class()
    name, sizes = ("96-3", (96, 3)) if module is recall else ("96", (96,))
    config = builder.config_named(name)
    assert config is builder.get_builder_config(name)  # TFDS compares by identity
    assert (config.name, config.sizes) == (name, sizes)
    assert config.num_examples == module.TASK.num_examples
    assert builder.is_drawn(name)
    assert [config.name for config in builder.BUILDER_CONFIGS] == ["64", "256", "1024", "smoke"]
    assert module.TASK.title(name) == f"{module.TASK.name}/{name}"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnostics")
    for name in MODULES:
        prepare(name, folder, variant="smoke")
    return folder


def test_datasets_are_verified(data_dir):
    findings = check(data_dir)
    assert [(finding.dataset, finding.problems) for finding in findings] == [
        (f"lra_{name}/smoke/1.0.0", []) for name in MODULES
    ]
    assert [finding.shares() for finding in findings] == ["12.5 to 12.5", "50.0 to 50.0"]


def test_a_run(module, data_dir, tmp_path):
    name = module.TASK.name
    report = compare(name, ["none"], preset(name, "smoke"), tmp_path, data_dir=data_dir)
    assert report.title == f"{name}/smoke"
    assert report.num_test == 64
    source = load(name, "test", data_dir, variant="smoke")
    assert report.baselines == pytest.approx(module.references(source, source) | report.baselines)
    assert not report.published


@pytest.mark.parametrize("name", MODULES)
def test_a_sequence_is_never_cut(data_dir, name):
    """A label without its query, or without a mark, would be noise."""
    dataset = open_dataset(name, "smoke", data_dir)
    dataset.check_length(64)
    dataset.check_length(100)
    with pytest.raises(UsageError, match=r"length must be at least 64, the longest sequence of .*; got 63\."):
        dataset.check_length(63)


def test_an_example_is_shown(module, data_dir, capsys):
    name = module.TASK.name
    show(name, variant="smoke", start=1, examples=1, data_dir=data_dir, console=Console(width=200))
    shown = capsys.readouterr().out
    example = load(name, "train", data_dir, variant="smoke")[1]
    assert f"#1  {'value 1' if module is recall else 'B first'}  {len(example['tokens'])} tokens" in shown
    assert module.render(example["tokens"]) in shown
