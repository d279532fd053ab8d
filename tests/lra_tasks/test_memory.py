"""Available memory: of the machine, a container or a batch job."""

import os

import pytest

from lra_tasks.training.memory import total_and_free

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
NAMES = {
    2: ("memory.max", "memory.current", ""),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


@pytest.fixture
def root(tmp_path):
    """Returns the root of a machine with 10,000 kB free."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 20000 kB\nMemFree: 1 kB\nMemAvailable: 10000 kB\n")
    return tmp_path


def be_in(root, path, version=2, others="1:cpu,cpuacct:/\n"):
    line = f"0::{path}\n" if version == 2 else f"4:memory:{path}\n0::{path}\n"
    (root / "proc/self/cgroup").write_text(others + line)


def hold(root, group, limit, used, files, version=2):
    folder = root / "sys/fs/cgroup" / ("" if version == 2 else "memory") / group
    folder.mkdir(parents=True, exist_ok=True)
    most, current, prefix = NAMES[version]
    (folder / most).write_text(f"{limit}\n")
    (folder / current).write_text(f"{used}\n")
    text = f"anon 5\n{prefix}active_file {files // 4}\n{prefix}inactive_file {files - files // 4}\nother 7\n"
    (folder / "memory.stat").write_text(text)


def test_memory_without_control_groups(root):
    assert total_and_free(root) == (MACHINE, 10_240_000)


def test_a_system_that_does_not_report_free_memory(tmp_path):
    assert total_and_free(tmp_path) == (MACHINE, None)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("path", ["/", "/docker/of/the/host", "/../sibling"])
def test_memory_in_a_container(root, version, path):
    """The container's root is its own group, whatever its path on the host."""
    be_in(root, path, version)
    hold(root, "", 8_000_000, 3_000_000, 1_000_000, version)
    assert total_and_free(root) == (8_000_000, 6_000_000)


@pytest.mark.parametrize("version", [1, 2])
def test_the_strictest_group_counts(root, version):
    be_in(root, "/slurm/job/step", version)
    hold(root, "slurm", 9_000_000, 8_500_000, 0, version)
    hold(root, "slurm/job", 4_000_000, 500_000, 100_000, version)
    hold(root, "slurm/job/step", "max" if version == 2 else 2**63 - 4096, 100_000, 0, version)
    hold(root, "slurm/other", 1, 1, 0, version)
    assert total_and_free(root) == (4_000_000, 500_000)


def test_a_sandbox_that_reports_less(root):
    be_in(root, "/", 1)
    hold(root, "", 8_000_000, 3_000_000, 1_000_000, 1)
    (root / "sys/fs/cgroup/memory/memory.stat").unlink()
    assert total_and_free(root) == (8_000_000, 5_000_000)
    (root / "sys/fs/cgroup/memory/memory.usage_in_bytes").unlink()
    assert total_and_free(root) == (MACHINE, 10_240_000)
    (root / "proc/meminfo").write_text("MemTotal: 20000 kB\n")
    assert total_and_free(root) == (MACHINE, None)


def test_a_group_above_its_limit_has_no_free_memory(root):
    be_in(root, "/")
    hold(root, "", 1_000_000, 1_500_000, 0)
    assert total_and_free(root) == (1_000_000, 0)


def test_a_machine_with_less_free_memory_than_its_group(root):
    be_in(root, "/")
    hold(root, "", 2**62, 0, 0)
    assert total_and_free(root) == (MACHINE, 10_240_000)


def test_memory_of_this_machine():
    total, free = total_and_free()
    assert 10**8 < total <= MACHINE
    assert free is None or 0 < free <= total
