"""Runs the tests of a source distribution against the installed wheel: `make test-wheel`.

python tests/helpers/installed.py SDIST [ARGUMENT OF PYTEST ...]
"""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

import hrrformer
import lra_tasks


def main(sdist: str, *arguments: str) -> int:
    """Unpacks the tests, replaces their packages by the installed ones, and returns pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (root,) = Path(folder).iterdir()
        for package in (hrrformer, lra_tasks):
            installed = Path(package.__path__[0]).resolve()
            assert installed.is_relative_to(Path(sysconfig.get_path("purelib")).resolve()), installed
            shutil.rmtree(root / installed.name)
            (root / installed.name).symlink_to(installed)
        return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=root, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
