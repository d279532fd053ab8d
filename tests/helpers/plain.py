"""Checks an environment of `pip install hrrformer` without extras: the layers run, the arena is absent.

python tests/helpers/plain.py    # with the Python of such an environment; `make check-wheel`
"""

import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions, requires
from pathlib import Path

import flax.linen
import jax
import jax.numpy as jnp
from flax import nnx

import hrrformer
import hrrformer.linen
import hrrformer.nnx


def names(requirements: list[str]) -> set[str]:
    """Returns the names of required distributions, normalized for comparison."""
    return {normalized(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pulled(name: str) -> set[str]:
    """Returns an installed distribution and all its dependencies without extras, recursively."""
    found, waiting = set(), {name}
    while waiting:
        name = waiting.pop()
        found.add(name)
        needed = [line for line in requires(name) or [] if "extra ==" not in line]
        waiting |= (names(needed) & installed) - found
    return found


installed = {normalized(distribution.name) for distribution in distributions()}
assert Path(hrrformer.__file__).is_relative_to(sysconfig.get_path("purelib")), hrrformer.__file__
extras = names([line for line in requires("hrrformer") or [] if "extra ==" in line])
flax_brings = pulled("jax") | pulled("flax") | pulled("jaxtyping")
assert len(extras - flax_brings) > 10, extras
assert not (extras - flax_brings) & installed, (extras - flax_brings) & installed

x = jnp.ones((2, 7, 32))
layer = hrrformer.nnx.HRRAttention(num_heads=4, in_features=32, rngs=nnx.Rngs(0))
assert layer(x).shape == x.shape
linen = hrrformer.linen.HRRAttention(num_heads=4)
assert linen.apply(linen.init(jax.random.key(0), x), x).shape == x.shape
plugged = flax.linen.MultiHeadDotProductAttention(num_heads=4, attention_fn=hrrformer.attention_fn)
assert plugged.apply(plugged.init(jax.random.key(0), x), x).shape == x.shape

lra = subprocess.run(
    [Path(sys.executable).with_name("lra"), "list"], capture_output=True, text=True, check=False
)
assert (lra.returncode, lra.stdout) == (2, ""), lra
assert "pip install 'hrrformer[lra]'" in lra.stderr, lra
print(f"hrrformer {hrrformer.__version__} alone works, and brings {', '.join(sorted(installed))}")
