"""Holographic (HRR) attention for JAX and Flax: linear in sequence length, exact under padding.

The function is `hrr_attention`; `hrrformer/reference.py` has its formulas in plain form. The layers are
`hrrformer.linen.HRRAttention` and `hrrformer.nnx.HRRAttention`; `attention_fn` plugs into Flax's own
multi-head attention. `hrr_memory` and the layers `HRRMemory` let tokens retrieve values of other tokens.
"""

from hrrformer.adapter import attention_fn
from hrrformer.algebra import (
    bind,
    cosine_similarity,
    hrr_normal,
    inverse,
    involution,
    unbind,
    unit,
    unitary_projection,
)
from hrrformer.attention import hrr_attention, hrr_attention_step
from hrrformer.causal import CausalState, init_causal_state
from hrrformer.memory import hrr_memory, hrr_memory_step, init_memory_state
from hrrformer.version import __version__

__all__ = [
    "CausalState",
    "__version__",
    "attention_fn",
    "bind",
    "cosine_similarity",
    "hrr_attention",
    "hrr_attention_step",
    "hrr_memory",
    "hrr_memory_step",
    "hrr_normal",
    "init_causal_state",
    "init_memory_state",
    "inverse",
    "involution",
    "unbind",
    "unit",
    "unitary_projection",
]
