"""Settings of the commands on volumes: the command line, the TOML file and the web form are made from these classes.

Invariant: the defaults are those of the published network of FIB-25; sizes, steps and positions are in voxels, z y x.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.app import TrainingConfig, config_values, setting
from core.engine.errors import ConfigError

PRECISIONS = ("f32", "bf16", "int8")
POLICIES = ("PolicyPeaks", "PolicyPeaks2d", "PolicyFillEmptySpace", "PolicyMax", "PolicyMaxPeaks",
            "PolicyImagePeaks3D2D", "PolicyImagePeaks2DDisk", "PolicyGrid3d", "PolicyGrid2d", "PolicyInvertOrigins")


def three(name: str, numbers: Sequence[float], *, odd: bool = False) -> None:
    """Refuse a setting that has not one number an axis."""
    if len(numbers) != 3 or (odd and not all(number % 2 for number in numbers)):
        expected = "three odd numbers, z y x" if odd else "three numbers, z y x"
        raise ConfigError(f"{name.replace('_', '-')} is {expected}; found {' '.join(map(str, numbers))}")


def three_or_none(name: str, numbers: Sequence[float]) -> None:
    """Refuse a setting that is given and has not one number an axis."""
    if numbers:
        three(name, numbers)


def given(settings: Any, names: Collection[str]) -> dict[str, Any]:
    """Those settings of these names that have a value, as plain values for the workers of a blocked run."""
    return {name: value for name, value in config_values(settings).items() if name in names and value is not None}


@dataclass(frozen=True, kw_only=True)
class ConnectomicsConfig(TrainingConfig):
    """What is learned, from what, and by which network."""

    # The data
    raw: str = setting("raw", "dataset of the image, where DATA are HDF5 files")
    labels: str = setting("labels", "dataset of the labels; 0 is no object")
    begin: tuple[int, ...] = setting((), "first voxel of the part that is learned from", low=0, unit="voxels z y x")
    end: tuple[int, ...] = setting((), "voxel behind the last one of that part", low=1, unit="voxels z y x")
    min_object: int = setting(1000, "smallest object that is learned from", low=1, unit="voxels")
    border: int = setting(0, "what is taken off each object where it touches another one, so that membranes in "
                             "dense labels count as outside", low=0, high=1000, unit="voxels")

    permutable_axes: tuple[int, ...] = setting((1, 2), "axes that examples exchange at random where field of view "
                                                       "and deltas are alike, of 0 1 2 for z y x; where voxels are "
                                                       "cubes, 0,1,2", low=0, high=2)

    # The network
    depth: int = setting(12, "pairs of convolutions, the first one included", low=1, high=100)
    features: int = setting(32, "channels between convolutions", low=1, high=4096)
    field_of_view: tuple[int, ...] = setting((33, 33, 33), "what the network sees at once", low=1, unit="voxels z y x")
    deltas: tuple[int, ...] = setting((8, 8, 8), "one step of the field of view", low=0, unit="voxels z y x")

    # The image
    image_mean: float = setting(128.0, "subtracted from the image")
    image_stddev: float = setting(33.0, "by which the image is divided", low=1e-6)
    clahe: bool = setting(False, "even out the contrast of each section first (CLAHE), to a range of 0..255")

    # The mask
    init_activation: float = setting(0.95, "what the mask begins with at its seed", low=0.5, high=0.9999)
    pad_value: float = setting(0.05, "mask where nothing was predicted yet", low=0.0001, high=0.9999)
    move_threshold: float = setting(0.9, "mask from which on the field of view moves", low=0.0001, high=0.9999)

    # The training
    epochs: int = setting(20, "rounds of steps", low=1, high=1_000_000)
    steps: int = setting(250, "steps of a round", low=1, high=10_000_000)
    batch_size: int = setting(4, "objects that are grown side by side", low=1, high=1024)
    rate: float = setting(1e-3, "highest learning rate", low=1e-8, high=10)
    clip: float = setting(1.0, "largest norm of a gradient", low=1e-6)

    def __post_init__(self) -> None:
        three("field_of_view", self.field_of_view, odd=True)
        three("deltas", self.deltas)
        if any(delta > field // 2 for delta, field in zip(self.deltas, self.field_of_view, strict=True)):
            raise ConfigError(f"deltas are at most half of the field of view, {self.field_of_view}; found "
                              f"{self.deltas}")
        three_or_none("begin", self.begin)
        three_or_none("end", self.end)


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How a volume is read."""

    axes: str = setting("", "order of the axes of the file, such as xyz; by default that of the format, or zyx")
    voxel_size: tuple[float, ...] = setting((), "over that of the file", low=1e-3, unit="nm z y x")

    def __post_init__(self) -> None:
        three_or_none("voxel_size", self.voxel_size)


@dataclass(frozen=True, kw_only=True)
class MaskSettings(ImageSettings):
    """How the mask of one object is grown."""

    precision: str = setting("f32", "of the network; bf16 and int8 are not exact, and faster on chips that multiply "
                                    "them", choices=PRECISIONS)
    move_threshold: float | None = setting(None, "mask from which on the field of view moves; by default that of the "
                                                 "training", low=0.0001, high=0.9999)
    segment_threshold: float = setting(0.6, "mask from which on a voxel belongs to its object", low=0.0001, high=0.9999)
    disco_seed_threshold: float = setting(0.0, "share of a prediction above the move threshold from which on no voxel "
                                               "rises that was below one half; negative: never", low=-1, high=1)


@dataclass(frozen=True, kw_only=True)
class FloodSettings(MaskSettings):
    """How objects are filled in."""

    seed_policy: str = setting("PolicyPeaks", "where objects begin", choices=POLICIES)
    seeds: Path | None = setting(None, "CSV file of seeds, columns z, y, x, in order, instead of the policy")  # noqa: RUF009
    reverse: bool = setting(False, "try the seeds in reverse order, the ReverseCoords of google/ffn")
    origins: Path | None = setting(  # noqa: RUF009 setting() makes a dataclass field
        None, "earlier output of this command, FILE.h5, whose objects PolicyInvertOrigins begins with, the last first")
    init: str = setting("", "segmentation FILE.h5:dataset that is kept and added to")
    min_segment_size: int = setting(1000, "smallest object", low=1, unit="voxels")
    min_boundary_dist: tuple[int, ...] = setting((1, 1, 1), "between a seed and other objects", low=0,
                                                 unit="voxels z y x")

    def __post_init__(self) -> None:
        super().__post_init__()
        three("min_boundary_dist", self.min_boundary_dist)
        if self.seed_policy == "PolicyFillEmptySpace" and not self.init:
            raise ConfigError("PolicyFillEmptySpace begins where a segmentation is empty: add --init FILE.h5:dataset")
        if (self.seed_policy == "PolicyInvertOrigins") != bool(self.origins):
            raise ConfigError("--seed-policy PolicyInvertOrigins and --origins FILE.h5 go together: add the other one")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(FloodSettings):
    """Which part of a labelled volume is segmented and measured."""

    begin: tuple[int, ...] = setting((), "first voxel of the part", low=0, unit="voxels z y x")
    end: tuple[int, ...] = setting((), "voxel behind the last one of the part", low=1, unit="voxels z y x")

    def __post_init__(self) -> None:
        super().__post_init__()
        three_or_none("begin", self.begin)
        three_or_none("end", self.end)


@dataclass(frozen=True, kw_only=True)
class SegmentSettings(FloodSettings):
    """Which network fills objects in, and how."""

    model: Path = setting(help="the run whose network is used")  # noqa: RUF009 setting() makes a dataclass field
    block: tuple[int, ...] = setting((), "largest part that is filled in at once; by default the whole volume", low=33,
                                     unit="voxels z y x")
    overlap: tuple[int, ...] = setting((64, 64, 64), "what neighbouring blocks share", low=1, unit="voxels z y x")
    agreement: float = setting(0.5, "share of the smaller of two pieces of objects, in what blocks share, that both "
                                    "must have for the objects to be one", low=0, high=1)
    workers: int = setting(1, "processes that fill in blocks", low=1, high=4096)
    scheduler: str = setting("", "address of a Dask scheduler whose workers fill in blocks")

    def __post_init__(self) -> None:
        super().__post_init__()
        three("overlap", self.overlap)
        three_or_none("block", self.block)


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What a checkpoint does not say of its network."""

    field_of_view: tuple[int, ...] = setting((33, 33, 33), "what the network sees at once", low=1, unit="voxels z y x")
    deltas: tuple[int, ...] = setting((8, 8, 8), "one step of the field of view", low=0, unit="voxels z y x")
    image_mean: float = setting(128.0, "subtracted from the image in training")
    image_stddev: float = setting(33.0, "by which the image was divided in training", low=1e-6)
    clahe: bool = setting(False, "the contrast of each section was evened out first (CLAHE)")
    pad_value: float = setting(0.05, "mask where nothing was predicted yet, as in training", low=0.0001, high=0.9999)
    move_threshold: float = setting(0.9, "mask from which on the field of view moves, as in training", low=0.0001,
                                    high=0.9999)


@dataclass(frozen=True, kw_only=True)
class ConsensusSettings(ImageSettings):
    """Of what two segmentations agree on."""

    other: str = setting(help="the second segmentation of the same volume, such as OTHER.h5:segmentation")
    min_size: int = setting(1000, "smallest segment", low=1, unit="voxels")


@dataclass(frozen=True, kw_only=True)
class ExpandSettings(ImageSettings):
    """How far segments grow into voxels without one."""

    like: str = setting("", "finer volume of the same region, such as VOLUME.h5:raw, whose voxels the result has")
    max_distance: float | None = setting(None, "from a segment to what it takes; by default any", low=0, unit="nm")
    parts: str = setting("", "many small segments of the volume that the result is like, such as "
                             "WATERSHED.h5:labels: each goes as a whole to the segment that has most of it")
    min_share: float = setting(0.5, "of such a part that this segment must have; otherwise it stays by itself", low=0,
                               high=1)


@dataclass(frozen=True, kw_only=True)
class AgglomerateSettings(MaskSettings):
    """Which segments are looked at again, how, and which become one; names are those of google/ffn."""

    image: str = setting(help="the image of the segmentation, such as VOLUME.h5:raw")
    model: Path = setting(help="the run whose network is used")  # noqa: RUF009 setting() makes a dataclass field
    # Not int8: its steps come from the image, which would differ from point to point.
    precision: str = setting("f32", "of the network; bf16 is not exact", choices=("f32", "bf16"))
    min_size: int = setting(1, "smallest segment that is looked at; smaller ones stay as they are", low=1,
                            unit="voxels")
    fine: str = setting("", "the same segments in finer voxels, such as WATERSHED.h5:labels, which are joined instead: "
                            "the result has its voxels")
    max_distance: float | None = setting(None, "between a segment and a decision point; by default as far as the "
                                               "analysis radius reaches", low=0, unit="nm")
    radius: tuple[int, ...] = setting((50, 50, 50), "of the subvolume around a decision point; where voxels are twice "
                                                    "as deep as wide, 25,50,50", low=1, unit="voxels z y x")
    analysis_radius: tuple[int, ...] = setting((), "of the part of it that is compared; by default less by half a "
                                                   "field of view", low=1, unit="voxels z y x")
    max_retry_iters: int = setting(8, "seeds that are tried for a segment", low=1, high=10_000)
    exclusion_radius: tuple[int, ...] = setting((8, 8, 8), "around a seed that was tried in which no other one is",
                                                low=0, unit="voxels z y x")
    segment_recovery_fraction: float = setting(0.6, "of a segment that its seed must bring back, or the next is tried",
                                               low=0, high=1)
    terminate_early: bool = setting(False, "leave the second segment out if the first did not bring back itself and "
                                           "the second: half the work, and no scores of the second")
    min_iou: float = setting(0.8, "of the two masks, above which two segments are one", low=0, high=1)
    min_consistency: float = setting(0.6, "share of either segment in either mask, above which they are one", low=0,
                                     high=1)
    max_deleted: float = setting(0.02, "share of deleted voxels in one of the masks, below which they are one", low=0)
    workers: int = setting(1, "processes that look at decision points", low=1, high=4096)
    scheduler: str = setting("", "address of a Dask scheduler whose workers look at decision points")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("radius", "analysis_radius", "exclusion_radius"):
            if getattr(self, name):
                three(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class SkeletonizeSettings(ImageSettings):
    """How skeletons are made."""

    scale: float = setting(1.5, "reach of a branch of a skeleton, times its radius", low=0)
    constant: float = setting(500.0, "and added to that", low=0, unit="nm")
    minimum_voxels: int = setting(100, "smallest part of a segment that gets a skeleton", low=1, unit="voxels")


@dataclass(frozen=True, kw_only=True)
class MeshSettings(ImageSettings):
    """How surfaces are made."""

    smoothing: int = setting(5, "rounds of smoothing, which take the steps of the voxels away; 0 keeps them, and areas "
                                "are about 9 % too large", low=0, high=1000)


@dataclass(frozen=True, kw_only=True)
class ExportSettings(ImageSettings):
    """How a volume is written for others to read."""

    format: str = setting("", "of --out, also at gs:// or s3://; by default what its name says: FILE.h5:DATASET, "
                              "FILE.tif, FOLDER.zarr or FOLDER.n5",
                          choices=("", "precomputed", "zarr2", "zarr3", "n5"))
    labels: bool = setting(False, "precomputed: the volume is a segmentation; known of u32, u64 and i64")
    scales: int | None = setting(None, "precomputed: how many coarser scales; by default until one chunk holds all",
                                 low=0, high=30)
    skeletons: bool = setting(False, "precomputed: skeletons of the segments too")
    meshes: bool = setting(False, "precomputed: meshes of the segments too")
    url: str = setting("http://127.0.0.1:8000", "precomputed: where the folder around --out will be served, for a link")
    image: str = setting("", "precomputed: a second layer of the link, such as precomputed://gs://BUCKET/IMAGE, or a "
                             "folder at the url")

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = {"labels": self.labels, "scales": self.scales is not None, "skeletons": self.skeletons,
                 "meshes": self.meshes, "image": self.image}
        if any(asked.values()) and self.format != "precomputed":
            name = next(name for name in asked if asked[name])
            raise ConfigError(f"--{name} is for precomputed volumes: add --format precomputed")


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(ImageSettings):
    """What a segmentation is compared with, and how."""

    truth: str = setting(help="labels of the truth, such as GT.h5:groundtruth")
    margin: int = setting(0, "left out at each side of the volume", low=0, unit="voxels")
    erl: bool = setting(False, "expected run lengths too")
    skeletons: Path | None = setting(  # noqa: RUF009 setting() makes a dataclass field
        None, "of the truth in nm: a folder of SWC files or a graph of em_erl (.npz), instead of own ones")
    no_merge: str = setting("", "mask of what no skeleton may be merged with, such as GLIA.h5:mask")
    minimum_radius: tuple[float, ...] = setting((0.0, 30.0, 50.0), "nodes nearer to the surface are left out; one "
                                                "result for each", low=0, unit="nm")
    merge_threshold: tuple[int, ...] = setting((1, 10, 25, 50), "nodes of a skeleton that make a segment a merger; one "
                                               "result for each", low=0)
    scale: float = setting(1.5, "reach of a branch of a skeleton, times its radius", low=0)
    constant: float = setting(500.0, "and added to that", low=0, unit="nm")
    minimum_voxels: int = setting(100, "smallest part of a body that gets a skeleton", low=1, unit="voxels")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.erl and (self.skeletons or self.no_merge):
            raise ConfigError("--skeletons and --no-merge are for expected run lengths: add --erl")
        if not self.minimum_radius or not self.merge_threshold:
            raise ConfigError("--minimum-radius and --merge-threshold need at least one number each")
