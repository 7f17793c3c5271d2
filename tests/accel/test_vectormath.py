"""Scalar functions of kernels against float64 numpy and scipy, over all exponents; and that loops of them vectorise."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from numba import njit
from scipy import special

from core.accel.kernels import vectormath
from core.engine.jit import jit


def logistic(x):
    decay = np.exp(-np.abs(x))
    return np.where(x < 0, decay, 1) / (1 + decay)


UNARY = {"exp": np.exp, "log": np.log, "log1p": np.log1p, "tanh": np.tanh, "logistic": logistic,
         "erf": special.erf, "sin": np.sin, "sqrt": np.sqrt, "floor": np.floor, "round": np.round}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 88.7228, 88.723, -87.4, -103.9, -104.1, 1e-45, -1e-45,
           1e-38, -1e-38, 3.4028235e38, -3.4028235e38, 16777215.0, 16777216.0, -16777217.0, np.inf, -np.inf, np.nan]


@functools.cache
def loop(name):
    """A plain loop over one of the functions, compiled as kernels are."""
    function = getattr(vectormath, name)

    if name.startswith("pow"):
        def apply(x, y, out):
            for i in range(x.size):
                out[i] = function(x[i], y[i])
    else:
        def apply(x, out):
            for i in range(x.size):
                out[i] = function(x[i])

    return njit(fastmath={"contract", "nsz"}, error_model="numpy")(apply)


def computed(name, *operands):
    out = np.full(operands[0].shape, 123.25, operands[0].dtype)
    loop(name)(*operands, out)
    return out


def ulps(found, exact):
    """Distance to the exact value in units of the last place of its float32; 0 if both are the same special value."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(np.float32)
        unit = np.spacing(np.minimum(np.abs(rounded), np.finfo(np.float32).max))
        distance = np.abs(found - exact) / unit
    same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
    return np.where(same & ~np.isfinite(distance), 0, np.where(np.isnan(distance), np.inf, distance))


def every_exponent(count, seed=0):
    """`count` random significands for each sign and exponent of float32, subnormal and special ones included."""
    significands = np.random.default_rng(seed).integers(0, 1 << 23, (512, count), dtype=np.uint32)
    return ((np.arange(512, dtype=np.uint32) << 23)[:, None] | significands).ravel().view(np.float32)


@pytest.mark.parametrize("name", UNARY)
def test_f32_is_within_2_ulp_over_the_whole_range(name):
    dense = [np.linspace(-a, a, 400_001, dtype=np.float32) for a in (1.2, 12.0, 110.0, 1e5)]
    x = np.concatenate([every_exponent(1000), *dense, np.float32(SPECIAL)])
    with np.errstate(all="ignore"):
        exact = UNARY[name](x.astype(np.float64))
    distance = ulps(computed(f"{name}_f32", x), exact)
    worst = distance.argmax()
    print(f"{name}_f32: {distance[worst]:.3f} ulp at {x[worst]!r}")
    assert distance[worst] <= (0.5 if name in ("sqrt", "floor", "round") else 2)


def test_pow_f32_is_within_2_ulp():
    rng = np.random.default_rng(1)
    grid = np.meshgrid(np.float32(SPECIAL), np.float32([*SPECIAL, 2, 3, -2, -3, 0.3]))
    wild = every_exponent(600), rng.permutation(every_exponent(600, 2))
    bases, powers = every_exponent(600, 3), np.float32(rng.integers(-9, 10, 512 * 600))
    near = np.float32(rng.uniform(0, 3, 300_000)), np.float32(rng.uniform(-90, 90, 300_000))
    x, y = (np.concatenate(parts) for parts in zip((g.ravel() for g in grid), wild, (bases, powers), near, strict=True))
    with np.errstate(all="ignore"):
        distance = ulps(computed("pow_f32", x, y), np.power(x.astype(np.float64), y.astype(np.float64)))
    worst = distance.argmax()
    print(f"pow_f32: {distance[worst]:.3f} ulp at {x[worst]!r}, {y[worst]!r}")
    assert distance[worst] <= 2


@pytest.mark.parametrize("name", UNARY)
def test_f64_agrees_with_numpy_and_scipy(name):
    parts = [every_exponent(40), np.linspace(-30, 30, 10_001), SPECIAL, [709.7, 709.8, -745.1, -745.2]]
    with np.errstate(all="ignore"):
        x = np.concatenate(parts, dtype=np.float64)
        np.testing.assert_allclose(computed(f"{name}_f64", x), UNARY[name](x), rtol=1e-15, atol=5e-324)


def test_pow_f64_agrees_with_numpy():
    x, y = (g.ravel() for g in np.meshgrid([*SPECIAL, 2.5, 1e200], [*SPECIAL, 3.0, -7.0, 1.7]))
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(computed("pow_f64", x, y), np.power(x, y), rtol=1e-15)


@pytest.mark.parametrize("name", [f"{name}_f32" for name in UNARY if name not in ("floor", "round")])
def test_bits_do_not_depend_on_the_place_in_the_loop(name):
    """The vector body and the scalar tail of a loop must agree."""
    x = np.random.default_rng(0).normal(0, 3, 333).astype(np.float32)
    whole = computed(name, x)
    single = np.concatenate([computed(name, x[i:i + 1]) for i in range(x.size)])
    assert whole.tobytes() == single.tobytes()


@pytest.mark.parametrize("name", [*(f"{name}_f32" for name in UNARY), "pow_f32", "sqrt_f64", "floor_f64", "round_f64"])
def test_loop_is_vectorised_and_calls_nothing(name):
    x = np.ones(3, np.float64 if name.endswith("f64") else np.float32)
    computed(name, *([x, x] if name.startswith("pow") else [x]))
    (assembly,) = loop(name).inspect_asm().values()
    native = assembly[:assembly.index(".Lfunc_end0")]  # the function itself comes before its wrappers
    assert re.search(r"\tv?(mul|fn?m\w+|sqrt|round|rndscale)p[sd]\t", native)  # packed, not scalar, arithmetic
    assert "\tcall" not in native


@pytest.mark.parametrize("name", ("_ldexp", "_ldexp_in_two"))
def test_scaling_by_powers_of_two_rounds_once(name):
    """Processors with an instruction for it and those without give the same bits, subnormal results included."""
    scale = getattr(vectormath, name)

    @njit(fastmath={"contract", "nsz"}, error_model="numpy")
    def apply(m, n, out):
        for i in range(m.size):
            out[i] = scale(m[i], n[i])

    rng = np.random.default_rng(0)
    m, n = rng.uniform(0.7, 1.42, 100_000).astype(np.float32), rng.integers(-150, 131, 100_000).astype(np.int32)
    out = np.zeros_like(m)
    apply(m, n, out)
    with np.errstate(over="ignore", under="ignore"):
        assert out.tobytes() == np.ldexp(m, n).tobytes()


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("target", ["i8", "i16", "i32", "i64", "u8", "u16", "u32"])
def test_floats_become_integers_as_the_reference_has_them(source, target):
    limits = [sign * 2.0**bits + beyond for sign in (-1, 1) for bits in (7, 8, 15, 16, 31, 32, 63)
              for beyond in (-1, 0.5, 1)]
    x = np.array([0.0, -0.0, 0.5, -1.9, np.nan, np.inf, -np.inf, 1e30, -1e30, *limits], source.replace("f", "float"))
    found, expected = (jit(lambda x: x.astype(target), device=device)(x).numpy() for device in ("cpu", "reference"))
    np.testing.assert_array_equal(found, expected)
