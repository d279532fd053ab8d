"""The variants of HRR attention: its static arguments, in one record from the layers to the loops."""

from typing import Literal, NamedTuple, TypeAlias

import jax

Inverse: TypeAlias = Literal["approximate", "exact"]
Output: TypeAlias = Literal["weighted", "unbound"]
Fast: TypeAlias = Literal["fft", "matmul", "pallas"]
Implementation: TypeAlias = Fast | Literal["reference"]
AxisName: TypeAlias = str | tuple[str, ...]


class Variant(NamedTuple):
    """The arguments of `hrrformer.hrr_attention` that are not arrays; its docstring explains each.

    Attributes:
      inverse: Inverse that unbinds.
      implementation: Implementation of the formulas; None until head size and platform decide.
      rescale: Weights of mean 1 instead of sum 1.
      output: Weighted values or unbound vectors.
      precision: Precision of the matrix products.
      axis_name: Mesh axes that share the sequence inside `jax.shard_map`.
    """

    inverse: Inverse = "approximate"
    implementation: Implementation | None = None
    rescale: bool = False
    output: Output = "weighted"
    precision: jax.lax.PrecisionLike = None
    axis_name: AxisName | None = None
