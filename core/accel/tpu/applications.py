"""The six applications of the TPU v1 paper, as far as they can be reconstructed.

Invariant: a figure is either in the paper's Table 1 or stated here as ours, with its evidence.

Google published the number of layers, weights, batch and operations a weight byte (Table 1 of arXiv 1704.04760), not
the shapes. The shapes below are ours:

* **MLP0**: 5 layers of 2048 x 2048: 21.0M weights (Table 1: 20M), no padding (Table 3: 98.4 % of active MACs useful).
* **MLP1**: 3 layers of 1200 x 1200 and one of 1200 x 512: 4.9M weights (5M), 88.6 % useful (88.7 %). The width of the
  last layer was chosen by that share, so the share is no prediction.
* **LSTM0**: 24 matrices of 2048 x 1024, the four gates of 6 cells of 1024 units that see input and state side by side:
  50.3M weights (52M), all useful (100 %). 34 vector operations, shared by the 6 cells.
* **LSTM1**: matrices of 600 x 600, which section 7 names: 94 of them have 33.8M weights (34M) and 61.0 % useful MACs
  (60.0 %). Table 1's 37 matrix layers and 19 vector operations make cells of about 6 vector operations, as in LSTM0:
  three of 6 and a last one of 1.
* **CNN0**: AlphaGo's network on 19 x 19: 19 * 19 * 8 = 2888 operations a weight byte, as in Table 1. 5x5 of 48 planes,
  13 of 3x3 with 256 features, two 1x1: 8.0M weights (8M), 16 layers. The 5x5 of 48 planes fills the array only if its
  taps share tiles (100 % useful in Table 3), so they are one matrix of 1200 rows.
* **CNN1**: cannot be reconstructed: 100M weights at 1750 operations a byte and the operations a second of Table 3
  contradict its inferences a second. The stand-in is Inception with batch normalisation (Ioffe and Szegedy, arXiv
  1502.03167, figure 5) with its 13 pools and 69 of the 72 convolutions, and four matrix layers, which bring it
  to 100M weights. It has a third of the operations a byte of Table 1.

LSTMs have 16-bit activations, at half speed: only so do their useful MACs and their TOPS agree. Inputs and outputs of a
batch are those of the first and the last layer, 8 or 16 bits an element.
"""

from __future__ import annotations

from collections.abc import Iterator

from core.accel.tpu.counters import Application, MatrixLayer


def mlp0() -> Application:
    batch, width = 200, 2048
    return Application("MLP0", batch, [MatrixLayer(f"fc{number}", batch, width, width) for number in range(5)],
                       "int8", batch * width, batch * width)


def mlp1() -> Application:
    batch, width, out = 168, 1200, 512
    layers = [MatrixLayer(f"fc{number}", batch, width, width) for number in range(3)]
    return Application("MLP1", batch, [*layers, MatrixLayer("fc3", batch, width, out)], "int8", batch * width,
                       batch * out)


def lstm0() -> Application:
    batch, units = 64, 1024
    vectors = _shared(34, 6)
    layers = [MatrixLayer(f"cell{number}", batch, 2 * units, units, 4, vectors[number]) for number in range(6)]
    return Application("LSTM0", batch, layers, "int8_int16", 2 * batch * units, 2 * batch * units)


def lstm1() -> Application:
    batch, units = 96, 600
    layers = [MatrixLayer(f"cell{number}", batch, units, units, matrices, vectors)
              for number, (matrices, vectors) in enumerate(((30, 6), (30, 6), (30, 6), (4, 1)))]
    return Application("LSTM1", batch, layers, "int8_int16", 2 * batch * units, 2 * batch * units)


def cnn0() -> Application:
    batch, pixels = 8, 19 * 19
    rows = batch * pixels
    layers = [MatrixLayer("conv1", rows, 5 * 5 * 48, 256),
              *(MatrixLayer(f"conv{number}", rows, 3 * 3 * 256, 256) for number in range(2, 15)),
              MatrixLayer("conv15", rows, 256, 256), MatrixLayer("conv16", rows, 256, 1)]
    return Application("CNN0", batch, layers, "int8", rows * 48, rows)


def cnn1() -> Application:
    batch = 32
    width = 5300
    features = [MatrixLayer(f"conv{number}", batch * extent * extent, depth * taps, columns)
                for number, (extent, depth, columns, taps) in enumerate(_inception(), 1)]
    dense = [MatrixLayer(f"fc{number}", batch, 1024 if number == 0 else width, width) for number in range(4)]
    return Application("CNN1", batch, [*features, *dense], "int8", batch * 224 * 224 * 3, batch * width)


def _inception() -> Iterator[tuple[int, int, int, int]]:
    """Output extent, in-channels, out-channels and taps of each convolution."""
    yield 112, 3, 64, 49
    yield 56, 64, 64, 1
    yield 56, 64, 192, 9
    channels = 192
    modules = ((28, 64, 64, 64, 64, 96, 32), (28, 64, 64, 96, 64, 96, 64), (14, 0, 128, 160, 64, 96, 0),
               (14, 224, 64, 96, 96, 128, 128), (14, 192, 96, 128, 96, 128, 128), (14, 160, 128, 160, 128, 160, 96),
               (14, 96, 128, 192, 160, 192, 96), (7, 0, 128, 192, 192, 256, 0), (7, 352, 192, 320, 160, 224, 128),
               (7, 352, 192, 320, 192, 224, 128))
    for extent, single, narrow, triple, thin, double, pooled in modules:
        before = extent if single else 2 * extent  # a module without a branch of 1x1 halves the extent
        if single:
            yield extent, channels, single, 1
        yield before, channels, narrow, 1
        yield extent, narrow, triple, 9
        yield before, channels, thin, 1
        yield before, thin, double, 9
        yield extent, double, double, 9
        if pooled:
            yield extent, channels, pooled, 1
        channels = single + triple + double + (pooled or channels)


def _shared(total: int, parts: int) -> list[int]:
    """A number in whole parts, as equal as can be."""
    return [total // parts + (number < total % parts) for number in range(parts)]


APPLICATIONS = {make().name: make for make in (mlp0, mlp1, lstm0, lstm1, cnn0, cnn1)}
