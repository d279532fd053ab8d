"""The oracle against itself, since every other test depends on it."""

import numpy as np
import pytest
from helpers import oracle


def test_bind_by_hand():
    assert oracle.bind(np.array([1.0, 2.0, 3.0]), np.array([10.0, 100.0, 1000.0])).tolist() == [
        10 + 2000 + 300,
        100 + 20 + 3000,
        1000 + 200 + 30,
    ]


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_the_inverse_solves_the_system(size):
    x = np.random.default_rng(size).normal(size=(3, size))
    np.testing.assert_allclose(
        oracle.bind(oracle.inverse(x), x), np.tile(oracle.impulse(size), (3, 1)), atol=1e-10
    )
    np.testing.assert_allclose(oracle.pseudo_inverse(x), oracle.inverse(x), rtol=1e-8)


def test_one_token_gets_all_the_weight():
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 5))
    out, weights = oracle.hrr_attention(q, k, v)
    assert weights.tolist() == [[1.0], [1.0]]
    np.testing.assert_array_equal(out, v)


@pytest.mark.parametrize("variant", [{}, {"inverse": "exact", "output": "unbound", "temperature": 0.5}])
def test_complex_steps_agree_with_central_differences(variant):
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(3, 2, 4, 2, 5))
    cotangents = rng.normal(size=(2, 4, 2, 5)), rng.normal(size=(2, 2, 4))
    mask = np.array([[True, True, False, True], [False, True, True, True]])

    def loss(x):
        out, weights = oracle.hrr_attention(*x, mask=mask, **variant)
        return np.sum(out * cotangents[0]) + np.sum(weights * cotangents[1])

    found = np.stack(oracle.gradients(*inputs, *cotangents, mask=mask, **variant))
    step = 1e-6
    for index in rng.choice(inputs.size, 40, replace=False):
        move = np.zeros(inputs.size)
        move[index] = step
        move = move.reshape(inputs.shape)
        slope = (loss(inputs + move) - loss(inputs - move)) / (2 * step)
        assert found.ravel()[index] == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("size", [2, 7, 8])
def test_jacobian_of_the_unitary_projection(size):
    x = np.random.default_rng(size).normal(size=size)
    _, jacobian = oracle.unitary_projection(x)
    for m, step in enumerate(1e-6 * np.eye(size)):
        difference = oracle.unitary_projection(x + step)[0] - oracle.unitary_projection(x - step)[0]
        np.testing.assert_allclose(jacobian[:, m], difference / 2e-6, atol=1e-7)
