"""Drawn datasets from shares of many machines: the bytes of one machine's, whatever happens to a part."""

import shutil
from collections import Counter

import pytest
from helpers import arena

from lra_tasks.data.prepare import prepare, prepare_part
from lra_tasks.sources import parts
from lra_tasks.sources.parts import Part
from lra_tasks.tasks.listops import grammar

PART = Part("part", 3, grammar.expressions, (0, 0, 3))


def silent(done):
    pass


@pytest.fixture
def calls(monkeypatch):
    """How often each part of ListOps was drawn, by its first number."""
    draw, counts = grammar.expressions, Counter()

    def counted(seed, start, stop):
        counts[start] += 1
        return draw(seed, start, stop)

    monkeypatch.setattr(grammar, "expressions", counted)
    return counts


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("task", "config"), [("listops", "smoke"), ("pathfinder", "smoke-32")])
def test_shares_of_many_machines_give_the_bytes_of_one(task, config, smoke_data, tmp_path):
    root = smoke_data if task == "listops" else tmp_path / "alone"
    alone = prepare(task, root, variant=config, num_workers=1)
    machines = [tmp_path / str(number) for number in (1, 2, 3)]
    shares = [
        prepare_part(task, (number, 3), machine, variant=config, num_workers=1)
        for number, machine in enumerate(machines, 1)
    ]
    names = [sorted(path.name for path in share.iterdir()) for share in shares]
    assert all(names)
    assert sum(map(len, names)) == len(set().union(*names))  # no part is made twice
    for share in shares[1:]:
        shutil.copytree(share, shares[0], dirs_exist_ok=True)
    joined = prepare(task, machines[0], variant=config, num_workers=1, progress=no_drawing)
    assert files(joined) == files(alone)
    assert sorted(path.name for path in joined.parents[1].iterdir()) == [f".{config}.lock", config]


def no_drawing(message, done, total):
    assert not message.startswith("drawing") or done == total, (
        f"{total - done} examples were not in the shares"
    )


def test_a_missing_share_is_drawn(tmp_path, calls):
    prepare_part("listops", (2, 3), tmp_path, variant="smoke", num_workers=1)
    assert calls == {1000: 1}
    prepare("listops", tmp_path, variant="smoke", num_workers=1)
    assert calls == {0: 1, 1000: 1, 2000: 1, 2256: 1}


def test_more_machines_than_parts(tmp_path, calls):
    for number in range(1, 8):
        prepare_part("listops", (number, 7), tmp_path, variant="smoke", num_workers=1)
    assert calls == {0: 1, 1000: 1, 2000: 1, 2256: 1}


def test_of_a_whole_dataset_no_share_is_drawn(smoke_data, calls):
    told = []
    folder = prepare_part(
        "listops", (1, 2), smoke_data, variant="smoke", progress=lambda *call: told.append(call)
    )
    assert folder == smoke_data / "lra_listops" / "smoke" / "1.0.0"
    assert told == [(f"listops is prepared in {folder}", 2512, 2512)]
    assert not calls
    assert not list(smoke_data.glob("lra_listops/.parts*"))


def test_the_command(smoke_data, tmp_path):
    arguments = ("prepare", "listops", "--variant", "smoke", "--data-dir", tmp_path)
    result = arena.lra(*arguments, "--shard", "1/2")
    assert result.returncode == 0, result
    folder, *words = result.stdout.splitlines()
    assert folder == str(tmp_path / "lra_listops" / ".parts-smoke-1.0.0")
    assert "share 1 of 2" in words[0]
    assert "without --shard" in words[1]
    prepare_part("listops", (2, 2), tmp_path, variant="smoke", num_workers=1)
    assert arena.lra(*arguments).returncode == 0
    made, wanted = (files(root / "lra_listops" / "smoke" / "1.0.0") for root in (tmp_path, smoke_data))
    assert made == wanted


def test_a_kill_costs_one_part(tmp_path, calls):
    """What was drawn before a preparation ended is there for the next one."""

    def stop(message, done, total):
        if message == "drawing listops" and done >= 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("listops", tmp_path, variant="smoke", num_workers=1, progress=stop)
    assert calls == {0: 1, 1000: 1}
    prepare("listops", tmp_path, variant="smoke", num_workers=1)
    assert calls == {0: 1, 1000: 1, 2000: 1, 2256: 1}


def test_a_damaged_part_is_made_again(smoke_data, tmp_path, calls):
    share = prepare_part("listops", (1, 1), tmp_path, variant="smoke", num_workers=1)
    flipped, cut, *_ = sorted(share.iterdir())
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:100])
    folder = prepare("listops", tmp_path, variant="smoke", num_workers=1)
    assert calls == {0: 2, 1000: 2, 2000: 1, 2256: 1}
    assert files(folder) == files(smoke_data / folder.relative_to(tmp_path))


def test_every_flipped_bit_is_noticed(tmp_path):
    parts.make([PART], tmp_path, num_workers=1, report=silent)
    (path,) = tmp_path.iterdir()
    wanted = [(tokens.tobytes(), label) for tokens, label in parts.draw(PART)]
    assert wanted == grammar.expressions(0, 0, 3)
    content = path.read_bytes()
    for position in [*range(0, len(content), 37), *range(len(content) - 100, len(content), 5)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        found = [(tokens.tobytes(), label) for tokens, label in parts.examples(PART, tmp_path)]
        assert found == wanted
        assert path.read_bytes() == content
    for size in (0, 5, len(content) - 1):
        path.write_bytes(content[:size])
        assert len(list(parts.examples(PART, tmp_path))) == 3
