"""Networks, their states and exports, and the runs they belong to. Light."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from drifting_core.artifacts.data import LatentContract
from drifting_core.artifacts.publishing import Artifact, Sha256, publish_text

SpaceKind = Literal["dinov2", "clip"]  # the further feature spaces that evaluations know


class FeatureNetwork(Artifact):
    """The network that evaluations look through."""

    kind: Literal["feature_network"] = "feature_network"
    network: Literal["inception", "classifier"] | SpaceKind
    weights: str
    weights_sha256: Sha256  # of the weights as they were published or trained: what names the network
    architecture: dict[str, Any] = Field(default_factory=dict)
    dimensions: int
    classes: int  # 0: the network has features only
    resize: str
    val_accuracy: float | None = None


class ImportedStatistics(BaseModel):
    """Moments that were computed elsewhere, and how far our own of the same split are from them (Fréchet distance)."""

    model_config = ConfigDict(extra="forbid")

    name: str
    sha256: Sha256
    own_images: int
    distance_to_own: float | None  # none where they are of the other split


class ReferenceStatistics(Artifact):
    """Mean and covariance of real features (npz) and the feature caches (HDF5)."""

    kind: Literal["reference_statistics"] = "reference_statistics"
    split: Literal["train", "val"] = "train"
    imported: ImportedStatistics | None = None
    images: int
    dimensions: int
    network_sha256: Sha256
    image_transforms: list[str]
    compute_batch: int
    precision_recall_images: int
    real_accuracy: float | None = None


class EncoderTrained(Artifact):
    """The latent-MAE has reached its last step; `files` is that state."""

    kind: Literal["encoder_trained"] = "encoder_trained"
    step: int


class HeldOut(BaseModel):
    """What an encoder knows of validation latents that it never saw (view 0, the images unmirrored).

    `reconstruction_error` is the training's: squared error summed over the hidden entries of a latent, by the number of
    hidden positions, mean over images. `head_accuracy` is the classifier's on unmasked input. Both are None where there
    is no autoencoder. `nearest_mean_accuracy` needs none: the share of images whose pooled layer4 is nearest (Euclidean)
    to their own class's mean of at most `images_per_class` training images (of ImageNet's 1.28 million 50,000 in all).
    """

    model_config = ConfigDict(extra="forbid")

    images: int
    mask_ratio: float
    mask_patch_size: int
    reconstruction_error: float | None
    head_accuracy: float | None
    nearest_mean_accuracy: float
    images_per_class: int
    training_images: int

    most_per_class: ClassVar[int] = 50


class EncoderAudit(Artifact):
    """An encoder's export is what the configuration says; `files` are its own, re-checked.

    `feature_entries` and `feature_vectors` are those of one image in the drift loss, the raw latent among them (protocol
    2.4).
    """

    kind: Literal["encoder_audit"] = "encoder_audit"
    encoder: str
    step: int
    base_width: int
    blocks: list[int]
    input_patch_size: int
    norm_groups: int
    parameters: int
    latents: LatentContract
    latent_shape: list[int]
    feature_entries: int
    feature_vectors: int
    held_out: HeldOut


class Imported(BaseModel):
    """Where imported weights come from, as the source itself says."""

    model_config = ConfigDict(extra="forbid")

    source: str  # of the configuration
    step: int
    weights_sha256: Sha256  # of the file that was read


class Export(Artifact):
    """Weights for later stages: `model.safetensors` (EMA) and this metadata; `imported` when they were not trained here.

    Where training.export_raw asks for it, `files` also lists `raw.safetensors`: the weights without averaging.
    """

    kind: Literal["export"] = "export"
    network: Literal["encoder", "generator"]
    step: int
    ema_decay: float
    architecture: dict[str, Any]
    parameters: int
    latents: LatentContract
    imported: Imported | None = None


STATE_MARKER = "COMMITTED.json"
STATES_KEPT = 2  # of a training: the last ones


class StateMarker(Artifact):
    """Commit marker of a training state: whole when this file is there and its hashes hold."""

    kind: Literal["state"] = "state"
    step: int


class RunRecord(Artifact):
    """The full configuration of a run, so that later calls can ask for its evaluations by name."""

    kind: Literal["run"] = "run"
    values: dict[str, Any]


# --- records of a training: beside the artifacts, none of them refers to one -----------------------------------------


class Record(BaseModel):
    """A JSON that a training leaves in its folder for readers."""

    model_config = ConfigDict(extra="forbid")

    def write(self, path: Path) -> None:
        publish_text(path, self.model_dump_json(indent=1) + "\n")


class EnvironmentSnapshot(Record):
    """env_snapshot.json: where a training last ran and with what."""

    python: str
    platform: str
    host: str
    cpus: int | None
    slurm_job: str | None
    cuda: str | None = None  # what torch was built for
    driver: str | None = None  # of the GPUs
    gpus: list[str] = Field(default_factory=list)  # those that the job was given
    packages: dict[str, str | None]


class EnvironmentFingerprint(Record):
    """env_fingerprint.json: software that a training last ran with; two machines of equal software have one digest."""

    digest: Sha256  # of all that follows
    python: str
    platform: str  # operating system, architecture and C library; no kernel and no host
    torch: dict[str, str | None]  # version, commit, CUDA and cuDNN of the build
    packages: dict[str, str]  # everything that is installed but this project


class CodebaseFingerprint(Record):
    """codebase_fingerprint.json: the code that a training last ran with."""

    digest: Sha256  # of `sources`
    version: str
    commit: str | None  # none outside a git checkout
    changes: bool | None  # whether tracked files differ from the commit
    sources: dict[str, Sha256]  # by path


class LatentSummary(Record):
    """latent_summary.json: the latents that a generator is trained on."""

    manifest_sha256: Sha256
    rows: int
    classes: int
    shape: list[int]
    dtype: str
    contract: LatentContract
    subset_rows: int  # evenly spread; of their unmirrored latents are the moments
    channel_mean: list[float]
    channel_std: list[float]


class EncoderSummary(Record):
    """mae_summary.json: a trained latent-MAE in short."""

    step: int
    architecture: dict[str, Any]
    parameters: dict[str, int]  # by part
    recipe: dict[str, Any]
    masking: dict[str, float]
    augmentation: dict[str, Any]
    last_metrics: dict[str, Any] | None  # last line of metrics.jsonl, without times
    manifest_sha256: Sha256
    contract: LatentContract
