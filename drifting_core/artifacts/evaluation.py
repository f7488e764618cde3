"""Numbers and what is made of them: evaluations, tables, recommendation, audit, bundle, the toy. Light."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from drifting_core.artifacts.publishing import Artifact, Sha256

LATENTS = "latents.safetensors"  # of a sample set
FEATURES = "features.h5"  # of an evaluation

ImageFormat = Literal["png", "jpeg", "tar", "npz", "sheet"]
IMAGES: dict[ImageFormat, str] = {"tar": "images.tar", "npz": "images.npz", "sheet": "sheet.png"}  # the others are folders


class Samples(Artifact):
    """Generated latents: functions of (export, alpha, seed, index)."""

    kind: Literal["samples"] = "samples"
    step: int
    alpha: float
    seed: int
    samples: int
    classes: int
    compute_batch: int
    label_plan: Literal["balanced", "validation", "spaced"] = "balanced"
    stored: Literal["float16"] = "float16"
    precision: str = "float32"
    export_sha256: Sha256
    tokenizer_sha256: Sha256  # the latents are of this tokenizer's space

    pruned: ClassVar[str] = "pruned.json"  # the manifest's name once its latents were pruned


class ImageExport(Artifact):
    """A sample set as images, for those who want them: `folder`, or one file (`files`).

    Its bytes are those that the evaluation under the same rule and compute batch sees (JPEG: before compression).
    """

    kind: Literal["image_export"] = "image_export"
    format: ImageFormat
    folder: str | None
    images: int
    classes: int
    step: int
    alpha: float
    seed: int
    uint8: str
    compute_batch: int
    precision: str
    tokenizer_sha256: Sha256
    jpeg_quality: int | None


class EvaluationContract(BaseModel):
    """Everything that a number depends on beside the generator, its step, alpha and seed (decision 9).

    Numbers of unlike contracts never share a table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    network_sha256: Sha256
    resize: str
    uint8: str
    label_plan: str
    sampling_batch: int
    compute_batch: int
    precision: str
    tokenizer_sha256: Sha256
    reference_split: str
    reference_images: int
    reference_sha256: Sha256
    manifold_images: int
    manifold_sha256: Sha256
    precision_recall_k: int
    bootstrap: int
    samples: int
    sampling_precision: str = "float32"
    kernel_subsets: int = 0
    kernel_subset_size: int = 0
    extrapolation: int = 0

    # The published FID weights carry the first digits of their hash in their name; ImageNet has this many training images.
    fid_weights: ClassVar[str] = "6726825d"
    fid_images: ClassVar[int] = 1_281_167
    further_spaces: ClassVar[dict[str, str]] = {"dinov2": "DINOv2", "clip": "CLIP"}

    @property
    def uses_fid_network(self) -> bool:
        return self.network == "inception" and self.network_sha256.startswith(self.fid_weights)

    @property
    def distance_name(self) -> str:
        """FID is a promise about network, weights and reference; everything else is a Fréchet distance."""
        if self.network in self.further_spaces:
            return f"FD-{self.further_spaces[self.network]}"
        if not self.uses_fid_network:
            return "FD"
        if self.reference_split == "val":
            return "FID-val"
        return "FID" if self.reference_images == self.fid_images else "FD"

    @property
    def score_name(self) -> str:
        """IS is a promise about network and weights; everything else is a diversity score of some classifier."""
        return "IS" if self.uses_fid_network else "DS"

    @property
    def kernel_name(self) -> str:
        """KID is a promise about network and weights; everything else is a kernel distance."""
        return "KID" if self.uses_fid_network else "KD"


class Metrics(Artifact):
    """One evaluation. `distance`, `score` and `kernel_distance` go by the names that the contract gives them.

    None is what the contract did not ask for, or a file was made before it could.
    """

    kind: Literal["metrics"] = "metrics"
    contract: EvaluationContract
    contract_hash: str
    distance_name: str
    score_name: str
    step: int
    alpha: float
    seed: int
    distance: float
    distance_error: float
    distance_low: float | None = None  # 95% interval by the bootstrap's standard error
    distance_high: float | None = None
    distance_residue: float
    distance_infinite: float | None = None  # extrapolated to infinitely many samples, and the error of that line's intercept
    distance_infinite_error: float | None = None
    kernel_distance: float | None = None
    kernel_distance_std: float | None = None
    score: float | None  # none where the network has no classes
    score_std: float | None
    precision: float
    recall: float
    label_accuracy: float | None
    within_class_diversity: float
    sample_std: float
    grid_labels: list[int] = Field(default_factory=list)  # class of each row of grid.png; older ones: evenly spaced


class MetricsTable(Artifact):
    """Evaluations under one contract, a row each."""

    kind: Literal["metrics_table"] = "metrics_table"
    title: str
    contract: EvaluationContract
    contract_hash: str
    distance_name: str
    score_name: str
    rows: list[dict[str, Any]]


class Canary(Artifact):
    """One step, one export and one evaluation of a run went through; its weights and state are gone again."""

    kind: Literal["canary"] = "canary"
    contract_hash: str
    samples: int


class Spread(BaseModel):
    """One number of the claims over training seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: float
    smallest: float
    largest: float


class SeedsTable(Artifact):
    """The claims of runs that differ in training.seed only, a row each, and every number's spread over them.

    Where a claim has several sampling seeds, a row holds their mean. `files` is the same table for readers.
    """

    kind: Literal["seeds_table"] = "seeds_table"
    contract: EvaluationContract
    contract_hash: str
    distance_name: str
    score_name: str
    seeds: int  # how many
    rows: list[dict[str, Any]]
    spread: dict[str, Spread]


class TrainingCurve(Artifact):
    """What the training of a generator logged, for the figure of its progress.

    Each row has `step`, `loss` and `force_norm` by temperature, the mean over the feature groups. `inputs` holds the hash of
    the lines of metrics.jsonl that were read, without their times: those up to the last milestone evaluated, since a
    training may be going on.
    """

    kind: Literal["training_curve"] = "training_curve"
    rows: list[dict[str, Any]]


class Choice(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    alpha: float


class Recommendation(Artifact):
    """Which export and guidance to report, and everything that is tied with them."""

    kind: Literal["recommendation"] = "recommendation"
    contract_hash: str
    rule: str
    distance_name: str
    score_name: str
    best_distance: Choice
    best_score: Choice
    tied: list[Choice]  # with the best distance
    tied_score: list[Choice]  # with the best score
    recommended: Choice
    reason: str


class NeighbourPair(BaseModel):
    """A generated image and its nearest training images, nearest first."""

    model_config = ConfigDict(extra="forbid")

    sample: int  # its place in the set of samples
    label: int
    percentile: float  # share of held-out photos, in percent, that are nearer to the training set
    images: list[int]  # rows of the training index
    labels: list[int]
    distances: list[float]


class NeighbourSearch(BaseModel):
    """Distances to the nearest training image: of generated images, and of held-out photos (the baseline)."""

    model_config = ConfigDict(extra="forbid")

    baseline_percentile_1: float
    baseline_median: float
    generated_median: float
    share_below_percentile_1: float
    pairs: list[NeighbourPair]  # closest first


class NeighbourSpace(BaseModel):
    """One space of an audit, searched among all training images and among those of the image's own class."""

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str
    sha256: Sha256 | None  # of the weights that make the space; pixels have none
    training_images: int
    baseline_images: int
    picture: str  # the closest pairs of any class
    any_class: NeighbourSearch
    same_class: NeighbourSearch


class Neighbours(Artifact):
    """Nearest training images of generated ones, against the baseline of held-out photos.

    Class c is wnids[c], for generated and real images alike. `left_out`: why, by the name of the space.
    """

    kind: Literal["neighbours"] = "neighbours"
    step: int
    alpha: float
    seed: int
    samples: int
    top: int
    wnids: list[str]
    spaces: list[NeighbourSpace]
    left_out: dict[str, str]


class Bundle(Artifact):
    """The claim bundle: `files` lists everything in its folder but this file and claim_bundle.done.

    `inputs` maps the path below results/ of each artifact that was taken in to its hash, `roles` to the role it plays.
    """

    kind: Literal["bundle"] = "bundle"
    run: str
    roles: dict[str, str] = Field(default_factory=dict)
    configuration_values: dict[str, Any]


class ModelExport(Artifact):
    """The recommended generator as a folder that runs without this project; `files` lists it."""

    kind: Literal["model_export"] = "model_export"
    step: int
    alpha: float
    parameters: int


class ProvenanceNode(BaseModel):
    """One artifact of a bundle's provenance.json (a list) and, by role, what it was made from."""

    model_config = ConfigDict(extra="forbid")

    artifact: str
    kind: str | None
    sha256: Sha256
    configuration: Sha256 | None
    code: str | None
    made_from: dict[str, str]


class BundleDone(Artifact):
    """A bundle is whole: which run, which configuration, where, and the hash of its manifest."""

    kind: Literal["bundle_done"] = "bundle_done"
    run: str
    folder: str
    manifest_sha256: Sha256


class ToyRun(BaseModel):
    """One run of `make toy`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_set: Literal["swiss_roll", "checkerboard"]
    force: Literal["drift", "attraction_only"]
    seed: int
    steps: int
    smoothed_loss: float  # at the last step: mean of V^2, exponential moving average (0.96 old, 0.04 new)
    spread: float  # root-mean-square distance of the samples to their mean, as a share of the data's
    energy_distance: float  # samples to fresh data


class ToyCheck(BaseModel):
    """A median over seeds, and the band that it must lie in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_set: Literal["swiss_roll", "checkerboard"]
    force: Literal["drift", "attraction_only"]
    number: Literal["smoothed_loss", "spread"]
    median: float
    low: float
    high: float
    compared_with: str
    inside: bool


class ToyExperiment(Artifact):
    """Everything that `make toy` measured; `files` is its picture."""

    kind: Literal["toy_experiment"] = "toy_experiment"
    runs: list[ToyRun]
    checks: list[ToyCheck]
