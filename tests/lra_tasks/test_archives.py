"""Source files: found, downloaded, read without unpacking, and refused if they are damaged."""

import errno
import hashlib
import http.server
import io
import os
import random
import re
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
from helpers import sources

from lra_tasks.errors import MissingData, UsageError
from lra_tasks.files import locked
from lra_tasks.sources import archives
from lra_tasks.sources.archives import download, find, members

NOISE = random.Random(0).randbytes(10_000)
FILES = {"a/b.txt": b"b" * 1000, "a/c/d.bin": NOISE, "a/empty": b"", "a/z": b"z" * 512}
SUFFIXES = ["tar", "tar.gz", "tar.bz2", "tar.xz"]


def read(path):
    return {name: file.read() for name, file in members(path)}


# Finding


def test_sources_are_found(tmp_path):
    assert find(None, "*") is None
    assert find(tmp_path, "data", "data*.tar*") is None
    (tmp_path / "data_v1.tar.gz").touch()
    assert find(tmp_path, "data", "data*.tar*") == tmp_path / "data_v1.tar.gz"
    (tmp_path / "data").mkdir()
    assert find(tmp_path, "data", "data*.tar*") == tmp_path / "data"
    assert find(tmp_path, "other", "data*.tar*") == tmp_path / "data_v1.tar.gz"
    assert find(tmp_path, "data*") == tmp_path / "data"  # a folder has priority over archives


def test_the_folder_itself_is_found(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    assert find(tmp_path / "data", "data") == tmp_path / "data"
    monkeypatch.chdir(tmp_path / "data")
    assert find(Path(), "data") == tmp_path / "data"


def test_two_matches_are_refused(tmp_path):
    for name in ("data.tar.gz", "data (1).tar.gz"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"has data \(1\).tar.gz, data.tar.gz, expected one of them"):
        find(tmp_path, "data*.tar*")


# Reading


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_archives_of_every_compression(tmp_path, suffix):
    path = sources.as_archive(FILES, tmp_path / f"some.{suffix}")
    assert read(path) == FILES
    assert [name for name, _ in members(path)] == list(FILES)  # content is not read


def test_a_folder_is_read(tmp_path):
    top = sources.as_folder(FILES, tmp_path)
    assert read(top) == {name.removeprefix("a/"): content for name, content in FILES.items()}
    assert [name for name, _ in members(top)] == ["b.txt", "c/d.bin", "empty", "z"]


def test_lines_are_read(tmp_path):
    path = sources.as_archive({"table.tsv": b"1\t2\n3\t4\n"}, tmp_path / "some.tar.gz")
    assert [list(file) for _, file in members(path)] == [[b"1\t2\n", b"3\t4\n"]]


def test_names_and_kinds_of_members(tmp_path):
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        for name, kind in (
            ("./a", tarfile.DIRTYPE),
            ("./a/link", tarfile.SYMTYPE),
            ("./a/b", tarfile.REGTYPE),
            ("x" * 300, tarfile.REGTYPE),  # needs an extra header
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a/b"
            archive.addfile(member, io.BytesIO())
    assert read(tmp_path / "some.tar") == {"a/b": b"", "x" * 300: b""}


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_files_that_systems_add_are_left_out(tmp_path, kind):
    left_out = []
    files = sources.with_added(FILES)
    if kind == "folder":
        sources.as_folder(files, tmp_path / "some")
        (tmp_path / "some" / "a" / ".#lock").symlink_to("nowhere")  # of Emacs
        path = tmp_path / "some"
    else:
        path = sources.as_archive(files, tmp_path / "some.tar")
    read = {name: file.read() for name, file in members(path, lambda *found: left_out.append(found))}
    assert read == FILES
    assert {reason for reason, _ in left_out} == {"hidden or system files"}
    names = {name for _, name in left_out}
    assert {"a/.DS_Store", "a/._b.txt", "a/desktop.ini", "a/c/Thumbs.db"} < names
    assert "__MACOSX" in names or "__MACOSX/a/z" in names


def test_links_of_an_archive_are_counted(tmp_path):
    left_out = []
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        member = tarfile.TarInfo("a/link")
        member.type, member.linkname = tarfile.LNKTYPE, "a/b"
        archive.addfile(member)
    assert not list(members(tmp_path / "some.tar", lambda *found: left_out.append(found)))
    assert left_out == [("links and special files", "a/link")]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(folder))

    path = sources.as_folder(FILES, tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match=r"/a cannot be read: Permission denied"):
        read(path)


@pytest.mark.parametrize("place", ["", "one/", "one/two/three/"])
def test_named_files_are_found_below_a_folder_or_in_an_archive(tmp_path, place):
    files = sources.with_added({f"{place}b.txt": b"b", f"{place}z": b"z", f"{place}other": b""})
    sources.as_folder(files, tmp_path / "some")
    archive = sources.as_archive(files, tmp_path / "some.tar")
    assert archives.source(tmp_path / "some", ["z"], "*.tar") == tmp_path / "some"
    assert archives.source(tmp_path, ["none"], "*.tar") == archive
    for path in (tmp_path / "some", archive):
        reasons = {}
        leave_out = partial(lambda reasons, reason, name: reasons.update({name: reason}), reasons)
        found = archives.named(path, ["z", "b.txt"], "Get it.", leave_out)
        assert {name: file.read() for name, file in found} == {"z": b"z", "b.txt": b"b"}
        assert reasons[f"{place}.DS_Store"] == "hidden or system files"
        with pytest.raises(MissingData, match=rf"^none is missing in {path}\. Get it\."):
            list(archives.named(path, ["z", "none"], "Get it."))


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_two_files_of_one_name_are_refused(tmp_path, kind):
    write = sources.as_folder if kind == "folder" else sources.as_archive
    path = write({"some/z": b"", "some/copy/z": b""}, tmp_path / "files.tar")
    with pytest.raises(UsageError, match=r"two files z: .*z and .*copy/z\. Leave only the right one there\."):
        list(archives.named(path, ["z"], ""))


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up"])
def test_names_that_lead_outside_are_refused(tmp_path, name):
    path = sources.as_archive({"a": b"", name: b""}, tmp_path / "some.tar.gz")
    with pytest.raises(UsageError, match=f"some.tar.gz has a file named '{name}', which leads outside"):
        read(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path, suffix):
    whole = sources.as_archive(FILES, tmp_path / f"whole.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    # The end of a plain archive is padded; only its end marker is required.
    end = len(whole) if suffix != "tar" else len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for size in sorted({0, 1, 511, 512, 513, end - 1, *range(0, end, 97)} & set(range(end))):
        cut.write_bytes(whole[:size])
        with pytest.raises(UsageError, match=rf"cut.{suffix} cannot be read as a tar archive: .* get it"):
            read(cut)


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz"])
def test_a_flipped_bit_is_detected(tmp_path, suffix):
    path = sources.as_archive({"a": NOISE}, tmp_path / f"some.{suffix}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as a tar archive"):
        read(path)


def test_a_damaged_header_does_not_end_an_archive(tmp_path):
    path = sources.as_archive(FILES, tmp_path / "some.tar")
    content = bytearray(path.read_bytes())
    content[1536] ^= 1  # the second file's name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"some.tar cannot be read as a tar archive: bad checksum"):
        read(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "page.tar.gz").write_text("<html>404</html>")
    with pytest.raises(UsageError, match=r"page.tar.gz cannot be read .* another kind of file"):
        read(tmp_path / "page.tar.gz")
    with pytest.raises(UsageError, match="No such file"):
        read(tmp_path / "missing.tar.gz")


def test_an_archive_is_not_loaded_into_memory(tmp_path):
    path = sources.as_archive({"a": bytes(100_000_000)}, tmp_path / "some.tar.gz")
    code = """if True:
        import resource, sys
        from pathlib import Path
        from lra_tasks.sources.archives import members
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _, file in members(Path(sys.argv[1])):
            while file.read(1 << 16):
                pass
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    """
    subprocess.run([sys.executable, "-c", code, path], check=True)


def test_members_do_not_stay_in_memory(tmp_path):
    """The release has millions of members; a header needs some 500 bytes."""
    path = sources.as_archive({f"{i}": b"" for i in range(3_000)}, tmp_path / "some.tar")
    assert len(list(members(path))) == 3_000  # imports and caches
    tracemalloc.start()
    assert sum(1 for _ in members(path)) == 3_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300_000


def refusing(*arguments, **options):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_file_that_cannot_be_opened_is_named(tmp_path, unreadable, monkeypatch, kind):
    if kind == "folder":
        path = sources.as_folder(FILES, tmp_path)
        unreadable(path / "c" / "d.bin")
        message = "c/d.bin cannot be read: Permission denied. The dataset is made from this file"
    else:
        path = sources.as_archive(FILES, tmp_path / "some.tar.gz")
        monkeypatch.setattr(archives.TarFile, "open", refusing)
        message = "some.tar.gz cannot be read: Input/output error. The dataset is made from this file"
    with pytest.raises(UsageError, match=message):
        read(path)


def test_a_file_that_fails_in_the_middle_is_named(tmp_path, monkeypatch):
    class Failing(io.FileIO):
        read = refusing

    path = sources.as_folder(FILES, tmp_path)
    monkeypatch.setattr(Path, "open", lambda self, *arguments, **options: Failing(self))
    with pytest.raises(UsageError, match=r"b\.txt cannot be read: Input/output error"):
        read(path)


# Downloading


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends NOISE; the first part of the path chooses how."""

    def do_GET(self):
        how = self.path.split("/")[1]
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        self.server.starts.append(start)
        if how == "missing":
            return self.send_error(404)
        if how == "silent":
            return time.sleep(1)
        content = NOISE * 2 if how == "long" else NOISE[:4_000] if how == "short" else NOISE
        if how == "other":
            content = content[::-1]
        if how in ("norange", "stuck"):
            start = 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = {"cut": start + 3_000, "stuck": 3_000, "norange": 4_000 * len(self.server.starts)}.get(how)
        self.wfile.write(content[start:end])
        return None

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(archives, "BLOCK", 500)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.starts = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def get(url, folder, report=lambda done, total: None):
    return download(f"{url}/noise.bin", len(NOISE), hashlib.sha256(NOISE).hexdigest(), folder, report)


def left_over(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_download(server, tmp_path):
    calls = []
    path = get(f"{server.url}/whole", tmp_path / "new", lambda *call: calls.append(call))
    assert path == tmp_path / "new" / "noise.bin"
    assert path.read_bytes() == NOISE
    assert calls[-1] == (10_000, 10_000)
    assert left_over(tmp_path / "new") == ["noise.bin"]


def test_an_existing_file_is_used(server, tmp_path):
    (tmp_path / "noise.bin").write_bytes(NOISE)
    assert get(f"{server.url}/whole", tmp_path).read_bytes() == NOISE
    assert server.starts == []


@pytest.mark.parametrize("wrong", [b"", NOISE[::-1], NOISE[:-1]])
def test_a_wrong_file_is_replaced(server, tmp_path, wrong):
    (tmp_path / "noise.bin").write_bytes(wrong)
    assert get(f"{server.url}/whole", tmp_path).read_bytes() == NOISE


@pytest.mark.parametrize(("how", "starts"), [("cut", [0, 3000, 6000, 9000]), ("norange", [0, 4000, 8000])])
def test_a_download_resumes_after_a_lost_connection(server, tmp_path, how, starts):
    assert get(f"{server.url}/{how}", tmp_path).read_bytes() == NOISE
    assert server.starts == starts


def test_a_killed_download_resumes(server, tmp_path):
    (tmp_path / "noise.bin.part").write_bytes(NOISE[:7_000])
    assert get(f"{server.url}/whole", tmp_path).read_bytes() == NOISE
    assert server.starts == [7000]
    (tmp_path / "noise.bin").rename(tmp_path / "noise.bin.part")
    get(f"{server.url}/missing", tmp_path)
    assert left_over(tmp_path) == ["noise.bin"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "404 Client Error"),
        ("stuck", "bytes read, .* more expected"),
        ("silent", "timed out"),
    ],
)
def test_a_failed_download_is_reported(server, tmp_path, monkeypatch, how, reason):
    monkeypatch.setattr(archives, "PATIENCE", 0.2)
    with pytest.raises(MissingData) as caught:
        get(f"{server.url}/{how}", tmp_path)
    source = f"from {server.url}/{how}/noise.bin"
    for part in (r"noise.bin \(10,000 bytes\)", source, reason, "--manual-dir"):
        assert re.search(part, str(caught.value))
    assert "noise.bin" not in left_over(tmp_path)


def test_a_missing_server_is_reported(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(
        MissingData, match=r"could not be downloaded from .*Connection refused\. Get noise.bin by hand"
    ):
        get(f"{server.url}/whole", tmp_path)


@pytest.mark.parametrize(("how", "found"), [("other", "10,000"), ("short", "4,000"), ("long", "10,500")])
def test_another_file_is_refused(server, tmp_path, how, found):
    sentence = (
        f"gave {found} bytes with the SHA-256 [0-9a-f]{{64}}; expected 10,000 bytes with [0-9a-f]{{64}}"
    )
    with pytest.raises(MissingData, match=rf"{how}/noise.bin {sentence}. They were deleted"):
        get(f"{server.url}/{how}", tmp_path)
    assert left_over(tmp_path) == []


def test_a_second_download_at_once_is_refused(server, tmp_path):
    with locked(tmp_path / ".noise.bin.lock", ""), pytest.raises(UsageError, match="being downloaded by"):
        get(f"{server.url}/whole", tmp_path)


def test_a_full_disk_is_not_reported_as_a_missing_file(server, tmp_path):
    (tmp_path / "noise.bin.part").mkdir()
    with pytest.raises(IsADirectoryError):
        get(f"{server.url}/whole", tmp_path)
