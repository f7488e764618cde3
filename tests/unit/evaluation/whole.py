"""An evaluation with all that it is made from, on disk: random weights, photos as the reference."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from drifting_core import config
from drifting_core.artifacts import FeatureNetwork, LatentContract, TokenizerManifest, records, sha256_file
from drifting_core.evaluation import evaluate, reference, sampler
from drifting_core.evaluation.networks.classifier import SmallClassifier, save_classifier
from drifting_core.models import tokenizer_making
from drifting_core.models.exports import write_export
from drifting_core.models.generator import Generator
from tests.unit.data.samples import HASH, section

CPU = torch.device("cpu")
BATCH, SAMPLES = 8, 60
CONTRACT = config.Contract(
    compute_batch=BATCH, bootstrap=4, kernel_subsets=3, kernel_subset_size=15, extrapolation=5, precision_recall_k=3
)  # fmt: skip
ARCHITECTURE = {
    "input_size": 16, "channels": 4, "patch_size": 4, "hidden_size": 16, "depth": 1, "num_heads": 2, "cond_dim": 8,
    "num_classes": 10, "in_context_tokens": 1, "style_tables": 2, "style_entries": 4,
}  # fmt: skip


class Parts(NamedTuple):
    """The artifacts that an evaluation reads."""

    samples: Path
    tokenizer: Path
    network: Path
    reference: Path


def write_tokenizer(folder: Path) -> Path:
    training = {"channels": [8, 8], "norm_groups": 4, "steps": 1, "batch": 1, "learning_rate": 1e-3}
    made = tokenizer_making.small_autoencoder(
        config.Tokenizer.model_validate({"source": "trained", "factor": 2, "training": training})
    )
    made.save_pretrained(folder / "given", safe_serialization=True)
    how = config.Tokenizer.model_validate({"source": "folder", "folder": str(folder / "given"), "factor": 2})
    tokenizer_making.adopt(how, folder / "given", "test", folder / "manifest.json", HASH)
    return folder / "manifest.json"


def write_samples(folder: Path, tokenizer: Path) -> Path:
    generator = Generator(**ARCHITECTURE)
    generator.reset_parameters(0)
    weights = {name: value.detach() + 0.3 * torch.randn(value.shape) for name, value in generator.state_dict().items()}
    contract = LatentContract(
        tokenizer_sha256=TokenizerManifest.read(tokenizer).weights_sha256, scaling_factor=1.0, posterior="mean",
        views=["image"], dtype="float16", precision="float32", pre_encode_transforms=[],
    )  # fmt: skip
    export = folder / "exports/step_5/metadata.json"
    write_export(
        export, "generator", weights, ARCHITECTURE, step=5, ema_decay=0.9, latents=contract, configuration=HASH, inputs={}
    )  # fmt: skip
    wanted = sampler.SampleSet(
        folder / "manifest.json", export, config.Sampling(compute_batch=10), alpha=1.5, seed=3, count=SAMPLES,
        configuration=HASH,
    )  # fmt: skip
    sampler.write_batches(wanted, CPU)
    sampler.assemble(wanted)
    return folder / "manifest.json"


def write_network(folder: Path, seed: int = 0) -> Path:
    folder.mkdir()
    network = SmallClassifier(width=4, classes=10)
    network.reset_parameters(seed)
    torch.nn.init.normal_(network.head.weight)
    save_classifier(network, folder / "model.safetensors")
    FeatureNetwork(
        configuration=HASH, code="test", files=records(folder, ["model.safetensors"]), network="classifier",
        weights="model.safetensors", weights_sha256=sha256_file(folder / "model.safetensors"),
        architecture={"width": 4, "classes": 10}, dimensions=network.dimensions, classes=10, resize="none",
    ).write(folder / "manifest.json")  # fmt: skip
    return folder / "manifest.json"


def write_reference(manifest: Path, packed: Path, network: Path, **how: object) -> Path:
    section_of = config.Reference.model_validate({"compute_batch": 8, "precision_recall_images": 20, **how})
    reference.make_reference(
        manifest, section(packed), section_of,
        index=packed / "index.json", network_path=network, device=CPU, threads=1, configuration=HASH,
    )  # fmt: skip
    return manifest


def write_parts(folder: Path, packed: Path) -> Parts:
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "tokenizer")
    network = write_network(folder / "network")
    samples = write_samples(folder / "samples", tokenizer)
    return Parts(samples, tokenizer, network, write_reference(folder / "reference/manifest.json", packed, network))


def write_evaluation(output: Path, parts: Parts, how: config.Contract = CONTRACT) -> Path:
    evaluate.evaluate(
        output, how, samples_path=parts.samples, tokenizer_path=parts.tokenizer, network_path=parts.network,
        reference_path=parts.reference, device=CPU, configuration=HASH,
    )  # fmt: skip
    return output
