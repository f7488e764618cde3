"""What a configuration needs from outside: every file with its place, size, hash and source, and whether it is there.

A site without internet brings these by hand (`workflow_scripts/fetch.py --list`). Light.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from drifting_core.config import Configuration, Importable
from drifting_core.costs.estimates import autoencoder_parameters, generator_parameters
from drifting_core.sources import published
from drifting_core.sources.fetching import download_command
from drifting_core.sources.published import PARAMETERS, SD_VAE, SD_VAE_FILES, Download, File

_YOURS = "your own files"


class Need(NamedTuple):
    """One file, or folder, that the workflow does not make."""

    what: str
    key: str  # of the configuration, which says where it lies
    place: Path
    file: File = File("")  # what is known of it
    source: str = _YOURS
    folder: bool = False
    command: str = ""  # downloads it elsewhere; where there is internet the rule `fetch` does

    @property
    def problem(self) -> str | None:
        """What is wrong with it; None when it is there, as large as it should be."""
        if not (self.place.is_dir() if self.folder else self.place.is_file()):
            return "missing"
        size = self.place.stat().st_size
        if self.file.exact and self.file.bytes not in (None, size):
            return f"{size:,} bytes, expected {self.file.bytes:,}"
        return None

    def record(self) -> dict[str, Any]:
        """The same for machines."""
        known = {name: value for name, value in self.file._asdict().items() if name not in ("name", "source")}
        told = {"what": self.what, "key": self.key, "place": str(self.place), "folder": self.folder, "source": self.source}
        return {**told, **known, "command": self.command, "problem": self.problem}


def needs(config: Configuration) -> list[Need]:
    """Everything that the claim bundle of `config` is made from and the workflow does not make."""
    return [*_images(config), *_tokenizer(config), *_networks(config), *_evaluation(config)]


def _images(config: Configuration) -> Iterator[Need]:
    data = config.data
    roles = {"train": "training images", "val": "validation images", "devkit": "classes and validation labels"}
    if data.pack:
        roles = {"packed_from": "CIFAR-10"} if data.pack == "cifar10" else {}
    for role, what in roles.items():
        place, file = getattr(data.archives, role), published.archive(getattr(data.md5, role))
        if data.source == "archives":
            yield Need(what, f"data.archives.{role}", Path(place), file, file.source or _YOURS)
        elif place and role != "devkit":
            yield Need(what, f"data.archives.{role}", Path(place), folder=True)


def _tokenizer(config: Configuration) -> Iterator[Need]:
    download = config.tokenizer.download
    if download:
        known = {file.name: file for file in SD_VAE_FILES} if download == SD_VAE else {}
        yield from _downloaded(config, "tokenizer", "tokenizer.hub", download, known)
    if config.tokenizer.source == "folder":
        yield Need("tokenizer", "tokenizer.folder", Path(str(config.tokenizer.folder)), folder=True)


def _networks(config: Configuration) -> Iterator[Need]:
    """Imported networks, and exports that trainings start from; of an imported generator no encoder is needed."""
    yield from _network(config, "generator", config.generator, generator_parameters(config))
    starts = {"training": config.training.init_from}
    if not config.generator.imported:
        yield from _network(config, "encoder", config.encoder.before_finetune, autoencoder_parameters(config))
        starts["encoder"] = config.encoder.init_from
    for section, path in starts.items():
        if path and not Path(path).is_relative_to(config.root):  # what lies there is made
            yield Need("export that the training starts from", f"{section}.init_from", Path(path))


def _network(config: Configuration, name: str, section: Importable, parameters: float) -> Iterator[Need]:
    if section.download:
        known = {PARAMETERS: File(PARAMETERS, round(4 * parameters), exact=False)}
        yield from _downloaded(config, name, f"{name}.source", section.download, known)
    elif section.imported:
        yield Need(name, f"{name}.source", Path(section.source), folder=True)


def _downloaded(config: Configuration, what: str, key: str, download: Download, known: Mapping[str, File]) -> Iterator[Need]:
    root = config.root / "sources" / download.key
    source, command = f"{download.repository} at {download.revision}", download_command(download, str(root))
    for name in download.files:
        place = root / download.folder / name
        yield Need(f"{what}: {name}", key, place, known.get(name, File(name)), source, command=command)


def _evaluation(config: Configuration) -> Iterator[Need]:
    inception, key = published.INCEPTION, "evaluation.network.inception_weights"
    if weights := config.evaluation.network.inception_weights:
        file = inception if Path(weights).suffix == ".pth" else File("")  # the same as safetensors has other bytes
        yield Need("FID Inception weights", key, Path(weights), file, inception.source)
    for space in config.evaluation.spaces:
        yield Need(f"weights of the feature space {space.kind}", "evaluation.spaces", Path(space.weights), folder=True)
    if statistics := config.evaluation.reference.statistics:
        file = File("", sha256=statistics.sha256)
        yield Need("reference statistics", "evaluation.reference.statistics.path", Path(statistics.path), file)


def listing(found: Iterable[Need]) -> str:
    """The needs as text, and the commands that download what comes from the Hugging Face hub."""
    needed = list(found)
    missing = [need for need in needed if need.problem]
    lines = []
    for need in needed:
        known = "a folder" if need.folder else f"{need.file.size}, {need.file.hash}"
        lines += [f"{need.place}: {need.problem or 'here'}", f"    {need.what} ({need.key}), {known}"]
        lines += [f"    from {need.source}"]
    lines += ["", f"{len(needed)} needed from outside, {len(needed) - len(missing)} here, {len(missing)} missing or wrong"]
    commands = dict.fromkeys(need.command for need in missing if need.command)
    if commands:
        lines += [
            "",
            "What comes from the Hugging Face hub the rule `fetch` brings, where the head has internet. If it has none:",
        ]
        lines += [f"  {command}" for command in commands]
        lines += ["on a machine that has, then bring these folders here."]
    return "\n".join(lines)
