"""Skeletons of shapes whose centre lines are known, and their files.

Invariant: what is expected of a shape follows from how it was drawn.
"""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.sparse import coo_array, csgraph

from apps.connectomics.skeletons import Skeletons, read_skeletons, skeletonize, write_swc
from core.engine.errors import DataError

CUBE = (10.0, 10.0, 10.0)


def drawn(shape: tuple[int, int, int], radius: float, *lines: tuple[tuple[float, ...], tuple[float, ...]],
          voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Tubes of a radius around straight lines, all in the unit of the voxel size, as label 1."""
    places = np.stack(np.indices(shape), axis=-1) * voxel_size
    inside = np.zeros(shape, bool)
    for first, last in lines:
        start, along = np.array(first), np.subtract(last, first)
        share = np.clip((places - start) @ along / max(along @ along, 1e-9), 0, 1)
        inside |= np.linalg.norm(places - start - share[..., None] * along, axis=-1) <= radius
    return inside.astype(np.uint32)


def degrees(skeletons: Skeletons) -> np.ndarray:
    return np.bincount(skeletons.edges.ravel(), minlength=len(skeletons.label))


def trees(skeletons: Skeletons) -> int:
    """The number of connected parts, of which none has a cycle."""
    count = len(skeletons.label)
    graph = coo_array((np.ones(len(skeletons.edges)), tuple(skeletons.edges.T)), (count, count))
    parts: int = csgraph.connected_components(graph, directed=False)[0]
    assert len(skeletons.edges) == count - parts
    return parts


def same(first: Skeletons, second: Skeletons) -> None:
    for name in ("positions", "edges", "label", "radius"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


# Shapes


@pytest.mark.parametrize(("shape", "axis"), [((15, 15, 200), 2), ((15, 200, 15), 1), ((200, 15, 15), 0)])
def test_a_straight_tube_is_a_line_of_its_length(shape: tuple[int, int, int], axis: int) -> None:
    first, last = np.full(3, 7.0), np.full(3, 7.0)
    first[axis], last[axis] = 10, 190
    tube = drawn(shape, 4, (tuple(first), tuple(last)))
    found = skeletonize(tube, CUBE)
    assert sorted(np.unique(degrees(found))) == [1, 2] and trees(found) == 1
    assert found.lengths.sum() == pytest.approx(10 * (np.ptp(np.argwhere(tube)[:, axis])), rel=0.05)
    middle = (found.positions[:, axis] > 200) & (found.positions[:, axis] < 1800)
    np.testing.assert_allclose(np.delete(found.positions[middle], axis, axis=1), 70)
    assert set(found.label) == {1}


def test_voxels_need_not_be_cubes() -> None:
    voxel_size = (40.0, 8.0, 8.0)
    tube = drawn((50, 25, 25), 60, ((200, 96, 96), (1760, 96, 96)), voxel_size=voxel_size)
    found = skeletonize(tube, voxel_size, constant=100)
    assert found.lengths.sum() == pytest.approx(40 * np.ptp(np.argwhere(tube)[:, 0]), rel=0.05)
    assert found.radius.max() == pytest.approx(64, abs=8)


def test_a_tube_that_the_volume_cuts_runs_from_face_to_face() -> None:
    found = skeletonize(drawn((17, 17, 120), 5, ((8, 8, -20), (8, 8, 140))), CUBE)
    assert found.lengths.sum() == pytest.approx(1190)
    np.testing.assert_allclose(found.positions[:, :2], 80)
    np.testing.assert_array_equal(np.sort(found.positions[degrees(found) == 1, 2]), [0, 1190])
    assert found.radius.min() == found.radius.max() > 50


def test_a_y_has_three_tips_and_one_branch() -> None:
    lines = [((10, 60, 10), (10, 60, 60)), ((10, 60, 60), (10, 20, 110)), ((10, 60, 60), (10, 100, 110))]
    found = skeletonize(drawn((21, 121, 121), 5, *lines), CUBE, constant=100)
    assert np.bincount(degrees(found)).tolist()[1:] == [3, len(found.label) - 4, 1] and trees(found) == 1
    fork = found.positions[degrees(found) == 3][0]
    assert np.linalg.norm(fork - [100, 600, 600]) < 100
    for place in lines[0][0], lines[1][1], lines[2][1]:
        tips = found.positions[degrees(found) == 1]
        assert np.linalg.norm(tips - np.array(place) * 10, axis=1).min() < 80


def test_a_torus_ends() -> None:
    z, y, x = np.indices((20, 80, 80)) - np.array([9.5, 39.5, 39.5])[:, None, None, None]
    torus = (z**2 + (np.hypot(y, x) - 28) ** 2 <= 36).astype(np.uint8)
    found = skeletonize(torus, CUBE, constant=100)
    assert trees(found) == 1
    assert 0.9 * np.pi * 2 * 280 < found.lengths.sum() < 1.3 * np.pi * 2 * 280
    ring = np.hypot(*(found.positions[:, 1:] / 10 - 39.5).T)
    assert ring.min() > 24


def test_parts_of_a_label_get_a_tree_each() -> None:
    labels = 5 * drawn((15, 60, 60), 4, ((7, 10, 10), (7, 10, 50)), ((7, 45, 10), (7, 45, 50)))
    labels[7, 28, 30] = 5
    labels[0, 0, 0], labels[1, 1, 1] = 8, 9
    found = skeletonize(labels, CUBE, minimum_voxels=1)
    assert trees(found) == 5
    assert (found.label == 5).sum() > 60 and (found.label == 8).sum() == (found.label == 9).sum() == 1
    alone = found.positions[found.label == 8]
    np.testing.assert_array_equal(alone, [[0, 0, 0]])
    assert trees(skeletonize(labels, CUBE, minimum_voxels=2)) == 2


def test_touching_objects_are_kept_apart() -> None:
    tube = drawn((15, 15, 120), 4, ((7, 7, 10), (7, 7, 110)))
    tube[:, :, 60:] *= 2
    found = skeletonize(tube, CUBE)
    assert trees(found) == 2
    assert (found.positions[found.label == 1, 2] < 600).all() and (found.positions[found.label == 2, 2] >= 600).all()


def test_smaller_constants_give_more_branches() -> None:
    comb = drawn((11, 40, 130), 3, ((5, 5, 5), (5, 5, 125)), *(((5, 5, x), (5, 30, x)) for x in range(15, 120, 20)))
    tips = [int((degrees(skeletonize(comb, CUBE, constant=constant)) == 1).sum()) for constant in (50, 1000)]
    assert tips[0] >= 8 and tips[1] == 2


@pytest.mark.parametrize("labels", [np.zeros((4, 5, 6), np.uint16), np.ones((3, 3, 3), np.uint16)])
def test_no_object_is_large_enough(labels: np.ndarray) -> None:
    found = skeletonize(labels, CUBE)
    assert found.positions.shape == (0, 3) and found.edges.shape == (0, 2) and len(found.label) == 0


def test_labels_are_integers_above_0() -> None:
    assert len(skeletonize(np.full((6, 7, 40), -1), CUBE).label) == 0
    with pytest.raises(DataError, match="found float32"):
        skeletonize(np.ones((6, 7, 40), np.float32), CUBE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_an_object_may_fill_the_volume_and_have_any_label(dtype: type) -> None:
    name = np.iinfo(dtype).max
    found = skeletonize(np.full((6, 7, 40), name, dtype), CUBE)
    assert trees(found) == 1 and set(found.label.tolist()) == {name}


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.floats(0, 3), st.floats(0, 60))
@settings(max_examples=40)
def test_any_labels_give_trees_within_them(seed: int, objects: int, scale: float, constant: float) -> None:
    chance = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(chance.standard_normal((8, 9, 10)), 1)
    labels = np.where(noise > 0, chance.integers(1, objects + 1, noise.shape), 0)
    voxel_size = (30.0, 10.0, 5.0)
    found = skeletonize(labels, voxel_size, scale=scale, constant=constant, minimum_voxels=1)
    same(found, skeletonize(labels, voxel_size, scale=scale, constant=constant, minimum_voxels=1))
    voxels = np.rint(found.positions / voxel_size).astype(int)
    np.testing.assert_array_equal(labels[tuple(voxels.T)], found.label)
    assert len(np.unique(voxels, axis=0)) == len(voxels)
    assert (np.abs(np.diff(voxels[found.edges], axis=1)) <= 1).all()
    parts = sum(ndimage.label(labels == label, np.ones((3, 3, 3)))[1] for label in range(1, objects + 1))
    assert trees(found) == parts
    # Every voxel lies in the reach of a node of its label.
    places = np.argwhere(labels)
    away = np.linalg.norm(found.positions - (places * voxel_size)[:, None], axis=2)
    own = found.label == labels[labels > 0][:, None]
    assert (own & (away <= scale * found.radius + constant + 1e-3)).any(axis=1).all()


def test_a_subset_keeps_edges_between_its_nodes() -> None:
    found = skeletonize(drawn((15, 15, 120), 4, ((7, 7, 10), (7, 7, 110))), CUBE)
    inner = found.subset(found.radius >= 40)
    assert 0 < len(inner.label) < len(found.label) and trees(inner) == 1
    assert (inner.radius >= 40).all() and inner.lengths.max() <= 10 * 3**0.5


# Files


def test_swc_files_hold_the_skeletons(tmp_path: Path) -> None:
    lines = [((10, 60, 10), (10, 60, 60)), ((10, 60, 60), (10, 20, 110)), ((10, 60, 60), (10, 100, 110))]
    labels = 7 * drawn((21, 121, 121), 5, *lines)
    labels[0, 0, 0] = 12
    written = skeletonize(labels, (40.0, 8.0, 8.1), constant=100, minimum_voxels=1)
    assert [path.name for path in write_swc(written, tmp_path)] == ["7.swc", "12.swc"]
    read = read_skeletons(tmp_path)
    assert trees(read) == 2 and read.lengths.sum() == pytest.approx(written.lengths.sum())
    for skeletons in written, read:
        order = np.lexsort(skeletons.positions.T)
        assert set(skeletons.label.tolist()) == {7, 12}
        if skeletons is written:
            positions, radius, label = (getattr(written, name)[order] for name in ("positions", "radius", "label"))
        np.testing.assert_array_equal(skeletons.positions[order], positions)
        np.testing.assert_array_equal(skeletons.label[order], label)
        np.testing.assert_allclose(skeletons.radius[order], radius, rtol=1e-5)
    rows = [line.split() for line in (tmp_path / "7.swc").read_text().splitlines() if not line.startswith("#")]
    assert all(int(row[6]) < int(row[0]) for row in rows)  # parents come first
    same(read_skeletons(tmp_path / "12.swc"), read.subset(read.label == 12))


def test_files_with_names_are_numbered(tmp_path: Path) -> None:
    for name in ("cell b", "cell a"):
        (tmp_path / f"{name}.swc").write_text("# a cell\n\n10 2 3.5 2 1 5 -1  # soma\n4 2 4 2 1 nan 10\n")
    found = read_skeletons(tmp_path)
    assert found.label.tolist() == [1, 1, 2, 2]
    np.testing.assert_array_equal(found.positions[:2], [[1, 2, 3.5], [1, 2, 4]])
    assert found.edges.tolist() == [[1, 0], [3, 2]] and np.isnan(found.radius[1])


@pytest.mark.parametrize(("text", "found"), [
    ("", "0 nodes"),
    ("1 0 1 2 3 4\n", "line 1: '1 0 1 2 3 4'"),
    ("# x\n1 0 1 2 3 4 -1 9\n", "line 2"),
    ("1 0 1 2 3 4 -1\n1 0 1 2 3 4 -1\n", "line 2"),
    ("1 0 1 2 inf 4 -1\n", "line 1"),
    ("1.5 0 1 2 3 4 -1\n", "line 1"),
    ("1 0 1 2 3 4 7\n", "none of them the parent 7"),
    ("\x00\xff" * 40, "line 1"),
])
def test_a_damaged_swc_file_is_refused(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "5.swc"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=found) as caught:
        read_skeletons(tmp_path)
    assert str(path) in str(caught.value) and "expected" in str(caught.value)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        read_skeletons(tmp_path / "none")
    with pytest.raises(DataError, match=r"without \.swc files"):
        read_skeletons(tmp_path)


def graph_file(path: Path, *arrays: np.ndarray) -> Path:
    np.savez_compressed(path, *arrays)
    return path


IDS, LENGTHS = np.array([4, 9]), np.array([10.0, 0.0])
NODES = np.array([[0, 0, 0, 0], [0, 10, 0, 0], [1, 5, 5, 5]], np.uint32)
LINKS = np.array([[0.0, 1.0, 10.0]])
NONE = np.zeros((0, 3))


def test_a_graph_of_em_erl(tmp_path: Path) -> None:
    found = read_skeletons(graph_file(tmp_path / "g.npz", IDS, LENGTHS, NODES, LINKS, NONE))
    assert found.label.tolist() == [4, 4, 9] and found.edges.tolist() == [[0, 1]]
    np.testing.assert_array_equal(found.positions, NODES[:, 1:])
    assert np.isnan(found.radius).all()


@pytest.mark.parametrize(("arrays", "found"), [
    ((IDS, LENGTHS), "ValueError"),
    ((IDS, LENGTHS, NODES[:, :3], LINKS), "nodes that are not"),
    ((IDS, LENGTHS, NODES[:, 0], LINKS), "IndexError"),
    ((IDS, LENGTHS, np.where(NODES == 10, np.nan, NODES), LINKS), "nodes that are not"),
    ((IDS, LENGTHS, NODES, LINKS + 2), "IndexError"),
    ((IDS, LENGTHS, NODES, LINKS * np.nan), "IndexError|below 0"),
    ((IDS, LENGTHS, NODES, LINKS - 1), "below 0"),
    ((IDS, LENGTHS, NODES, LINKS * 2), "leaves its skeleton"),
    ((IDS[:1], LENGTHS, NODES, LINKS), "IndexError"),
    ((IDS, LENGTHS, np.full((3, 4), "x"), LINKS), "ValueError"),
    ((IDS, LENGTHS, NODES.astype(object), LINKS), "ValueError"),
])
def test_another_graph_is_refused(tmp_path: Path, arrays: tuple[np.ndarray, ...], found: str) -> None:
    path = graph_file(tmp_path / "g.npz", *arrays)
    with pytest.raises(DataError, match=found) as caught:
        read_skeletons(path)
    assert str(path) in str(caught.value)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.connectomics.skeletons.MAX_BYTES", 1 << 20)
    path = graph_file(tmp_path / "bomb.npz", np.zeros(1 << 18))
    assert path.stat().st_size < 1 << 13
    with pytest.raises(DataError, match=f"{(1 << 21) + 128} bytes unpacked"):
        read_skeletons(path)
    path = tmp_path / "long.swc"
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(DataError, match=f"{(1 << 20) + 1} bytes"):
        read_skeletons(path)


def test_random_damage_gives_skeletons_or_a_data_error(tmp_path: Path) -> None:
    whole = {"g.npz": graph_file(tmp_path / "g.npz", IDS, LENGTHS, NODES, LINKS, NONE).read_bytes(),
             "5.swc": b"1 0 1 2 3 4 -1\n2 0 1 2.5 3 4 1\n3 0 1 2 3.5 4 2\n"}
    header = io.BytesIO()
    np.save(header, NODES)
    refused = 0
    for seed in range(1000):
        chance = random.Random(seed)
        name = chance.choice(list(whole))
        content = bytearray(whole[name])
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        content = content[:chance.choice((len(content), chance.randrange(len(content))))]
        if name == "g.npz" and seed % 2:  # well packed, with a damaged member
            member = bytearray(header.getvalue())
            member[chance.randrange(len(member))] = chance.randrange(256)
            with zipfile.ZipFile(tmp_path / name, "w") as archive:
                for number, data in enumerate((IDS, LENGTHS)):
                    with archive.open(f"arr_{number}.npy", "w") as file:
                        np.save(file, data)
                archive.writestr("arr_2.npy", bytes(member))
        else:
            (tmp_path / name).write_bytes(content)
        try:
            read_skeletons(tmp_path / name)
        except DataError:
            refused += 1
    assert 300 < refused < 1000
