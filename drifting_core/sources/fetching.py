"""Files of the Hugging Face hub, brought to where the workflow looks for them by the one job that needs internet. Light."""

from __future__ import annotations

from pathlib import Path

from drifting_core.artifacts import Fetched, records
from drifting_core.artifacts.provenance import code_version
from drifting_core.faults import Fault
from drifting_core.sources.published import Download


def fetch(wanted: Download, into: Path | None = None) -> Path:
    """The folder with the files: below `into`, or in the Hugging Face cache. Files that are there are not asked for again.

    Raises Fault that says what to download, and where to put it, where there is no internet.
    """
    if into is not None and all((into / wanted.folder / file).is_file() for file in wanted.files):
        return into / wanted.folder
    import huggingface_hub

    try:
        # File by file: a snapshot that cannot be downloaded is given back as the folder that is there, without a word.
        paths = [
            huggingface_hub.hf_hub_download(wanted.repository, file, revision=wanted.revision, local_dir=into)
            for file in _paths(wanted)
        ]
    except Exception as error:  # httpx, hub and OS errors have no common base but this
        place = str(into or "FOLDER")
        inside = f"{place}/{wanted.folder}".rstrip("/")
        then = "and start again" if into else f"and give FOLDER/{wanted.folder} instead of the name"
        raise Fault(
            f"{wanted.repository} at {wanted.revision} is not here and cannot be downloaded "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); on a machine with internet run\n"
            f"  {download_command(wanted, place)}\n"
            f"bring the folder here (the files belong into {inside}), {then}"
        ) from error
    return Path(paths[0]).parent


def _paths(wanted: Download) -> list[str]:
    """Where the files lie inside the repository, and below the folder that they are brought to."""
    return [f"{wanted.folder}/{file}".lstrip("/") for file in wanted.files]


def download_command(wanted: Download, place: str) -> str:
    """What brings the files below the folder `place` where there is internet."""
    return f"hf download {wanted.repository} {' '.join(_paths(wanted))} --revision {wanted.revision} --local-dir {place}"


def write_fetched(wanted: Download, output: Path, configuration: str) -> None:
    """Fetch into the folder of `output` and write the manifest that lists the files with their hashes. Raises Fault."""
    fetch(wanted, output.parent)
    Fetched(
        configuration=configuration,
        code=code_version(),
        files=records(output.parent, _paths(wanted)),
        repository=wanted.repository,
        revision=wanted.revision,
        folder=wanted.folder,
    ).write(output)


def fetched_folder(manifest: Path) -> Path:
    """The folder of what `write_fetched` brought, after its files were compared with the manifest. Raises Fault."""
    fetched = Fetched.read(manifest)
    fetched.verify(manifest.parent)
    return manifest.parent / fetched.folder
