"""The record of the molecules app: what the command line and the web app know of it.

Invariant: importing this file loads neither rdkit nor numpy.
"""

from __future__ import annotations

from apps.app import App, Command

APP = App(
    name="molecules",
    title="Molecules",
    summary="learn properties from SMILES, SDF, XYZ or reactions; predict new molecules with intervals and reasons",
    config="apps.molecules.config:MoleculesConfig",
    train=Command("apps.molecules.train:train", "train message-passing networks on a file of molecules"),
    dry_run="apps.molecules.train:dry_run",
    evaluate=Command("apps.molecules.evaluate:evaluate", "metrics of a trained model on measured molecules"),
    predict=Command("apps.molecules.predict:predict", "predict the molecules of a file",
                    settings="apps.molecules.config:PredictSettings"),
    sample=Command("apps.molecules.sample:sample", "molecules with polar surface areas that come with RDKit"),
    extra={
        "import-chemprop": Command("apps.molecules.importing:import_chemprop",
                                   "turn a model file of chemprop v1 or v2 into a run"),
        "explain": Command("apps.molecules.explain:explain",
                           "draw what each atom adds to the predictions for a file of molecules",
                           settings="apps.molecules.config:ExplainSettings"),
    },
    quantisable="apps.molecules.quantisable:quantisable",
)
