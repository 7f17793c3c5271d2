"""Attribution: what each atom adds to a prediction, and the drawing of it.

Invariant: contributions of the atoms of a molecule sum to its prediction less that of a molecule whose atom features
are all zero (completeness; Sundararajan et al., arXiv 1703.01365, proposition 1), up to the error of the integral.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from apps.app import Report, load_config
from apps.molecules.batches import Batch
from apps.molecules.config import ExplainSettings, MoleculesConfig
from apps.molecules.data import Example, examples, limits_of
from apps.molecules.predict import input_column
from apps.molecules.readers import read_rows
from apps.molecules.trained import Ensemble, Trained
from core.engine import ops
from core.engine.array import Array, as_array
from core.engine.checkpoint import written_whole
from core.engine.errors import DataError
from core.engine.grad import grad
from core.engine.jit import jit
from core.engine.refusals import Refusals
from core.engine.run import RunDirectory

STEPS, MOST_STEPS = 32, 512
"""Points of the integral, doubled until contributions sum to the difference of predictions within `TOLERANCE`."""
TOLERANCE = 0.01
POSITIVE, NEGATIVE = (0.85, 0.25, 0.2), (0.2, 0.4, 0.85)
LARGEST_LISTED = 200


def explain(input: Path, out: Path, refused: Refusals, settings: ExplainSettings) -> Report:
    """Write an HTML page with a drawing for each molecule of a file, at most `LARGEST_LISTED`."""
    run = RunDirectory.open(settings.run)
    config: MoleculesConfig = load_config(MoleculesConfig, run.config_path)
    if run.is_quantised:
        raise DataError(f"{run.path} computes in whole numbers, which have no gradient; explain the run that it was "
                        f"made from, {run.record['origin']['run']}")
    trained = Trained.load(run, config.device)
    index = target_index(trained, settings.target)
    explainer = Explainer(trained, index)
    rows = read_rows(input, smiles_column=input_column(trained.description, input), limits=limits_of(config))
    figures: list[str] = []
    for example in examples(rows, trained.description.features, refused):
        if len(figures) == LARGEST_LISTED:
            break
        value = float(trained.values([example])[0, index])
        figures.append(f"<figure>{drawing(example, explainer(example))}<figcaption>{html.escape(example.text)}<br>"
                       f"{value:.3g}</figcaption></figure>")
    title = html.escape(f"What each atom adds to {trained.description.targets[index]}")
    with written_whole(out, "w") as file:
        file.write(f"<!doctype html><meta charset='utf-8'><title>{title}</title><h1>{title}</h1>"
                   f"<p>Red atoms raise the prediction, blue ones lower it.</p>{''.join(figures)}\n")
    return Report({"molecules": len(figures), "target": trained.description.targets[index]})


def target_index(trained: Trained, name: str | None) -> int:
    """Place of a target; raises `DataError` if the model has none of that name."""
    targets = trained.description.targets
    if name is not None and name not in targets:
        raise DataError(f"the model does not predict '{name}'; it predicts {', '.join(targets)}")
    return targets.index(name) if name is not None else 0


class Explainer:
    """Integrated gradients of one target with respect to atom features, from all zero to the molecule."""

    def __init__(self, trained: Trained, target: int) -> None:
        self._trained = trained
        self._gradient: Callable[[Ensemble, Array, Batch], Array] = jit(grad_of_atoms(target))
        self._value: Callable[[Ensemble, Batch], Array] = jit(lambda ensemble, batch: ensemble(batch)[0, target])

    def __call__(self, example: Example) -> np.ndarray:
        """Contribution of each atom of the graph, f64[atom], in the unit of the target."""
        batch = self._trained.batch([example], 1)
        bare = replace(batch, atoms=np.zeros_like(batch.atoms))
        value, start = (float(self._value(self._trained.ensemble, part)) for part in (batch, bare))
        steps = STEPS
        while True:
            contributions = self._integral(batch, steps)[:len(example.graph.atoms)]
            missing = abs(contributions.sum() - (value - start))
            if missing <= TOLERANCE * abs(value - start) or steps == MOST_STEPS:
                return contributions
            steps *= 2

    def _integral(self, batch: Batch, steps: int) -> np.ndarray:
        """Contributions f64[atom], of padding too."""
        total = np.zeros(batch.atoms.shape)
        # The midpoint rule.
        for step in range(steps):
            atoms = batch.atoms * np.float32((step + 0.5) / steps)
            total += self._gradient(self._trained.ensemble, as_array(atoms), batch).numpy()
        return np.asarray((total * batch.atoms).sum(axis=1) / steps)


def grad_of_atoms(target: int) -> Callable[[Ensemble, Array, Batch], Array]:
    """The gradient of a target with respect to atom features."""

    def gradient(ensemble: Ensemble, atoms: Array, batch: Batch) -> Array:
        result: Array = grad(lambda atoms: ops.sum(ensemble(replace(batch, atoms=atoms))[:, target]))(atoms)
        return result

    return gradient


def drawing(example: Example, contributions: np.ndarray, width: int = 320, height: int = 240) -> str:
    """An SVG of the molecule, atoms coloured by their contribution."""
    molecule = example.molecule
    assert molecule is not None, "an example of a training holds no molecule to draw"
    strength = np.zeros(molecule.GetNumAtoms())
    for value, origin in zip(contributions, example.graph.origin, strict=True):
        if 0 <= origin < len(strength):
            strength[origin] += value
    largest = float(np.abs(strength).max(initial=0.0)) or 1.0
    colours = {atom: _blend(POSITIVE if value > 0 else NEGATIVE, abs(value) / largest)
               for atom, value in enumerate(strength.tolist())}
    drawer = rdMolDraw2D.MolDraw2DSVG(width, height)
    drawer.drawOptions().useBWAtomPalette()
    flat = Chem.Mol(molecule)
    flat.RemoveAllConformers()
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, flat, highlightAtoms=list(colours),
                                       highlightAtomColors=colours, highlightBonds=[])
    drawer.FinishDrawing()
    return str(drawer.GetDrawingText()).split("?>", 1)[-1]


def _blend(colour: tuple[float, float, float], strength: float) -> tuple[float, float, float]:
    """From white to a colour."""
    red, green, blue = (1 - strength * (1 - part) for part in colour)
    return red, green, blue
