"""ListOps: the evaluator by hand, the generator by its law, the readers by the files they are for."""

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lra_tasks.errors import UsageError
from lra_tasks.tasks import TASKS, get_task
from lra_tasks.tasks.listops import grammar
from lra_tasks.tasks.listops.grammar import evaluate, expression, parse, render
from lra_tasks.tasks.listops.release import read_rows
from lra_tasks.tasks.listops.task import references


@pytest.fixture(scope="module")
def drawn():
    return [expression(seed=0, index=index) for index in range(600)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("[MIN 4 2 9 ]", 2),
        ("[MAX 4 2 9 ]", 9),
        ("[MED 9 1 5 ]", 5),
        ("[MED 1 4 ]", 2),  # 2.5
        ("[MED 9 8 0 1 ]", 4),  # 4.5
        ("[MED 0 0 9 9 9 9 ]", 9),
        ("[SM 9 9 9 ]", 7),  # 27
        ("[SM 5 5 ]", 0),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[SM [MAX 3 4 ] [MIN 8 6 ] [MED 1 2 ] ]", 1),  # 4 + 6 + 1
        ("[MED [SM 1 2 ] [SM 9 9 ] [MAX 0 [MIN 7 5 ] ] 6 ]", 5),  # 3 8 5 6 → 5.5
        ("[MIN [MIN [MIN [MAX 6 8 ] 9 ] 9 ] [SM 9 9 ] ]", 8),
    ],
)
def test_worked_by_hand(text, value):
    assert evaluate(parse(text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( ( ( [MAX 3 ) 4 ) ] )", 4),
        ("( ( ( ( [MIN 6 ) 2 ) 8 ) ] )", 2),
        ("( ( ( [SM ( ( ( [MED 7 ) 2 ) ] ) ) 9 ) ] )", 3),  # 4 + 9
        ("( ( ( ( [MED ( ( ( [MAX 1 ) 8 ) ] ) ) 0 ) ( ( ( [MIN 5 ) 9 ) ] ) ) ] )", 5),  # 8 0 5
        ("(((([SM 1) (((([MAX 7) 9) 3) ])) 5) ])", 5),  # 1 + 9 + 5
    ],
)
def test_nangia_and_bowman_lines(text, value):
    assert evaluate(parse(text)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[MAX 1 2", "stops after token 3 with operators open: 1"),
        ("[MAX [MIN 1 2 ]", "stops after token 5 with operators open: 1"),
        ("]", "Token 1 is a closing bracket"),
        ("1 2", "ends before token 2"),
        ("[MAX 1 2 ] ]", "ends before token 5"),
        ("[SM 1 [MED ] ]", r"Token 4 closes \[MED, which has no argument"),
        ("[MAX 1 [FIRST 2 3 ] ]", r"'\[FIRST', symbol 3 of"),
        ("( ( ( [LAST 3 ) 4 ) ] )", r"'\[LAST', symbol 1 of"),
        ("[MAX 1 12 ]", "'12', symbol 3 of"),
        ("[MAX 1 <pad> ]", "'<pad>', symbol 3 of"),
        ("( ( [MAX 3 ) 4 ) ] )", "2 opening and 3 closing round"),
    ],
)
def test_malformed(text, message):
    with pytest.raises(UsageError, match=message):
        evaluate(parse(text))


@pytest.mark.parametrize("token", [0, 16, 255])
def test_malformed_token(token):
    with pytest.raises(UsageError, match=f"Token 3 has the id {token};"):
        evaluate([grammar.IDS["[MAX"], grammar.IDS["1"], token, grammar.CLOSE])


TREES = st.recursive(
    st.integers(0, 9),
    lambda inner: st.tuples(st.sampled_from(grammar.OPERATORS), st.lists(inner, min_size=1, max_size=6)),
    max_leaves=40,
)
RULES = {
    "[MIN": np.min,
    "[MAX": np.max,
    "[MED": lambda values: int(np.median(values)),
    "[SM": lambda values: np.sum(values) % 10,
}


def text_of(tree):
    return str(tree) if isinstance(tree, int) else " ".join([tree[0], *map(text_of, tree[1]), "]"])


def value_of(tree):
    return tree if isinstance(tree, int) else int(RULES[tree[0]]([value_of(child) for child in tree[1]]))


@given(TREES)
def test_agrees_with_the_tree(tree):
    text = text_of(tree)
    tokens = parse(text)
    assert render(tokens) == text
    assert evaluate(tokens) == value_of(tree)
    assert evaluate(np.frombuffer(tokens, np.uint8)) == value_of(tree)
    assert render(np.pad(np.frombuffer(tokens, np.uint8), (0, 3))) == text


def test_token_table():
    assert [render([token]) for token in range(1, 16)] == [*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]"]
    assert get_task("listops").vocab_size == 16


def test_golden_digest():
    """The same 200 expressions on every Python; the published data depend on it."""
    digest = hashlib.sha256()
    for tokens, label in (expression(seed=0, index=index) for index in range(200)):
        digest.update(tokens + bytes([label]))
    assert digest.hexdigest() == "344e883d80f16645c91adc2c89338abaee26550a177dc98a7d2223f71be562d3"


def test_pure_function_of_seed_and_index(drawn):
    assert [expression(0, index) for index in (599, 7, 300)] == [drawn[599], drawn[7], drawn[300]]
    assert expression(1, 7) != drawn[7]
    assert expression(0, 17) != expression(1, 7) != expression(11, 7)


def test_structure_of_generated_expressions(drawn):
    counts, depths = Counter(), Counter()
    for tokens, label in drawn:
        assert 500 < len(tokens) < 2000
        assert label == evaluate(tokens)
        open_arguments = []
        for token in tokens:
            if token == grammar.CLOSE:
                assert 2 <= open_arguments[-1] <= 10
                counts[open_arguments.pop()] += 1
                continue
            if open_arguments:
                open_arguments[-1] += 1
            if token >= grammar.FIRST_OPERATOR:
                open_arguments.append(0)
            else:
                assert grammar.ZERO <= token <= grammar.NINE
            depths[len(open_arguments)] += 1
    assert set(counts) == set(range(2, 11))  # operators of every number of arguments
    assert max(depths) == 9  # operators down to depth 9, their digits at depth 10
    assert set(b"".join(tokens for tokens, _ in drawn)) == set(range(1, 16))


def test_operators_and_digits_are_uniform(drawn):
    counts = Counter(b"".join(tokens for tokens, _ in drawn))
    for symbols in (grammar.OPERATORS, "0123456789"):
        share = np.array([counts[grammar.IDS[symbol]] for symbol in symbols])
        np.testing.assert_allclose(share / share.sum(), 1 / len(symbols), rtol=0.03)


def test_labels_and_lengths_are_distributed_as_in_the_arena(drawn):
    labels = np.bincount([label for _, label in drawn], minlength=10) / len(drawn)
    assert 0.12 < labels[0] < 0.22
    assert 0.12 < labels[9] < 0.22
    assert (labels[1:9] > 0.04).all()
    assert (labels[1:9] < 0.13).all()
    lengths = [len(tokens) for tokens, _ in drawn]
    assert 980 < np.mean(lengths) < 1100
    assert 900 < np.median(lengths) < 1020


def test_expressions_differ(drawn):
    assert len({tokens for tokens, _ in drawn}) == len(drawn)


def test_release_rows():
    rows = read_rows("basic_val.tsv", [(2, b"( ( ( [MAX 3 ) 4 ) ] )\t4\r\n"), (4, b'"[SM 9 9 ]"\t"8"')])
    assert list(rows) == [(parse("[MAX 3 4 ]"), 4), (parse("[SM 9 9 ]"), 8)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('"[SM 9 9 ]\t8', "basic_val.tsv, line 3: the quotes of the fields do not match: unexpected end"),
        ("[SM 9 9 ]\t7", "basic_val.tsv, line 3: the label is 7, the expression is 8"),
        ("[SM 9 9 ]", "basic_val.tsv, line 3: expected an expression, a tab and a digit"),
        ("[SM 9 9 ]\tx", "basic_val.tsv, line 3: expected an expression, a tab and a digit"),
        ("[SM 9 9\t8", "basic_val.tsv, line 3: .* stops after token 3"),
        ("[AVG 9 9 ]\t8", r"basic_val.tsv, line 3: '\[AVG', symbol 1"),
    ],
)
def test_release_rows_that_are_wrong(row, message):
    with pytest.raises(UsageError, match=message):
        list(read_rows("basic_val.tsv", [(2, b"[MAX 3 4 ]\t4"), (3, row.encode())]))


def test_references_by_hand():
    """Roots and own digits such that every line gets another score."""

    def examples(*rows):
        return [
            {"tokens": np.frombuffer(parse(text), np.uint8), "label": evaluate(parse(text))} for text in rows
        ]

    train = examples(
        "[MAX 1 2 ]", "[MAX 1 2 [MIN 2 2 ] ]", "[MAX 8 1 ]", "[MIN 3 2 ]", "[MIN 3 3 ]", "[MIN 3 3 9 ]"
    )
    test = examples("[MAX 0 2 ]", "[MAX 8 3 ]", "[MIN 3 4 ]", "[SM 1 1 ]")
    assert references(train, test) == {
        "chance": 10.0,
        "majority class": 50.0,  # 2, right for 2 8 3 2 twice
        "majority by root operator": 75.0,  # MAX 2, MIN 3, SM unseen: 2
        "majority by root operator and its own digits": 100.0,
    }


def test_tasks_by_name():
    task = get_task("listops")
    assert task.num_examples == {"train": 96_000, "validation": 2_000, "test": 2_000}
    assert TASKS["listops"] is task
    with pytest.raises(UsageError, match=r"no task 'listop'. Did you mean 'listops'"):
        get_task("listop")


def test_tasks_import_nothing_heavy():
    code = (
        "import sys, lra_tasks.tasks; "
        "heavy = {'numpy', 'jax', 'flax', 'grain', 'tensorflow_datasets', 'tensorflow'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
