"""Runs the tests that need eight devices; JAX is started with four for all other tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import arena


@pytest.mark.parametrize("name", ["eight_devices.py", "eight_devices_fft.py"])
def test_over_eight_devices(name):
    path = Path(__file__).with_name(name)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", os.fspath(path)],
        env=arena.environment(devices=8),
        cwd=path.parents[2],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
