"""The inner loop of flood filling: where to look next, the network there, what it found written back.

A driver (see `core.engine.driver`). Arrays are flat, volumes in the order z, y, x with x fastest; positions are indices
into them. The rules are those of google/ffn, ``inference.py`` and ``movement.py`` (Januszewski et al. 2018, Nature
Methods 15:605): FaceMax movement, first in first out, and the rule against disconnected predictions.

Invariant: whenever `flood` returns, arrays and state say all that is needed to go on.
"""

from __future__ import annotations

from core.engine.driver import F32, I32, I64, Network, call

# Fields of `geometry`, three each: z, y, x.
SHAPE = 0
"""Voxels of the volume."""
FIELD = 3
"""Voxels of the network's field of view, odd."""
DELTAS = 6
"""Voxels of a step along each axis."""
GEOMETRY_WORDS = 9

# Fields of `thresholds`: logits, but for DISCO.
PAD = 0
"""What the network sees where nothing was predicted yet."""
MOVE = 1
"""From which on the field of view moves."""
DISCO = 2
"""Share of a prediction above MOVE from which on no voxel may rise that was below one half; negative: never."""
SURE = 3
"""From which on a voxel that falls below one half counts as deleted."""
THRESHOLD_WORDS = 4

# Fields of `state`; those named by their first axis have three.
START = 0
HEAD = 1
"""Of the queue: the next position to take."""
TAIL = 2
"""Of the queue: where the next position goes."""
MOVES = 3
STATUS = 4
LOWEST = 5
"""Corner of the box of all positions, nearest to the origin."""
HIGHEST = 8
MARK = 11
"""Number of the object, which marks its cells."""
BELOW_THRESHOLD = 12
"""Positions that were not visited because the mask has left them."""
OUTSIDE = 13
"""Positions that were not visited because the field of view would leave the volume."""
OCCUPIED = 14
"""Positions that were not visited because another object has them."""
STATE_WORDS = 15

# Values of STATUS.
MOVING = 0
DONE = 1
WEAK = 2
"""The mask has left the start."""


def flood(network: Network, image: F32, logits: F32, labels: I32, geometry: I64, rows: I64, thresholds: F32,
          seen_image: F32, seen_logits: F32, found: F32, queue: I64, cells: I32, scores: F32, targets: I64,
          history: I64, history_deleted: I64, state: I64, limit: int) -> None:
    """Make up to `limit` moves for one object.

    Parameters
    ----------
    network : reads `seen_image` and `seen_logits`, writes `found`
    image : f32[z, y, x], normalised
    logits : f32[z, y, x], of the object's mask; NaN where nothing was predicted yet
    labels : i32[z, y, x], positive where other objects are
    geometry, thresholds : see the fields above
    rows : i64, for each row along x of the field of view, where it begins, less the position in the middle
    seen_image, seen_logits, found : f32[z, y, x] of the field of view
    queue : i64, positions; room for six a cell and one
    cells : i32[z, y, x] of steps of size DELTAS, the MARK of the last object whose field of view centred there
    scores, targets : room for six
    history : room for one a cell: the position of each move
    history_deleted : room for one a cell: voxels that fell from SURE to below one half in each move
    state : see the fields above
    """
    for _ in range(limit):
        position = next_position(logits, labels, geometry, thresholds, queue, cells, state)
        if position < 0:
            state[STATUS] = DONE
            return
        if logits[state[START]] < thresholds[MOVE]:
            state[STATUS] = WEAK
            return
        look(image, logits, geometry, rows, thresholds, seen_image, seen_logits, position)
        call(network)
        history[state[MOVES]] = position
        history_deleted[state[MOVES]] = write_back(logits, geometry, rows, thresholds, found, position)
        note(geometry, cells, state, position)
        count = faces(geometry, thresholds, found, scores, targets, position)
        enqueue(queue, scores, targets, state, count)


def next_position(logits: F32, labels: I32, geometry: I64, thresholds: F32, queue: I64, cells: I32,
                  state: I64) -> int:
    """The next position of the queue to visit, or -1."""
    while state[HEAD] < state[TAIL]:
        position = queue[state[HEAD]]
        state[HEAD] += 1
        if cells[cell_of(geometry, state, position)] == state[MARK]:
            continue
        if logits[position] < thresholds[MOVE]:
            state[BELOW_THRESHOLD] += 1
        elif not is_inside(geometry, position):
            state[OUTSIDE] += 1
        elif labels[position] > 0:
            state[OCCUPIED] += 1
        else:
            return position
    return -1


def coordinate(geometry: I64, position: int, axis: int) -> int:
    """Coordinate of a position along an axis."""
    if axis == 2:
        return position % geometry[SHAPE + 2]
    if axis == 1:
        return position // geometry[SHAPE + 2] % geometry[SHAPE + 1]
    return position // (geometry[SHAPE + 1] * geometry[SHAPE + 2])


def cell_of(geometry: I64, state: I64, position: int) -> int:
    """Index of the cell of a position; cells lie around the start, half a step to each side."""
    cell = 0
    for axis in range(3):
        delta = max(geometry[DELTAS + axis], 1)
        shift = delta // 2 - coordinate(geometry, state[START], axis)
        place = (coordinate(geometry, position, axis) + shift) // delta - shift // delta
        cell = cell * (geometry[SHAPE + axis] // delta + 2) + place
    return cell


def is_inside(geometry: I64, position: int) -> bool:
    """Whether the field of view around a position lies in the volume."""
    for axis in range(3):
        radius = geometry[FIELD + axis] // 2
        place = coordinate(geometry, position, axis)
        if place < radius or place + radius >= geometry[SHAPE + axis]:
            return False
    return True


def look(image: F32, logits: F32, geometry: I64, rows: I64, thresholds: F32, seen_image: F32, seen_logits: F32,
         position: int) -> None:
    """Cut the field of view out of the image and of the mask so far."""
    place = 0
    for number in range(geometry[FIELD] * geometry[FIELD + 1]):
        row = position + rows[number]
        for x in range(geometry[FIELD + 2]):
            logit = logits[row + x]
            seen_image[place] = image[row + x]
            seen_logits[place] = logit if logit == logit else thresholds[PAD]  # not NaN
            place += 1


def write_back(logits: F32, geometry: I64, rows: I64, thresholds: F32, found: F32, position: int) -> int:
    """Put a prediction into the mask; what the rule keeps from rising keeps its old value, in `found` too.

    Gives how many voxels are deleted: were sure to be in the mask and no longer are.
    """
    size = geometry[FIELD] * geometry[FIELD + 1] * geometry[FIELD + 2]
    above = 0
    for place in range(size):
        if found[place] >= thresholds[MOVE]:
            above += 1
    holds = thresholds[DISCO] >= 0 and above / size > thresholds[DISCO]
    deleted = 0
    place = 0
    for number in range(geometry[FIELD] * geometry[FIELD + 1]):
        row = position + rows[number]
        for x in range(geometry[FIELD + 2]):
            old = logits[row + x]
            if old >= thresholds[SURE] and found[place] < 0:
                deleted += 1
            if holds and old < 0 and found[place] > old:  # never true of NaN
                found[place] = old
            logits[row + x] = found[place]
            place += 1
    return deleted


def note(geometry: I64, cells: I32, state: I64, position: int) -> None:
    """Keep in mind that a position was visited."""
    cells[cell_of(geometry, state, position)] = state[MARK]
    state[MOVES] += 1
    for axis in range(3):
        place = coordinate(geometry, position, axis)
        state[LOWEST + axis] = min(state[LOWEST + axis], place)
        state[HIGHEST + axis] = max(state[HIGHEST + axis], place)


def faces(geometry: I64, thresholds: F32, found: F32, scores: F32, targets: I64, position: int) -> int:
    """Best voxel of each face of the box of one step to all sides, if it is above MOVE; gives how many there are."""
    count = 0
    for axis in range(3):
        delta = geometry[DELTAS + axis]
        if delta == 0:
            continue
        for side in range(-delta, delta + 1, 2 * delta):
            count = add_face(geometry, thresholds, found, scores, targets, position, axis, side, count)
    return count


def add_face(geometry: I64, thresholds: F32, found: F32, scores: F32, targets: I64, position: int, axis: int,
             side: int, count: int) -> int:
    """Append the first of the largest voxels of a face."""
    best = -1
    score = thresholds[MOVE]
    low_z, high_z = extent(geometry, axis, side, 0)
    low_y, high_y = extent(geometry, axis, side, 1)
    low_x, high_x = extent(geometry, axis, side, 2)
    for z in range(low_z, high_z + 1):
        for y in range(low_y, high_y + 1):
            row = ((z + geometry[FIELD] // 2) * geometry[FIELD + 1] + y + geometry[FIELD + 1] // 2) \
                * geometry[FIELD + 2] + geometry[FIELD + 2] // 2
            for x in range(low_x, high_x + 1):
                if found[row + x] > score or (best < 0 and found[row + x] == score):
                    score = found[row + x]
                    best = position + (z * geometry[SHAPE + 1] + y) * geometry[SHAPE + 2] + x
    if best < 0:
        return count
    for k in range(count):
        if targets[k] == best:  # faces share edges
            return count
    scores[count] = score
    targets[count] = best
    return count + 1


def extent(geometry: I64, axis: int, side: int, along: int) -> tuple[int, int]:
    """First and last offset of a face along an axis."""
    if along == axis:
        return side, side
    return -geometry[DELTAS + along], geometry[DELTAS + along]


def enqueue(queue: I64, scores: F32, targets: I64, state: I64, count: int) -> None:
    """Append positions, the best first; of equals, the one farther from the origin."""
    for _ in range(count):
        best = 0
        for k in range(1, count):
            if scores[k] > scores[best] or (scores[k] == scores[best] and targets[k] > targets[best]):
                best = k
        queue[state[TAIL]] = targets[best]
        state[TAIL] += 1
        targets[best] = -1
        scores[best] = -1e30
