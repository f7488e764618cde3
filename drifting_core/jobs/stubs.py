"""Stub mode: what each job writes in place of computing (docs/decisions/17).

Every script parses its real command line and reads the artifacts that it is given, each as its model; then it writes a small
artifact of its own, with placeholders for the files that belong to it. Only what later jobs depend on is true of the
configuration (steps, seeds, hashes, names); all other numbers are the smallest that their types allow. Jobs that compute
next to nothing (REAL) run as they are. Light.
"""

from __future__ import annotations

import json
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel

from drifting_core import artifacts
from drifting_core.artifacts import Artifact, publish, publish_text, records, sha256_file
from drifting_core.artifacts.identity import digest
from drifting_core.artifacts.provenance import code_version
from drifting_core.config import sections
from drifting_core.faults import Fault
from drifting_core.sources import published

REAL = {"record_run", "make_table", "recommend", "pass_canary", "point_claim"}
_SAYS = "STUB: made by stub mode, nothing was computed\n"
_MODELS = {
    kind.model_fields["kind"].default: kind
    for kind in vars(artifacts).values()
    if isinstance(kind, type) and issubclass(kind, Artifact) and "kind" in kind.model_fields
}
Kind = TypeVar("Kind", bound=Artifact)


class Job(NamedTuple):
    """What a script was given: its arguments, the artifacts among them by role, the sections of its configuration."""

    arguments: Namespace
    given: list[tuple[str, Path]]
    read: dict[str, Artifact]
    sections: dict[str, Any]

    def of(self, role: str, kind: type[Kind]) -> Kind:
        """What was given as `role`. Raises Fault when it is of another kind: the rule is wrong."""
        found = self.read[role]
        if not isinstance(found, kind):
            raise Fault(f"--{role}: found {dict(self.given)[role]}, a {type(found).__name__}; give a {kind.__name__}")
        return found


class Stub(NamedTuple):
    """The artifact that a job is to write: its model, the fields that something depends on, the files that it lists."""

    kind: type[Artifact]
    fields: Mapping[str, Any] = {}
    files: tuple[str, ...] = ()


def make_stub(script: str, arguments: Namespace) -> None:
    """Write what `script` promises with these arguments. Raises Fault where no stub is known, or an input is not valid."""
    if script not in STUBS:
        raise Fault(f"stub mode does not know what {script}.py writes; add it to STUBS in drifting_core/jobs/stubs.py")
    given = list(_given(arguments))
    how = getattr(arguments, "operations", {})
    job = Job(arguments, given, {role: read_any(path) for role, path in given}, sections(_slice(arguments), how))
    stub, folder = STUBS[script](job), arguments.output.parent
    for name in stub.files:
        _write_placeholder(folder / name)
    fields = {
        "configuration": digest(_slice(arguments)),
        "code": code_version(),
        "inputs": {role: sha256_file(path) for role, path in given},
        "files": records(folder, list(stub.files)),
    }
    smallest(stub.kind, **{**fields, **stub.fields}).write(arguments.output)


def read_any(path: Path) -> Artifact:
    """Any artifact, as the model of its kind. Raises Fault as `Artifact.read`, and where it names no kind."""
    try:
        kind = json.loads(path.read_bytes())["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Fault(f"{path}: no artifact ({type(error).__name__}: {error}); run the workflow to make it") from None
    if kind not in _MODELS:
        raise Fault(f"{path}: no artifact is of kind '{kind}'; give one of: {', '.join(sorted(_MODELS))}")
    return _MODELS[kind].read(path)


def smallest(kind: type[Any], **known: Any) -> Any:
    """An instance of a pydantic model: `known` fields, and the smallest value for every other one that is required."""
    required = {name: field.annotation for name, field in kind.model_fields.items() if field.is_required()}
    return kind(**{name: _smallest(annotation) for name, annotation in required.items()} | known)


def _smallest(annotation: Any) -> Any:
    origin, options = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return options[0]
    if origin in (Union, UnionType):
        return None if type(None) in options else _smallest(options[0])
    if annotation is str:
        return "stub"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return smallest(annotation)
    return (origin or annotation)()  # 0, 0.0, False, [], {}


def _slice(arguments: Namespace) -> Any:
    """The script's --config; {} for those that take none, or (fetch, by hand) Snakemake's."""
    return getattr(arguments, "config", None) or {}


def _given(arguments: Namespace) -> Iterator[tuple[str, Path]]:
    """(role, path) of every artifact that a script was given, lists taken apart."""
    for role, value in vars(arguments).items():
        if role in ("output", "log", "configfile"):
            continue
        several = list(value) if isinstance(value, (list, tuple)) else [value]
        for number, each in enumerate(several):
            if isinstance(each, Path):
                yield f"{role}_{number}" if len(several) > 1 else role, each
            elif isinstance(each, tuple):  # a bundle's inputs name their roles, the claims of seeds their seed
                yield str(each[0]), each[1]


def _write_placeholder(path: Path) -> None:
    """The smallest file of its format, which says what it is where the format has room for it."""
    with publish(path) as scratch:
        match path.suffix:
            case ".h5":
                import h5py  # only here: this module is light

                with h5py.File(scratch, "w") as file:
                    file.attrs["stub"] = True
            case ".safetensors":
                header = json.dumps({"__metadata__": {"stub": "true"}}).encode()
                scratch.write_bytes(struct.pack("<Q", len(header)) + header)
            case ".npz":
                zipfile.ZipFile(scratch, "w").close()
            case ".tar":
                tarfile.open(scratch, "w").close()
            case ".png":
                from PIL import Image

                Image.new("L", (1, 1)).save(scratch, "png")
            case ".json":
                scratch.write_text('{"stub": true}\n')
            case _:
                scratch.write_text(_SAYS)


# --- data ------------------------------------------------------------------------------------------------------------


def _pack_images(job: Job) -> Stub:
    return Stub(artifacts.PackedImages)


def _fetch(job: Job) -> Stub:
    wanted = published.Download(**job.arguments.download)
    files = tuple(f"{wanted.folder}/{file}".lstrip("/") for file in wanted.files)
    named = {"repository": wanted.repository, "revision": wanted.revision, "folder": wanted.folder}
    return Stub(artifacts.Fetched, named | {"configuration": digest(job.arguments.download)}, files)


def _check_archives(job: Job) -> Stub:
    return Stub(artifacts.Archives)


def _index_archives(job: Job) -> Stub:
    data = job.sections["data"]
    wnids = [f"n{number:08}" for number in range(data.expected.classes)]
    return Stub(artifacts.Index, {"wnids": wnids, "names": wnids, "source": data.source}, ("index.npz",))


def _make_image_folder(job: Job) -> Stub:
    return Stub(artifacts.ImageFolder, {"folder": "imagefolder"}, ("imagefolder/stub.txt",))


def _encode_latents(job: Job) -> Stub:
    which, tokenizer = job.arguments, job.of("tokenizer", artifacts.TokenizerManifest)
    latents = job.sections["data"].latents
    contract = smallest(artifacts.LatentContract, tokenizer_sha256=tokenizer.weights_sha256)
    fields = {"split": which.split, "shard": which.shard, "shards": latents.shards_of(which.split), "contract": contract}
    return Stub(artifacts.LatentShard, fields, (f"shard_{which.shard}.h5",))


def _combine_latents(job: Job) -> Stub:
    paths = job.arguments.shards
    contract = artifacts.LatentShard.read(paths[0]).contract
    fields = {"shards": [path.name for path in paths], "shard_rows": [0] * len(paths), "contract": contract}
    return Stub(artifacts.LatentManifest, fields | {"split": job.arguments.split})


def _verify_latents(job: Job) -> Stub:
    split = job.of("latents", artifacts.LatentManifest).split
    return Stub(artifacts.LatentVerification, {"split": split, "scope": job.sections["data"].verification})


# --- networks --------------------------------------------------------------------------------------------------------


def _make_tokenizer(job: Job) -> Stub:
    tokenizer = job.sections["tokenizer"]
    said = {"source": tokenizer.source, "folder": "vae", "channels": tokenizer.channels, "factor": tokenizer.factor}
    return Stub(artifacts.TokenizerManifest, said, ("vae/config.json", "vae/diffusion_pytorch_model.safetensors"))


def _make_feature_network(job: Job) -> Stub:
    network = {"network": job.sections["evaluation.network"].kind, "weights": "weights.safetensors"}
    return Stub(artifacts.FeatureNetwork, network, ("weights.safetensors",))


def _make_reference(job: Job) -> Stub:
    network = job.of("network", artifacts.FeatureNetwork)
    files = ("statistics.npz", "features_train.h5", "features_val.h5")
    return Stub(artifacts.ReferenceStatistics, {"network_sha256": network.weights_sha256}, files)


def _train_encoder(job: Job) -> Stub:
    return Stub(artifacts.EncoderTrained, {"step": job.sections["encoder"].recipe.steps})


def _export_encoder(job: Job) -> Stub:
    said = {"step": job.of("trained", artifacts.EncoderTrained).step, **_export_of("encoder", job)}
    return Stub(artifacts.Export, said, ("model.safetensors", "autoencoder.safetensors"))


def _audit_encoder(job: Job) -> Stub:
    export = job.of("encoder", artifacts.Export)
    said = {"encoder": job.sections["encoder"].name, "step": export.step, "latents": export.latents, "files": export.files}
    return Stub(artifacts.EncoderAudit, said)


def _train_generator(job: Job) -> Stub:
    raw = ("raw.safetensors",) if job.sections["training"].export_raw else ()
    said = {"step": job.arguments.until, **_export_of("generator", job)}
    return Stub(artifacts.Export, said, ("model.safetensors", *raw))


def _export_of(network: str, job: Job) -> dict[str, Any]:
    return {"network": network, "latents": job.of("latents", artifacts.LatentManifest).contract}


def _import_network(job: Job) -> Stub:
    network, step = job.arguments.network, job.arguments.step or 0
    source = smallest(artifacts.Imported, source=job.sections[network].source, step=step)
    return Stub(artifacts.Export, {"network": network, "step": step, "imported": source}, ("model.safetensors",))


# --- evaluation ------------------------------------------------------------------------------------------------------


def _sample(job: Job) -> Stub:
    asked, how = job.arguments, job.sections["evaluation.sampling"]
    if asked.recommendation:
        chosen = job.of("recommendation", artifacts.Recommendation).recommended
    else:
        chosen = artifacts.Choice(step=job.of("export", artifacts.Export).step, alpha=asked.alpha)
    said = chosen.model_dump() | {"seed": asked.seed, "samples": asked.samples, "label_plan": how.label_plan}
    if asked.canary:
        said |= {"samples": asked.operations["training"]["canary_samples"], "label_plan": "spaced"}
    return Stub(artifacts.Samples, said | {"compute_batch": how.compute_batch}, ("latents.h5",))


def _evaluate(job: Job) -> Stub:
    samples, network = job.of("samples", artifacts.Samples), job.of("network", artifacts.FeatureNetwork)
    reference, how = job.of("reference", artifacts.ReferenceStatistics), job.sections["evaluation.contract"]
    known = how.model_dump(include=set(artifacts.EvaluationContract.model_fields))
    known |= {"network": network.network, "network_sha256": network.weights_sha256, "samples": samples.samples}
    known |= {"label_plan": samples.label_plan, "sampling_batch": samples.compute_batch}
    known |= {"reference_split": reference.split, "reference_sha256": reference.files["statistics.npz"].sha256}
    known |= {"tokenizer_sha256": job.of("tokenizer", artifacts.TokenizerManifest).weights_sha256}
    contract = smallest(artifacts.EvaluationContract, **known)
    said = {
        **samples.model_dump(include={"step", "alpha", "seed"}),
        "contract": contract,
        "contract_hash": digest(contract.model_dump(mode="json", exclude_defaults=True)),
        "distance_name": contract.distance_name,
        "score_name": contract.score_name,
        "score": None if contract.network in contract.further_spaces else 0.0,
        "score_std": 0.0,
    }
    return Stub(artifacts.Metrics, said, ("grid.png", "features.h5"))


def _export_images(job: Job) -> Stub:
    samples, form = job.of("samples", artifacts.Samples), job.arguments.format
    said = samples.model_dump(include={"step", "alpha", "seed"}) | {"format": form}
    files = {"tar": "images.tar", "npz": "images.npz", "sheet": "sheet.png"}
    return Stub(artifacts.ImageExport, said, (files.get(form, f"{form}/stub.txt"),))


def _audit_neighbours(job: Job) -> Stub:
    samples = job.of("samples", artifacts.Samples)
    return Stub(artifacts.Neighbours, samples.model_dump(include={"step", "alpha", "seed", "samples"}))


def _export_model(job: Job) -> Stub:
    recommendation = job.of("recommendation", artifacts.Recommendation)
    said = recommendation.recommended.model_dump() | {"configuration": recommendation.configuration}
    return Stub(artifacts.ModelExport, said, ("model.safetensors", "README.md"))


def _tabulate_seeds(job: Job) -> Stub:
    claims = [artifacts.MetricsTable.read(path) for _, path in job.given]
    said = claims[0].model_dump(include={"contract", "contract_hash", "distance_name", "score_name"})
    return Stub(artifacts.SeedsTable, said | {"seeds": len(claims)}, ("table.md",))


# --- claims ----------------------------------------------------------------------------------------------------------

_TABLES = ("claim", "curve", "last_k", "alpha_sweep")
_FIGURES = ["claim_grid", "alpha_sweep", "alpha_strip", "neighbour_pairs"]
_OVER_TRAINING = ["progress", "steps"]


def _make_bundle(job: Job) -> Stub:
    """Copies of all artifacts, where a bundle has them, and placeholders for its words, tables and figures."""
    folder = job.arguments.output.parent
    results = folder.parent.parent
    roles, held, figures = {}, {}, list(_FIGURES)
    for role, path in job.given:
        below = path.absolute().relative_to(results.absolute()).as_posix()
        place = f"tables/{role}.json" if role in (*_TABLES, "recommendation", "neighbours") else f"artifacts/{below}"
        publish_text(folder / place, path.read_text())
        roles[below], held[below] = role, place
        figures += _OVER_TRAINING if role == "curve" else []
    shown = ["CLAIM.md", "report.html", *(f"figures/{name}.png" for name in figures)]
    shown += [f"tables/{role}.csv" for role in _TABLES if role in roles.values()]
    for name in shown:
        _write_placeholder(folder / name)
    bundle = smallest(
        artifacts.Bundle,
        configuration=digest(job.arguments.config),
        code=code_version(),
        inputs={below: sha256_file(folder / place) for below, place in held.items()},
        files=records(folder, sorted([*held.values(), *shown])),
        run=job.arguments.run,
        roles=roles,
        configuration_values={name: section.model_dump(mode="json") for name, section in job.sections.items()},
    )
    bundle.write(folder / "manifest.json")
    manifest = sha256_file(folder / "manifest.json")
    said = {"run": bundle.run, "folder": f"bundles/{bundle.run}", "manifest_sha256": manifest}
    return Stub(artifacts.BundleDone, said | {"inputs": {"manifest": manifest}})


STUBS: dict[str, Callable[[Job], Stub]] = {
    "pack_images": _pack_images,
    "fetch": _fetch,
    "check_archives": _check_archives,
    "index_archives": _index_archives,
    "make_image_folder": _make_image_folder,
    "encode_latents": _encode_latents,
    "combine_latents": _combine_latents,
    "verify_latents": _verify_latents,
    "make_tokenizer": _make_tokenizer,
    "make_feature_network": _make_feature_network,
    "make_reference": _make_reference,
    "train_encoder": _train_encoder,
    "export_encoder": _export_encoder,
    "audit_encoder": _audit_encoder,
    "train_generator": _train_generator,
    "import_network": _import_network,
    "sample": _sample,
    "evaluate": _evaluate,
    "export_images": _export_images,
    "audit_neighbours": _audit_neighbours,
    "export_model": _export_model,
    "tabulate_seeds": _tabulate_seeds,
    "make_bundle": _make_bundle,
}
