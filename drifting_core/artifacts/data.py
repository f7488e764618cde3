"""What is fetched, packed, indexed and encoded. Light."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from drifting_core.artifacts.publishing import Artifact, Sha256


class Fetched(Artifact):
    """Files of the Hugging Face hub, under `folder` beside this manifest."""

    kind: Literal["fetched"] = "fetched"
    repository: str
    revision: str
    folder: str


class PackedImages(Artifact):
    """Another data set as ILSVRC-shaped archives."""

    kind: Literal["packed_images"] = "packed_images"
    source: str
    train_images: int
    val_images: int


class ArchiveCheck(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    bytes: int | None  # none for a folder
    md5: str | None
    md5_check: Literal["matched", "skipped", "nothing_to_compare"]


class Archives(Artifact):
    """The archives (or folders) are there and, where MD5s were compared, are the published ones."""

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
    """Where every image lies; `files` holds one npz for both splits. Class c is wnids[c], named names[c]."""

    kind: Literal["index"] = "index"
    source: Literal["archives", "folder"] = "archives"
    wnids: list[str]
    names: list[str]
    splits: dict[Literal["train", "val"], SplitIndex]


class ImageFolder(Artifact):
    """The images as files, a sub-folder per class, for those who want them."""

    kind: Literal["image_folder"] = "image_folder"
    folder: str
    images: dict[Literal["train", "val"], int]
    classes: int


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
    """One HDF5 file of a store: train, val, or crops_K (K random crops of each training image)."""

    kind: Literal["latent_shard"] = "latent_shard"
    split: str
    shard: int
    shards: int
    rows: int
    shape: list[int]
    rejects: list[str]
    precision_error: float | None = None  # of the first batch, relative to float32, where another precision was used
    contract: LatentContract


class LatentManifest(Artifact):
    """All shards of a store, in order."""

    kind: Literal["latents"] = "latents"
    split: str
    rows: int
    shape: list[int]
    num_classes: int
    shards: list[str]
    shard_rows: list[int]
    rejects: list[str]
    precision_error: float | None = None  # the largest of the shards
    contract: LatentContract


class LatentVerification(Artifact):
    """What a reading of a split found: of all of it (full), or of evenly spread chunks (quick)."""

    kind: Literal["latent_verification"] = "latent_verification"
    split: str
    scope: Literal["full", "quick"] = "full"
    rows_looked_at: int
    not_looked_at: list[str] = Field(default_factory=list)
    total_items_manifest: int
    num_classes_manifest: int
    label_min: int
    label_max: int
    fewest_per_class: int
    most_per_class: int
    mean: float
    std: float
    largest: float
