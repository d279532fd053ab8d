"""The `lra` command: help, exit codes, errors in one paragraph, and signs of life."""

import contextlib
import fcntl
import io
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import types
import typing
from pathlib import Path

import pytest
from helpers import arena
from rich.console import Console

import hrrformer
from lra_tasks import ModelConfig, Progress, Settings, UsageError, preset
from lra_tasks import progress as progress_module
from lra_tasks.cli import main
from lra_tasks.cli.arguments import prepare_help
from lra_tasks.cli.commands import COMMANDS
from lra_tasks.cli.console import print_table
from lra_tasks.progress import duration

ESCAPE = "\x1b"


def refused(*arguments, **options):
    """Runs a command that must be refused, and returns its one paragraph."""
    result = arena.lra(*arguments, **options)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert ESCAPE not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 20
    return result.stderr


@pytest.mark.parametrize("width", [50, 80])
@pytest.mark.parametrize(
    "arguments", [("--help",), ("-h",), ("help",), *((name, "--help") for name in COMMANDS)]
)
def test_help(arguments, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    with contextlib.suppress(SystemExit):
        main._parse(list(arguments))
    out, err = capsys.readouterr()
    assert err == ""
    assert "usage: lra" in out
    assert max(map(len, out.splitlines()[1:])) <= width  # tyro does not wrap the usage
    assert not re.search("None}|default: None|default: \\)", out)
    if len(arguments) == 1:
        assert all(name in out for name in COMMANDS)


def test_help_of_one_command(capsys):
    shown = []
    for arguments in (["help", "prepare"], ["prepare", "--help"]):
        with pytest.raises(SystemExit):
            main._parse(arguments)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "usage: lra prepare" in shown[0]
    with pytest.raises(UsageError, match=r"no command 'prepar'\. Did you mean 'prepare'"):
        main._parse(["help", "prepar"])


@pytest.mark.parametrize(
    "kind", [*(COMMANDS[name] for name in ("train", "prepare", "runs")), Settings, ModelConfig]
)
def test_help_texts_have_no_line_breaks(kind):
    """tyro would keep those of a docstring."""
    prepare_help(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    marks = [mark for hint in hints.values() for mark in getattr(hint, "__metadata__", ())]
    texts = [mark.help for mark in marks if getattr(mark, "help", None)]
    assert len(texts) > 2 or kind is COMMANDS["runs"]
    assert not any("\n" in text or "  " in text for text in texts)


def test_version(capsys):
    main._parse(["--version"])
    assert capsys.readouterr().out == f"lra, of hrrformer {hrrformer.__version__}\n"


def test_completion_in_bash(tmp_path):
    script = tmp_path / "lra.bash"
    made = arena.lra_apart("--tyro-print-completion", "bash")
    assert made.returncode == 0, made.stderr
    script.write_text(made.stdout)
    program = f"""
source {script}
complete_with=$(complete -p lra | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=(lra train --preset "")
COMP_CWORD=3
$complete_with
echo "${{COMPREPLY[*]}}"
"""
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "smoke quick cpu small arena paper\n"


def test_greeting():
    result = arena.lra_apart(env={"COLUMNS": "60"})
    assert (result.returncode, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 60
    commands = re.findall(r"^  lra (\w+)", result.stdout, re.MULTILINE)
    assert len(commands) == 3
    assert set(commands) <= set(COMMANDS)
    assert "lra --help" in result.stdout


@pytest.mark.parametrize(
    "arguments", [("list",), ("train", "--help"), ("train", "listops", "--num-steps", "x")]
)
@pytest.mark.parametrize("no_color", [False, True])
def test_colors_in_a_terminal(arguments, no_color):
    """A terminal shows them, unless NO_COLOR forbids it."""
    environment = {k: v for k, v in arena.environment().items() if k not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if no_color else {})
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(arena.command(*arguments), env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal so
        while piece := os.read(ours, 4096):
            text += piece
    os.close(ours)
    assert process.wait(timeout=60) in (0, 2)
    coloured = re.search(rb"\x1b\[[0-9;]*[349][0-7][;0-9]*m", text) is not None
    assert not (coloured and no_color)
    assert (ESCAPE.encode() in text) or no_color
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode())
    assert max(map(len, plain.splitlines())) <= 80


def test_list():
    result = arena.lra("list", env={"COLUMNS": "60"})
    assert result.returncode == 0, result.stderr
    for word in (
        "listops",
        "2,000",
        "nested",
        "recall",
        "order",
        "smoke",
        "quick",
        "paper",
        "hrr",
        "softmax",
        "none",
    ):
        assert word in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 60
    assert not any(line.endswith(" ") for line in result.stdout.splitlines())
    assert ESCAPE not in result.stdout


@pytest.mark.parametrize("numbers", [True, False])
def test_long_names_in_tables_are_not_cut(numbers, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "50")
    names = ["x" * 70, "/a/path/that/is/longer/than/the/terminal/and/has/no/blank/in/it"]
    print_table(("run", "state", "test, %"), [(name, "finished", "12.25") for name in names], numbers=numbers)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 50
    assert out.count("12.25") == out.count("finished") == 2
    for name in names:
        assert name in re.sub(r"(state|test, %|\s|run|finished|12\.25|─)+", "", out)


@pytest.mark.parametrize("width", [40, 50, 80])
def test_tables_fit_and_keep_numbers_whole(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    header = ("mixer", *(f"column {number}" for number in range(6)))
    rows = [(name, *(f"{1000 * column:,}.25" for column in range(6))) for name in ("hrr", "softmax", "none")]
    print_table(header, rows, numbers=True)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert not any(line.endswith(" ") for line in lines)
    for word in (*header, *rows[1]):
        assert any(word in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), ["'trian'", "'train'"]),
        (("compare", "listop"), ["no task 'listop'", "'listops'"]),
        (("train", "listop", "--seed", "1"), ["no task 'listop'", "'listops'"]),
        (("prepare", "listop"), ["no task 'listop'", "'listops'"]),
        (("prepare", "listops", "--variant", "smok"), ["'smok'", "'smoke'"]),
        (("compare", "listops", "--preset", "quik"), ["quik", "quick"]),
        (("train", "listops", "--preset=quik"), ["quik", "quick"]),
        (("compare", "listops", "--mixers", "hrr", "softmx"), ["no mixer 'softmx'", "'softmax'"]),
        (("train", "listops", "--mixer", "hr"), ["no mixer 'hr'", "'hrr'"]),
        (("train", "listops", "--model.widht", "8"), ["--model.widht", "--model.width"]),
        (("train", "listops", "--num-stps", "8"), ["--num-stps", "Did you mean --num-steps?"]),
        (("train", "listops", "--dataset=smoke"), ["--dataset", "Did you mean --variant?"]),
        (("prepare", "listops", "--config", "smoke"), ["--config", "Did you mean --variant?"]),
        (("compare", "listops", "--mixer", "hrr"), ["--mixer.", "Did you mean --mixers?"]),
        (("train", "listops", "--mixers", "hrr"), ["--mixers.", "Did you mean --mixer?"]),
        (("compare", "listops", "--out-dir", "x"), ["--out-dir", "Did you mean --run-dir?"]),
        (("bench", "train", "--lenghts", "8"), ["--lenghts", "Did you mean --lengths?"]),
        (("bench",), ["requires", "attention"]),
        (("train", "listops", "--num-steps", "many"), ["--num-steps", "many"]),
        (("train", "listops", "--model.num-heads", "3", "--model.width", "8"), ["divisor", "8", "3"]),
        (("train", "listops", "--num-steps", "0"), ["--num-steps", "at least 1", "0"]),
        (("train", "listops", "--seed", "-1"), ["--seed", "-1"]),
        (("train", "--variant", "image", "bytes"), ["bytes is not prepared", "bytes --variant image"]),
        (("train",), ["task"]),
        (("compare", "listops", "--mixers"), ["mixer"]),
        (("evaluate", "nowhere"), ["nowhere", "lra train"]),
        (("evaluate", "nowhere", "--split", "tests"), ["tests", "test"]),
        (("report", "nowhere"), ["There is no folder", "nowhere"]),
    ],
)
def test_what_is_refused(arguments, words, smoke_data, tmp_path):
    error = refused(*arguments, env={"TFDS_DATA_DIR": str(smoke_data)}, cwd=tmp_path)
    for word in words:
        assert word in error
    assert list(tmp_path.iterdir()) == []


def test_damaged_dataset(smoke_data, tmp_path):
    shutil.copytree(smoke_data, tmp_path / "data")
    folder = tmp_path / "data" / "lra_listops" / "smoke" / "1.0.0"
    file = next(folder.glob("*test*"))
    os.truncate(file, 100)
    error = refused("train", "listops", "--preset", "smoke", "--data-dir", "data", cwd=tmp_path)
    for word in (
        "data/lra_listops/smoke/1.0.0",
        file.name,
        "`lra prepare listops --overwrite --variant smoke",
    ):
        assert word in error
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_train_and_evaluate(smoke_data, tmp_path):
    arguments = ("train", "listops", "--preset", "smoke", "--mixer", "none", "--num-steps", "3")
    env = {"TFDS_DATA_DIR": str(smoke_data)}
    result = arena.lra(*arguments, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    (accuracy,) = re.findall(
        r"^runs/listops-smoke-num_steps=3/none-seed0: test accuracy (\S+) %", result.stdout
    )
    assert ESCAPE not in result.stdout + result.stderr
    again = arena.lra(*arguments, cwd=tmp_path, env=env)
    assert again.stdout == result.stdout
    result = arena.lra("evaluate", "runs/listops-smoke-num_steps=3/none-seed0", cwd=tmp_path, env=env)
    assert f"test: accuracy {accuracy} %" in result.stdout
    assert "256 examples" in result.stdout
    folder = ("--run-dir", "runs/listops-smoke-num_steps=3/none-seed0")
    error = refused(*arguments, "--model.width", "32", *folder, cwd=tmp_path, env=env)
    assert "model.width: 16, 32" in error


def test_a_mixer_in_the_current_directory(smoke_data, tmp_path):
    """As the README has it; the console script's own folder is what Python looks in, not this one."""
    (tmp_path / "mine.py").write_text(
        "from flax import nnx\n"
        "class Identity(nnx.Module):\n"
        "    def __init__(self, spec, *, rngs): pass\n"
        "    def __call__(self, x, mask, *, deterministic, rngs): return x\n"
    )
    lra = Path(sys.executable).with_name("lra")
    result = subprocess.run(
        [lra, "train", "listops", "--preset", "smoke", "--mixer", "mine:Identity", "--num-steps", "1"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TFDS_DATA_DIR": str(smoke_data)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "listops-smoke-num_steps=1" / "mine.Identity-seed0" / "summary.json").exists()


@pytest.mark.parametrize("arguments", ["", "list", "train listops --help"])
def test_a_reader_that_leaves(arguments):
    script = f"{' '.join(arena.command())} {arguments} | head -1"
    result = subprocess.run(
        ["bash", "-c", script], env=arena.environment(), capture_output=True, text=True, check=False
    )
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_piped_comparison(smoke_race):
    out, err = (smoke_race / "stdout").read_text(), (smoke_race / "stderr").read_text()
    assert ESCAPE not in out + err
    assert max(map(len, out.splitlines())) <= 120
    assert "hrr" in out
    assert "validation accuracy" in err
    assert len(err.splitlines()) < 60


# Signs of life


@pytest.fixture
def clock(monkeypatch):
    """The time of progress lines, which a test moves; the machine's own may stand still for seconds."""
    now = [0.0]
    monkeypatch.setattr(progress_module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_heartbeat_while_nothing_is_said(clock):
    """A thread prints the line and the time it has taken, without a call."""
    out = io.StringIO()
    with Progress(interval=2, console=Console(file=out, width=60)) as shown:
        shown.show("compiling")
        clock[0] = 3.0
        deadline = time.monotonic() + 30
        while out.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert out.getvalue().splitlines() == ["compiling", "compiling  3 s"]


def test_rate_and_time_left(clock):
    out = io.StringIO()
    shown = Progress(interval=5, console=Console(file=out, width=60))
    for second in range(6):
        clock[0] = float(second)
        shown.show("training", 1000 + 20 * second, 1100 + 20 * 3600 * 3, "loss 1.234")
    # The rate is of this session, not counted from 0.
    assert out.getvalue().splitlines() == [
        "training  1,000/217,100  loss 1.234",
        "training  1,100/217,100  loss 1.234  20/s  3 h 00 min left",
    ]


def test_lines_are_not_more_than_asked_for():
    out = io.StringIO()
    with Progress(interval=30, console=Console(file=out, width=60)) as progress:
        for done in range(500):
            progress.show("training", done, 500)
        progress.say("a line for good [with brackets]")
    assert out.getvalue().splitlines() == ["training  0/500", "a line for good [with brackets]"]


@pytest.mark.parametrize("width", [40, 100])
def test_bar_in_a_terminal(width):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True)
    with Progress(console=console) as progress:
        progress.show("listops softmax seed 0: checking the data")
        for done in range(5):
            progress.show("listops softmax seed 0: training", done, 5, "loss 2.345")
            time.sleep(0.3)
        progress.say("listops softmax seed 0: step 5")
    text = out.getvalue()
    assert ESCAPE in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert max(len(line) for line in re.split(r"[\r\n]", plain)) <= width
    assert "listops softmax" in plain
    assert "step 5" in plain
    assert "4/5" in plain
    assert ("seed 0: training" in plain) == (width == 100)  # the name gives way before the numbers
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again


def test_no_bar_while_the_total_is_unknown():
    out = io.StringIO()
    with Progress(console=Console(file=out, width=80, force_terminal=True)) as progress:
        progress.show("compiling")
        time.sleep(0.3)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "compiling" in plain
    assert "?" not in plain
    assert "━" not in plain


def test_no_color(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    with Progress(console=Console(file=out, width=80, force_terminal=True)) as progress:
        progress.show("training", 1, 5)
        time.sleep(0.3)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][;0-9]*m", out.getvalue())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0.2 s"),
        (0.94, "0.9 s"),
        (0.97, "1 s"),
        (3.7, "4 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (11520, "3 h 12 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended_before_there_is_anything_to_save(smoke_data, tmp_path, number, code):
    """Python must not tear itself down under XLA's compiling threads: it would crash."""
    run_dir = tmp_path / "run"
    flags = ("--preset", "smoke", "--data-dir", smoke_data, "--run-dir", run_dir)
    process = subprocess.Popen(
        arena.command("train", "listops", *flags),
        env=arena.environment() | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "checking the data" in process.stderr.readline()
    time.sleep(1.0)  # it compiles for longer
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "lra: stopped" in stderr
    assert "Traceback" not in stderr
    assert not run_dir.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_the_garbage_collector_drops_ends_it_nevertheless(number, code):
    """JAX has the collector call a Python function; what a signal raises in there goes nowhere."""
    program = f"""
import gc, os, time
from lra_tasks.cli.exit_codes import exit_codes

def callback(phase, info):
    gc.callbacks.clear()
    os.kill(os.getpid(), {int(number)})
    time.sleep(0.01)

with exit_codes():
    gc.callbacks[:] = [callback]
    gc.collect()
    print("dropped", flush=True)
    time.sleep(60)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=arena.environment(), capture_output=True, text=True, timeout=30
    )
    assert result.stdout == "dropped\n"
    assert result.returncode == code
    assert result.stderr.startswith("lra: stopped")


def test_a_signal_that_is_dropped_at_the_end_says_nothing():
    program = f"""
import gc, os, time
from lra_tasks.cli.exit_codes import exit_codes

def callback(phase, info):
    gc.callbacks.clear()
    os.kill(os.getpid(), {int(signal.SIGINT)})
    time.sleep(0.01)

with exit_codes():
    gc.callbacks[:] = [callback]
    gc.collect()
time.sleep(0.3)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=arena.environment(), capture_output=True, text=True, timeout=30
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("switch", ["--tensorboard", "--no-tensorboard", "--tensorboard=True"])
def test_a_task_after_a_switch_has_its_own_settings(command, switch):
    """Not those of the task that stands in for one that is not named."""
    words = [switch, "text", *(["--mixer", "none"] if command == "train" else [])]
    if "=" in switch:
        with contextlib.redirect_stderr(io.StringIO()), pytest.raises(SystemExit):
            main._parse([command, *words])  # tyro has no such form: it says so, and trains nothing
    else:
        assert main._parse([command, *words]).settings == preset("text", "quick")


def test_what_else_cannot_be_raised_is_still_told():
    program = """
from lra_tasks.cli.exit_codes import exit_codes

class Careless:
    def __del__(self):
        raise ValueError("of old")

with exit_codes():
    Careless()
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=arena.environment(), capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 0
    assert "ValueError: of old" in result.stderr
