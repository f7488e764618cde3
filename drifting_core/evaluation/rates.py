"""How fast this machine is: the rates that a plan multiplies (config/rates.yaml), measured on what a preset computes.

Networks have the preset's sizes and number formats, random weights and random latents: as fast as any, and nothing has to
be there first. One device is measured. Of a training it takes one rank's share; what ranks lose to each other is not in it.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn

from drifting_core.artifacts import LatentContract, LatentManifest, publish_text, records
from drifting_core.config import Configuration
from drifting_core.costs import estimates
from drifting_core.data.images import centre_crop, decode_rgb
from drifting_core.data.latents import LatentStore, write_shard
from drifting_core.evaluation.networks.inception import InceptionV3
from drifting_core.faults import Fault
from drifting_core.jobs.devices import device, peak_flops
from drifting_core.models.mae import LatentEncoder
from drifting_core.training.generator import DriftTraining
from drifting_core.training.mae import MaskedTraining, StoredLatents, encoder_architecture

SD_VAE = {  # the published architecture, whose operations config/rates.yaml has
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
SIDE = 256  # pixels of the images here

_IMAGES_PER_CLASS = 4
_LEAST_SECONDS = 2.0  # that a call is repeated for
_PAGES, _PAGE = 256, 4096
_HEADER = """\
# Rates of one machine, measured by `make rates`: `make plan RATES=<this file>` computes with them. What was not measured
# stands as in config/rates.yaml. Every figure says where it comes from.
"""


class Rate(NamedTuple):
    """A figure of config/rates.yaml by its dotted key, in that file's unit, and how it was measured."""

    key: str
    value: float
    how: str


def measure(config: Configuration, threads: int) -> Iterator[Rate]:
    """The rates of the device that the configuration trains on (a granted GPU, or the CPU), and of one core beside it.

    Raises Fault when the preset trains nothing, the GPU is not there, or its memory does not hold a rank's share.
    """
    if config.generator.imported or config.encoder.before_finetune.imported:
        raise Fault(
            f"{config.name}: a network of it is imported, and the trainings of both are measured; give a preset that has "
            "them, such as config/ablation.yaml"
        )
    on = device(min(config.training.resources.gpus, 1), threads)
    try:
        yield from _of_trainings(share_of_a_rank(config), on)
        yield from _of_networks(config, on)
    except torch.OutOfMemoryError as error:
        raise Fault(
            f"the memory of {device_name()} does not hold a rank's share of {config.name}: {str(error).split(' GPU ')[0]}; "
            "raise training.micro_batches or encoder.micro_batches, or measure with config/ablation.yaml"
        ) from error
    yield from _of_a_core(config.data.archives.train)


def write(measured: Sequence[Rate], output: Path) -> None:
    """The shipped rates with the measured ones in their places."""
    rates = estimates.read_rates()
    rates["device"] = f"one {device_name()}"
    for rate in measured:
        entry = estimates.rate_of(rates, rate.key)
        entry.update(value=float(f"{rate.value:.4g}"), source=f"measured: {rate.how}, {datetime.date.today()}")
    publish_text(output, _HEADER + yaml.safe_dump(rates, sort_keys=False, width=119))


def device_name() -> str:
    """Of the device that this process computes on."""
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


# --- trainings ------------------------------------------------------------------------------------------------------


def share_of_a_rank(config: Configuration) -> Configuration:
    """The configuration whose steps are what one rank of this one computes."""
    labels = config.objective.classes_per_step // config.training.resources.processes
    batch = config.encoder.training.batch // config.encoder.resources.processes
    recipe = config.encoder.training.model_copy(update={"batch": batch})
    return config.model_copy(
        update={
            "objective": config.objective.model_copy(update={"classes_per_step": labels}),
            "encoder": config.encoder.model_copy(update={"training": recipe, "parallel": "ddp", "finetune": None}),
        }
    )


def random_store(config: Configuration, folder: Path) -> LatentStore:
    """A few random latents of every class."""
    classes = config.data.expected.classes
    shape = (config.tokenizer.channels, config.latent_size, config.latent_size)
    labels = np.arange(_IMAGES_PER_CLASS * classes) % classes
    latents = np.random.default_rng(0).standard_normal((len(labels), 2, *shape), dtype=np.float32).astype(np.float16)
    contract = LatentContract(
        tokenizer_sha256="0", scaling_factor=1.0, posterior="sample", views=["image", "mirror"], dtype="float16",
        precision="float32", pre_encode_transforms=[],
    )  # fmt: skip
    write_shard(folder / "shard_0.h5", [latents], labels, [str(i) for i in range(len(labels))], contract, 16)
    LatentManifest(
        configuration="0", code="0", files=records(folder, ["shard_0.h5"]), split="train", rows=len(labels),
        shape=list(shape), num_classes=classes, shards=["shard_0.h5"], shard_rows=[len(labels)], rejects=[],
        contract=contract,
    ).write(folder / "manifest.json")  # fmt: skip
    return LatentStore(folder / "manifest.json")


def drift_training(config: Configuration, store: LatentStore, on: torch.device) -> DriftTraining:
    """The generator's training at its step 0, with an untrained encoder."""
    encoder = LatentEncoder(**encoder_architecture(config.encoder, config.tokenizer.channels))
    encoder.reset_parameters(0)
    frozen = encoder.eval().requires_grad_(False)
    made = DriftTraining(config.generator, config.objective, config.training, store, frozen, on)
    made.begin()
    return made


def _of_trainings(share: Configuration, on: torch.device) -> Iterator[Rate]:
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(share, Path(folder))
        seconds = seconds_of_step(drift_training(share, store, on), on)
        labels, parts = share.objective.classes_per_step, share.training.micro_batches
        what = f"steps of {labels} classes in {parts} part(s), {share.name}"
        yield _rate("generator", on, share.training.precision, estimates.step_macs(share), seconds, what)
        recipe = share.encoder.training
        made = MaskedTraining(share.encoder, store, StoredLatents(store), on)
        what = f"steps of {recipe.batch} latents in {share.encoder.micro_batches} part(s), {share.name}"
        seconds = seconds_of_step(made, on)
        yield _rate("encoder", on, recipe.precision, estimates.encoder_step_macs(share), seconds, what)


def seconds_of_step(made: DriftTraining | MaskedTraining, on: torch.device, steps: int = 0) -> float:
    """Seconds of a step; `steps`: how many, instead of those of a few seconds."""
    number = iter(range(10**9))
    return _seconds(lambda: made.advance(next(number)), on, steps)  # a step ends with its loss on the host


def _seconds(call: Callable[[], object], on: torch.device, calls: int = 0) -> float:
    """Mean seconds of a call after the first two, which choose algorithms and allocate."""

    def timed() -> float:
        began = time.perf_counter()
        call()
        if on.type == "cuda":
            torch.cuda.synchronize(on)
        return time.perf_counter() - began

    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)
    timed()
    once = timed()
    times = [timed() for _ in range(calls or max(1, int(_LEAST_SECONDS / once)))]
    return sum(times) / len(times)


def _rate(key: str, on: torch.device, precision: str, macs: float, seconds: float, what: str) -> Rate:
    flops, peak = 2 * macs / seconds, peak_flops(on, precision, 1)
    more = f", {flops / peak:.0%} of the peak" if peak else ""
    if on.type == "cuda":
        more += f", {torch.cuda.max_memory_allocated(on) / 1e9:.3g} GB at most"
    how = f"{device_name()}, torch {torch.__version__}, {precision}, {what}: {seconds:.3g} s each{more}"
    return Rate(f"effective_tflops.{key}", flops / 1e12, how)


# --- networks -------------------------------------------------------------------------------------------------------


def _of_networks(config: Configuration, on: torch.device) -> Iterator[Rate]:
    """SD-VAE and FID's Inception. On a CPU an image at a time, which is as fast and takes seconds."""
    stored, seen = config.data.latents, config.evaluation.contract.compute_batch
    encoded, seen = (stored.compute_batch, seen) if on.type == "cuda" else (1, 1)
    counts = estimates.read_rates()
    encode, decode = (counts["tokenizer_gmac"][way]["value"] for way in ("encode", "decode"))
    for precision in dict.fromkeys((stored.precision, config.encoder.training.precision)):
        yield _network(estimates.encoding_rate(precision), on, precision, encoded, encode, _encoder(on, precision, encoded))
    yield _network("decode", on, "float32", seen, decode, _decoder(on, seen))
    yield _network("features", on, "float32", seen, counts["inception_gmac"]["value"], _inception(on, seen))


def _network(key: str, on: torch.device, precision: str, batch: int, gmac: float, call: Callable[[], object]) -> Rate:
    with torch.inference_mode():
        seconds = _seconds(call, on)
    return _rate(key, on, precision, batch * gmac * 1e9, seconds, f"{batch} image(s) of {SIDE} px")


def _encoder(on: torch.device, precision: str, batch: int) -> Callable[[], object]:
    dtype = getattr(torch, precision)
    vae, images = _vae(on, dtype), torch.rand(batch, 3, SIDE, SIDE, device=on, dtype=dtype)
    return lambda: vae.encode(images)


def _decoder(on: torch.device, batch: int) -> Callable[[], object]:
    vae, latents = _vae(on, torch.float32), torch.randn(batch, 4, SIDE // 8, SIDE // 8, device=on)
    return lambda: vae.decode(latents)


def _vae(on: torch.device, dtype: torch.dtype) -> Any:
    """Called through torch's own `to`: diffusers' has no type, and words about number formats."""
    vae: Any = AutoencoderKL(**SD_VAE)
    return nn.Module.to(vae, on, dtype).eval()


def _inception(on: torch.device, batch: int) -> Callable[[], object]:
    network = InceptionV3.untrained().to(on)
    images = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8, device=on)
    return lambda: network(images)


# --- a core, a disk -------------------------------------------------------------------------------------------------


def photo(seed: int) -> bytes:
    """A JPEG as ImageNet's are on average: 500 x 375 pixels, about 110 kB."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, np.float32) + rng.normal(0, 14, (375, 500, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=92)
    return buffer.getvalue()


def _of_a_core(archive: str) -> Iterator[Rate]:
    cpu, core = torch.device("cpu"), f"one core ({platform.machine()})"
    jpeg, block = photo(0), bytes(2**26)
    seconds = _seconds(lambda: centre_crop(decode_rgb(jpeg, "a photo"), SIDE), cpu)
    yield Rate("data.jpegs_per_second_and_thread", 1 / seconds, f"decoding and cropping a JPEG of 500 x 375, {core}")
    seconds = _seconds(lambda: hashlib.md5(block, usedforsecurity=False), cpu)
    yield Rate("data.md5_bytes_per_second", len(block) / seconds, core)
    path = Path(archive)
    if path.is_file() and path.stat().st_size >= _PAGES * _PAGE:
        how = f"mean of {_PAGES} pages of {path.name}, at random and one after the other"
        yield Rate("data.seconds_per_page", _page_seconds(path), how)


def _page_seconds(path: Path) -> float:
    """Of a read of 4 kB that this machine's page cache does not answer."""
    places = np.random.default_rng(0).integers(0, path.stat().st_size // _PAGE, _PAGES).tolist()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        began = time.perf_counter()
        for place in places:
            os.pread(file.fileno(), _PAGE, place * _PAGE)
        return (time.perf_counter() - began) / _PAGES
