"""Completion: what the shells offer, asked of the shells themselves."""

import shlex
import shutil
import subprocess

import pytest
from helpers import arena

from lra_tasks.cli.bench import BENCHES
from lra_tasks.cli.commands import COMMANDS
from lra_tasks.cli.completion import script
from lra_tasks.model.mixers import MIXERS
from lra_tasks.presets import PRESETS
from lra_tasks.tasks import TASKS

MIXED = tuple(MIXERS)
CASES = [
    (("",), (*COMMANDS, "--help")),
    (("co",), ("compare", "completion")),
    (("train", "l"), ("listops",)),
    (("train", "--mixer", ""), MIXED),
    (("train", "listops", "--mixer", "s"), ("softmax",)),
    (("train", "listops", "--preset", ""), tuple(PRESETS)),
    (("train", "listops", "--model.po"), ("--model.positions", "--model.pooling")),
    (("train", "listops", "--model.pooling", ""), ("mean", "first", "cls")),
    (("train", "listops", "--num-steps", ""), ()),
    (("train", "--num-steps", "5", "i"), ("image",)),
    (("train", "--distributed", "i"), ("image",)),
    (("compare", "listops", "--mixers", "hrr", "no"), ("none",)),
    (("compare", "listops", "--mixers", "hrr", "--see"), ("--seeds",)),
    (("check", "listops", "te"), ("text",)),
    (("evaluate", "runs/a", "--split", "t"), ("train", "test")),
    (("evaluate", "fil"), ("files",)),
    (("show", "image", "--png", "fil"), ("files",)),
    (("bench", ""), (*BENCHES, "--help")),
    (("bench", "attention", "--dtype", "b"), ("bfloat16",)),
    (("bench", "attention", "--levels", "layer", "c"), ("core",)),
    (("bench", "data", "pathf"), ("pathfinder",)),
    (("completion", "f"), ("fish",)),
    (("nothing", ""), ()),
]

needs = {shell: pytest.mark.skipif(shutil.which(shell) is None, reason=shell) for shell in ("bash", "fish")}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    for shell in ("bash", "zsh", "fish"):
        (tmp_path / f"{shell}.lra").write_text(script(shell, COMMANDS, BENCHES))
    return tmp_path


def ask(*command, cwd):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@needs["bash"]
@pytest.mark.parametrize(("words", "offered"), CASES)
def test_bash(words, offered, folder):
    code = (
        f"source bash.lra; COMP_WORDS=(lra {shlex.join(words)}); COMP_CWORD={len(words)}; _lra;"
        ' [[ ${#COMPREPLY[@]} == 0 ]] || printf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = ask("bash", "--norc", "-c", code, cwd=folder)
    assert result.stderr == ""
    assert sorted(result.stdout.split()) == sorted(offered)


@needs["bash"]
def test_bash_offers_what_can_follow_a_command(folder):
    code = 'source bash.lra; COMP_WORDS=(lra train ""); COMP_CWORD=2; _lra; printf "%s\\n" "${COMPREPLY[@]}"'
    offered = ask("bash", "--norc", "-c", code, cwd=folder).stdout.split()
    assert {*TASKS, "--mixer", "--num-steps", "--model.width", "--optimizer.learning-rate"} <= set(offered)
    assert arena.lra("train", "--help").stdout.count("--model.") == sum(
        "--model." in word for word in offered
    )


@needs["bash"]
def test_bash_keeps_a_file_with_a_blank_whole(folder):
    (folder / "a b").touch()
    code = 'source bash.lra; COMP_WORDS=(lra report a); COMP_CWORD=2; _lra; printf "%s\\n" "${COMPREPLY[@]}"'
    assert ask("bash", "--norc", "-c", code, cwd=folder).stdout == "a b\n"


@needs["fish"]
@pytest.mark.parametrize(("words", "offered"), CASES)
def test_fish(words, offered, folder):
    result = ask(
        "fish", "--no-config", "-c", f"source fish.lra; complete -C 'lra {' '.join(words)}'", cwd=folder
    )
    assert result.stderr == ""
    found = [line.partition("\t")[0].removesuffix("/") for line in result.stdout.splitlines()]
    assert sorted(found) == sorted(offered)


def test_command_prints_the_script():
    for shell in ("bash", "zsh", "fish"):
        result = arena.lra("completion", shell)
        assert result.stdout == script(shell, COMMANDS, BENCHES)
    text = " ".join(arena.lra("completion", "--help", env={"COLUMNS": "80"}).stdout.split())
    assert 'eval "$(lra completion bash)"' in text
