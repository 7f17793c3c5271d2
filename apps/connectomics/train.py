"""Training: masks that grow from their centres, and a network that learns what to make of them.

Every step shows the network what it made of the object in the steps before (Januszewski et al. 2016, arXiv 1611.00421,
section 3); gradients do not go back through steps.

Invariant: the masks are part of the training's state, so that a resumed training goes on with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.app import Report
from apps.connectomics.blocks import triple
from apps.connectomics.canvas import logit
from apps.connectomics.config import ConnectomicsConfig
from apps.connectomics.model import FloodFillingNetwork
from apps.connectomics.sampling import Labelled, Moment, Sampler, centres, without_borders
from apps.connectomics.segment import normalised
from apps.connectomics.volumes import open_volume, read_labels
from core.engine import ops, random
from core.engine.array import Array, as_array
from core.engine.errors import DataError, compose
from core.engine.grad import value_and_grad
from core.engine.jit import jit
from core.engine.losses import binary_cross_entropy
from core.engine.module import register_dataclass
from core.engine.optim import Adam, clip_by_global_norm
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory
from core.engine.schedule import cosine, warm_up
from core.engine.train import Progress, State, fit

WARM_UP = 0.05
"""Share of the steps over which the rate rises."""


@register_dataclass
@dataclass(frozen=True)
class Growth:
    """What a step carries to the next one besides the parameters.

    Attributes
    ----------
    adam : state of the optimiser
    masks : f32[batch, z, y, x], logits of the objects that are growing
    """

    adam: Any
    masks: Array


def train(data: tuple[Path, ...], config: ConnectomicsConfig, run: RunDirectory,
          refused: Refusals) -> Generator[Progress, None, Report]:
    """Train a network on labelled volumes."""
    volumes = volumes_of(data, config)
    sampler = sampler_of(volumes, config)
    key = random.key(config.seed)
    network = FloodFillingNetwork.init(random.fold_in(key, 0), config.depth, config.features).silent()
    total = config.epochs * config.steps
    fitted = yield from fit(
        jit(step_of(config), device=config.device), start_of(network, config),
        lambda epoch: map(arrays, sampler.epoch(epoch, config.steps)), epochs=config.epochs,
        schedule=warm_up(config.rate * 0.01, round(WARM_UP * total), cosine(config.rate, config.rate * 0.01, total)),
        run=run)
    run.save_model(fitted.parameters)
    curve = [{"epoch": line["epoch"], "step": line["step"], "loss": line["loss"]}
             for line in run.metrics() if line["epoch_done"]]
    return Report({"volumes": len(volumes), "centres": len(sampler.centres.places),
                   "classes": len(sampler.centres.starts) - 1, "steps": total,
                   "loss": curve[-1]["loss"]}, tables={"learning_curve": curve}, arrays=pictures(fitted.parameters,
                                                                                              sampler, config))


def dry_run(data: tuple[Path, ...], config: ConnectomicsConfig) -> dict[str, Any]:
    """Shapes of one step."""
    volumes = volumes_of(data, config)
    sampler = sampler_of(volumes, config)
    moment = next(iter(sampler.epoch(0, 1)))
    return {"image": f"f32{list(volumes[0].image.shape)}", "centres": len(sampler.centres.places),
            "field of view": f"f32{[len(moment.image), *config.field_of_view]}",
            "masks": f"f32{list(blank_masks(config).shape)}"}


def volumes_of(data: tuple[Path, ...], config: ConnectomicsConfig) -> list[Labelled]:
    """What is learned from."""
    return [without_borders(labelled(path, config), config.border) for path in data]


def labelled(path: Path, config: ConnectomicsConfig) -> Labelled:
    """The part of a file's volumes that is learned from.

    Raises
    ------
    DataError
        If image and labels differ in size, or the part does not lie in them.
    """
    image, labels = (open_volume(f"{path}:{name}") for name in (config.raw, config.labels))
    if image.shape != labels.shape:
        raise DataError(f"{path} holds an image of {image.shape} voxels and labels of {labels.shape} (z y x)")
    begin, end = config.begin or (0, 0, 0), config.end or image.shape
    if not all(0 <= first < last <= size for first, last, size in zip(begin, end, image.shape, strict=True)):
        raise DataError(compose(f"{path} has no voxels from {begin} to before {end}", [
            ("found", f"{image.shape} voxels, z y x"), ("hint", "see --begin and --end")]))
    found = read_labels(labels, begin, end)
    if found.dtype.kind not in "iu" or found.max() > np.iinfo(np.int64).max:
        raise DataError(f"{path}:{config.labels} holds {found.dtype} up to {found.max()}; labels are integers below "
                        "2^63")
    return Labelled(normalised(image.read(begin, end), config, str(path)), found.astype(np.int64))


def sampler_of(volumes: list[Labelled], config: ConnectomicsConfig) -> Sampler:
    """What brings the batches."""
    field, deltas = triple(config.field_of_view), triple(config.deltas)
    radius = [f // 2 + d for f, d in zip(field, deltas, strict=True)]
    return Sampler(volumes, centres(volumes, radius, config.min_object), field, deltas, config.batch_size, config.seed,
                   config.permutable_axes)


def blank_masks(config: ConnectomicsConfig) -> Array:
    """Masks in which no object has begun."""
    extent = (f + 2 * d for f, d in zip(config.field_of_view, config.deltas, strict=True))
    return as_array(np.full((config.batch_size, *extent), logit(config.pad_value), np.float32))


def arrays(moment: Moment) -> tuple[Any, ...]:
    """A moment as the step takes it."""
    return moment.image, moment.target, moment.offsets, moment.fresh


def start_of(network: FloodFillingNetwork, config: ConnectomicsConfig) -> State:
    """Where the training of a network begins."""
    return State(network, Growth(Adam().init(network), blank_masks(config)))


def step_of(config: ConnectomicsConfig) -> Callable[..., tuple[State, Array]]:
    """The step of a training: one look at each object of the batch."""
    field = tuple(config.field_of_view)
    blank = np.full([f + 2 * d for f, d in zip(field, config.deltas, strict=True)], logit(config.pad_value), np.float32)
    np.put(blank, blank.size // 2, logit(config.init_activation))  # extents are odd
    adam = Adam()

    def step(state: State, rate: Array, batch: tuple[Array, ...]) -> tuple[State, Array]:
        image, target, offsets, fresh = batch
        masks = ops.select(ops.broadcast_to(fresh.reshape(-1, 1, 1, 1), state.optimiser.masks.shape), blank,
                           state.optimiser.masks)
        offset = chosen(masks, offsets, config)
        starts = [[offset[place, axis] for axis in range(3)] for place in range(config.batch_size)]
        seen, image, target = (ops.stack([ops.dynamic_slice(whole[place], *start, sizes=field)
                                          for place, start in enumerate(starts)]) for whole in (masks, image, target))

        def loss(network: FloodFillingNetwork) -> tuple[Array, Array]:
            logits = network(image, seen)
            return binary_cross_entropy(logits, target), logits

        (value, logits), gradients = value_and_grad(loss, has_aux=True)(state.parameters)
        gradients, _ = clip_by_global_norm(gradients, config.clip)
        network, optimiser = adam.update(gradients, state.optimiser.adam, state.parameters, rate)
        grown = ops.stack([ops.dynamic_update(masks[place], logits[place], *start)
                           for place, start in enumerate(starts)])
        return State(network, Growth(optimiser, grown)), value

    return step


def chosen(masks: Array, offsets: Array, config: ConnectomicsConfig) -> Array:
    """The offsets of the fields of view that are looked at, i32[batch, 3].

    That is the first one, in the object, unless the mask at the centre of another one is higher, and high enough for
    the field of view to move there.

    Parameters
    ----------
    masks : f32[batch, z, y, x], logits
    offsets : i32[batch, position, 3]
    """
    _, _, height, width = masks.shape
    z, y, x = (offsets[:, :, axis] + size // 2 for axis, size in enumerate(config.field_of_view))
    found = ops.take_along(masks.reshape(len(masks), -1), (z * height + y) * width + x, axis=1)
    found = ops.concatenate([ops.maximum(found[:, :1], logit(config.move_threshold)), found[:, 1:]], axis=1)
    best = ops.argmax(found, axis=1).reshape(-1, 1, 1)
    return ops.take_along(offsets, ops.broadcast_to(best, (len(masks), 1, 3)), axis=1)[:, 0]


def pictures(network: FloodFillingNetwork, sampler: Sampler, config: ConnectomicsConfig) -> dict[str, np.ndarray]:
    """Middle sections of the first looks at some objects: image, target and the mask found, f32[object, y, x]."""
    moment = next(iter(sampler.epoch(config.epochs, 1)))
    image, target = (moment.fields(whole, triple(config.field_of_view)) for whole in (moment.image, moment.target))
    z, y, x = (size // 2 for size in config.field_of_view)
    seen: np.ndarray = np.full(image.shape, logit(config.pad_value), np.float32)
    seen[:, z, y, x] = logit(config.init_activation)
    found = jit(lambda network, image, seen: ops.logistic(network(image, seen)), device=config.device)(
        network, image, seen).numpy()
    return {"image": image[:, z], "target": target[:, z], "found": found[:, z]}
