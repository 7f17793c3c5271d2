"""OME-NGFF, the description of images of several resolutions in Zarr groups.

Invariant: whatever a group says, the answer is a level or a `DataError`; nothing is read here.

Versions 0.1 to 0.5 (ngff.openmicroscopy.org): a list ``multiscales``, since 0.5 under ``ome``, with ``axes`` (names, or
since 0.4 objects with a name and a unit) and ``datasets``, each with a path and since 0.4 a scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.connectomics.storage import AXES, listed, nanometres, unreadable


@dataclass(frozen=True)
class Level:
    """One resolution of an image.

    Attributes
    ----------
    path : of its array in the group
    axes : one letter an axis, or empty if the names are other words
    voxel_size : nm along its axes (1 along those that are not of space), or empty if a unit or the scale is unknown
    """

    path: str
    axes: str
    voxel_size: tuple[float, ...]


def levels(attributes: Mapping[str, Any]) -> list[Level]:
    """The resolutions of a group with these attributes, the finest first; none if it is no image.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError, IndexError
        If the attributes are not as in NGFF.
    """
    images = attributes.get("ome", attributes).get("multiscales", [])
    if not images:
        return []
    image = images[0]
    named = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes", AXES)]
    axes = "".join(axis["name"] if axis["name"] in tuple(AXES) else "?" for axis in named)
    units = [nanometres(axis.get("unit")) if axis["name"] in ("z", "y", "x") else 1.0 for axis in named]
    whole = _scale(image, len(named))
    result = []
    for dataset in image["datasets"]:
        scale = _scale(dataset, len(named))
        sizes = tuple(unit * factor * one for unit, factor, one in zip(units, whole, scale, strict=True) if unit)
        known = len(sizes) == len(named) and "coordinateTransformations" in dataset
        result.append(Level(str(dataset["path"]), "" if "?" in axes else axes, sizes if known else ()))
    return result


def _scale(node: Mapping[str, Any], count: int) -> list[float]:
    """What the transformations of an image or a level multiply its axes by."""
    factors = [1.0] * count
    for transformation in node.get("coordinateTransformations", []):
        if transformation["type"] == "scale":
            factors = [one * float(two) for one, two in zip(factors, transformation["scale"], strict=True)]
    return factors


def chosen(address: str, found: list[Level], part: str) -> Level:
    """The level of this path or number; the finest without one."""
    if not part:
        return found[0]
    for number, level in enumerate(found):
        if part in (level.path, str(number)):
            return level
    raise unreadable(address, f"the levels {listed([level.path for level in found])}", f"one named {part}")
