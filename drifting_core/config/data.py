"""Images and latents: sections `data` and `tokenizer`. Light."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from drifting_core.artifacts.identity import Section, operation
from drifting_core.config.values import Name, Natural, Positive, Precision, Rate, Resources
from drifting_core.sources import published


class Archives(Section):
    """Where the images lie: three ImageNet-shaped archives, or folders with a sub-folder of images per class."""

    train: str = operation(description="tar of one tar of JPEGs per class; for source: folder, the folder")
    val: str | None = operation(None, "flat tar of validation JPEGs; a folder; null: held out of the training folder")
    devkit: str | None = operation(None, "tar.gz with data/meta.mat and the validation ground truth; for archives only")
    packed_from: str | None = operation(None, "for pack: cifar10, cifar-10-binary.tar.gz")


class Checksums(Section):
    """MD5 of the archives as published; null where nobody publishes one."""

    train: str | None = None
    val: str | None = None
    devkit: str | None = None
    packed_from: str | None = None


class Expected(Section):
    """Counts that the index must find before anything is encoded."""

    classes: Positive = Field(description="number of classes")
    train_images: Positive = Field(description="images in the training archive")
    val_images: Positive = Field(description="images in the validation archive")
    train_per_class: tuple[Positive, Positive] = Field(description="fewest and most training images of a class")
    val_per_class: tuple[Positive, Positive] = Field(description="fewest and most validation images of a class")


class Latents(Section):
    """How images become rows of the latent store."""

    posterior: Literal["sample", "mean"] = Field("sample", description="a posterior sample seeded per image, or the mean")
    views: Literal[1, 2] = Field(2, description="1: the image; 2: the image and its mirror")
    dtype: Literal["float16", "float32"] = Field("float16", description="stored number format")
    precision: Precision | Literal["float16"] = Field("float32", description="number format that the tokenizer computes in")
    precision_tolerance: Rate = operation(
        0.05, "largest relative error of the first batch of a shard, against float32, that another precision may have"
    )
    compute_batch: Positive = Field(64, description="images per tokenizer call (bits depend on it)")
    chunk_rows: Positive = Field(64, description="rows per HDF5 chunk; a multiple of compute_batch / views")
    shards_train: Positive = Field(1, description="files of the training split, one job each")
    shards_val: Positive = Field(1, description="files of the validation split, one job each")
    seed: Natural = Field(0, description="seed of the posterior samples")
    residency: Literal["mmap", "ram", "gpu"] = operation(
        "mmap", "where trainings read from: the mapped files (shared by all processes of a node), own memory, GPU memory"
    )
    resources: Resources = operation(Resources(), "one shard job")

    def views_of(self, store: str) -> int:
        """Latents per image of a store: train, val, or crops_K with K random crops."""
        return int(store.removeprefix("crops_")) if store.startswith("crops_") else self.views

    def shards_of(self, store: str) -> int:
        """Files of a store: those of crops are as large as the training split's."""
        if store == "val":
            return self.shards_val
        return self.shards_train * max(1, self.views_of(store) // self.views)


class Data(Section):
    """From archives to a verified latent store."""

    name: Name = Field(description="folder name below results/data")
    source: Literal["archives", "folder"] = Field(
        "archives", description="ImageNet-shaped archives, or a folder with a sub-folder of images per class"
    )
    archives: Archives = operation(description="where the archives or folders lie")
    pack: Literal["photos", "cifar10"] | None = Field(
        None, description="make the archives first, from the embedded photos or from CIFAR-10's binary archive"
    )
    hold_out: Natural = Field(
        0, description="for a folder without validation folder: every n-th image of a class, by name, is a validation image"
    )
    md5: Checksums = Field(Checksums(), description="published checksums")
    check_md5: bool = operation(True, "read the archives once to compare their MD5; recorded as skipped if false")
    expected: Expected = Field(description="counts to be found")
    image_size: Positive = Field(description="side of the square centre crop in pixels")
    max_rejects: Natural = operation(0, "unreadable images that are tolerated (left out and listed)")
    verification: Literal["full", "quick"] = operation(
        "full", "full: every byte of the latents is read; quick: evenly spread chunks, and it says what it did not look at"
    )
    latents: Latents = Field(Latents(), description="the latent store")
    resources: Resources = operation(Resources(), "packing, checking and indexing jobs")

    @model_validator(mode="after")
    def _places_fit_the_source(self) -> Self:
        needed: list[Literal["val", "devkit", "packed_from"]] = ["packed_from"] if self.pack == "cifar10" else []
        if self.source == "archives":
            needed += ["val", "devkit"]
        missing = [f"archives.{role}" for role in needed if getattr(self.archives, role) is None]
        if missing:
            raise ValueError(f"source: {self.source}, pack: {self.pack} needs {', '.join(missing)}")
        if self.source == "folder" and self.pack:
            raise ValueError(f"pack: {self.pack} makes archives; expected source: archives with it, found source: folder")
        if self.source == "folder" and (self.archives.val is None) != (self.hold_out > 1):
            raise ValueError(
                f"source: folder needs either archives.val or hold_out of at least 2, found archives.val: "
                f"{self.archives.val} and hold_out: {self.hold_out}"
            )
        return self


class HubTokenizer(Section):
    """A tokenizer of the Hugging Face hub, pinned."""

    id: str = Field(description="repository")
    revision: str = Field(min_length=7, description="commit")


class TokenizerTraining(Section):
    """A small AutoencoderKL trained on the training images (for data that no published tokenizer fits)."""

    channels: tuple[Positive, ...] = Field(description="channels per resolution")
    norm_groups: Positive = Field(description="groups of its GroupNorms")
    steps: Positive = Field(description="optimisation steps")
    batch: Positive = Field(description="images per step")
    learning_rate: Rate = Field(description="peak of the cosine schedule")
    kl_weight: Rate = Field(1e-5, description="weight of the KL term")
    seed: Natural = Field(0, description="seed of initialisation and order")


class Tokenizer(Section):
    """The autoencoder between pixels and latents (diffusers' AutoencoderKL)."""

    source: Literal["hub", "folder", "trained"] = Field(description="where it comes from")
    hub: HubTokenizer | None = Field(None, description="for source: hub")
    folder: str | None = Field(None, description="for source: folder; made by save_pretrained")
    training: TokenizerTraining | None = Field(None, description="for source: trained")
    factor: Positive = Field(8, description="pixels per latent pixel, along a side")
    channels: Positive = Field(4, description="latent channels")
    resources: Resources = operation(Resources(), "training job")

    @property
    def download(self) -> published.Download | None:
        """What a job with internet must fetch first."""
        hub = self.hub if self.source == "hub" else None
        return published.tokenizer_download(hub.id, hub.revision) if hub else None

    @model_validator(mode="after")
    def _source_is_described(self) -> Self:
        section = {"hub": "hub", "folder": "folder", "trained": "training"}[self.source]
        if getattr(self, section) is None:
            raise ValueError(f"source: {self.source} needs the key '{section}' beside it")
        return self
