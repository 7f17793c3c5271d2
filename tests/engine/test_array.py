"""Array: promotion, numpy's manners, indexing."""

from __future__ import annotations

import numpy as np
import pytest

from core.engine import dtypes, ops
from core.engine.array import Array, array, as_array, promote
from core.engine.errors import ShapeError

X = np.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(("value", "dtype"), [
    (1.5, "f32"), (3, "i32"), (True, "bool"), ([1, 2], "i32"), (np.float64(2), "f64"), (np.arange(3), "i64"),
    (np.float32([1]), "f32"), (np.zeros((2, 2), np.uint8), "u8")])
def test_dtypes_of_values(value, dtype):
    made = as_array(value)
    assert made.dtype.short == dtype and made.shape == np.shape(value)
    np.testing.assert_array_equal(made.numpy(), value)


@pytest.mark.parametrize(("first", "second", "dtype"), [
    ("f32", 2.5, "f32"), ("f64", 2.5, "f64"), ("bf16", 2.5, "bf16"), ("bf16", 3, "bf16"), ("i32", 2.5, "f32"),
    ("i32", 3, "i32"), ("i8", 3, "i8"), ("bool", 3, "i32"), ("bool", 2.5, "f32"), ("bool", True, "bool")])
def test_python_numbers_adapt(first, second, dtype):
    assert [made.dtype.short for made in promote(as_array([1, 0], first), second)] == [dtype] * 2
    assert [made.dtype.short for made in promote(second, as_array([1, 0], first))] == [dtype] * 2


@pytest.mark.parametrize(("first", "second", "dtype"), [
    ("f32", "f64", "f64"), ("bf16", "f32", "f32"), ("i64", "bf16", "bf16"), ("i8", "i32", "i32"), ("bool", "u8", "u8"),
    ("i8", "u8", "i16"), ("u8", "i8", "i16"), ("u8", "i32", "i32"), ("u32", "i32", "i64"), ("i64", "u32", "i64")])
def test_arrays_are_promoted(first, second, dtype):
    assert {made.dtype.short for made in promote(as_array([1], first), as_array([1], second))} == {dtype}


def test_operators_are_numpys():
    a, b = as_array(X + 1), as_array(X[:, :1] + 2)
    for made, expected in (
            (a + b, X + 1 + X[:, :1] + 2), (3 - a, 2 - X), (a * 2, 2 * X + 2), (1 / a, 1 / (X + 1)), (-a, -X - 1),
            (a**2, (X + 1)**2), (a**0.5, (X + 1)**0.5), (2.0**b, 2.0**(X[:, :1] + 2)), (abs(-a), X + 1),
            (a < b, X[:, :1] + 1 > X), (a == b, X[:, :1] + 1 == X), (~(a >= 3), X < 2),
            ((a > 2) & (b != 3), (X > 1) & (X[:, :1] != 1)), ((a > 2) | (b <= 3), (X > 1) | (X[:, :1] <= 1)),
            (a @ b.reshape(2, 4, 1), (X + 1) @ (X[:, :1] + 2).reshape(2, 4, 1)),
            (X + a, 2 * X + 1), (X @ a[0].T, X @ (X[0] + 1).T)):
        assert isinstance(made, Array)
        np.testing.assert_allclose(made.numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize("key", [
    0, -1, np.s_[1:], np.s_[:, ::2], np.s_[..., 1], np.s_[..., None], np.s_[None, 1, :, -1], np.s_[0, 1, 2],
    np.s_[:, 5:], np.s_[:, 2:1], np.s_[:, -2:, 1:-1], np.s_[:, np.array([2, 0])], np.s_[..., np.array([[3, 0]])], ...,
    None, np.s_[:, [1, 1]]], ids=str)
def test_indexing_is_numpys(key):
    np.testing.assert_array_equal(as_array(X)[key].numpy(), X[key])


@pytest.mark.parametrize("key", [2, np.s_[0, 0, 0, 0], np.s_[::-1], np.s_[:, 3], np.s_[np.array([0]), np.array([0])],
                                 1.5, True, "a", np.s_[..., 0, ...]],
                         ids=str)
def test_impossible_indices(key):
    with pytest.raises(ShapeError, match="ShapeError in indexing"):
        as_array(X)[key]


def test_reductions_and_shapes():
    a = as_array(X)
    for made, expected in ((a.sum(), X.sum()), (a.mean((0, 2)), X.mean((0, 2))), (a.max(-1), X.max(-1)),
                           (a.min(1, keepdims=True), X.min(1, keepdims=True)), (a.T, X.T),
                           (a.reshape(4, -1), X.reshape(4, -1)),
                           (a.transpose(1, 0, 2), X.transpose(1, 0, 2)), (a.reshape((24,)), X.reshape(24))):
        np.testing.assert_allclose(made.numpy(), expected, rtol=1e-15)
    assert len(a) == 2 and a.size == 24 and a.ndim == 3


def test_scalars_become_python_numbers():
    assert float(as_array(1.5)) == 1.5 and int(as_array(3)) == 3 and as_array(1.5, "bf16").item() == 1.5
    assert bool(as_array(2.0) > 1) and not bool(as_array(False))
    with pytest.raises(TypeError, match="has no length"):
        len(as_array(1.0))


def test_array_copies_and_as_array_does_not():
    values = np.zeros(3)
    copied, shared = array(values), as_array(values)
    values[0] = 1
    assert copied.numpy()[0] == 0 and shared.numpy()[0] == 1
    for own in (np.array(shared), np.array(shared, np.float64), np.asarray(shared, copy=True)):
        own[0] = 2
    assert shared.numpy()[0] == 1 and np.asarray(shared) is shared.numpy()


def test_bfloat16_rounds_to_even():
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4e38, 1e-40, np.inf, -0.0, np.nan], np.float32)
    made = as_array(values, dtypes.bfloat16)
    np.testing.assert_array_equal(made.numpy()[:3], [1, 1 + 2**-6, -1])
    assert np.isinf(made.numpy()[3]) and np.isnan(made.numpy()[7]) and made.numpy()[5] == np.inf
    assert as_array(made.numpy(), dtypes.bfloat16).storage.tobytes() == made.storage.tobytes()


def test_unknown_dtypes():
    for value in (np.zeros(2, np.complex64), "text", np.zeros(2, np.float16)):
        with pytest.raises(TypeError, match="no dtype"):
            as_array(value)


def test_one_of_many_random_streams():
    from core.engine import random

    key = random.key(3)
    first, second = random.split(key)
    numbers = [random.uniform(k, (1000,)).numpy() for k in (key, first, second, random.fold_in(key, 1))]
    assert len({values.tobytes() for values in numbers}) == 4
    for values in numbers:
        assert values.min() >= 0 and values.max() < 1 and abs(values.mean() - 0.5) < 0.05
    noise = random.normal(key, (4000,)).numpy()
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.05
    assert sorted(random.permutation(key, 50)) == list(range(50))
    assert (ops.random_bits(key, shape=(8,)).numpy()[:5] == ops.random_bits(key, shape=(5,)).numpy()).all()


def test_integers_that_do_not_fit_are_refused():
    with pytest.raises(OverflowError, match="do not fit into i32"):
        as_array([1, 3_000_000_000])
    assert as_array(3_000_000_000, "i64").item() == 3_000_000_000 and as_array(-2**31).item() == -2**31


def test_rows_can_be_walked():
    assert [row.numpy().tolist() for row in as_array(X[0])] == X[0].tolist()


@pytest.mark.parametrize("function", [
    lambda x: x.sum(2), lambda x: ops.argmax(x, -3), lambda x: ops.concatenate([x, x], 2), lambda x: ops.expand(x, 3),
    lambda x: ops.stack([x, x], -4), lambda x: ops.moveaxis(x, 0, 2), lambda x: ops.take_along(x, x, 2)])
def test_axes_that_are_not_there_are_refused(function):
    with pytest.raises(ShapeError, match="axis lies in"):
        function(as_array(X[0]))


def test_axes_may_be_numpys_integers():
    assert as_array(X).sum(np.int64(-1)).shape == X.shape[:2]


def test_means_of_integers_do_not_wrap():
    assert ops.mean(np.full((4, 4), 200, np.uint8)).item() == 200.0


def test_indices_outside_take_nothing_from_their_neighbours():
    x = as_array(np.array([[1.0, 2.0], [3.0, 4.0]]))
    found = ops.take_along(x, as_array(np.array([[2, 1], [-1, 0]], np.int32)))
    assert found.numpy().tolist() == [[0.0, 2.0], [0.0, 3.0]]
    assert ops.one_hot(np.array([44], np.uint8), 301).numpy().nonzero()[1].tolist() == [44]


def test_bytes_of_either_sign_are_multiplied_exactly():
    ones, many = np.ones((1, 2), np.int8), np.full((2, 1), 200, np.uint8)
    for left, right in ((ones, many), (many.T, ones.T)):
        assert ops.matmul(left, right).item() == 400
