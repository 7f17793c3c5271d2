"""The record of the connectomics app: what the command line and the web app know of it.

Invariant: importing this file loads no numerical library.
"""

from __future__ import annotations

from apps.app import App, Command

APP = App(
    name="connectomics",
    title="Connectomics",
    summary="flood-filling networks that follow neurites through volumes of electron microscopy",
    config="apps.connectomics.config:ConnectomicsConfig",
    train=Command("apps.connectomics.train:train", "train a flood-filling network on labelled volumes"),
    dry_run="apps.connectomics.train:dry_run",
    evaluate=Command("apps.connectomics.evaluate:evaluate", "segment labelled volumes and measure the result",
                     settings="apps.connectomics.config:EvaluateSettings"),
    predict=Command("apps.connectomics.segment:predict", "fill in the objects of a volume",
                    settings="apps.connectomics.config:FloodSettings", addresses=True),
    sample=Command("apps.connectomics.sample:sample", "a small synthetic volume with labels"),
    extra={
        "import-checkpoint": Command("apps.connectomics.importing:import_checkpoint",
                                     "turn a TensorFlow checkpoint of google/ffn into a run",
                                     settings="apps.connectomics.config:ImportSettings", addresses=True),
        "segment": Command("apps.connectomics.segment:segment", "fill in the objects of a volume",
                           settings="apps.connectomics.config:SegmentSettings", addresses=True),
        "score": Command("apps.connectomics.scoring:score_addresses", "measure a segmentation against the truth",
                         settings="apps.connectomics.config:ScoreSettings", addresses=True),
        "consensus": Command("apps.connectomics.consensus:consensus_addresses",
                             "split the segments of a volume by those of another segmentation",
                             settings="apps.connectomics.config:ConsensusSettings", addresses=True),
        "expand": Command("apps.connectomics.expansion:expand_address",
                          "let segments grow into the voxels without one, also on finer voxels",
                          settings="apps.connectomics.config:ExpandSettings", addresses=True),
        "agglomerate": Command("apps.connectomics.agglomeration:agglomerate_address",
                               "join segments where the network, asked again, sees one object",
                               settings="apps.connectomics.config:AgglomerateSettings", addresses=True),
        "skeletonize": Command("apps.connectomics.skeletonizing:skeletonize_address",
                               "write the skeletons of a segmentation as SWC files",
                               settings="apps.connectomics.config:SkeletonizeSettings", addresses=True),
        "mesh": Command("apps.connectomics.meshing:mesh_address",
                        "write the surfaces of a segmentation as PLY files",
                        settings="apps.connectomics.config:MeshSettings", addresses=True),
        "export": Command("apps.connectomics.export:export", "copy a volume into another format",
                          settings="apps.connectomics.config:ExportSettings", addresses=True, stores=True),
    },
    quantisable="apps.connectomics.quantisable:quantisable",
)
