"""How far a segmentation agrees with the truth: their contingency table, and VOI, Rand and NID from it.

Invariant: a score names its mask, and the tables of blocks add up to the table of the whole volume.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from core.engine.errors import DataError, compose


class Mask(enum.StrEnum):
    """Which voxels are compared; those without truth never are. The same segmentation reads very different under each.

    Attributes
    ----------
    BOTH : voxels with truth and with a segment
    ONE_LABEL : voxels with truth; those without a segment form one segment together
    SINGLETONS : voxels with truth; each of those without a segment is a segment of its own
    """

    BOTH = "labelled in both"
    ONE_LABEL = "labelled in the truth, unsegmented as one label"
    SINGLETONS = "labelled in the truth, unsegmented as singletons"


@dataclass(frozen=True)
class Agreement:
    """Scores of a segmentation under a mask.

    Attributes
    ----------
    mask : what was compared
    voxels : how many
    voi_split, voi_merge : conditional entropies H(segmentation | truth), H(truth | segmentation) in bits: the two parts
        of the variation of information (Meila 2007, Journal of Multivariate Analysis 98:873); 0 is perfect
    rand_split, rand_merge : share of the pairs of voxels of one body that lie in one segment, and the reverse, a voxel
        paired with itself counted; 1 is perfect
    nid : normalised information distance 1 - I / max(H(truth), H(segmentation)) (Vinh et al. 2010, JMLR 11:2837), 0..1
    """

    mask: Mask
    voxels: int
    voi_split: float
    voi_merge: float
    rand_split: float
    rand_merge: float
    nid: float

    @property
    def voi(self) -> float:
        """Variation of information in bits."""
        return self.voi_split + self.voi_merge

    @property
    def arand(self) -> float:
        """Adapted Rand error 1 - 2PR / (P + R), with P for `rand_merge` and R for `rand_split`; 0..1, 0 is perfect."""
        return 1 - 2 * self.rand_merge * self.rand_split / (self.rand_merge + self.rand_split)


@dataclass(frozen=True)
class ContingencyTable:
    """How many voxels each body of the truth shares with each segment.

    Cells are sorted by body and segment, without repetition. Voxels without truth are not in it; those without a
    segment have the segment 0.

    Attributes
    ----------
    bodies, segments : u64[cell]
    voxels : i64[cell], at least 1
    """

    bodies: np.ndarray
    segments: np.ndarray
    voxels: np.ndarray

    @staticmethod
    def empty() -> ContingencyTable:
        """The table of no voxels."""
        return ContingencyTable(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))

    @staticmethod
    def of(segmentation: np.ndarray, truth: np.ndarray) -> ContingencyTable:
        """The table of two volumes, or of a block of them.

        Parameters
        ----------
        segmentation, truth : integers[z, y, x], 0 for none

        Raises
        ------
        DataError
            If the shapes differ, or labels are negative or no integers.
        """
        if segmentation.shape != truth.shape:
            raise DataError(compose("segmentation and truth differ in shape", [
                ("segmentation", str(segmentation.shape)), ("truth", str(truth.shape)),
                ("expected", "the same region, z y x")]))
        # Labels come in runs along x: a tenth to a thirtieth of the voxels remain to be sorted.
        segments, bodies = segmentation.ravel(), truth.ravel()
        starts = _starts(segments, bodies)
        voxels = np.diff(starts, append=segments.size)
        segments, bodies = _labels(segments[starts], "segmentation"), _labels(bodies[starts], "truth")
        known = bodies > 0
        return _counted(bodies[known], segments[known], voxels[known])

    def __add__(self, other: ContingencyTable) -> ContingencyTable:
        """The table of two regions that do not overlap."""
        return _counted(np.concatenate([self.bodies, other.bodies]), np.concatenate([self.segments, other.segments]),
                        np.concatenate([self.voxels, other.voxels]))

    def beside(self, other: ContingencyTable) -> ContingencyTable:
        """The table of two volumes, whose labels are not the same objects where they are equal; labels change."""
        bodies = self.bodies.max(initial=0) + _ranks(other.bodies)
        segments = np.where(other.segments > 0, self.segments.max(initial=0) + _ranks(other.segments), 0)
        return self + ContingencyTable(bodies, segments.astype(np.uint64), other.voxels)

    def agreement(self, mask: Mask) -> Agreement:
        """The scores under a mask.

        Raises
        ------
        DataError
            If no voxel is left under the mask.
        """
        kept = (self.segments > 0) | (mask is not Mask.BOTH)
        bodies, segments, voxels = self.bodies[kept], self.segments[kept], self.voxels[kept].astype(np.float64)
        if not voxels.size:
            raise DataError(compose(f"there is nothing to compare: no voxel is {mask}", [
                ("found", f"{self.voxels.sum()} voxels with truth, of which none has a segment"),
                ("hint", "are these the right data sets, and is the margin smaller than half of the volume?")]))
        # A cell of unsegmented voxels stands for as many cells of one voxel where these are singletons.
        single = (segments == 0) & (mask is Mask.SINGLETONS)
        size = np.where(single, 1, voxels)
        body, segment = _totals(bodies, voxels), np.where(single, 1, _totals(segments, voxels))
        total = voxels.sum()
        share = voxels / total
        voi_split, voi_merge = float(share @ np.log2(body / size)), float(share @ np.log2(segment / size))
        entropy = max(float(share @ np.log2(total / body)), float(share @ np.log2(total / segment)))
        pairs = voxels @ size
        return Agreement(mask, int(total), voi_split, voi_merge, float(pairs / (voxels @ body)),
                         float(pairs / (voxels @ segment)), max(voi_split, voi_merge) / entropy if entropy else 0.0)


def _labels(values: np.ndarray, name: str) -> np.ndarray:
    """Labels as u64, checked."""
    if values.dtype.kind not in "bui" or (values.dtype.kind == "i" and values.size and values.min() < 0):
        found = f"{values.dtype}" + (f", lowest {values.min()}" if values.dtype.kind == "i" else "")
        raise DataError(compose(f"the {name} does not hold labels", [
            ("found", found), ("expected", "integers, 0 for none and above 0 for each object")]))
    return values.astype(np.uint64)


def _ranks(labels: np.ndarray) -> np.ndarray:
    """The labels above 0 numbered in their order from 1, and 0 as it is: u64."""
    found, places = np.unique(labels, return_inverse=True)
    return places.astype(np.uint64) + np.uint64(not found.size or found[0] > 0)


def _starts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where runs of one pair of values begin."""
    differs = np.ones(first.size, bool)
    np.not_equal(first[1:], first[:-1], out=differs[1:])
    differs[1:] |= second[1:] != second[:-1]
    return np.flatnonzero(differs)


def _counted(bodies: np.ndarray, segments: np.ndarray, voxels: np.ndarray) -> ContingencyTable:
    """The table of cells in any order, repeated cells added up."""
    order = np.lexsort((segments, bodies))
    bodies, segments = bodies[order], segments[order]
    starts = _starts(bodies, segments)
    return ContingencyTable(bodies[starts], segments[starts], np.add.reduceat(voxels[order], starts))


def _totals(labels: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """For each cell the voxels of all cells with its label, f64[cell]."""
    _, index = np.unique(labels, return_inverse=True)
    return np.bincount(index, voxels)[index]
