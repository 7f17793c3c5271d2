"""Instruction streams of TPU v1: encoding, text, and programs that run to the same bytes as integer arithmetic."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.accel.tpu import instructions
from core.accel.tpu.activation import FixedPoint, Pooling, Scaling, Window
from core.accel.tpu.dense import Dense, compile_dense
from core.accel.tpu.instructions import (
    Activate,
    Convolve,
    Function,
    Halt,
    MatrixMultiply,
    Memories,
    Pool,
    ReadHostMemory,
    ReadWeights,
    Synchronise,
    WriteHostMemory,
    decode,
)
from core.accel.tpu.requantisation import multiplier, rescale
from core.accel.tpu.simulator import Simulator, simulate
from core.engine.errors import DeviceError, ShapeError
from core.engine.jit import jit

KINDS = list(instructions._KINDS.values())


# --- requantisation --------------------------------------------------------------------------------------------------

def test_requantisation_of_tflite(realdata):
    rows = json.loads((realdata / "accel/golden_numerics/tflite_requant_vectors.json").read_text())["rows"]
    assert len(rows) == 72
    for total, real, q31, shift, result in rows:
        assert multiplier(real) == (q31, shift)
        assert rescale(np.array([total], np.int32), q31, shift).tolist() == [result]


def test_a_multiplier_that_rounds_up_to_the_next_power():
    assert multiplier(1 - 2.0**-40) == (1 << 30, 1)
    assert multiplier(0.0) == multiplier(1e-20) == (0, 0)


# --- encoding --------------------------------------------------------------------------------------------------------

@st.composite
def any_instruction(draw):
    kind = draw(st.sampled_from(KINDS))
    values = {entry.name: st.sampled_from(entry.metadata["kind"]) if entry.metadata["kind"] in (Function, Pool)
              else st.integers(0, (1 << entry.metadata["count"]) - 1).map(entry.metadata["kind"])
              for entry in dataclasses.fields(kind)}
    return kind(**{name: draw(value) for name, value in values.items()})


@given(any_instruction())
def test_every_encoding_can_be_read_back(instruction):
    encoded = instruction.encode()
    assert len(encoded) == 12
    assert decode(encoded) == instruction


def test_the_fields_of_a_product_are_those_of_the_paper():
    encoded = MatrixMultiply(0xABCDEF, 0x1234, 0x89ABCDE0, True, False, True).encode()
    assert encoded[:3] == b"\xef\xcd\xab"  # unified buffer
    assert encoded[3:5] == b"\x34\x12"  # accumulators
    assert encoded[5:9] == b"\xe0\xcd\xab\x89"  # length
    assert encoded[9:] == b"\x04\x05\x00"  # opcode and flags


def test_no_two_fields_share_a_bit():
    for kind in KINDS:
        spans = sorted((entry.metadata["first"], entry.metadata["first"] + entry.metadata["count"])
                       for entry in dataclasses.fields(kind))
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        assert all(end <= 72 or begin >= 80 for begin, end in spans) and all(end <= 96 for _, end in spans)


@pytest.mark.parametrize(("instruction", "message"), [
    (MatrixMultiply(1 << 24, 0, 1, True, False, True), "MatrixMultiply: buffer is 16777216, and has 24 bits, 0 to 167"),
    (ReadWeights(-1, 0), "Read_Weights: count is -1, and has 16 bits"),
])
def test_what_does_not_fit_its_field_is_named(instruction, message):
    with pytest.raises(DeviceError, match=message):
        instruction.encode()


@pytest.mark.parametrize("encoded", [b"", bytes(12), bytes(9) + b"\x07\x01\x00", bytes(9) + b"\x06\x07\x00",
                                     bytes(9) + b"\x06\x18\x00",
                                     Halt().encode() + b"\x00"])
def test_bytes_that_are_no_instruction(encoded):
    with pytest.raises(DeviceError, match="is no instruction; one has 12 bytes"):
        decode(encoded)


# --- dense networks --------------------------------------------------------------------------------------------------

def expected(layers, x):
    """The integer reference: products on the engine's reference backend, the rest in numpy."""
    for layer in layers:
        product = jit(lambda a, b: a @ b, device="reference")(x, layer.weights).numpy().astype(np.int64)
        sums = product - layer.input_zero * layer.weights.astype(np.int64).sum(0) + layer.bias
        scaled = np.stack([rescale(column.astype(np.int32), *multiplier(real))
                           for column, real in zip(sums.T, layer.multiplier, strict=True)], 1)
        low, high = (-128, 127) if layer.signed_output else (0, 255)
        low = max(low, layer.output_zero) if layer.function is Function.RELU else low
        x = np.clip(scaled + layer.output_zero, low, high).astype(np.int8 if layer.signed_output else np.uint8)
        if layer.function is Function.TABLE:
            x = layer.table[x.view(np.uint8)].view(x.dtype)
    return x


def network(numbers, widths):
    """Random layers of these widths; zero points, and the signs of activations, fit each other."""
    signed = numbers.random(len(widths)) < 0.5
    zeros = [int(numbers.integers(-20, 20)) if one else int(numbers.integers(0, 40)) for one in signed]
    return [Dense(numbers.integers(-127, 128, (inputs, outputs)).astype(np.int8),
                  numbers.integers(-3000, 3000, outputs).astype(np.int32),
                  numbers.uniform(1e-4, 2e-2, outputs),
                  [Function.IDENTITY, Function.RELU, Function.TABLE][numbers.integers(3)],
                  zeros[at], zeros[at + 1], bool(signed[at]), bool(signed[at + 1]),
                  numbers.integers(0, 256, 256).astype(np.uint8))
            for at, (inputs, outputs) in enumerate(pairwise(widths))]


def decoded(program):
    """A program whose instructions were encoded and decoded."""
    return dataclasses.replace(program, parts=tuple(dataclasses.replace(part, sections=tuple(
        dataclasses.replace(section, instructions=tuple(decode(one.encode()) for one in section.instructions))
        for section in part.sections)) for part in program.parts))


@pytest.mark.parametrize(("array", "accumulators"), [(4, 8), (8, 64), (8, 6)])
@pytest.mark.parametrize("seed", range(6))
def test_random_networks(array, accumulators, seed):
    numbers = np.random.default_rng(seed)
    widths = [int(width) for width in numbers.integers(1, 30, numbers.integers(2, 5))]
    rows = int(numbers.integers(1, 20))
    layers = network(numbers, widths)
    program = compile_dense(layers, rows, Memories(array, 400, accumulators, 4))
    x = numbers.integers(0, 256, (rows, widths[0]), np.uint8).view(program.parts[0].given[0].dtype)
    found = simulate(program, x)
    wanted = expected(layers, x)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(simulate(decoded(program), x), wanted)


def test_a_network_on_the_whole_chip():
    numbers = np.random.default_rng(0)
    layers = network(numbers, [300, 520, 10])
    program = compile_dense(layers, 40)
    x = numbers.integers(0, 256, (40, 300), np.uint8).view(program.parts[0].given[0].dtype)
    np.testing.assert_array_equal(simulate(program, x), expected(layers, x))
    assert program.tiles.shape == (2 * 3 + 3 * 1, 256, 256)


def test_the_text_of_a_program():
    layer = Dense(np.ones((4, 6), np.int8), np.zeros(6, np.int32), np.ones(6), Function.RELU)
    assert str(compile_dense([layer], 3, Memories(4, 100, 8, 4))).splitlines() == [
        "10 instructions of 12 bytes; 2 weight tiles of 4 x 4; 2 scalings",
        "unified buffer: 9 of 100 rows of 4 bytes; accumulators: 8 rows of 4 sums of 32 bits",
        "",
        "from the host: int8 [3, 4]",
        "     0  Read_Host_Memory   buffer 0..2 from host 0",
        "     1  Synchronise",
        "",
        "layer 0: 4 to 6: weight tiles 2, rows of sums 3",
        "     2  Read_Weights       tiles 0..1",
        "     3  MatrixMultiply     buffer 0..2 to accumulators 0..2, next_tile, signed",
        "     4  Activate           accumulators 0..2 to buffer 3..5, relu, scaling 0",
        "     5  MatrixMultiply     buffer 0..2 to accumulators 4..6, next_tile, signed",
        "     6  Activate           accumulators 4..6 to buffer 6..8, relu, scaling 1",
        "     7  Synchronise",
        "",
        "to the host: int8 [3, 6]",
        "     8  Write_Host_Memory  buffer 3..8 to host 12",
        "     9  Halt"]


def test_sums_wrap_around():
    layer = Dense(np.full((4, 1), 127, np.int8), np.array([2**31 - 1], np.int32), np.array([2.0**-24]))
    assert simulate(compile_dense([layer], 1, Memories(4, 100, 8, 4)), np.full((1, 4), 127, np.int8)).item() == -128


def test_a_convolution_in_passes():
    """Nine taps of 3 x 3, each a product of shifted pixels (paper: R*S passes of H*W*N cycles)."""
    numbers = np.random.default_rng(0)
    image = numbers.integers(-128, 128, (6, 7, 4)).astype(np.int8)
    kernel = numbers.integers(-127, 128, (3, 3, 4, 4)).astype(np.int8)
    taps = [Convolve(row * 7 + column, 0, 4, 5, 1, 7, True, row + column > 0, True)
            for row in range(3) for column in range(3)]
    stream = [ReadHostMemory(0, 42, 0), Synchronise()]
    for number, tap in enumerate(taps):
        stream += [ReadWeights(1, number), tap]
    chip = Simulator(Memories(4, 100, 64, 4), kernel.reshape(9, 4, 4), (), image.reshape(-1).view(np.uint8))
    chip.run((*stream, Halt()))
    wanted = sum(image[row:row + 4, column:column + 5].astype(int) @ kernel[row, column]
                 for row in range(3) for column in range(3))
    np.testing.assert_array_equal(chip.accumulators.values[:20], wanted.reshape(20, 4))


# --- what cannot run -------------------------------------------------------------------------------------------------

READ, WAIT, TILE = ReadHostMemory(0, 2, 0), Synchronise(), ReadWeights(1, 0)
MULTIPLY = MatrixMultiply(0, 0, 2, True, False, True)
WRONG = {
    "never written": ([TILE, MULTIPLY], 1, "nothing has written row 0 of the unified buffer"),
    "written in part": ([READ, WAIT, TILE, MatrixMultiply(1, 0, 2, True, False, True)], 3, "nothing has written row 2"),
    "not synchronised": ([READ, TILE, MULTIPLY], 2, "row 0 of the unified buffer was written after the last Synchr"),
    "no tile": ([READ, WAIT, MULTIPLY], 2, "no tile waits in the queue"),
    "no weights": ([READ, WAIT, MatrixMultiply(0, 0, 2, False, False, True)], 2, "the matrix unit has no weights"),
    "full queue": ([ReadWeights(2, 0), ReadWeights(2, 0)], 1, "2 tiles wait already, and the queue holds 3"),
    "unknown tile": ([ReadWeights(2, 1)], 0, "tile 2 is outside the weight memory, which has 2"),
    "buffer": ([ReadHostMemory(9, 2, 0)], 0, "row 10 is outside the unified buffer, which has 10"),
    "accumulators": ([READ, WAIT, TILE, MatrixMultiply(0, 7, 2, True, False, True)], 3,
                     "row 8 is outside the accumulators, which has 8"),
    "no sums": ([READ, WAIT, TILE, MatrixMultiply(0, 0, 2, True, True, True)], 3,
                "nothing has written row 0 of the accumulators"),
    "no scaling": ([READ, WAIT, TILE, MULTIPLY, Activate(0, 0, 1, 2, 0, Function.RELU, Pool.NONE, 1)], 4,
                   "the program has 1 scalings, and no number 1"),
    **{f"no {name}": ([READ, WAIT, TILE, MULTIPLY, Activate(0, 0, 1, 2, 0, function, pool, 0)], 4,
                      f"scaling 0 has no {name}")
       for name, function, pool in (("table", Function.TABLE, Pool.NONE), ("ceiling", Function.RELU6, Pool.NONE),
                                    ("window", Function.RELU, Pool.MAX))},
    "sums": ([READ, WAIT, TILE, MULTIPLY, Activate(3, 0, 1, 2, 0, Function.SUMS, Pool.NONE, 0)], 4,
             "row 10 is outside the unified buffer, which has 10"),
    "far lines": ([READ, WAIT, TILE, Convolve(0, 0, 2, 1, 1, 5, True, False, True)], 3, "nothing has written row 5"),
    "host": ([ReadHostMemory(0, 2, 5)], 0, "byte 12 is outside the host memory, which has 12"),
    "write": ([READ, WriteHostMemory(0, 2, 0)], 1, "row 0 of the unified buffer was written after the last Synchr"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_error_names_the_instruction(name):
    stream, number, reason = WRONG[name]
    scaling = Scaling(FixedPoint(*np.zeros((3, 4), np.int64)))
    chip = Simulator(Memories(4, 10, 8, 3), np.zeros((2, 4, 4), np.int8), (scaling,), np.zeros(12, np.uint8))
    with pytest.raises(DeviceError) as caught:
        chip.run((*stream, Halt()))
    message = str(caught.value)
    assert message.startswith(f"instruction {number} of the program cannot run\n")
    assert f"  instruction  {stream[number].name} " in message
    assert reason in message


def test_windows_of_another_size_than_the_instruction_says():
    scaling = Scaling(FixedPoint(*np.zeros((3, 4), np.int64)), pooling=Pooling(Window((1, 2), (1, 1)), 1, 2))
    chip = Simulator(Memories(4, 10, 8, 3), np.zeros((2, 4, 4), np.int8), (scaling,), np.zeros(12, np.uint8))
    with pytest.raises(DeviceError, match="the windows of scaling 0 give 1 rows, not 2"):
        chip.run((READ, WAIT, TILE, MULTIPLY, Activate(0, 0, 1, 2, 0, Function.RELU, Pool.MAX, 0), Halt()))


def test_a_stream_without_an_end():
    chip = Simulator(Memories(4, 10, 8, 4), np.zeros((0, 4, 4), np.int8), (), np.zeros(0, np.uint8))
    with pytest.raises(DeviceError, match="the program of 1 instructions has no Halt"):
        chip.run((Synchronise(),))


def test_what_cannot_be_compiled():
    numbers = np.random.default_rng(0)
    with pytest.raises(DeviceError, match="at least one layer"):
        compile_dense([], 4)
    with pytest.raises(DeviceError, match=r"too small\n  layer   layer 0: 8 to 8\n  needed  40 rows of 4 bytes\n"
                                          r"  found   20 rows\n  hint    take a batch of at most 50%"):
        compile_dense(network(numbers, [8, 8]), 10, Memories(4, 20, 8, 4))
    one, other = network(numbers, [8, 8]) + network(numbers, [7, 8])
    with pytest.raises(DeviceError, match=r"layer 0 gives \(columns, signed, zero point\) \(8, .* layer 1 takes \(7, "):
        compile_dense([one, other], 10)


def test_an_input_of_another_form():
    program = compile_dense(network(np.random.default_rng(0), [8, 8]), 3, Memories(4, 20, 8, 4))
    with pytest.raises(ShapeError, match=r"the program takes u?int8\[3, 8\]; this is int32\[3, 8\]"):
        simulate(program, np.zeros((3, 8), np.int32))
