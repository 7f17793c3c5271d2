"""The table of work: every row of the benchmark as data.

Invariant: a row's `work` is plain JSON, from which a worker of any framework builds the same computation on the same
numbers; nothing else about a row reaches a worker. A row's name is unique.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tests.bench.kernels.arrays import ATOMS, BONDS
from tests.bench.kernels.layers import Layer, all_layers

BYTES = {"f32": 4, "bf16": 2, "int8": 1}
PASSES = {"forward": "", "input": " dx", "weights": " dw"}
SMALL = 128
"""Products whose extents all lie below this are small."""
REDUCED = ("resnet50", "unet-3d", "ffn")
"""Networks whose layers are measured in bf16 and int8 too."""
LARGE = ("unet-3d", "ffn")
"""Networks that are trained on one item at a time."""
NETWORKS = ("inception-v3", "resnet50", "unet-3d", "ffn", "mpnn", "lstm")


@dataclass(frozen=True)
class Row:
    """One computation that is measured.

    Attributes
    ----------
    family : rows that share an aim; the first word of the name
    work : what workers get; ``kind`` names the computation
    flops, nbytes : of a call; the least memory traffic there can be. 0 where they say nothing
    count : how often the networks hold it, its weight in means
    """

    family: str
    what: str
    work: dict[str, Any]
    flops: int = 0
    nbytes: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        return f"{self.family} {self.what}"


def rows() -> list[Row]:
    """All rows, in the order of the report."""
    found = [*_peaks(), *_convolutions(), *_products(), *_row_kernels(), *_segments(), *_recurrent(), _perceptron(),
             *_networks()]
    assert len({row.name for row in found}) == len(found)
    return found


def _peaks() -> Iterator[Row]:
    """The roofs."""
    for element, operations in (("f32", 40_000_000_000), ("bf16", 400_000_000_000), ("int8", 800_000_000_000)):
        yield Row("peak", element, {"kind": "peak", "dtype": element, "operations": operations}, operations)
    size = 512 << 20
    yield Row("peak", "copy", {"kind": "copy", "bytes": size}, nbytes=2 * size)


def _convolutions() -> Iterator[Row]:
    merged: dict[Layer, int] = {}
    reduced: dict[Layer, int] = {}
    entries = set()
    for name, layers in all_layers().items():
        entries.add(next(iter(layers)))
        for layer, count in layers.items():
            merged[layer] = merged.get(layer, 0) + count
            if name in REDUCED:
                reduced[layer] = reduced.get(layer, 0) + count
    for direction in PASSES:
        for layer, count in merged.items():
            if direction != "input" or layer not in entries:  # nobody wants the gradient of an image
                yield _convolution(layer, "f32", direction, count)
    for element in ("bf16", "int8"):
        for layer, count in reduced.items():
            yield _convolution(layer, element, "forward", count)


def _convolution(layer: Layer, element: str, direction: str, count: int) -> Row:
    work = {"kind": "conv", "dtype": element, "pass": direction, "x": layer.x, "w": layer.w, "stride": layer.stride,
            "padding": layer.padding}
    family = f"conv-{element}" + {"forward": "", "input": "-dx", "weights": "-dw"}[direction]
    return Row(family, layer.name, work, layer.flops, BYTES[element] * layer.elements, count)


def _products() -> Iterator[Row]:
    squares = [(n, n, n) for n in (64, 96, 128, 256, 512, 1024, 2048, 4096)]
    skinny = [(1, 1024, 1024), (1, 4096, 4096), (8, 4096, 4096), (1750, 300, 300), (100_000, 32, 32),
              (4096, 4096, 16), (16, 100_000, 16), (32, 48, 100)]
    for element in BYTES:
        for m, k, n in (*squares, *skinny):
            family = "matmul-f32-small" if element == "f32" and max(m, k, n) < SMALL else f"matmul-{element}"
            yield Row(family, f"{m}x{k}x{n}", {"kind": "matmul", "dtype": element, "m": m, "k": k, "n": n},
                      2 * m * k * n, BYTES[element] * (m * k + k * n + m * n))


def _row_kernels() -> Iterator[Row]:
    """Bandwidth-bound kernels; flops are a rough count of the arithmetic an element needs."""
    table: list[tuple[str, tuple[int, ...], int, int]] = [  # kind, shape, flops and f32 moved an element
        ("softmax", (4096, 1000), 20, 2), ("softmax", (64, 128), 20, 2),
        ("layer-norm", (4096, 768), 8, 2), ("layer-norm", (64, 300), 8, 2),
        ("gelu", (4096, 3072), 25, 2), ("gelu", (64, 300), 25, 2),
        ("bias-norm-relu", (8, 56, 56, 256), 4, 2), ("bias-norm-relu", (1, 33, 33, 33, 32), 4, 2),
        ("adam", (2048, 2048), 14, 7), ("adam", (300, 300), 14, 7)]
    for kind, shape, flops, moved in table:
        size = prod(shape)
        yield Row("rows", f"{kind} {_times(shape)}", {"kind": kind, "shape": shape}, flops * size, 4 * moved * size)


def _segments() -> Iterator[Row]:
    for molecules in (64, 1024):
        atoms, bonds = molecules * ATOMS, molecules * BONDS
        for width in (32, 300):
            work = {"molecules": molecules, "width": width}
            nbytes = 4 * width * (atoms + bonds)
            yield Row("segment", f"sum of {bonds} bonds to {atoms} atoms x{width}", {"kind": "segment-sum"} | work,
                      bonds * width, nbytes)
            yield Row("segment", f"gather of {bonds} bonds from {atoms} atoms x{width}", {"kind": "gather"} | work,
                      0, nbytes)



def _recurrent() -> Iterator[Row]:
    for batch, time, inputs, hidden in ((8, 64, 128, 256), (1, 64, 64, 64), (32, 32, 256, 512)):
        work = {"batch": batch, "time": time, "inputs": inputs, "hidden": hidden, "layers": 1}
        flops = 8 * batch * time * hidden * (inputs + hidden)
        for kind, factor in (("lstm", 1), ("lstm-training", 3)):
            yield Row("lstm", f"{kind} {batch}x{time}x{inputs} hidden {hidden}", {"kind": kind} | work, factor * flops)


def _perceptron() -> Row:
    return Row("mlp", "10 layers of 32, batch 1", {"kind": "mlp", "layers": 10, "width": 32}, 10 * 2 * 32 * 32)


def _networks() -> Iterator[Row]:
    for kind in ("inference", "training"):
        for name in NETWORKS:
            for batch in (1, 8) if kind == "inference" else (1 if name in LARGE else 8,):
                yield Row(kind, f"{name} batch {batch}", network(name, kind, batch))


def network(name: str, kind: str, batch: int) -> dict[str, Any]:
    """The work of a whole network; a batch of the mpnn counts in eights of molecules."""
    if name == "lstm":
        suffix = "" if kind == "inference" else "-training"
        return {"kind": f"lstm{suffix}", "batch": batch, "time": 64, "inputs": 128, "hidden": 256, "layers": 2}
    if name == "mpnn":
        return {"kind": f"mpnn-{kind}", "molecules": 8 * batch, "width": 300, "depth": 3}
    return {"kind": kind, "network": name, "batch": batch}


def processes() -> list[Row]:
    """What is measured of whole processes, instead of calls: peak memory, and the time until the first result."""
    work = network("inception-v3", "training", 8)
    return [Row("memory", "inception-v3 training batch 8", work), Row("cold", "inception-v3 training batch 8", work),
            Row("warm", "inception-v3 training batch 8", work)]


def _times(extents: Sequence[int]) -> str:
    return "x".join(map(str, extents))
