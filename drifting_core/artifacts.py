"""What each file promises: the models of every JSON that the workflow writes, publish(), hashes.

A name is a promise (architecture.md, decision 7): a file gets its final name only when it is whole, and the JSON that
lists it with its hash is written last. Snakemake sees these JSON files only. They hold no times and no host names, so
that a job repeated with the same code leaves them byte for byte as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from drifting_core.faults import Fault

Sha256 = str


def sha256_file(path: Path) -> Sha256:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scratch_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp.{socket.gethostname()}.{os.getpid()}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`; what was written there gets the final name when the block ends well.

    The scratch file is flushed to disk before the rename and the folder after it. When the block raises, the scratch
    file is removed and an older `path` stays as it was. The caller holds the folder's lease, so scratch files of
    earlier, killed writers are removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.tmp.*"):
        stale.unlink()
    scratch = _scratch_of(path)
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o666 & ~_umask())  # some writers make files that a group could not read
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def publish_text(path: Path, text: str) -> None:
    with publish(path) as scratch:
        scratch.write_text(text)


class FileRecord(BaseModel):
    """Size and hash of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: Sha256

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(bytes=path.stat().st_size, sha256=sha256_file(path))


class Artifact(BaseModel):
    """Base of every JSON artifact.

    `configuration` is the hash of the identity that the stage was given, `inputs` maps each artifact that was read to its
    hash, `files` maps the files that this artifact stands for (paths relative to its folder) to size and hash.
    """

    model_config = ConfigDict(extra="forbid")
    must_exist: ClassVar[str] = "run the workflow to make it"

    configuration: Sha256
    code: str
    inputs: dict[str, Sha256] = Field(default_factory=dict)
    files: dict[str, FileRecord] = Field(default_factory=dict)

    def write(self, path: Path) -> None:
        publish_text(path, json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises Fault when the file is missing, no JSON, or not what this kind of artifact promises."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise Fault(f"{path}: missing; {cls.must_exist}") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise Fault(f"{path}: not a {cls.__name__}: {where}: {first['msg']}; remove it to make it again") from None

    def verify(self, folder: Path) -> None:
        """Re-hash every listed file below `folder`. Raises Fault naming the first that differs."""
        for name, record in self.files.items():
            check_file(folder / name, record)


def check_file(path: Path, record: FileRecord) -> None:
    """Raises Fault unless `path` has the recorded size and hash."""
    if not path.is_file():
        raise Fault(f"{path}: missing, but its manifest lists it; remove the manifest to make both again")
    size = path.stat().st_size
    if size != record.bytes:
        raise Fault(f"{path}: {size} bytes, its manifest says {record.bytes}; it was cut or changed")
    found = sha256_file(path)
    if found != record.sha256:
        raise Fault(f"{path}: SHA-256 {found[:16]}…, its manifest says {record.sha256[:16]}…; it was changed")


def records(folder: Path, names: list[str]) -> dict[str, FileRecord]:
    return {name: FileRecord.of(folder / name) for name in names}


def hashes(paths: Mapping[str, Path]) -> dict[str, Sha256]:
    """Hashes of the artifacts that a job reads, by the role they play in it."""
    return {role: sha256_file(path) for role, path in paths.items()}


# --- what is published ---------------------------------------------------------------------------------------------


class Fetched(Artifact):
    """Files of the Hugging Face hub, under `folder` beside this manifest."""

    kind: Literal["fetched"] = "fetched"
    repository: str
    revision: str
    folder: str


# --- data -----------------------------------------------------------------------------------------------------------


class PackedPhotos(Artifact):
    """The embedded photos as ILSVRC-shaped archives."""

    kind: Literal["packed_photos"] = "packed_photos"
    source: str
    train_images: int
    val_images: int


class ArchiveCheck(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    bytes: int
    md5: str | None
    md5_check: Literal["matched", "skipped", "nothing_to_compare"]


class Archives(Artifact):
    """The archives are there and are the published ones."""

    kind: Literal["archives"] = "archives"
    archives: dict[Literal["train", "val", "devkit"], ArchiveCheck]


class SplitIndex(BaseModel):
    model_config = ConfigDict(extra="forbid")

    archive: str
    archive_bytes: int
    images: int
    fewest_per_class: int
    most_per_class: int


class Index(Artifact):
    """Where every image lies inside the archives; `files` holds one npz per split. Class c is wnids[c], named names[c]."""

    kind: Literal["index"] = "index"
    wnids: list[str]
    names: list[str]
    splits: dict[Literal["train", "val"], SplitIndex]


class TokenizerManifest(Artifact):
    """A tokenizer folder as written by save_pretrained; `files` are its config and weights."""

    kind: Literal["tokenizer"] = "tokenizer"
    source: str
    folder: str
    weights_sha256: Sha256
    scaling_factor: float
    channels: int
    factor: int
    psnr_db: float | None = None


class LatentContract(BaseModel):
    """How the stored numbers were made; whoever reads them checks it."""

    model_config = ConfigDict(extra="forbid")

    tokenizer_sha256: Sha256
    scaling_factor: float
    posterior: Literal["sample", "mean"]
    views: list[str]
    dtype: str
    precision: str
    pre_encode_transforms: list[str]
    transform_ordering: Literal["preprocess_before_sd_vae_encode"] = "preprocess_before_sd_vae_encode"


class LatentShard(Artifact):
    """One HDF5 file of a split."""

    kind: Literal["latent_shard"] = "latent_shard"
    split: Literal["train", "val"]
    shard: int
    shards: int
    rows: int
    shape: list[int]
    rejects: list[str]
    contract: LatentContract


class LatentManifest(Artifact):
    """All shards of a split, in order."""

    kind: Literal["latents"] = "latents"
    split: Literal["train", "val"]
    rows: int
    shape: list[int]
    num_classes: int
    shards: list[str]
    shard_rows: list[int]
    rejects: list[str]
    contract: LatentContract


class LatentVerification(Artifact):
    """What a full reading of a split found."""

    kind: Literal["latent_verification"] = "latent_verification"
    split: Literal["train", "val"]
    scope: Literal["full"] = "full"
    total_items_manifest: int
    num_classes_manifest: int
    label_min: int
    label_max: int
    fewest_per_class: int
    most_per_class: int
    mean: float
    std: float
    largest: float


# --- networks -------------------------------------------------------------------------------------------------------


class FeatureNetwork(Artifact):
    """The network that evaluations look through."""

    kind: Literal["feature_network"] = "feature_network"
    network: Literal["inception", "classifier"]
    weights: str
    weights_sha256: Sha256  # of the weights as they were published or trained: what names the network
    architecture: dict[str, Any] = Field(default_factory=dict)
    dimensions: int
    classes: int
    resize: str
    val_accuracy: float | None = None


class ReferenceStatistics(Artifact):
    """Mean and covariance of real features (npz) and the feature caches (HDF5)."""

    kind: Literal["reference_statistics"] = "reference_statistics"
    split: Literal["train"] = "train"
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


class Imported(BaseModel):
    """Where imported weights come from, as the source itself says."""

    model_config = ConfigDict(extra="forbid")

    source: str  # of the configuration
    step: int
    weights_sha256: Sha256  # of the file that was read


class Export(Artifact):
    """Weights for later stages: `model.safetensors` (EMA) and this metadata; `imported` when they were not trained here."""

    kind: Literal["export"] = "export"
    network: Literal["encoder", "generator"]
    step: int
    ema_decay: float
    architecture: dict[str, Any]
    parameters: int
    latents: LatentContract
    imported: Imported | None = None


class StateMarker(Artifact):
    """Commit marker of a training state: whole when this file is there and its hashes hold."""

    kind: Literal["state"] = "state"
    step: int


class RunRecord(Artifact):
    """The full configuration of a run, so that later calls can ask for its evaluations by name."""

    kind: Literal["run"] = "run"
    values: dict[str, Any]


class EnvironmentSnapshot(BaseModel):
    """env_snapshot.json: where a training last ran and with what; beside the artifacts, none of them refers to it."""

    model_config = ConfigDict(extra="forbid")

    python: str
    platform: str
    host: str
    cpus: int | None
    slurm_job: str | None
    packages: dict[str, str | None]


# --- the two-dimensional experiment ---------------------------------------------------------------------------------


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


# --- evaluation -----------------------------------------------------------------------------------------------------


class Samples(Artifact):
    """Generated latents: functions of (export, alpha, seed, index)."""

    kind: Literal["samples"] = "samples"
    step: int
    alpha: float
    seed: int
    samples: int
    classes: int
    compute_batch: int
    label_plan: Literal["balanced"] = "balanced"
    stored: Literal["float16"] = "float16"
    precision: str = "float32"
    export_sha256: Sha256
    tokenizer_sha256: Sha256  # the latents are of this tokenizer's space


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

    # The published FID weights carry the first digits of their hash in their name; ImageNet has this many training images.
    fid_weights: ClassVar[str] = "6726825d"
    fid_images: ClassVar[int] = 1_281_167

    @property
    def uses_fid_network(self) -> bool:
        return self.network == "inception" and self.network_sha256.startswith(self.fid_weights)

    @property
    def distance_name(self) -> str:
        """FID is a promise about network, weights and reference; everything else is a Fréchet distance."""
        if not self.uses_fid_network:
            return "FD"
        if self.reference_split == "val":
            return "FID-val"
        return "FID" if self.reference_images == self.fid_images else "FD"

    @property
    def score_name(self) -> str:
        """IS is a promise about network and weights; everything else is a diversity score of some classifier."""
        return "IS" if self.uses_fid_network else "DS"


class Metrics(Artifact):
    """One evaluation. `distance` and `score` go by the names that the contract gives them."""

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
    distance_residue: float
    score: float
    score_std: float
    precision: float
    recall: float
    label_accuracy: float | None
    within_class_diversity: float
    sample_std: float


class MetricsTable(Artifact):
    """Evaluations under one contract, a row each."""

    kind: Literal["metrics_table"] = "metrics_table"
    title: str
    contract: EvaluationContract
    contract_hash: str
    distance_name: str
    score_name: str
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

    sample: int
    label: int
    percentile: float  # share of held-out photos, in percent, that are nearer to the training set
    images: list[int]
    labels: list[int]
    distances: list[float]


class Neighbours(Artifact):
    """Nearest training images of generated ones, against the baseline of held-out photos."""

    kind: Literal["neighbours"] = "neighbours"
    space: str
    network_sha256: Sha256
    step: int
    alpha: float
    seed: int
    samples: int
    training_images: int
    top: int
    baseline_images: int
    baseline_percentile_1: float
    baseline_median: float
    generated_median: float
    share_below_percentile_1: float
    pairs: list[NeighbourPair]


class Bundle(Artifact):
    """The claim bundle: `files` lists everything in its folder but this file and claim_bundle.done.

    `inputs` maps the path below results/ of each artifact that was taken in to its hash.
    """

    kind: Literal["bundle"] = "bundle"
    run: str
    configuration_values: dict[str, Any]


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
