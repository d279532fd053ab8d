"""Small source files in the layouts of the official archives, as folders or archives."""

import io
import random
import tarfile
from pathlib import Path, PurePath

import numpy as np

PIXELS = 1024


def imdb(train=160, test=40, seed=0):
    """Returns files in the layout of aclImdb_v1.tar.gz, name → content.

    `train` and `test` are the numbers of reviews per class. A review has about a hundred words, a few of them
    kind or unkind, and differs from all others.
    """
    draw = random.Random(seed)
    words = {"neg": ["dull", "awful", "worst"], "pos": ["fine", "moving", "best"]}
    stars = {"neg": (1, 4), "pos": (7, 10)}
    files = {
        "aclImdb/README": b"Large Movie Review Dataset v1.0\n",
        "aclImdb/imdb.vocab": b"the\nand\n",
        "aclImdb/train/labeledBow.feat": b"9 0:9\n",
        "aclImdb/train/unsup/0_0.txt": b"No one has rated this.",
    }
    for split, count in (("train", train), ("test", test)):
        for kind in ("neg", "pos"):
            for number in range(count):
                body = draw.choices(["the", "film", "is", "caf\xe9", "<br />"] + words[kind], k=60)
                body.insert(draw.randrange(60), f"{split}{kind}{number}")
                name = f"aclImdb/{split}/{kind}/{number}_{draw.randint(*stars[kind])}.txt"
                files[name] = " ".join(body).encode()
    return files


def cifar(train=7, test=7, seed=0):
    """Returns files in the layout of cifar-10-binary.tar.gz, name → content.

    `train` and `test` are the numbers of pictures per class and file. A picture is noise with a stripe; the
    place of the stripe depends on the class.
    """
    generator = np.random.default_rng(seed)
    files = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\nautomobile\n"}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        labels = generator.permutation(np.repeat(np.arange(10), test if name == "test_batch" else train))
        pixels = generator.integers(0, 128, (len(labels), 3, 32, 32))
        for picture, label in zip(pixels, labels, strict=True):
            picture[:, 3 * label : 3 * label + 3] += 100
        records = np.concatenate([labels[:, None], pixels.reshape(len(labels), -1)], axis=1)
        files[f"cifar-10-batches-bin/{name}.bin"] = records.astype(np.uint8).tobytes()
    return files


def with_added(files):
    """Returns files and those that macOS and Windows add beside and above them, name → content."""
    added = {}
    for name in files:
        path = PurePath(name)
        for beside in (".DS_Store", f"._{path.name}", "desktop.ini", "Thumbs.db"):
            added[str(path.with_name(beside))] = b"\x00\x05\x16\x07 of a system"
        added[f"__MACOSX/{name}"] = b"of macOS"
    return files | added


def as_folder(files, folder):
    """Writes files into a folder and returns the path of their top folder."""
    for name, content in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Path(folder, next(iter(files)).partition("/")[0])


def as_archive(files, path):
    """Writes files into a tar archive and returns its path.

    Args:
      files: Name → content, or pairs of name and content if a name occurs twice.
      path: Path of the archive; its suffix (.gz, .bz2, .xz, .tar) chooses the compression.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    compression = path.suffix.removeprefix(".").replace("tar", "")
    pairs = files.items() if isinstance(files, dict) else files
    with path.open("wb") as file, tarfile.open(fileobj=file, mode=f"w:{compression}") as archive:
        for name, content in pairs:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
