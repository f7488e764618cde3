"""The data path beside its peers: the index, random gathers of latents, images by offset, and what the VAE can use of them.

`make benchmark-data` prints the tables of docs/performance.md. Everything is made in a scratch folder first (about 3 GB; the
page cache is warm unless a row says cold).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import psutil
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from drifting_core import config
from drifting_core.artifacts import LatentContract, LatentManifest, records
from drifting_core.data import archives
from drifting_core.data.images import centre_crop_of, in_order
from drifting_core.data.index import FILE, ImageReader, check, index, write_tables
from drifting_core.data.latents import LatentStore, write_shard
from drifting_core.data.packing import tar_of
from drifting_core.evaluation.rates import SD_VAE, photo
from tests.imagenet_shaped import Shaped, write_archives
from tests.imagenet_shaped import wnids as real_wnids

ROWS, CLASSES, SHARDS, SHAPE = 100_000, 1000, 4, (4, 32, 32)
TORCH_ROWS = 10_000  # of a torch shard
BATCHES = (64, 1024, 8192)
HASH = "0" * 64
CONTRACT = LatentContract(
    tokenizer_sha256="t", scaling_factor=1.0, posterior="sample", views=["image"], dtype="float16", precision="float32",
    pre_encode_transforms=["none"],
)  # fmt: skip

Gather = Callable[[NDArray[np.int64]], object]


# --- index ----------------------------------------------------------------------------------------------------------


def section(shaped: Shaped) -> config.Data:
    return config.Data.model_validate({"name": "x", "image_size": 32, **shaped.section})


def index_table(folder: Path) -> str:
    data = section(write_archives(folder / "shaped"))
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        listing = archives.listing(data)
        write_tables(folder / FILE, {split: found.table for split, found in listing.splits.items()})
        seconds.append(time.perf_counter() - began)
    images, began = sum(len(found.table) for found in listing.splits.values()), time.perf_counter()
    with tarfile.open(data.archives.train) as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                for image in inner:
                    inner.extractfile(image).read()  # type: ignore[union-attr]
    with tarfile.open(str(data.archives.val)) as flat:
        for image in flat:
            flat.extractfile(image).read()  # type: ignore[union-attr]
    theirs = time.perf_counter() - began
    size = (folder / FILE).stat().st_size / images
    rate, ratio = images / min(seconds), theirs / min(seconds)
    return (
        f"Index of {images:,} JPEGs of 32 px in 1,000 inner tars: {min(seconds):.2f} s ({rate:,.0f} a second), "
        f"{size:.1f} bytes per image; per image {listing.reads}. `tarfile`, walking and reading the members: "
        f"{theirs:.2f} s. Ratio {ratio:.1f}."
    )


# --- gathers --------------------------------------------------------------------------------------------------------


def write_stores(folder: Path) -> None:
    """The same latents in every form; rows are sorted by class, as the workflow's are."""
    bare = np.lib.format.open_memmap(folder / "bare.npy", "w+", np.float16, (ROWS, *SHAPE))
    rng, per = np.random.default_rng(0), ROWS // SHARDS
    for shard in range(SHARDS):
        rows = range(shard * per, (shard + 1) * per)
        part = rng.standard_normal((per, 1, *SHAPE), np.float32).astype(np.float16)
        bare[rows.start : rows.stop] = part[:, 0]
        labels = labels_of(np.arange(rows.start, rows.stop))
        write_shard(folder / f"shard_{shard}.h5", [part], labels, [str(row) for row in rows], CONTRACT, 64)
    names = [f"shard_{shard}.h5" for shard in range(SHARDS)]
    LatentManifest(
        configuration="c", code="1", files=records(folder, names), split="train", rows=ROWS, shape=list(SHAPE),
        num_classes=CLASSES, shards=names, shard_rows=[per] * SHARDS, rejects=[], contract=CONTRACT,
    ).write(folder / "manifest.json")  # fmt: skip
    for first in range(0, ROWS, TORCH_ROWS):
        torch.save(torch.from_numpy(bare[first : first + TORCH_ROWS].copy()), folder / f"torch_{first // TORCH_ROWS}.pt")
    for row in range(ROWS):
        path = folder / f"files/{row // 1000}/{row}.bin"
        if row % 1000 == 0:
            path.parent.mkdir(parents=True)
        bare[row].tofile(path)


def labels_of(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows * CLASSES // ROWS


def bare_array(folder: Path) -> Gather:
    held = np.load(folder / "bare.npy", mmap_mode="r")
    return lambda rows: held[rows]


def latent_store(folder: Path) -> Gather:
    store, views = LatentStore(folder / "manifest.json"), torch.zeros(max(BATCHES), dtype=torch.int64)
    return lambda rows: store.gather_stored(torch.from_numpy(rows), views[: len(rows)])


def latent_store_ram(folder: Path) -> Gather:
    store, views = LatentStore(folder / "manifest.json", "ram"), torch.zeros(max(BATCHES), dtype=torch.int64)
    return lambda rows: store.gather_stored(torch.from_numpy(rows), views[: len(rows)])


def latent_store_float(folder: Path) -> Gather:
    store, views = LatentStore(folder / "manifest.json"), torch.zeros(max(BATCHES), dtype=torch.int64)
    return lambda rows: store.gather(torch.from_numpy(rows), views[: len(rows)])


def plain_h5py(folder: Path) -> Gather:
    """Sorted indices, as h5py wants them."""
    held = [h5py.File(folder / f"shard_{shard}.h5")["latents"] for shard in range(SHARDS)]
    per = ROWS // SHARDS

    def gather(rows: NDArray[np.int64]) -> object:
        found = np.empty((len(rows), 1, *SHAPE), np.float16)
        for shard, dataset in enumerate(held):
            here = np.flatnonzero(rows // per == shard)
            unique, back = np.unique(rows[here] - shard * per, return_inverse=True)
            found[here] = dataset[unique][back]
        return found

    return gather


def one_file_per_image(folder: Path) -> Gather:
    return lambda rows: np.stack([np.fromfile(folder / f"files/{r // 1000}/{r}.bin", np.float16) for r in rows.tolist()])


def torch_shards(folder: Path) -> Gather:
    """A shard is loaded whole and shuffled inside; the rows that are asked for are not those that come."""

    def batches(size: int) -> Iterator[object]:
        for number in np.random.default_rng(os.getpid()).integers(0, ROWS // TORCH_ROWS, 10**6).tolist():
            held = torch.load(folder / f"torch_{number}.pt", weights_only=True)
            for rows in torch.randperm(len(held)).split(size):
                if len(rows) == size:
                    yield held[rows]

    streams: dict[int, Iterator[object]] = {}
    return lambda rows: next(streams.setdefault(len(rows), batches(len(rows))))


READERS: dict[str, Callable[[Path], Gather]] = {
    "`np.memmap` on a bare array (the limit)": bare_array,
    "`LatentStore`, mmap": latent_store,
    "`LatentStore`, ram": latent_store_ram,
    "`LatentStore`, mmap, to float32": latent_store_float,
    "torch shards of 10k rows, shuffled inside": torch_shards,
    "one file per image": one_file_per_image,
    "plain `h5py` indexing": plain_h5py,
}


def rate(task: tuple[str, Path, int, int]) -> float:
    """Rows a second of random gathers: the best of three windows of half a second, after one to warm up."""
    name, folder, batch, seed = task
    torch.set_num_threads(1)
    gather, rng, rates = READERS[name](folder), np.random.default_rng(seed), list[float]()
    for _ in range(4):
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < 0.5:
            gather(rng.integers(0, ROWS, batch))
            done += batch
        rates.append(done / (time.perf_counter() - began))
    return max(rates[1:])


def classes_per_batch(name: str) -> int:
    """Distinct classes in a batch of 2,048 rows."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(TORCH_ROWS)[:2048] if READERS[name] is torch_shards else rng.permutation(ROWS)[:2048]
    return len(np.unique(labels_of(rows)))


def print_gathers(folder: Path) -> None:
    write_stores(folder)
    head = "".join(f" {batch:,}{'' if workers == 1 else ', 2 processes'} |" for workers in (1, 2) for batch in BATCHES)
    print(f"| rows/s, batch of |{head} classes in 2,048 |\n" + "|---" * (2 + 2 * len(BATCHES)) + "|", flush=True)
    for name in READERS:
        cells = [rate((name, folder, batch, 0)) for batch in BATCHES]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            cells += [sum(pool.map(rate, [(name, folder, batch, seed) for seed in (1, 2)])) for batch in BATCHES]
        print(f"| {name} |" + "".join(f" {cell:,.0f} |" for cell in cells) + f" {classes_per_batch(name)} |", flush=True)


# --- images ---------------------------------------------------------------------------------------------------------


def write_photos(folder: Path, count: int, classes: int) -> dict[str, config.Data]:
    """The same photos as nested tar and as a folder; validation is one image per class."""
    wnids = [f"n{label:08d}" for label in range(classes)]
    content = {wnid: [(f"{wnid}_{n}.JPEG", photo(n)) for n in range(count // classes)] for wnid in wnids}
    shaped = write_archives(folder / "small", per_class=10, val_per_class=1, classes=classes)
    inner = [(f"{real_wnids()[label]}.tar", tar_of(content[wnid])) for label, wnid in enumerate(wnids)]
    Path(shaped.section["archives"]["train"]).write_bytes(tar_of(inner))  # type: ignore[index]
    for wnid, images in content.items():
        (folder / f"photos/{wnid}").mkdir(parents=True)
        for name, jpeg in images:
            (folder / f"photos/{wnid}/{name}").write_bytes(jpeg)
    per = count // classes
    expected = {
        "classes": classes, "train_images": count, "val_images": classes, "train_per_class": [per, per],
        "val_per_class": [1, 1],
    }  # fmt: skip
    held_out = {**expected, "train_images": count - classes, "train_per_class": [per - 1, per - 1]}
    return {
        "tar, by offset": config.Data.model_validate(
            {"name": "x", "image_size": 256, **shaped.section, "expected": expected}
        ),
        "extracted folder": config.Data.model_validate(
            {
                "name": "x", "image_size": 256, "source": "folder", "archives": {"train": str(folder / "photos")},
                "hold_out": per, "expected": held_out,
            }
        ),
    }  # fmt: skip


def evict(reader: ImageReader) -> None:
    """Forget the images' pages."""
    os.sync()  # pages that are not written yet stay
    paths = [reader.path] if reader.path.is_file() else [reader.path / name for name in reader.names]
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def image_rate(reader: ImageReader, threads: int, *, cold: bool, decode: bool) -> float:
    rows = np.random.default_rng(0).permutation(len(reader)).tolist()
    if cold:
        evict(reader)
    make = (lambda row: centre_crop_of(reader, row, 256)) if decode else reader.read
    began = time.perf_counter()
    for _ in in_order(rows, make, threads):
        pass
    return len(rows) / (time.perf_counter() - began)


def image_table(folder: Path, threads: int, count: int = 1600) -> tuple[str, float]:
    lines = [
        f"| images/s, {count:,} JPEGs of 500 x 375 | read only, cold | read only, warm | decode and crop, 1 thread | "
        f"{threads} threads |",
        "|---|---|---|---|---|",
    ]
    best = 0.0
    for number, (name, data) in enumerate(write_photos(folder, count, classes=20).items()):
        place = folder / str(number)
        place.mkdir()
        check(data, place / "archives.json", HASH)
        index(data, place / "archives.json", place / "index.json", HASH)
        reader = ImageReader(place / "index.json", "train", data.archives)
        cells = [image_rate(reader, 1, cold=cold, decode=False) for cold in (True, False)]
        cells += [image_rate(reader, n, cold=False, decode=True) for n in (1, threads)]
        best = max(best, cells[-1])
        lines.append(f"| {name} |" + "".join(f" {cell:,.0f} |" for cell in cells))
    return "\n".join(lines), best


def vae_rate(device: str, dtype: torch.dtype, batch: int) -> float:
    """Images a second through the encoder of a full-size SD-VAE (random weights), 256 px."""
    torch.manual_seed(0)
    model = AutoencoderKL(**SD_VAE).to(device, dtype)
    images = torch.rand(batch, 3, 256, 256, device=device, dtype=dtype)
    repeats = 10 if device == "cuda" else 1
    with torch.inference_mode():
        if device == "cuda":
            model.encode(images)
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            model.encode(images).latent_dist.mean.sum().item()
    return repeats * batch / (time.perf_counter() - began)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1, help="decoding threads")
    made.add_argument("--scratch", type=Path, help="folder to work in (default: the system's)")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} CPU threads, torch {torch.__version__}, h5py {h5py.__version__}\n")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        print(index_table(folder), "\n", flush=True)
        table, decoded = image_table(folder, arguments.threads)
        print(table, "\n", flush=True)
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            # Many CPUs only emulate bfloat16.
            for dtype in (torch.float32,) if device == "cpu" else (torch.float32, torch.bfloat16):
                found = vae_rate(device, dtype, 2 if device == "cpu" else 64)
                print(
                    f"SD-VAE encoder on {device}, {dtype}: {found:.3g} images/s, with mirrors {found / 2:.3g}: "
                    f"{100 * found / 2 / decoded:.2g}% of what {arguments.threads} threads decode"
                )
        print(flush=True)
        print_gathers(folder)


if __name__ == "__main__":
    main()
