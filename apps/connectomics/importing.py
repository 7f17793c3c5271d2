"""Import: a checkpoint of google/ffn as a run of ours.

Invariant: every weight of the network comes from the checkpoint, and none of the checkpoint's weights is left over.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.app import Report, config_values, dump_config
from apps.connectomics.config import ConnectomicsConfig, ImportSettings
from apps.connectomics.model import FloodFillingNetwork, Residual
from apps.connectomics.tensorbundle import read_bundle
from core.engine.array import as_array
from core.engine.errors import DataError, compose
from core.engine.nn import Conv
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

_SCOPE = "seed_update/"
_ONES = (1, 1, 1)


def import_checkpoint(input: str, out: Path, refused: Refusals, settings: ImportSettings) -> Report:
    """Write the run `out` from a TensorFlow checkpoint, named by its prefix, its ``.index`` file or its folder."""
    tensors = read_bundle(Path(input))
    network = network_of(tensors, input)
    depth, features = len(network.blocks) + 1, network.first_a.kernel.shape[-1]
    config = ConnectomicsConfig(
        depth=depth, features=features, field_of_view=settings.field_of_view, deltas=settings.deltas,
        image_mean=settings.image_mean, image_stddev=settings.image_stddev, clahe=settings.clahe,
        pad_value=settings.pad_value, move_threshold=settings.move_threshold)
    run = RunDirectory.create(out, app="connectomics", command=sys.argv[1:], config=config_values(config),
                              config_text=dump_config(config))
    run.save_model(network)
    parameters = sum(array.size for name, array in tensors.items() if name.startswith(_SCOPE))
    numbers: dict[str, int | str] = {
        "step": int(tensors["global_step"]) if "global_step" in tensors else "unknown", "depth": depth,
        "features": features, "parameters": parameters}
    run.finish(numbers)
    run.close()
    return Report(numbers)


def network_of(tensors: Mapping[str, NDArray], source: str) -> FloodFillingNetwork:
    """The network of a checkpoint's tensors.

    Raises
    ------
    DataError
        If layers are missing, too many, or of other shapes.
    """
    weights = {name.removeprefix(_SCOPE): array for name, array in tensors.items() if name.startswith(_SCOPE)}
    depth = 0
    while f"conv{depth}_a/weights" in weights:
        depth += 1
    expected = {f"{layer}/{part}" for layer in (*(f"conv{i}_{ab}" for i in range(depth) for ab in "ab"), "conv_lom")
                for part in ("weights", "biases")}
    if depth == 0 or expected != weights.keys():
        raise DataError(compose(f"{source} is not the checkpoint of a flood-filling network", [
            ("found", ", ".join(sorted(tensors)[:8])),
            ("expected", "seed_update/conv0_a to convN_b and conv_lom, each with weights and biases")]))

    def conv(name: str, inputs: int, outputs: int, taps: tuple[int, ...]) -> Conv:
        kernel, bias = weights[f"{name}/weights"], weights[f"{name}/biases"]
        if kernel.shape != (*taps, inputs, outputs) or bias.shape != (outputs,):
            raise DataError(compose(f"the layer {name} of {source} has another shape", [
                ("found", f"{list(kernel.shape)} and {list(bias.shape)}"),
                ("expected", f"{[*taps, inputs, outputs]} and {[outputs]}, z y x in out")]))
        return Conv(as_array(kernel.astype(np.float32)), as_array(bias.astype(np.float32)), _ONES, "same", _ONES, 1)

    features = weights["conv0_a/weights"].shape[-1]
    taps = (3, 3, 3)
    blocks = tuple(Residual(*(conv(f"conv{i}_{ab}", features, features, taps) for ab in "ab")) for i in range(1, depth))
    return FloodFillingNetwork(conv("conv0_a", 2, features, taps), conv("conv0_b", features, features, taps), blocks,
                               conv("conv_lom", features, 1, _ONES))
