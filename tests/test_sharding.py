"""Runs `eight_devices.py`: the other tests see four devices, which is the number JAX was started with."""

import os
import subprocess
import sys
from pathlib import Path

import arena


def test_attention_over_eight_devices():
    path = Path(__file__).with_name("eight_devices.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", os.fspath(path)],
        env=arena.environment(devices=8),
        cwd=path.parent.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
