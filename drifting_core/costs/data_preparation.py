"""What the road from ImageNet's archives to verified latents costs: time, disk, inodes, memory, by GPUs. Light.

Rates come from config/rates.yaml, each with its source. Jobs of a stage run side by side as far as there are GPUs for
them; a stage begins when the one before it has ended, although the scheduler overlaps more than that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from drifting_core.config import Configuration
from drifting_core.costs.estimates import encoding_rate, hours_of, rate_of
from drifting_core.faults import Fault
from drifting_core.sources import published

GPUS = (1, 8, 64)

_ARCHIVE_BYTES = sum(published.IMAGENET[split].bytes or 0 for split in ("train", "val"))
_IMAGES = 1_331_167
_INDEX_BYTES_PER_IMAGE = 10
READERS = 16  # pages that the index asks for at a time: data/tars.py
# HDF5, JSON, lease and log of each shard; index, manifests, verifications, tokenizer, and their leases and logs.
_FILES_PER_SHARD, _OTHER_FILES = 4, 23


class Stage(NamedTuple):
    """Hours of one stage at each number of GPUs of the table, what limits it, and the key of the rate they rest on."""

    name: str
    hours: list[float]
    limit: str
    rate: str


def _rate(rates: dict[str, Any], name: str) -> float:
    return float(rates["data"][name]["value"])


def _encoding(config: Configuration, rates: dict[str, Any], gpus: tuple[int, ...]) -> Stage:
    """All encoding jobs, unless the decoding of JPEGs takes longer than the tokenizer."""
    train, latents = config.data.expected.train_images, config.data.latents
    rate = encoding_rate(latents.precision)
    latent_seconds = 3600 * hours_of({rate: rates["tokenizer_gmac"]["encode"]["value"] * 1e9}, rates)
    encoded = latents.views * latent_seconds * (config.data.image_size / 256) ** 2
    decoded = 1 / (_rate(rates, "jpegs_per_second_and_thread") * latents.resources.threads)
    image = max(encoded, decoded)
    all_images, shard = image * (train + config.data.expected.val_images), image * train / latents.shards_train
    hours = [max(all_images / count, shard * math.ceil(latents.shards_train / count)) / 3600 for count in gpus]
    limits = {"tokenizer": f"effective_tflops.{rate}", "JPEG decoding": "data.jpegs_per_second_and_thread"}
    limit = "tokenizer" if encoded > decoded else "JPEG decoding"
    name = f"encode, {latents.shards_train} + {latents.shards_val} jobs, {rates['device'].removeprefix('one ')}"
    return Stage(name, hours, limit, limits[limit])


def latent_bytes(config: Configuration) -> float:
    """Bytes of both splits' latents."""
    images = config.data.expected.train_images + config.data.expected.val_images
    return images * config.data.latents.views * _latent_bytes(config)


def _latent_bytes(config: Configuration) -> int:
    number = {"float16": 2, "float32": 4}[config.data.latents.dtype]
    return config.tokenizer.channels * config.latent_size**2 * number


def files(config: Configuration) -> int:
    """Files below results/ that the road leaves."""
    latents = config.data.latents
    return _FILES_PER_SHARD * (latents.shards_train + latents.shards_val) + _OTHER_FILES


def stages(config: Configuration, rates: dict[str, Any], gpus: tuple[int, ...] = GPUS) -> list[Stage]:
    """The stages of the road, in order."""
    images = config.data.expected.train_images + config.data.expected.val_images
    md5 = _ARCHIVE_BYTES / _rate(rates, "md5_bytes_per_second") / 3600
    index = _pages(config) * _rate(rates, "seconds_per_page") / 3600
    slower = f"; each ms that the file system takes longer: {_pages(config) / 3.6e6:.2f}"
    verify = latent_bytes(config) / _rate(rates, "verified_bytes_per_second") / 3600
    return [
        Stage("check MD5", [md5] * len(gpus), "one core", "data.md5_bytes_per_second"),
        Stage("index", [index] * len(gpus), f"{images:,} pages of 4 kB{slower}", "data.seconds_per_page"),
        _encoding(config, rates, gpus),
        Stage("verify in full", [verify] * len(gpus), "one core", "data.verified_bytes_per_second"),
    ]


def cpu_hours(config: Configuration, rule: str, output: str, rates: dict[str, Any]) -> float:
    """Hours of one job of the road that computes on the CPU; those of ImageNet's archives are known only."""
    expected = config.data.expected
    if rule == "verify_latents":
        store = output.rpartition("verify_")[2].removesuffix(".json")
        images = expected.val_images if store == "val" else expected.train_images
        size = images * config.data.latents.views_of(store) * _latent_bytes(config)
        return size / _rate(rates, "verified_bytes_per_second") / 3600
    if expected.train_images + expected.val_images != _IMAGES:
        return 0.0
    if rule == "check_archives":
        return config.data.check_md5 * _ARCHIVE_BYTES / _rate(rates, "md5_bytes_per_second") / 3600
    return _pages(config) * _rate(rates, "seconds_per_page") / 3600


def _pages(config: Configuration) -> float:
    """A page of each training image, many at a time, and of each validation image, one after the other."""
    return config.data.expected.train_images / READERS + config.data.expected.val_images


def _hours_table(config: Configuration, rates: dict[str, Any], gpus: tuple[int, ...]) -> list[str]:
    def kind(stage: Stage) -> str:
        return re.split(r" *[(:]", rate_of(rates, stage.rate)["source"])[0]

    def row(name: str, hours: Iterable[float], *words: str) -> str:
        return f"| {name} | " + " | ".join([*(f"{each:.2f}" for each in hours), *words]) + " |"

    found = stages(config, rates, gpus)
    lines = ["| hours at | " + " | ".join(f"{count} GPU{'s' * (count > 1)}" for count in gpus) + " | limited by | rate |"]
    lines += ["|---" * (len(gpus) + 3) + "|"]
    lines += [row(stage.name, stage.hours, stage.limit, kind(stage)) for stage in found]
    summed = map(sum, zip(*(stage.hours for stage in found), strict=True))
    return [*lines, row("all", summed, "", ", ".join(sorted({kind(stage) for stage in found})))]


def table(config: Configuration, rates: dict[str, Any], gpus: tuple[int, ...] = GPUS) -> str:
    """Markdown: hours by stage, and disk, inodes and memory. Raises Fault for other images than ImageNet's."""
    images = config.data.expected.train_images + config.data.expected.val_images
    if images != _IMAGES:
        raise Fault(
            f"data.expected: {images:,} images; the costs of the data road are known for ImageNet's {_IMAGES:,} only: give "
            "one of its presets, or leave --data away"
        )
    latents = config.data.latents
    shard = latent_bytes(config) / images * config.data.expected.train_images / latents.shards_train
    lines = _hours_table(config, rates, gpus)
    running = [min(count, latents.shards_train) for count in gpus]
    kept = latent_bytes(config) + _INDEX_BYTES_PER_IMAGE * images
    rows = {
        "disk beside the archives when done, GB": [f"{kept / 1e9:.1f}" for _ in gpus],
        "at peak (journals of running jobs), GB": [f"{(kept + count * shard) / 1e9:.1f}" for count in running],
        "inodes when done": [f"{files(config)}" for _ in gpus],
        "memory of an encoding job, GB": [f"{_rate(rates, 'encode_job_bytes') / 1e9:.1f}" for _ in gpus],
    }
    lines += ["", "| | " + " | ".join(f"{count} GPU{'s' * (count > 1)}" for count in gpus) + " | an extracted ImageFolder |"]
    lines += ["|---" * (len(gpus) + 2) + "|"]
    extracted = ["146 (the runbook's figure)", "146", f"{images:,}", "-"]
    for (name, cells), other in zip(rows.items(), extracted, strict=True):
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {other} |")
    return "\n".join(lines)
