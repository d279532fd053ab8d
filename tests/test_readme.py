"""The README keeps its promises: its Python runs, its tables are the measured ones, its tree is the tree."""

import re
from pathlib import Path

import pytest

from experiments.readme import filled
from lra_tasks.mixers import MixerSpec

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), {"__name__": f"readme_{number}"})


def test_own_mixer_mixes() -> None:
    import jax.numpy as jnp
    from flax import nnx

    names: dict = {}
    (source,) = (block for block in BLOCKS if "class MeanMixer" in block)
    exec(source, names)
    spec = MixerSpec(width=4, num_heads=1, qkv_features=4, length=3, dropout_rate=0.0, dtype=jnp.float32)
    mixer = names["MeanMixer"](spec, rngs=nnx.Rngs(0))
    x = jnp.arange(12.0).reshape(1, 3, 4)
    mask = jnp.array([[True, True, False]])
    y = mixer(x, mask, deterministic=True, rngs=None)
    assert y.shape == x.shape
    assert jnp.allclose(y[0, 0], mixer.out(x[0, :2].mean(0)), atol=1e-5)


def test_tables_are_the_measured_ones() -> None:
    assert filled(README) == README, "make readme"


def test_tree_names_files_that_exist() -> None:
    (tree,) = re.findall(r"```\n(hrrformer/.*?)```", README, re.DOTALL)
    folder, named = "", set()
    for line in tree.splitlines():
        if not line.startswith(" "):
            folder = line.split()[0]
            assert (ROOT / folder).is_dir()
            continue
        for name in re.findall(r"[a-z_]+(?:\.py|/)", line):
            assert (ROOT / folder / name).exists(), f"{folder}{name}"
            named.add(folder + name)
    modules = {
        f"{package}/{path.name}"
        for package in ("hrrformer", "lra_tasks")
        for path in (ROOT / package).glob("*.py")
    }
    assert not {m for m in modules if Path(m).name not in ("__init__.py", "version.py", "errors.py")} - named
