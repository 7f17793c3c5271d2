"""Expected run length of a segmentation along skeletons of the truth, in the two definitions that are in use.

Invariant: a run length names its definition, and a node without a segment (0) is in no segment: an edge at such a node
is omitted, and the background merges nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from apps.connectomics.skeletons import Skeletons
from core.engine.errors import DataError


class Definition(enum.StrEnum):
    """What a merger costs. A merger is a segment with nodes of two or more skeletons.

    Attributes
    ----------
    MERGED_EDGES : the edges inside the merger count as wrong, as in funlib.evaluate
    MERGED_SKELETONS : all edges of each skeleton that the merger touches count as wrong, as in em_erl (AxonEM, Wei et
        al. 2021). Where em_erl d6a300a takes the background for a segment, so that runs through it are correct and it
        can be a merger, this follows its later versions and funlib.evaluate, in which it is none
    """

    MERGED_EDGES = "merged edges are wrong (funlib.evaluate)"
    MERGED_SKELETONS = "merged skeletons are wrong (em_erl)"


@dataclass(frozen=True)
class RunLength:
    """The expected run length (Januszewski et al. 2018, Nature Methods 15:605) and what it is made of.

    Attributes
    ----------
    definition : what a merger costs
    erl : in nm: the expected length of the correct piece around a random place on the skeletons
    perfect : in nm, of a segmentation without errors
    correct, split, merged, omitted : length in nm of the edges whose ends lie in one segment, in two, in one that is
        wrong by the definition, and of which an end has no segment
    mergers : segments that join skeletons, or reach into what must not be merged
    """

    definition: Definition
    erl: float
    perfect: float
    correct: float
    split: float
    merged: float
    omitted: float
    mergers: int

    @property
    def normalized(self) -> float:
        """Expected run length as a share of what is possible, 0..1."""
        return self.erl / self.perfect


def run_length(skeletons: Skeletons, segments: np.ndarray, definition: Definition, *, merge_threshold: int = 1,
               no_merge: Mapping[int, int] | None = None) -> RunLength:
    """The expected run length: sum over skeletons and segments of l^2 / L, with l the length of the skeleton's correct
    edges in the segment and L the length of all skeletons.

    Parameters
    ----------
    segments : u64[node], the segment at each node, 0 for none
    merge_threshold : nodes of a skeleton that a segment must hold to count as merged with it. funlib.evaluate has 1
    no_merge : voxels that segments share with a mask of what no skeleton may be merged with, such as glia; a segment
        with more of them than the threshold is a merger. Of em_erl, where it costs the skeletons with that many nodes

    Raises
    ------
    DataError
        If the skeletons have no length.
    """
    labels, skeleton = np.unique(skeletons.label, return_inverse=True)
    names, segment = np.unique(segments, return_inverse=True)
    cells, cell, nodes = np.unique(skeleton * names.size + segment, return_inverse=True, return_counts=True)
    cell_skeleton, cell_segment = np.divmod(cells, max(names.size, 1))
    firm = (nodes >= merge_threshold) & (names[cell_segment] > 0)
    joins = np.bincount(cell_segment[firm], minlength=names.size) > 1
    shared = np.array([(no_merge or {}).get(int(name), 0) for name in names], np.int64)
    forbidden = (shared > merge_threshold) & (names > 0)

    start, end = skeletons.edges.T
    lengths = skeletons.lengths
    if not lengths.sum() > 0:
        raise DataError(f"the skeletons have no length: {len(skeletons.label)} nodes, {len(lengths)} edges")
    omitted = (segments[start] == 0) | (segments[end] == 0)
    split = (segment[start] != segment[end]) & ~omitted
    if definition is Definition.MERGED_EDGES:
        wrong = (joins | forbidden)[segment[start]]
    else:
        touched = joins[cell_segment] | (forbidden[cell_segment] & firm)
        wrong = (np.bincount(cell_skeleton[touched], minlength=labels.size) > 0)[skeleton[start]]
    merged = wrong & ~omitted & ~split
    correct = ~(omitted | split | merged)
    runs = np.bincount(cell[start[correct]], lengths[correct])
    whole = np.bincount(skeleton[start], lengths)
    total = lengths.sum()
    return RunLength(definition, erl=float(runs @ runs / total), perfect=float(whole @ whole / total),
                     correct=float(lengths[correct].sum()), split=float(lengths[split].sum()),
                     merged=float(lengths[merged].sum()), omitted=float(lengths[omitted].sum()),
                     mergers=int((joins | forbidden).sum()))
