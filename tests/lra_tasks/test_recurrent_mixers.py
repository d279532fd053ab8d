"""Mixers with a convolution or a recurrence, and their operations, against their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import oracle
from scipy import signal, stats

from lra_tasks import UsageError
from lra_tasks.model import operations
from lra_tasks.model.mixers import MixerSpec, get_mixer, s4d

B, T = 3, 11
MASK = np.arange(T) < np.array([T, 7, 0])[:, None]
HOLES = np.array([[1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1], [0] * T], bool)


SPEC = MixerSpec(width=6, num_heads=2, qkv_features=8, length=T, dropout_rate=0.0, dtype=jnp.float32)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


# Operations


def test_parameters_of_recurrences_learn_slowly():
    value = normal(2, 3)
    param = operations.SlowParam(jnp.asarray(value))
    close(param(), value)
    gradient = nnx.grad(lambda param: param().sum())(param)["flat"][...]
    np.testing.assert_allclose(gradient, np.full(6, 0.1))  # one axis, which the optimizer does not decay


def convolved(x, kernel, mask):
    """Σ_s m_s κ_{t-s} x_s by its definition; the middle of the kernel (D, 2R + 1) is the offset 0."""
    y, reach = np.zeros(x.shape), kernel.shape[1] // 2
    for b, s in zip(*np.nonzero(mask), strict=True):
        for t in range(max(0, s - reach), min(x.shape[1], s + reach + 1)):
            y[b, t] += kernel[:, reach + t - s] * x[b, s]
    return y


@pytest.mark.parametrize("size", [1, 5, 2 * T - 1, 2 * T + 5])
def test_long_convolution(size):
    x, kernel = normal(B, T, 4), normal(4, size)
    close(jax.jit(operations.long_convolution)(x, kernel, HOLES), convolved(x, kernel, HOLES))
    shorter = operations.long_convolution(x[:, :8], kernel, HOLES[:, :8])
    close(shorter, convolved(x[:, :8], kernel, HOLES[:, :8]))


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_exponential_kernel(dtype, length):
    weight, log_base = (normal(2, 3, 4, 2)[..., i] for i in range(2))
    weight, log_base = weight + 0j, log_base[0] + 0j
    if dtype is complex:
        weight, log_base = weight + 1j * normal(2, 3, 4), -abs(log_base) + 1j * normal(3, 4)
    else:
        weight, log_base = weight.real, -abs(log_base)
    powers = np.exp(log_base[..., None] * np.arange(length))
    expected = np.einsum("kdm,dmt->kdt", weight, powers).real
    close(operations.exponential_kernel(weight, log_base, length), expected)


def decay_weights(log_decay, mask):
    """M (B, T, T, N) by its definition: products of the decays of the real tokens between s and t."""
    decay = np.where(mask[..., None], np.exp(np.broadcast_to(log_decay, (B, T, log_decay.shape[-1]))), 1.0)
    weights = np.empty((B, T, T, decay.shape[-1]))
    for t, s in np.ndindex(T, T):
        between = decay[:, s + 1 : t + 1] if s <= t else decay[:, t:s]
        weights[:, t, s] = np.prod(between, axis=1)
    return weights


@pytest.mark.parametrize(
    ("decay", "chunk"), [("none", 4), ("head", 4), ("token", 4), ("token", 64), ("strong", 1)]
)
def test_decayed_linear_attention(decay, chunk):
    query, key, value = normal(B, T, 2, 3), normal(B, T, 2, 3, seed=1), normal(B, T, 2, 4)
    log_decay = -np.abs({"head": normal(2), "strong": 300 * normal(B, T, 2)}.get(decay, normal(B, T, 2)))

    @jax.jit
    def attend(query, key, value, log_decay, mask):
        def total(*inputs):
            y = operations.decayed_linear_attention(*inputs, mask, chunk=chunk)
            return jnp.sum(jnp.where(mask[..., None, None], y, 0.0)), y

        inputs = query, key, value, None if decay == "none" else log_decay
        return jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True)(*inputs)

    for mask in (MASK, HOLES):
        weights = np.ones((B, T, T, 2)) if decay == "none" else decay_weights(log_decay, mask)
        scores = np.einsum("btnh,bsnh,bs->btsn", query, key, mask)
        (_, y), gradients = attend(query, key, value, log_decay, mask)
        close(y, np.einsum("btsn,btsn,bsnp->btnp", weights, scores, value))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
        close(gradients[2], np.einsum("btsn,btsn,bt->bsn", weights, scores, mask)[..., None] + 0 * value)


# Mixers


def double(param):
    """Returns a parameter in float64; those of recurrences are flat, and a tenth of their number counts."""
    if isinstance(param, operations.SlowParam):
        return 0.1 * double(param.flat).reshape(param.shape)
    return np.float64(param[...])


def gelu(x):
    return x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def s4d_by_recurrence(mixer, x, mask):
    eigenvalues = -np.exp(double(mixer.log_decay)) + 1j * double(mixer.frequency)
    readout = double(mixer.readout) @ np.array([1, 1j])
    y, x = double(mixer.skip) * x, x * mask[..., None]
    for d, step in enumerate(np.exp(double(mixer.log_step))):
        for m, eigenvalue in enumerate(eigenvalues):
            system = (np.array([[eigenvalue]]), np.eye(1), np.eye(1), np.zeros((1, 1)))
            a, b = (matrix.item() for matrix in signal.cont2discrete(system, step, "zoh")[:2])
            forward, backward = (
                signal.lfilter([2 * b], [1, -a], sequence, axis=1) for sequence in (x[:, :, d], x[:, ::-1, d])
            )
            y[:, :, d] += (readout[0, d, m] * forward).real
            y[:, :-1, d] += (readout[1, d, m] * backward[:, -2::-1]).real
    y = gelu(y) @ double(mixer.out.kernel)
    return y[..., :6] * sigmoid(y[..., 6:]) if mixer.gate else y


def heads(layer, x):
    return np.einsum("btd,dnh->btnh", x, double(layer.kernel))


def retention_by_weights(mixer, x, mask):
    def features(x):
        f = x * sigmoid(x) + 0.5
        return f / np.linalg.norm(f, axis=-1, keepdims=True)

    decay = double(mixer.decay)
    if mixer.selection is not None:
        decay = decay + x @ double(mixer.selection.kernel)
    weights = decay_weights(np.log(sigmoid(decay)), mask) * mask[:, None, :, None]
    query, key = features(heads(mixer.query, x)), features(heads(mixer.key, x))
    weights = weights * np.einsum("btnh,bsnh->btsn", query, key)
    weights = weights / np.maximum(weights.sum(2, keepdims=True), 1e-6)
    y = np.einsum("btsn,bsnh->btnh", weights, heads(mixer.value, x))
    return np.einsum("btnh,nhd->btd", y, double(mixer.out.kernel))


def mamba2_by_recurrence(mixer, x, mask):
    u = x @ double(mixer.mixed.kernel)
    u = convolved(u, double(mixer.kernel), mask) + double(mixer.bias)
    v, key, query = np.split(u * sigmoid(u), mixer.splits, axis=-1)
    v = v.reshape(B, T, 2, -1)
    step = np.logaddexp(0, x @ double(mixer.step.kernel) + double(mixer.step_bias))
    decay = np.where(mask[..., None], np.exp(-step * np.exp(double(mixer.log_rate))), 1)
    own = np.einsum("bt,btn,bts,btnp->btnsp", mask, step, key, v)

    def states(decay, own):
        """The states before each token, after a scan of all earlier ones."""
        state, found = np.zeros_like(own[:, 0]), []
        for t in range(T):
            found.append(state)
            state = decay[:, t, :, None, None] * state + own[:, t]
        return np.stack(found, axis=1)

    # The state before t in either direction has all decays but that of t, which counts too.
    both = states(decay, own) + states(decay[:, ::-1], own[:, ::-1])[:, ::-1]
    y = np.einsum("bts,btnsp->btnp", query, decay[..., None, None] * both + own)
    y = (y + double(mixer.skip)[:, None] * v).reshape(B, T, -1)
    z = x @ double(mixer.gate.kernel)
    y = y * z * sigmoid(z)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * double(mixer.norm.scale)
    return y @ double(mixer.out.kernel)


def mega_by_recurrence(mixer, x, mask):
    def silu(x):
        return x * sigmoid(x)

    p, a = sigmoid(double(mixer.damping)), sigmoid(double(mixer.decay))
    weight = p * double(mixer.expansion) * double(mixer.projection) / p.shape[-1] ** 0.5
    averaged, real = double(mixer.skip) * x, x * mask[..., None]
    for way, d, j in np.ndindex(p.shape):
        turn = slice(None, None, 1 - 2 * way)
        filtered = signal.lfilter([weight[way, d, j]], [1, p[way, d, j] * a[way, d, j] - 1], real[:, turn, d])
        averaged[:, :, d] += filtered[:, turn]
    averaged = silu(averaged)
    scale, bias, positions = map(double, (mixer.scale, mixer.bias, mixer.positions))
    shared, v = silu(averaged @ double(mixer.shared.kernel)), silu(x @ double(mixer.value.kernel))
    query, key = shared * scale[0] + bias[0], shared * scale[1] + bias[1]
    # Rotations of pairs are products of complex numbers; a bias depends on the offset alone.
    half = scale.shape[1] // 2
    left, right = positions[:, :half] + 1j * positions[:, half:]
    t = np.arange(T)
    turns = np.exp(1j * (t[:, None] - t)[..., None] * 10000.0 ** (-np.arange(half) / half))
    offsets = (turns * left * right.conj()).real.sum(-1)
    chunk = t // (mixer.chunk or T)
    seen = (chunk[:, None] == chunk) & mask[:, None]
    scores = query @ key.transpose(0, 2, 1)
    if mixer.laplace:
        scores = scores / np.maximum(seen.sum(-1, keepdims=True), 1) + offsets
        weights = stats.norm.cdf(scores, loc=0.5**0.5, scale=(4 * np.pi) ** -0.5) * seen
    else:
        weights = np.exp(scores / scale.shape[1] ** 0.5 + offsets) * seen
        weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    gated = silu(averaged @ double(mixer.reset.kernel)) * (weights @ v)
    candidate = silu(averaged @ double(mixer.candidate.kernel) + gated @ double(mixer.attended.kernel))
    return sigmoid(averaged @ double(mixer.update.kernel)) * (candidate - x)


def hgconv_by_index_sums(mixer, x, mask):
    bound = oracle.bind(x, double(mixer.role))
    kernel = double(mixer.kernel)
    kernel = kernel / np.linalg.norm(kernel, axis=1, keepdims=True)
    y = gelu(convolved(bound, kernel, mask) + double(mixer.skip) * bound)
    spectrum = np.fft.fft(double(mixer.cue))
    y = oracle.bind(y, oracle.involution(np.fft.ifft(spectrum / abs(spectrum)).real))
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = (y * double(mixer.norm.scale) + double(mixer.norm.bias)) @ double(mixer.out.kernel)
    return y[..., :6] * sigmoid(y[..., 6:])


ORACLES = {
    "s4d": s4d_by_recurrence,
    "s4d:gate=False,init=inv,state=4": s4d_by_recurrence,
    "retention": retention_by_weights,
    "retention:selective=True": retention_by_weights,
    "mamba2": mamba2_by_recurrence,
    "mega": mega_by_recurrence,
    "mega:laplace=True,chunk=4,modes=2": mega_by_recurrence,
    "hgconv": hgconv_by_index_sums,
}


@pytest.mark.parametrize("name", ORACLES)
def test_mixers_are_their_definitions(name):
    mixer = get_mixer(name)(SPEC, rngs=nnx.Rngs(0))
    for _, param in nnx.iter_graph(mixer):  # as after training: some begin as zeros or small
        if isinstance(param, nnx.Param):
            param[...] += 0.3 * normal(*param.shape).astype(np.float32)
    x = normal(B, T, SPEC.width).astype(np.float32)

    @nnx.jit
    def mix(mixer, x, mask):
        def total(mixer, x):
            y = mixer(x, mask, deterministic=True, rngs=None)
            return jnp.sum(jnp.where(mask[..., None], y, 0.0) ** 2), y

        return nnx.value_and_grad(total, argnums=(0, 1), has_aux=True)(mixer, x)

    for mask in (MASK, HOLES):
        (_, y), (gradients, of_x) = mix(mixer, x, mask)
        close(np.where(mask[..., None], y, 0), np.where(mask[..., None], ORACLES[name](mixer, x, mask), 0))
        gradients = jax.tree.leaves(nnx.state(gradients))
        assert all(np.isfinite(leaf).all() and leaf.any() for leaf in gradients)
        assert np.isfinite(of_x).all()
        assert not of_x[~mask].any()


def test_frequencies_of_s4d():
    n = np.arange(8)
    root = np.sqrt(2 * n + 1)
    legs = -np.tril(np.outer(root, root), -1) - np.diag(n + 1) + np.outer(root, root) / 2
    expected = np.sort(np.linalg.eigvals(legs).imag)[4:]
    np.testing.assert_allclose(s4d.frequencies("legs", 8), expected, rtol=1e-5)
    np.testing.assert_allclose(s4d.frequencies("lin", 4), [0, np.pi], rtol=1e-6)
    np.testing.assert_allclose(s4d.frequencies("inv", 4), [12 / np.pi, 4 / 3 / np.pi], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s4d:state=3", "state must be even and at least 2; got 3"),
        ("s4d:init=hippo", "needs Literal"),
        ("hgconv:taps=4", "taps must be odd and at least 1; got 4"),
        ("mega:chunk=0", "chunk must be at least 1; got 0"),
        ("mamba2:state=0", "state must be at least 1; got 0"),
    ],
)
def test_options_out_of_range_are_refused(name, message):
    with pytest.raises(UsageError, match=message):
        get_mixer(name)(SPEC, rngs=nnx.Rngs(0))
