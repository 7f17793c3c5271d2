"""Resegmentation: two segments grown once more, each from a seed of its own, to see whether they are one.

If both seeds fill the same space, and that space holds both segments, the two are parts of one object (Januszewski et
al. 2018, Nature Methods 15:605). The steps and the names of fields are those of google/ffn,
``ffn/inference/resegmentation.py`` and ``resegmentation_analysis.py``.

Invariant: masks grow where the two segments were and where none was; all other segments stay in their way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.connectomics.blocks import Box, Triple, triple
from apps.connectomics.canvas import Canvas, Mask, logit
from apps.connectomics.config import AgglomerateSettings

Segment = NDArray[np.bool_]
"""bool[z, y, x], the voxels of a segment in a subvolume."""


@dataclass(frozen=True)
class Subvolume:
    """The surroundings of a decision point; they end where the volume ends.

    Attributes
    ----------
    start, stop : its first voxel, and the one behind its last, in the volume
    analysis : the box inside it, in voxels from `start`, in which masks are compared
    """

    start: Triple
    stop: Triple
    analysis: Box

    @classmethod
    def around(cls, point: Sequence[int], shape: Triple, radius: Sequence[int],
               analysis_radius: Sequence[int]) -> Subvolume:
        """The subvolume of a radius; what is compared lies as far from its faces as in one that nothing cuts off."""
        start = triple(max(place - reach, 0) for place, reach in zip(point, radius, strict=True))
        stop = triple(min(place + reach + 1, size) for place, reach, size in zip(point, radius, shape, strict=True))
        rims = [reach - inner for reach, inner in zip(radius, analysis_radius, strict=True)]
        z, y, x = (slice(rim, last - first - rim) for first, last, rim in zip(start, stop, rims, strict=True))
        return cls(start, stop, (z, y, x))


@dataclass(frozen=True)
class SegmentResult:
    """What grew from one of the two segments.

    Attributes
    ----------
    origin : voxel of the seed, z y x from the start of the subvolume
    num_voxels : of the mask, in the analysis box as all that follows
    deleted_voxels : that were surely in the mask and left it again, summed over moves; a sign of doubt
    segment_a_consistency, segment_b_consistency : shares of the two segments that lie in the mask
    """

    origin: Triple
    num_voxels: int
    deleted_voxels: int
    segment_a_consistency: float
    segment_b_consistency: float


@dataclass(frozen=True)
class EvalResult:
    """What a decision point shows.

    Attributes
    ----------
    num_voxels_a, num_voxels_b : of the two segments in the analysis box
    iou : voxels that both masks have, over those that either has; NaN if one did not grow or both are empty
    from_a, from_b : the masks, None where none grew
    """

    num_voxels_a: int
    num_voxels_b: int
    iou: float = math.nan
    from_a: SegmentResult | None = None
    from_b: SegmentResult | None = None


def resegment(canvas: Canvas, segment_a: Segment, segment_b: Segment, analysis: Box, voxel_size: Sequence[float],
              settings: AgglomerateSettings) -> EvalResult:
    """Grow two segments again, and compare.

    Parameters
    ----------
    canvas : of the subvolume, on which all other segments are
    analysis : the box in which masks are compared
    voxel_size : nm along z, y, x
    """
    found = EvalResult(int(segment_a[analysis].sum()), int(segment_b[analysis].sum()))
    if not (found.num_voxels_a and found.num_voxels_b):
        return found
    mask_a = _grown(canvas, segment_a, analysis, voxel_size, settings)
    if mask_a is None:
        return found
    found = replace(found, from_a=_result(mask_a, segment_a, segment_b, analysis))
    if settings.terminate_early and not all(
            _is_recovered(segment, mask_a, analysis, settings) for segment in (segment_a, segment_b)):
        return found
    mask_b = _grown(canvas, segment_b, analysis, voxel_size, settings)
    if mask_b is None:
        return found
    return replace(found, from_b=_result(mask_b, segment_a, segment_b, analysis),
                   iou=_intersection_over_union(_inside(mask_a, analysis), _inside(mask_b, analysis)))


def _grown(canvas: Canvas, segment: Segment, analysis: Box, voxel_size: Sequence[float],
           settings: AgglomerateSettings) -> Mask | None:
    """The first mask that brings enough of a segment back, else the last that was tried; None if no seed has room.

    Seeds are where it is farthest to the surface of the segment, and not beside those before.
    """
    distance = ndimage.distance_transform_edt(segment, sampling=voxel_size)
    room = tuple(slice(size // 2, max(length - size // 2, 0))
                 for size, length in zip(canvas.field_of_view, segment.shape, strict=True))
    left = np.zeros_like(distance)
    left[room] = distance[room]
    mask = None
    for _ in range(settings.max_retry_iters):
        seed = triple(map(int, np.unravel_index(left.argmax(), left.shape)))
        if left[seed] == 0:
            break
        left[tuple(slice(max(place - radius, 0), place + radius + 1)
                   for place, radius in zip(seed, settings.exclusion_radius, strict=True))] = 0
        mask = canvas.segment_at(seed)
        if _is_recovered(segment, mask, analysis, settings):
            break
    return mask


def _is_recovered(segment: Segment, mask: Mask, analysis: Box, settings: AgglomerateSettings) -> bool:
    """Whether a mask brings enough of a segment back."""
    found = mask.logits[analysis] >= logit(settings.segment_threshold)
    return _share(segment[analysis], found) >= settings.segment_recovery_fraction


def _inside(mask: Mask, analysis: Box) -> Segment:
    """Where a mask is at least one half, and anything was predicted."""
    inside: Segment = mask.logits[analysis] >= 0
    return inside


def _result(mask: Mask, segment_a: Segment, segment_b: Segment, analysis: Box) -> SegmentResult:
    inside = _inside(mask, analysis)
    within = np.all([(along >= side.start) & (along < side.stop)
                     for along, side in zip(mask.history.T, analysis, strict=True)], axis=0)
    return SegmentResult(mask.seed, int(np.count_nonzero(inside)), int(mask.history_deleted[within].sum()),
                         _share(segment_a[analysis], inside), _share(segment_b[analysis], inside))


def _share(segment: Segment, found: Segment) -> float:
    """How much of a segment was found, 0..1."""
    return int(np.count_nonzero(segment & found)) / int(np.count_nonzero(segment))


def _intersection_over_union(first: Segment, second: Segment) -> float:
    either = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / either if either else math.nan
