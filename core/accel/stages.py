"""Stages: what each pass over a row does, and which elements it leaves for later passes.

Invariant: a pass computes all that its own reductions and writes need, from operands, from what rows have reduced in
earlier passes, and from the row buffer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from core.accel.loopir import Nest, Operand, Reduction, Statement, stride_class
from core.engine import dtypes

ROW_BUFFER = 1 << 14
"""Elements of a row that a kernel can keep on its stack; in longer rows every pass computes all it needs."""
_MAXIMUM_KEPT = 4


@dataclass(frozen=True)
class Pass:
    """One walk over the elements of a row.

    Attributes
    ----------
    reads : operands, by position, whose elements it needs
    recalled : values that it finds in the row buffer
    statements : for each element
    stored : values that it leaves in the row buffer
    writes : operands, by position, that it writes for each element
    reductions : numbers of those that it completes
    row_statements, row_writes : what follows once for the row
    """

    reads: tuple[int, ...]
    recalled: tuple[Statement, ...]
    statements: tuple[Statement, ...]
    stored: tuple[Statement, ...]
    writes: tuple[int, ...]
    reductions: tuple[int, ...]
    row_statements: tuple[Statement, ...]
    row_writes: tuple[int, ...]


class _Stages:
    def __init__(self, operands: Sequence[Operand], statements: Sequence[Statement], reductions: Sequence[Reduction]
                 ) -> None:
        self.operands, self.statements, self.reductions = operands, statements, reductions
        self.made = {statement.result: statement for statement in statements if not statement.per_row}
        self.row_stage = {statement.result: statement.stage for statement in statements if statement.per_row}
        self.row_stage |= {reduction.result: reduction.stage for reduction in reductions}
        self.count = 1 + max([0, *(statement.stage for statement in statements),
                              *(reduction.stage for reduction in reductions)])

    def writes(self, stage: int, per_row: bool) -> list[int]:
        """Positions of the operands that a pass writes for each element, or for the row."""
        def belongs(name: str) -> bool:
            if name in self.row_stage:
                return per_row and self.row_stage[name] == stage
            return not per_row and (self.made[name].stage if name in self.made else 0) == stage

        return [position for position, operand in enumerate(self.operands)
                if operand.role == "write" and belongs(operand.name)]

    def roots(self, stage: int) -> list[str]:
        """Values of elements that a pass is there for."""
        return [*(reduction.value for reduction in self.reductions if reduction.stage == stage),
                *(self.operands[position].name for position in self.writes(stage, False))]

    def needed(self, names: Sequence[str], recalled: Collection[str]) -> set[str]:
        """Those values and all that they are computed from, as far as it is not recalled from the row buffer."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                if name in self.made and name not in recalled:
                    waiting += self.made[name].arguments
        return found

    def kept(self) -> list[str]:
        """What is better kept than computed again, because a costly statement would run in a second pass."""
        kept: list[str] = []
        known: set[str] = set()
        for stage in range(self.count):
            for name in self._again(self.roots(stage), known):
                if len(kept) < _MAXIMUM_KEPT and self._is_costly(name, kept):
                    kept.append(name)
            known |= self.needed(self.roots(stage), kept)
        return kept

    def _again(self, names: Sequence[str], known: Collection[str]) -> list[str]:
        """Of what a pass needs the values that earlier ones have computed, results before their arguments."""
        order: dict[str, None] = {}
        waiting = list(names)
        for name in waiting:  # grows
            if name in self.made and name not in order:
                order[name] = None
                waiting += self.made[name].arguments
        return [name for name in sorted(order, key=list(self.made).index, reverse=True) if name in known]

    def _is_costly(self, name: str, kept: Collection[str]) -> bool:
        return any(self.made[value].costly for value in self.needed([name], kept)
                   if value in self.made and value not in kept)


def choose_kept(operands: Sequence[Operand], statements: Sequence[Statement], reductions: Sequence[Reduction],
                row: int) -> tuple[str, ...]:
    """Values that a nest keeps in its row buffer, rows having so many elements."""
    return tuple(_Stages(operands, statements, reductions).kept()) if row <= ROW_BUFFER else ()


def passes(nest: Nest) -> list[Pass]:
    """The passes over a row, in order; a nest without stages has one."""
    stages = _Stages(nest.operands, nest.statements, nest.reductions)
    known: set[str] = set()
    made = []
    for stage in range(stages.count):
        recalled = known.intersection(nest.kept)
        needed = stages.needed(stages.roots(stage), recalled)
        statements = [statement for statement in nest.statements
                      if statement.result in needed and not statement.per_row]
        fresh = tuple(statement for statement in statements if statement.result not in recalled)
        made.append(Pass(
            tuple(position for position, operand in enumerate(nest.operands)
                  if operand.role != "write" and operand.name in needed),
            tuple(statement for statement in statements if statement.result in recalled),
            fresh,
            tuple(statement for statement in fresh if statement.result in nest.kept),
            tuple(stages.writes(stage, False)),
            tuple(number for number, reduction in enumerate(nest.reductions) if reduction.stage == stage),
            row_statements(nest, stage),
            tuple(stages.writes(stage, True)),
        ))
        known |= needed
    return made


def borrowed(nest: Nest, last: Pass) -> dict[str, int]:
    """Kept values that need no row buffer, as they can lie where the last pass writes; and that operand's position."""
    overwriting = {operand.becomes for operand in nest.operands}
    free = [position for position in last.writes
            if stride_class(nest.operands[position], position, nest) == "unit" and not nest.streams(position)
            and nest.operands[position].name not in overwriting]
    found: dict[str, int] = {}
    for statement in nest.statements:
        fitting = [position for position in free if nest.operands[position].view.dtype is statement.dtype]
        if statement.result in nest.kept and fitting and statement.dtype not in (dtypes.bool_, dtypes.bfloat16):
            found[statement.result] = fitting[0]
            free.remove(fitting[0])
    return found


def row_statements(nest: Nest, stage: int) -> tuple[Statement, ...]:
    """What happens once a row at the end of a pass, or before the first one if `stage` is -1."""
    return tuple(statement for statement in nest.statements if statement.per_row and statement.stage == stage)


def row_writes(nest: Nest, stage: int) -> tuple[int, ...]:
    """Operands, by position, that are written once a row at the end of a pass, or before the first one."""
    return tuple(_Stages(nest.operands, nest.statements, nest.reductions).writes(stage, True))
