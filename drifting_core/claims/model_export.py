"""A recommended generator as a folder that works without this project: weights, autoencoder, pipeline.py, model card.

The code that runs the model is this project's own, copied: three files that need torch and diffusers only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from drifting_core.artifacts import (
    Export,
    Index,
    MetricsTable,
    ModelExport,
    TokenizerManifest,
    check_file,
    hashes,
    publish,
    publish_text,
    records,
)
from drifting_core.artifacts.provenance import code_version
from drifting_core.claims import card, pages
from drifting_core.data import draws
from drifting_core.evaluation.contract import explain_name
from drifting_core.evaluation.sampler import recommended_export
from drifting_core.faults import Fault
from drifting_core.models import exports, generator, pipeline, tokenizer
from drifting_core.sources import published

_CODE: tuple[ModuleType, ...] = (pipeline, generator, draws)
_CARD = "README.md"


def export_model(
    output: Path, *, recommendation: Path, candidates: Sequence[Path], tokenizer_path: Path, index: Path, claim: Path
) -> None:
    """Publish the folder of `output` (manifest.json, written last) from what the recommendation names.

    `candidates`: metadata.json of the exports that it can name. Raises Fault where weights were changed or artifacts are
    not of one another.
    """
    chosen, alpha = recommended_export(recommendation, list(candidates))
    export, table = exports.read_export(chosen, "generator"), MetricsTable.read(claim)
    held = TokenizerManifest.read(tokenizer_path)
    if export.latents.tokenizer_sha256 != held.weights_sha256:
        raise Fault(
            f"{chosen}: latents of the tokenizer {export.latents.tokenizer_sha256[:16]}…, {tokenizer_path} has "
            f"{held.weights_sha256[:16]}…; give the one that the generator was trained on"
        )
    folder, names = output.parent, Index.read(index).names
    _copy(chosen.parent / exports.WEIGHTS, folder / pipeline.WEIGHTS)
    check_file(folder / pipeline.WEIGHTS, export.files[exports.WEIGHTS])
    inside = [tokenizer.CONFIG, tokenizer.WEIGHTS]
    for name in inside:
        _copy(tokenizer_path.parent / held.folder / name, folder / pipeline.AUTOENCODER / name)
        check_file(folder / pipeline.AUTOENCODER / name, held.files[f"{held.folder}/{name}"])
    for module in _CODE:
        publish_text(folder / f"{_name(module)}.py", alone(Path(str(module.__file__)).read_text()))
    described = {
        "generator": export.architecture, "alpha": alpha, "precision": table.contract.sampling_precision,
        "step": export.step, "class_names": names,
    }  # fmt: skip
    publish_text(folder / pipeline.CONFIG, json.dumps(described, indent=1) + "\n")
    words = _card(export, table, alpha, names, export.architecture["input_size"] * held.factor)
    publish_text(folder / _CARD, pages.markdown(words))
    made = [pipeline.WEIGHTS, pipeline.CONFIG, _CARD, *(f"{_name(module)}.py" for module in _CODE)]
    ModelExport(
        configuration=export.configuration,
        code=code_version(),
        inputs=hashes({"recommendation": recommendation, "export": chosen, "tokenizer": tokenizer_path, "claim": claim}),
        files=records(folder, made + [f"{pipeline.AUTOENCODER}/{name}" for name in inside]),
        step=export.step,
        alpha=alpha,
        parameters=export.parameters,
    ).write(output)


def _name(module: ModuleType) -> str:
    return module.__name__.rsplit(".", 1)[-1]


def alone(text: str) -> str:
    """A module's text with imports from this project turned into imports of files beside it."""
    for module in _CODE:
        package, name = module.__name__.rsplit(".", 1)
        text = text.replace(f"from {package} import {name}\n", f"import {name}\n").replace(
            f"from {module.__name__} import", f"from {name} import"
        )
    if "drifting_core" in text:
        raise ValueError(f"model export: still imports from the project: {text[text.index('drifting_core') - 40 :][:80]!r}")
    return text


def _copy(source: Path, target: Path) -> None:
    with publish(target) as scratch:
        shutil.copyfile(source, scratch)


def _card(export: Export, table: MetricsTable, alpha: float, names: Sequence[str], size: int) -> list[pages.Block]:
    """The model card: what it is, how it is used, what was measured, what it is not for."""
    where = f"Weights of {export.imported.source}, as published there." if export.imported else "Trained with this project."
    return [
        pages.Heading(1, "One-step generator"),
        pages.Paragraph(
            f"A generator of {size} x {size} images in {len(names):,} classes by drifting (Generative Modeling via "
            f"Drifting, arXiv {published.PAPER}): one network evaluation per image, {export.parameters:,} parameters, EMA "
            f"weights of step {export.step:,}. {where}"
        ),
        pages.Heading(2, "Use"),
        pages.Paragraph("torch and diffusers are enough; this folder is all that is needed."),
        pages.Code(
            "import sys\n\nsys.path.insert(0, 'model')  # this folder\nfrom pipeline import DriftingPipeline\n\n"
            f"pipe = DriftingPipeline.from_pretrained('model')  # device='cuda'\n"
            f"pipe([0, 1], alpha={alpha:g})[0].save('picture.png')",
            "python",
        ),
        pages.Heading(2, "Measured"),
        card.plain_metrics(table),
        pages.Paragraph(f"{explain_name(table.contract)} Evaluation contract {table.contract_hash[:16]}."),
        pages.Heading(2, "Intended use"),
        pages.Paragraph(card.USE),
    ]
