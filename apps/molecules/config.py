"""Settings of the commands on molecules: the command line, the TOML file and the web form are made from these classes.

Invariant: the defaults suit a few hundred to some ten thousand molecules on two cores.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from apps.app import TrainingConfig, setting
from core.engine.errors import ConfigError

MODELS = ("dmpnn", "mpnn", "ggnn")
SPLITS = ("random", "scaffold", "column")
TASKS = ("auto", "regression", "classification")
OFFSETS = ("none", "elements", "counts")


@dataclass(frozen=True, kw_only=True)
class MoleculesConfig(TrainingConfig):
    """What is learned, from what, and by which network."""

    # The data
    targets: tuple[str, ...] = setting(help="column of numbers to learn; repeat for several", option="target")
    smiles: str | None = setting(None, "column of SMILES or reactions; found by its name if not given")
    units: tuple[str, ...] = setting((), "COLUMN=UNIT of a target; kept in the model and checked at predict")
    task: str = setting("auto", "what the targets are; auto: classification where all values are 0 or 1", choices=TASKS)
    split: str = setting("random", "how rows are divided, always by whole molecules", choices=SPLITS)
    split_column: str = setting("split", "column of train, valid and test for the split by column")
    fractions: tuple[float, ...] = setting((0.8, 0.1, 0.1), "parts for training, validation and test", low=0, high=1)
    folds: int = setting(1, "cross-validation folds; 1 for a single split", low=1, high=100)
    max_atoms: int = setting(500, "heavy atoms of the largest molecule that is accepted", low=1, high=100_000)
    max_fragments: int = setting(20, "parts of the most disconnected molecule that is accepted", low=1, high=10_000)

    # The network
    model: str = setting("dmpnn", "the network", choices=MODELS)
    hidden: int = setting(300, "width of atom and bond states", low=1, high=10_000)
    depth: int = setting(3, "message-passing steps", low=1, high=100)
    aggregation: str = setting("norm", "how dmpnn joins atoms to a molecule", choices=("mean", "sum", "norm"))
    head_hidden: int = setting(300, "width of the read-out's hidden layers", low=1, high=10_000)
    head_layers: int = setting(1, "hidden layers of the read-out", low=0, high=20)
    dropout: float = setting(0.0, "share of states dropped while training", low=0, high=0.95)
    descriptors: bool = setting(True, "join RDKit's molecule descriptors before the read-out")
    explicit_hydrogens: bool = setting(False, "hydrogens are atoms of the graph")
    offset: str = setting("none", "what is fitted first and learned on top of: a sum over elements, or over counts of "
                                  "atoms, bonds and rings (for energies and other extensive targets)", choices=OFFSETS)

    # The training
    epochs: int = setting(50, "passes over the training molecules", low=1, high=1_000_000)
    batch_size: int = setting(64, "molecules of a step", low=1, high=100_000)
    rate: float = setting(1e-3, "highest learning rate", low=1e-8, high=10)
    warm_up_epochs: float = setting(2.0, "epochs over which the rate rises from a tenth", low=0)
    final_rate: float = setting(1e-4, "learning rate at the end", low=0, high=10)
    weight_decay: float = setting(0.0, "decoupled weight decay", low=0, high=10)
    clip: float = setting(0.0, "largest norm of a gradient; 0 for no limit", low=0)
    best_epoch: bool = setting(False, "keep the epoch with the best validation error instead of the last")
    ensemble: int = setting(1, "networks trained from different starts, whose predictions are averaged",
                            low=1, high=100)
    coverage: float = setting(0.9, "share of true values that prediction intervals shall hold; 0 for no intervals",
                              low=0, high=0.999)

    def __post_init__(self) -> None:
        if len(self.fractions) != 3 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ConfigError(f"fractions are three parts that sum to 1; found {self.fractions}")
        if self.folds > 1 and self.split == "column":
            raise ConfigError("a split by column is one split; leave --folds out, or --split column")
        if len(set(self.targets)) != len(self.targets):
            raise ConfigError(f"a target is named twice: {', '.join(self.targets)}")
        if taken := bounds_of(self.targets) & set(self.targets):
            raise ConfigError(f"predictions name the bounds of an interval {', '.join(sorted(taken))}, as a target is "
                              "named; rename its column")
        for entry in self.units:
            name, _, unit = entry.partition("=")
            if name not in self.targets or not unit:
                raise ConfigError(f"units are COLUMN=UNIT for a target ({', '.join(self.targets)}); found {entry!r}")

    @property
    def unit_of(self) -> dict[str, str]:
        """Unit of each target that has one."""
        return {name: unit for name, _, unit in (entry.partition("=") for entry in self.units)}


def bounds_of(targets: Iterable[str]) -> set[str]:
    """Names of the columns of bounds in predictions."""
    return {f"{name}_{bound}" for name in targets for bound in ("low", "high")}


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """What a prediction may be told."""

    smiles: str | None = setting(None, "column of SMILES or reactions; that of the training, or found by its name")
    units: tuple[str, ...] = setting((), "COLUMN=UNIT in which a target is expected; refused if the model has another")


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """What is explained."""

    run: Path = setting(help="the run whose model is explained")  # noqa: RUF009 setting() makes a dataclass field
    target: str | None = setting(None, "the target, if the model has several; its first one otherwise")
