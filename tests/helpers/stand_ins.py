"""Writes tiny stand-ins for the sources of Text, Image and Retrieval, in the layouts of the real ones.

python tests/helpers/stand_ins.py FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

from helpers import sources, sources_retrieval


def write(folder):
    """Fills a folder for `lra prepare all --variant smoke --unofficial --manual-dir FOLDER`."""
    sources.as_archive(sources.imdb(), folder / "aclImdb.tar.gz")
    sources.as_archive(sources.cifar(), folder / "cifar-10-binary.tar.gz")
    sources.as_archive(sources_retrieval.acl(), folder / "acl-pairs-raw.tar.gz")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    write(root)
