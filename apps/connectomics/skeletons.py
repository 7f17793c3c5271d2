"""Skeletons: centre lines of the objects of a label volume, as trees of nodes, made by TEASAR or read from files.

Invariant: an edge joins two nodes of one label, and the same labels give the same skeletons, node for node.
"""

from __future__ import annotations

import io
import itertools
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from skimage import measure

from core.engine.checkpoint import written_whole
from core.engine.errors import DataError, compose

PENALTY = 100_000
PENALTY_EXPONENT = 4
"""Of the cost ``1 + penalty (1 - distance to the surface / largest such distance)^exponent`` of a voxel. The paper has
5000 and 16; with these, which em_erl uses, paths keep to the centre of thin objects too."""

SWC_NEURITE = 0
"""Structure of a node in SWC: undefined, as labels do not tell axon from dendrite."""

MAX_BYTES = 1 << 30
"""Largest file of skeletons that is read, unpacked."""

STEPS = np.array([step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)])
"""To half of the 26 neighbours of a voxel, one of each two that lie opposite."""


@dataclass(frozen=True)
class Skeletons:
    """Skeletons of many objects in one graph. Voxel i lies at i x voxel size.

    Attributes
    ----------
    positions : f64[node, zyx] in nm
    edges : i64[edge, 2], indices of nodes
    label : u64[node], the object that a node belongs to
    radius : f32[node] in nm, distance to the surface of the object; NaN where it is not known
    """

    positions: np.ndarray
    edges: np.ndarray
    label: np.ndarray
    radius: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Length of each edge in nm, f64[edge]."""
        return np.linalg.norm(np.diff(self.positions[self.edges], axis=1)[:, 0], axis=1)

    def subset(self, kept: np.ndarray) -> Skeletons:
        """The nodes where bool[node] `kept` is true, and the edges between them."""
        edges = self.edges[kept[self.edges].all(axis=1)]
        return Skeletons(self.positions[kept], (np.cumsum(kept) - 1)[edges], self.label[kept], self.radius[kept])


def _joined(labels: list[int], trees: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Skeletons:
    """Skeletons of one label each, as positions, edges and radii, in one graph."""
    sizes = [len(positions) for positions, _, _ in trees]
    starts = np.cumsum([0, *sizes])
    edges = [edges + start for (_, edges, _), start in zip(trees, starts, strict=False)]
    return Skeletons(np.concatenate([np.empty((0, 3)), *(positions for positions, _, _ in trees)]),
                     np.concatenate([np.empty((0, 2), np.int64), *edges]),
                     np.repeat(np.array(labels, np.uint64), sizes),
                     np.concatenate([np.empty(0, np.float32), *(radius for _, _, radius in trees)]))


# ---------------------------------------------------------------------------------------------- TEASAR


def skeletonize(labels: np.ndarray, voxel_size: tuple[float, float, float], *, scale: float = 1.5,
                constant: float = 500.0, minimum_voxels: int = 100) -> Skeletons:
    """Skeletons by TEASAR (Sato, Bitter, Bender, Kaufman, Nakajima 2000, Pacific Graphics, p. 281).

    Each connected part of a label (26 neighbours) gets a tree. Its root is a voxel that is far from the others. The
    voxel farthest from the root that no branch covers becomes the tip of the next branch: a path to the tree whose
    voxels cost the more the nearer they are to the surface. A branch covers what lies within ``scale x distance to the
    surface + constant`` of it. Beyond the paper, an object that the volume cuts off does not end there: the face is no
    surface, and the middle of each cut is a tip before others are; the largest is the root.

    Parameters
    ----------
    labels : integers[z, y, x], 0 or below for none
    voxel_size : of z, y, x in nm
    scale, constant : reach of a branch; the constant in nm. Smaller ones give more branches
    minimum_voxels : smaller parts get no skeleton

    Raises
    ------
    DataError
        If the labels are no integers.
    """
    if labels.dtype.kind not in "bui":
        raise DataError(f"skeletons are made of labels, which are integers; found {labels.dtype}")
    parts = measure.label(np.maximum(labels, 0), background=0, connectivity=3)
    sizes = np.bincount(parts.ravel())
    names, trees = [], []
    for part, box in enumerate(ndimage.find_objects(parts), start=1):
        if sizes[part] < minimum_voxels:
            continue
        origin = np.array([max(side.start - 1, 0) for side in box])  # with a rim, except where the volume ends
        inside = parts[tuple(slice(start, side.stop + 1) for start, side in zip(origin, box, strict=True))] == part
        voxels, edges, radius = _tree(inside, _exits(inside, origin, labels.shape), voxel_size, scale, constant)
        names.append(int(labels[tuple(voxels[0] + origin)]))
        trees.append(((voxels + origin) * np.array(voxel_size), edges, radius))
    return _joined(names, trees)


def _exits(inside: np.ndarray, origin: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The innermost voxel of each cut of an object by a face of the volume, as sorted flat indices."""
    exits = []
    for axis, (start, size) in enumerate(zip(origin, shape, strict=True)):
        for place in {0, size - 1} & {start, start + inside.shape[axis] - 1}:
            face = inside.take(place - start, axis)
            depth = ndimage.distance_transform_edt(np.pad(face, 1))[1:-1, 1:-1]
            cuts, count = ndimage.label(face, np.ones((3, 3)))
            exits += [np.insert(voxel, axis, place - start)
                      for voxel in ndimage.maximum_position(depth, cuts, range(1, count + 1))]
    return np.unique(np.array([np.ravel_multi_index(voxel, inside.shape) for voxel in exits], np.int64))


def _tree(inside: np.ndarray, exits: np.ndarray, voxel_size: tuple[float, ...], scale: float,
          constant: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels i64[node, zyx], edges i64[edge, 2] and radii f32[node] in nm of one connected object."""
    places = np.argwhere(inside)
    radius = _radius(inside, voxel_size)
    graph = _graph(inside, voxel_size)
    tips = np.searchsorted(np.flatnonzero(inside), exits)
    root = int(tips[radius[tips].argmax()] if tips.size else _distances(graph, 0)[0].argmax())
    distance, _ = _distances(graph, root)
    cost = 1 + PENALTY * (1 - radius / (1.01 * radius.max())) ** PENALTY_EXPONENT
    _, before = _distances(_weighted(graph, cost), root)

    # Tips to be, the farthest first: the exits, then all voxels.
    free = np.concatenate([tips[np.argsort(-distance[tips], kind="stable")], np.argsort(-distance, kind="stable")])
    uncovered = inside.copy()
    node = np.full(len(places), -1)
    nodes: list[int] = []
    edges: list[tuple[int, int]] = []
    while free.size:
        branch = [free[0]]
        while node[branch[-1]] < 0 and branch[-1] != root:
            branch.append(before[branch[-1]])
        new = [voxel for voxel in branch if node[voxel] < 0]
        node[new] = np.arange(len(nodes), len(nodes) + len(new))
        nodes += new
        edges += itertools.pairwise(node[branch].tolist())
        _cover(uncovered, places[new], scale * radius[new] + constant, voxel_size)
        free = free[uncovered[tuple(places[free].T)]]
    return places[nodes], np.array(edges, np.int64).reshape(-1, 2), radius[nodes].astype(np.float32)


def _radius(inside: np.ndarray, voxel_size: tuple[float, ...]) -> np.ndarray:
    """Distance in nm of each voxel to the surface, f64[voxel]. A face of the volume is none, unless all are."""
    rim = int(inside.all())
    distance = ndimage.distance_transform_edt(np.pad(inside, rim), sampling=voxel_size)
    return distance[distance > 0]


def _graph(inside: np.ndarray, voxel_size: tuple[float, ...]) -> sparse.csr_array:
    """Each two neighbouring voxels of an object once, and their distance in nm; f64[voxel, voxel]."""
    padded = np.pad(inside, 1)
    places = np.flatnonzero(padded)
    index = np.full(padded.size, -1, np.int32)
    index[places] = np.arange(places.size)
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    neighbours = np.stack([index[places + step @ strides] for step in STEPS], axis=1)
    found = neighbours >= 0
    lengths = np.broadcast_to(np.linalg.norm(STEPS * np.array(voxel_size), axis=1), found.shape)
    starts = np.concatenate([[0], np.cumsum(found.sum(axis=1))]).astype(np.int32)  # as scipy's shortest paths want it
    return sparse.csr_array((lengths[found], neighbours[found], starts), shape=(places.size, places.size))


def _weighted(graph: sparse.csr_array, cost: np.ndarray) -> sparse.csr_array:
    """The graph with steps that cost the mean of f64[voxel] `cost` of their ends, however long they are."""
    rows = np.repeat(cost, np.diff(graph.indptr))
    return sparse.csr_array(((rows + cost[graph.indices]) / 2, graph.indices, graph.indptr), graph.shape)


def _distances(graph: sparse.csr_array, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Length of the shortest path from a voxel to each, f64[voxel], and the last voxel before it, i32[voxel]."""
    distance, before = csgraph.dijkstra(graph, directed=False, indices=start, return_predecessors=True)
    return distance, before


def _cover(uncovered: np.ndarray, path: np.ndarray, reach: np.ndarray, voxel_size: tuple[float, ...]) -> None:
    """Clear what lies in the balls of radius `reach` (f64[node], nm) around the voxels of a path (i64[node, zyx]).

    A ball is a stack of runs along x. Where one begins the change is +1 and behind its end -1, so that the running sum
    along x is positive in the union of all balls.
    """
    span = (reach[:, None] // voxel_size).astype(np.int64)
    low = np.maximum((path - span).min(axis=0), 0)
    high = np.minimum((path + span).max(axis=0) + 1, uncovered.shape)
    depth, height, width = high - low
    change = np.zeros((depth, height, width + 1), np.int32)
    for (z, y, x), (dz, dy, _), limit in zip(path - low, span, reach, strict=True):
        rows_z = np.arange(max(z - dz, 0), min(z + dz + 1, depth))
        rows_y = np.arange(max(y - dy, 0), min(y + dy + 1, height))
        squares = limit ** 2 - ((rows_z[:, None] - z) * voxel_size[0]) ** 2 - ((rows_y - y) * voxel_size[1]) ** 2
        at_z, at_y = np.nonzero(squares >= 0)
        half = (np.sqrt(squares[at_z, at_y]) // voxel_size[2]).astype(np.int64)
        change[rows_z[at_z], rows_y[at_y], np.maximum(x - half, 0)] += 1
        change[rows_z[at_z], rows_y[at_y], np.minimum(x + half + 1, width)] -= 1
    np.cumsum(change, axis=2, out=change)
    uncovered[tuple(map(slice, low, high))] &= change[:, :, :-1] == 0


# ---------------------------------------------------------------------------------------------- files


def write_swc(skeletons: Skeletons, folder: Path) -> list[Path]:
    """Write one SWC file a label, ``LABEL.swc``, in nm.

    Parameters
    ----------
    folder : exists
    """
    paths = []
    for label in np.unique(skeletons.label):
        tree = skeletons.subset(skeletons.label == label)
        parents, order = _parents(tree)
        number = np.empty(len(order), np.int64)
        number[order] = np.arange(1, len(order) + 1)
        paths.append(folder / f"{label}.swc")
        with written_whole(paths[-1], "w") as file:
            file.write("# id structure x y z radius parent; nm\n")
            for node in order:
                z, y, x = tree.positions[node].tolist()
                parent = number[parents[node]] if parents[node] >= 0 else -1
                file.write(f"{number[node]} {SWC_NEURITE} {x!r} {y!r} {z!r} {tree.radius[node]:.6g} {parent}\n")
    return paths


def _parents(tree: Skeletons) -> tuple[np.ndarray, np.ndarray]:
    """The parent of each node, below 0 for a root, and the nodes in an order that has parents first."""
    count = len(tree.label)
    graph = sparse.coo_array((np.ones(len(tree.edges)), tuple(tree.edges.T)), (count, count)).tocsr()
    _, part = csgraph.connected_components(graph, directed=False)
    orders, parents = [], np.full(count, -1)
    for root in np.unique(part, return_index=True)[1]:
        order, before = csgraph.breadth_first_order(graph, root, directed=False)
        orders.append(order)
        parents[order] = before[order]
    return parents, np.concatenate([np.empty(0, np.int64), *orders])


def read_skeletons(path: Path) -> Skeletons:
    """Skeletons in nm from a folder of SWC files, one an object, from one SWC file, or from the NPZ of an em_erl graph.

    An SWC file belongs to the label that is its name; if not all names are numbers, the files are numbered from 1. The
    graphs of em_erl have no radii.

    Raises
    ------
    DataError
        If there is no such file or folder, or it holds something else.
    """
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    if path.suffix.lower() == ".npz":
        return _read_graph(path)
    files = sorted(path.glob("*.swc")) if path.is_dir() else [path]
    if not files:
        _refuse(path, "a folder without .swc files", "one .swc file an object")
    named = all(file.stem.isdecimal() and int(file.stem) < 1 << 64 for file in files)
    labels = [int(file.stem) if named else number for number, file in enumerate(files, start=1)]
    return _joined(labels, [_read_swc(file) for file in files])


def _read_swc(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, edges and radii of one SWC file: lines of id, structure, x, y, z, radius, parent."""
    if path.stat().st_size > MAX_BYTES:
        _refuse(path, f"{path.stat().st_size} bytes", f"at most {MAX_BYTES}")
    index: dict[int, int] = {}
    places: list[list[float]] = []
    parents: list[int] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            name, _, parent = (int(fields[column]) for column in (0, 1, 6))
            place = [float(field) for field in fields[2:6]]
        except (ValueError, IndexError):
            place = []
        if len(place) != 4 or len(fields) != 7 or not np.isfinite(place[:3]).all() or name in index:
            _refuse(path, f"line {number}: {line[:80]!r}", "id structure x y z radius parent, each id once")
        index[name] = len(places)
        places.append(place)
        parents.append(parent)
    lost = [parent for parent in parents if parent >= 0 and parent not in index]
    if lost or not places:
        _refuse(path, f"{len(places)} nodes" + (f", none of them the parent {lost[0]}" if lost else ""),
                "at least one node, and each parent among the nodes")
    edges = [(node, index[parent]) for node, parent in enumerate(parents) if parent >= 0]
    table = np.array(places)
    return table[:, 2::-1].copy(), np.array(edges, np.int64).reshape(-1, 2), table[:, 3].astype(np.float32)


def _read_graph(path: Path) -> Skeletons:
    """A graph of em_erl: ids[skeleton], lengths[skeleton], nodes[node, (index of skeleton, z, y, x)] in nm, and then
    for each skeleton its edges[edge, (node, node, length)]."""
    try:
        with zipfile.ZipFile(path) as archive, np.errstate(invalid="ignore"):
            size = sum(member.file_size for member in archive.infolist())
            if size > MAX_BYTES:
                _refuse(path, f"{size} bytes unpacked", f"at most {MAX_BYTES}")
            ids, _, nodes, *edges = (np.lib.format.read_array(io.BytesIO(archive.read(f"arr_{number}.npy")))
                                     for number in range(len(archive.infolist())))
            links = np.concatenate([np.empty((0, 3)), *edges])[:, :2].astype(np.int64)
            owner = nodes[:, 0].astype(np.int64)
            skeletons = Skeletons(nodes[:, 1:].astype(np.float64), links, ids.astype(np.uint64)[owner],
                                  np.full(len(nodes), np.nan, np.float32))
            ends = owner[links]
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, MemoryError, SyntaxError,
            NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError) as error:
        _refuse(path, f"{type(error).__name__}: {error}", "the NPZ of an em_erl graph: arr_0, arr_1, ...")
    if skeletons.positions.shape[1:] != (3,) or not np.isfinite(skeletons.positions).all():
        _refuse(path, "nodes that are not a skeleton and three finite numbers", "index of skeleton, z, y, x")
    if (owner < 0).any() or (links < 0).any() or (ends[:, 0] != ends[:, 1]).any():
        _refuse(path, "an edge that leaves its skeleton, or an index below 0", "edges between nodes of one skeleton")
    return skeletons


def _refuse(path: Path, found: str, expected: str) -> NoReturn:
    raise DataError(compose(f"{path} holds no skeletons that can be used", [
        ("found", found), ("expected", expected)]))
