"""Removing images once their latents are verified whole: the archives, or an ImageFolder made from them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from drifting_core.artifacts import LatentManifest, LatentVerification, hashes
from drifting_core.config import Configuration
from drifting_core.faults import Fault
from drifting_core.workflow.layout import Layout

if TYPE_CHECKING:
    from drifting_core.data.listing import Split

What = Literal["archives", "imagefolder"]
_SPLITS: tuple[Split, ...] = ("train", "val")


class Removable(NamedTuple):
    """A file, link or folder that would go, with the number of files and bytes that this frees."""

    path: Path
    files: int
    bytes: int


def removable(config: Configuration, what: What) -> list[Removable]:
    """What can go. Raises Fault unless both splits were verified in full, as they are now, and no job needs the images."""
    layout = Layout(config)
    data = Path(layout.folder("data"))
    for split in _SPLITS:
        _require_verified(data, split)
    if what == "imagefolder":
        return [_measured(path) for path in (data / "imagefolder", data / "imagefolder.done") if path.exists()]
    if config.data.source == "folder":
        raise Fault(
            f"{config.data.archives.train} (data.archives.train): your own folder, which nothing here removes; remove "
            "it by hand if you want to"
        )
    _require_nothing_to_read(config, layout)
    places = vars(config.data.archives).values()
    return [_measured(Path(place)) for place in places if place and Path(place).exists()]


def remove(found: list[Removable]) -> None:
    """Remove these; of a link, the link alone."""
    for each in found:
        if each.path.is_dir() and not each.path.is_symlink():
            shutil.rmtree(each.path)
        else:
            each.path.unlink()


def _require_verified(data: Path, split: Split) -> None:
    path, latents = data / f"verify_{split}.json", data / f"latents/{split}/manifest.json"
    verification = LatentVerification.read(path)
    if verification.scope != "full":
        raise Fault(f"{path}: a quick verification; set data.verification to full and remove this file to verify again")
    if verification.inputs["latents"] != hashes({"latents": latents})["latents"]:
        raise Fault(f"{path}: verifies other latents than {latents}; make it again")
    for name, record in LatentManifest.read(latents).files.items():
        file = latents.parent / name
        if not file.is_file() or file.stat().st_size != record.bytes:
            raise Fault(f"{file}: not as it was verified; remove {path} to verify again")


def _require_nothing_to_read(config: Configuration, layout: Layout) -> None:
    """Every job of the configuration that reads images must have been done."""
    wanted = {"reference statistics": f"{layout.folder('reference')}/manifest.json"}
    for space in config.evaluation.spaces:
        own = layout.folder("reference", config.in_space(space.kind))
        wanted[f"reference statistics in the space {space.kind}"] = f"{own}/manifest.json"
    if config.evaluation.network.classifier:
        wanted["feature network"] = f"{layout.folder('network')}/manifest.json"
    if config.encoder.augmentation == "online" and not config.encoder.imported and not config.generator.imported:
        wanted["encoder, which is trained on crops of the images"] = f"{layout.folder('encoder')}/export/metadata.json"
    missing = {what: path for what, path in wanted.items() if not Path(path).is_file()}
    if missing:
        lines = "\n".join(f"  {path} ({what})" for what, path in missing.items())
        raise Fault(f"the images are still needed to make\n{lines}\nmake these first (snakemake FILE), or keep the archives")


def _measured(path: Path) -> Removable:
    if path.is_symlink() or path.is_file():
        return Removable(path, 1, path.lstat().st_size)
    sizes = [os.lstat(Path(parent) / name).st_size for parent, _, names in os.walk(path) for name in names]
    return Removable(path, len(sizes), sum(sizes))
