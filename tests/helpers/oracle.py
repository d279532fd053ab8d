"""HRR attention and memory in float64 NumPy, from its definitions: index sums and linear systems, no FFT.

All functions are analytic where they are smooth, and accept complex numbers. So `gradients` can use complex
steps, Im f(x + i h) / h, which have no difference error.
"""

import numpy as np

STEP = 1e-30


def bind(x, y):
    """Returns Σ_i x[i] · y[(j - i) mod H]."""
    size = x.shape[-1]
    j, i = np.indices((size, size))
    return np.einsum("...i,...ji->...j", x, y[..., (j - i) % size])


def involution(x):
    """Returns x[-j mod H]."""
    return x[..., -np.arange(x.shape[-1]) % x.shape[-1]]


def circulant(x):
    """Returns the matrix C with x ⊛ y = C y."""
    size = x.shape[-1]
    j, m = np.indices((size, size))
    return x[..., (j - m) % size]


def impulse(size):
    return np.eye(size)[0]


def inverse(x):
    """Returns the solution y of x ⊛ y = impulse."""
    return np.linalg.solve(circulant(x), np.broadcast_to(impulse(x.shape[-1])[:, None], (*x.shape, 1)))[
        ..., 0
    ]


def pseudo_inverse(x, tolerance=1e-6):
    """Returns the least-squares solution, without singular values below `tolerance` of the largest."""
    return np.linalg.pinv(circulant(x), rcond=tolerance)[..., 0]


def dft_matrix(size):
    """Returns the matrix W with W x = F(x), F(x)[k] = Σ_j x[j] exp(-2πi jk / H)."""
    return np.exp(-2j * np.pi * np.outer(np.arange(size), np.arange(size)) / size)


def unitary_projection(x, tolerance=1e-6):
    """Returns the vector with the spectrum F / |F|, and its Jacobian (H, H).

    The spectrum is 1 where |F| is below `tolerance` of the largest.
    """
    transform = dft_matrix(len(x))
    back = np.linalg.inv(transform)
    spectrum = transform @ x
    size = np.abs(spectrum)
    regular = size > tolerance * max(size.max(), 1e-300)
    size = np.where(regular, size, 1.0)
    phase = np.where(regular, spectrum / size, 1.0)
    turning = np.imag(np.conj(phase)[:, None] * transform) / size[:, None]  # d angle / d x
    return (back @ phase).real, (back @ (1j * (phase * regular)[:, None] * turning)).real


def cosine(x, y):
    """Returns ⟨x, y⟩ / (‖x‖ ‖y‖), and the constant 0 where x or y is 0."""
    singular = np.all(x.real == 0, axis=-1) | np.all(y.real == 0, axis=-1)
    squares = np.sum(x * x, axis=-1) * np.sum(y * y, axis=-1)
    return np.where(singular, 0.0, np.sum(x * y, axis=-1) / np.sqrt(np.where(singular, 1.0, squares)))


def _sums(x, axis, is_causal):
    """Returns for each index of an axis the sum up to it if `is_causal`, else the sum over all indices."""
    total, sums = 0.0, []
    for part in np.moveaxis(x, axis, 0):
        total = total + part
        sums.append(total)
    return np.moveaxis(np.stack(sums if is_causal else [total] * len(sums)), 0, axis)


def hrr_attention(
    query,
    key,
    value,
    mask=None,
    inverse="approximate",
    rescale=False,
    temperature=1.0,
    output="weighted",
    is_causal=False,
):
    """Returns output (..., T, N, H) and weights (..., N, T); the mask has shape (..., T)."""
    cue = {"approximate": involution, "exact": globals()["inverse"]}[inverse](query)
    mask = np.ones(query.shape[:-2], bool) if mask is None else np.broadcast_to(mask, query.shape[:-2])
    bound = bind(key, value)
    memory = _sums(np.where(mask[..., None, None], bound, 0.0), -3, is_causal)
    unbound = bind(cue, memory)
    scores = cosine(value, unbound) / temperature
    exponentials = np.where(mask[..., None], np.exp(scores - scores.real.max()), 0.0)
    total = _sums(exponentials, -2, is_causal)
    count = _sums(mask.astype(int), -1, is_causal)[..., None]
    weights = exponentials / np.where(count > 0, total, 1.0)
    if rescale:
        weights = weights * count
    if output == "weighted":
        out = weights[..., None] * value
    else:
        absent = np.all(unbound.real == 0, axis=-1, keepdims=True) | ~mask[..., None, None]
        mean_square = np.where(absent, 1.0, np.mean(unbound * unbound, axis=-1, keepdims=True))
        out = np.where(absent, 0.0, unbound / np.sqrt(mean_square))
    return out, np.swapaxes(weights, -1, -2)


def memory_kernel(rate, phase, gain, turn, lag, size):
    """Returns g (N, H) of a lag: gain exp(-rate |τ|) cos(phase |τ| + turn + 2π f j / H), summed over f."""
    f, j = np.arange(size // 2 + 1), np.arange(size)
    weight = np.where((f == 0) | (2 * f == size), 1.0, 2.0) / size
    angle = (phase * abs(lag) + turn)[..., None] + 2 * np.pi * np.outer(f, j) / size
    return np.sum((weight * gain * np.exp(-rate * abs(lag)))[..., None] * np.cos(angle), axis=-2)


def hrr_memory(query, key, value, rate, phase, gain, turn=None, mask=None):
    """Returns v̂ (..., T, N, H); rate, phase and gain (2, N, K), or (1, N, K) for a causal memory.

    The gain is real; `turn` is the argument of a complex one.
    """
    turn = np.zeros(np.shape(gain)) if turn is None else turn
    *batch, length, _, size = query.shape
    mask = np.ones((*batch, length), bool) if mask is None else mask
    pairs = np.where(mask[..., None, None], bind(key, value), 0.0)
    out = np.zeros(query.shape, np.result_type(query, key, value, rate, phase, gain))
    for t in range(length):
        for s in range(length):
            side = int(s > t)
            if side < len(rate):
                g = memory_kernel(rate[side], phase[side], gain[side], turn[side], t - s, size)
                out[..., t, :, :] += bind(involution(query[..., t, :, :]), bind(g, pairs[..., s, :, :]))
    return np.where(mask[..., None, None], out, 0.0)


def memory_gradients(cotangent, *arrays, mask=None):
    """Returns the gradients of ⟨v̂, cotangent⟩ in the arrays of `hrr_memory`, by one complex step each."""
    result = []
    for position, x in enumerate(arrays):
        gradient = np.zeros(x.shape)
        for index in np.ndindex(*x.shape):
            stepped = [np.asarray(y, np.complex128) for y in arrays]
            stepped[position][index] += 1j * STEP
            gradient[index] = np.sum(hrr_memory(*stepped, mask=mask).imag / STEP * cotangent)
        result.append(gradient)
    return result


def gradients(query, key, value, out_cotangent, weights_cotangent, **variant):
    """Returns the gradients of ⟨out, out_cotangent⟩ + ⟨weights, weights_cotangent⟩ in query, key and value.

    One complex step is taken per token and feature of each input, in all sequences and heads at once, since
    these are independent.
    """
    inputs = [np.asarray(x, np.complex128) for x in (query, key, value)]
    length, _, size = query.shape[-3:]
    result = []
    for position, x in enumerate(inputs):
        gradient = np.zeros(x.shape)
        for t in range(length):
            stepped = np.repeat(x[None], size, axis=0)
            for feature in range(size):
                stepped[feature, ..., t, :, feature] += 1j * STEP
            arguments = [np.broadcast_to(y, stepped.shape) for y in inputs]
            arguments[position] = stepped
            out, weights = hrr_attention(*arguments, **variant)
            slope = np.einsum("f...tnh,...tnh->f...n", out.imag / STEP, out_cotangent)
            slope = slope + np.einsum("f...nt,...nt->f...n", weights.imag / STEP, weights_cotangent)
            gradient[..., t, :, :] = np.moveaxis(slope, 0, -1)
        result.append(gradient)
    return result
