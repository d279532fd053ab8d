"""Masks that Flax makes: padding masks are accepted; other masks are refused with advice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hrrformer.linen
import hrrformer.nnx
from hrrformer import hrr_attention

B, T, N, H = 3, 5, 2, 4
VALID = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]], bool)
ADVICE = (
    r"For padding give the \(B, T\) mask itself, `tokens != 0`; for causal attention is_causal=True and no"
    " mask; for padding and causal both `mask=` and `is_causal=True`"
)

pytestmark = pytest.mark.usefixtures("untyped")


def attend(mask, batch=(B,), **options):
    q, k, v = jax.random.normal(jax.random.key(0), (3, *batch, T, N, H))
    return hrr_attention(q, k, v, mask=mask, **options)


def refused(mask, message, batch=(B,)):
    with pytest.raises(ValueError, match=rf"mask must be a key-padding mask of shape .*{message}.*{ADVICE}"):
        attend(mask, batch)


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.float32, jnp.bfloat16, jnp.int32])
@pytest.mark.parametrize("library", [nn, nnx])
def test_padding_masks_of_flax(library, dtype):
    for queries in (VALID, np.ones_like(VALID)):
        mask = library.make_attention_mask(queries, VALID, dtype=dtype)
        assert mask.shape == (B, 1, T, T)
        for given in (mask, np.asarray(mask), library.combine_masks(mask, mask, dtype=dtype)):
            np.testing.assert_array_equal(attend(given), attend(jnp.asarray(VALID)))


def test_padding_masks_of_one_sequence_and_of_more_axes():
    np.testing.assert_array_equal(
        attend(nn.make_attention_mask(VALID[1:2], VALID[1:2])), attend(jnp.asarray(VALID[1:2]))
    )
    np.testing.assert_array_equal(
        attend(nn.make_attention_mask(VALID[1], VALID[1]), ()), attend(jnp.asarray(VALID[1]), ())
    )
    long = nn.make_attention_mask(VALID[:, None], VALID[:, None])
    np.testing.assert_array_equal(attend(long, (B, 1)), attend(jnp.asarray(VALID[:, None]), (B, 1)))


def test_other_masks_of_flax_are_refused():
    causal = nn.make_causal_mask(VALID)
    padding = nn.make_attention_mask(VALID, VALID)
    given = rf"got \({B}, 1, {T}, {T}\)\."
    refused(causal, given)
    refused(nn.combine_masks(causal, padding), given)
    refused(padding.at[0, 0, 1, 2].set(0.0), given)
    refused(padding.at[1, 0, 0, 0].set(1.0), given)  # a padded query that attends to a key
    refused(padding - 1e9, given)  # a bias


def test_a_traced_mask_of_pairs_is_refused():
    with pytest.raises(
        ValueError, match=rf"got \({B}, 1, {T}, {T}\) without known values \(traced.*{ADVICE}"
    ):
        jax.jit(attend)(nn.make_attention_mask(VALID, VALID))


def test_a_square_causal_mask_is_not_padding():
    tri = jnp.tri(T, dtype=bool)
    for mask in (tri, jnp.tri(T)):
        refused(mask, rf"got \({T}, {T}\) with the values of a causal mask", (T,))
    refused(tri, rf"got \({T}, {T}\)\.")
    lengths = attend(tri[:, None, None, :], (T,))  # the same numbers, as padding of lengths 1 to T
    assert lengths.shape == (T, T, N, H)
    np.testing.assert_array_equal(attend(tri.at[0, 1].set(True), (T,))[2:], lengths[2:])
    one = jnp.ones((1, 1, N, H))
    assert hrr_attention(one, one, one, mask=jnp.ones((1, 1), bool)).shape == one.shape


def test_lists_are_accepted():
    np.testing.assert_array_equal(attend(VALID.tolist()), attend(jnp.asarray(VALID)))
    with pytest.raises(TypeError, match=r"mask must be boolean.*got dtype int32"):
        attend(VALID.astype(int).tolist())
    refused([True, False], r"got \(2,\)")


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_layers_accept_masks_of_flax(api):
    x = jax.random.normal(jax.random.key(1), (B, T, 8))
    layer = hrrformer.nnx.HRRAttention(N, 8, rngs=nnx.Rngs(0))
    if api == "linen":
        linen = hrrformer.linen.HRRAttention(N)
        params = linen.init(jax.random.key(0), x)

        def layer(x, mask):
            return linen.apply(params, x, mask=mask)

    np.testing.assert_array_equal(
        layer(x, mask=nn.make_attention_mask(VALID, VALID)), layer(x, mask=jnp.asarray(VALID))
    )
    with pytest.raises(ValueError, match=ADVICE):
        layer(x, mask=nn.make_causal_mask(VALID))
