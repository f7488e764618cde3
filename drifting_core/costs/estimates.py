"""What a configuration will cost: arithmetic, GPU-hours and disk, before anything runs. Light.

Multiply-adds (MACs) follow from the architectures (protocol 2.1, 3, 4.3); rates from config/rates.yaml. One MAC is two
floating-point operations. Stages that a configuration gives to the CPU are left out of the GPU-hours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import yaml

from drifting_core.artifacts import HeldOut
from drifting_core.artifacts.provenance import ROOT
from drifting_core.config import Configuration, Encoder
from drifting_core.faults import Fault

RATES = ROOT / "config" / "rates.yaml"

_SPACE_WIDTHS = {"dinov2": 1024, "clip": 768}  # features of the large models (ViT-L/14)


class Cost(NamedTuple):
    """Operations of one stage, and where they run."""

    stage: str
    macs: Mapping[str, float]  # by key of effective_tflops
    gpus: int
    rule: str  # whose jobs compute it
    counted: tuple[str, ...] = ()  # dotted keys of the rates that the operations were counted with


class Space(NamedTuple):
    """Bytes that one kind of file takes at the end of a run."""

    what: str
    bytes: float
    stage: str  # whose folder it lies in (Layout.folder), or sources
    written: float = 0.0  # bytes beside them while the largest of these files are being written: journals, a third state


def generator_macs(config: Configuration) -> float:
    """Multiply-adds of one generated latent (protocol section 3: 24.5e9 for B/2, 86.4e9 for L/2)."""
    model, hidden = config.generator, config.generator.hidden_size
    patches = (config.latent_size // model.patch_size) ** 2
    tokens = patches + model.in_context_tokens
    linear = tokens * (4 * hidden**2 + 3 * hidden * _swiglu_width(hidden)) + 6 * model.cond_dim * hidden
    attention = 2 * tokens**2 * hidden
    ends = 2 * patches * hidden * model.patch_size**2 * config.tokenizer.channels
    return model.depth * (linear + attention) + ends


def generator_parameters(config: Configuration) -> float:
    """Weights of the generator, without its smallest vectors."""
    model, hidden = config.generator, config.generator.hidden_size
    block = 4 * hidden**2 + 3 * hidden * _swiglu_width(hidden) + 6 * model.cond_dim * hidden
    tables = config.data.expected.classes + model.style_tables * model.style_entries
    return model.depth * block + tables * model.cond_dim + 4 * model.cond_dim**2


def _swiglu_width(hidden: int) -> int:
    return 32 * math.ceil(int(8 / 3 * hidden) / 32)


def _encoder_convolutions(config: Configuration) -> list[tuple[int, int]]:
    """(weights, side of the output map) of every convolution of the encoder."""
    encoder = config.encoder
    side = config.latent_size // encoder.input_patch_size
    before = config.tokenizer.channels * encoder.input_patch_size**2
    convolutions = [(9 * before * encoder.base_width, side)]
    before = encoder.base_width
    for stage, count in enumerate(encoder.blocks):
        width = encoder.base_width * 2**stage
        side = side if stage == 0 else side // 2
        for block in range(count):
            convolutions += [(9 * (before if block == 0 else width) * width, side), (9 * width**2, side)]
            if block == 0 and before != width:
                convolutions.append((before * width, side))
        before = width
    return convolutions


def _decoder_convolutions(config: Configuration) -> list[tuple[int, int]]:
    width, side = config.encoder.base_width, config.latent_size // config.encoder.input_patch_size
    convolutions = [(9 * (8 * width) ** 2, max(side // 8, 1))]
    for up, skip, at in ((8, 4, side // 4), (4, 2, side // 2), (2, 1, side), (1, 1, side)):
        convolutions += [(9 * (up + skip) * skip * width**2, max(at, 1)), (9 * (skip * width) ** 2, max(at, 1))]
    return convolutions


def encoder_macs(config: Configuration) -> float:
    """Multiply-adds of one latent through the encoder (18.5e9 at width 256, 115.8e9 at 640)."""
    return sum(weights * side**2 for weights, side in _encoder_convolutions(config))


def decoder_macs(config: Configuration) -> float:
    """Multiply-adds of the latent-MAE's decoder (9.7e9 at width 256, 60.4e9 at 640)."""
    return sum(weights * side**2 for weights, side in _decoder_convolutions(config))


def autoencoder_parameters(config: Configuration) -> float:
    """Weights of the latent-MAE's convolutions, decoder included."""
    return sum(weights for weights, _ in (*_encoder_convolutions(config), *_decoder_convolutions(config)))


def audit_macs(config: Configuration) -> float:
    """Multiply-adds of one encoder's audit: all held-out images twice, once through the decoder; class means."""
    expected = config.data.expected
    known = min(HeldOut.most_per_class * expected.classes, expected.train_images)
    return expected.val_images * (2 * encoder_macs(config) + decoder_macs(config)) + known * encoder_macs(config)


def of_sections(parts: Mapping[str, Any]) -> Any:
    """The sections of a slice, as the counts here read them of a Configuration."""
    return SimpleNamespace(**parts, latent_size=parts["data"].image_size // parts["tokenizer"].factor)


def encoder_step_macs(config: Configuration) -> float:
    """Multiply-adds of one step of the latent-MAE: forward and backward."""
    return 3 * config.encoder.recipe.batch * (encoder_macs(config) + decoder_macs(config))


def step_macs(config: Configuration, *, recomputed: bool = True) -> float:
    """Multiply-adds of one generator step (protocol 4.3).

    `recomputed`: with the second forward pass where the step is cut into parts.
    """
    objective = config.objective
    generated = objective.classes_per_step * objective.generated_per_class
    real = objective.classes_per_step * (objective.positives_per_class + objective.unconditional_per_class)
    again = 1 if recomputed and config.training.micro_batches > 1 else 0
    encoder = encoder_macs(config) if objective.encoder_features else 0.0
    return generated * ((3 + again) * generator_macs(config) + (2 + again) * encoder) + real * encoder


def evaluations(config: Configuration) -> tuple[int, int]:
    """(evaluations, generated images in all of them)."""
    selection, report = config.evaluation.selection, config.evaluation.report
    milestones = config.milestones
    steps = len(milestones) if selection.curve else min(selection.last_k, len(milestones))
    sweep = len([alpha for alpha in selection.alphas if alpha != selection.alpha])
    chosen = (steps + sweep) * len(selection.seeds)
    return chosen + len(report.seeds), chosen * selection.samples + len(report.seeds) * report.samples


def costs(config: Configuration, rates: dict[str, Any]) -> list[Cost]:
    """Operations by stage."""
    pixels = (config.data.image_size / 256) ** 2
    encode, decode = (rates["tokenizer_gmac"][way]["value"] * 1e9 * pixels for way in ("encode", "decode"))
    inception = rates["inception_gmac"]["value"] * 1e9
    images = config.data.expected.train_images + config.data.expected.val_images
    latents, encoder, training, evaluation = config.data.latents, config.encoder, config.training, config.evaluation
    trains = not config.generator.imported
    pretrained, finetuned = (trains * seen for seen in _seen_by(encoder))
    online: dict[str, float] = {}  # each stage encodes in its own number format
    for recipe, seen in ((encoder.training, pretrained), (encoder.recipe, finetuned)):
        rate = encoding_rate(recipe.precision)
        online[rate] = online.get(rate, 0.0) + (seen * encode if encoder.augmentation == "online" else 0.0)
    views = latents.views * images + encoder.crop_views * config.data.expected.train_images
    _, generated = evaluations(config)
    claimed = len(evaluation.report.seeds) * evaluation.report.samples
    spaces, transformer = len(evaluation.spaces), rates["vision_transformer_gmac"]["value"] * 1e9
    mae = 3 * (encoder_macs(config) + decoder_macs(config))
    vision, ways = "vision_transformer_gmac", ("tokenizer_gmac.encode", "tokenizer_gmac.decode")
    reference, network = evaluation.network.resources.gpus, evaluation.resources.gpus
    stored = encoding_rate(latents.precision)
    return [
        Cost("encode latents", {stored: trains * views * encode}, latents.resources.gpus, "encode_latents", ways[:1]),
        Cost("reference statistics", {"features": images * inception}, reference, "make_reference", ("inception_gmac",)),
        Cost("latent-MAE", {"encoder": mae * pretrained}, encoder.resources.gpus, "train_encoder"),
        Cost("latent-MAE: fine-tune", {"encoder": mae * finetuned}, encoder.resources.gpus, "train_encoder"),
        Cost("latent-MAE: crops encoded in the loop", online, encoder.resources.gpus, "train_encoder", ways[:1]),
        Cost("audit of the encoder", {"features": trains * audit_macs(config)}, encoder.resources.gpus, "audit_encoder"),
        Cost(
            "generator",
            {"generator": trains * step_macs(config) * training.steps},
            training.resources.gpus,
            "train_generator",
        ),
        Cost("sampling", {"generator": generated * generator_macs(config)}, network, "sample"),
        Cost(
            "evaluation",
            {"decode": generated * decode, "features": generated * inception},
            network,
            "evaluate",
            (ways[1], "inception_gmac"),
        ),
        Cost(
            "further feature spaces",
            {"decode": spaces * claimed * decode, "features": spaces * (images + claimed) * transformer},
            reference,
            "evaluate_claim_in_space",
            (vision, ways[1]),
        ),
    ]


def _seen_by(encoder: Encoder) -> tuple[int, int]:
    """Latents that pre-training and fine-tune train on."""
    pretrained = 0 if encoder.before_finetune.imported else encoder.training.batch * encoder.training.steps
    return pretrained, encoder.finetune.batch * encoder.finetune.steps if encoder.finetune else 0


def gpu_hours(cost: Cost, rates: dict[str, Any]) -> float:
    return hours_of(cost.macs, rates) if cost.gpus else 0.0


def encoding_rate(precision: str) -> str:
    """Key of effective_tflops for SD-VAE's encoder in this number format."""
    return "encode_float32" if precision == "float32" else "encode_bfloat16"


def hours_of(macs: Mapping[str, float], rates: dict[str, Any]) -> float:
    """Hours of one device for multiply-adds by key of effective_tflops."""
    return sum(2 * count / (rates["effective_tflops"][rate]["value"] * 1e12) / 3600 for rate, count in macs.items())


def disk(config: Configuration) -> list[Space]:
    """What a finished run leaves, with every milestone's export and sample set kept."""
    latent = config.tokenizer.channels * config.latent_size**2
    number = {"float16": 2, "float32": 4}[config.data.latents.dtype]
    images = config.data.expected.train_images + config.data.expected.val_images
    width = 2048 if config.evaluation.network.kind == "inception" else 64
    claimed = len(config.evaluation.report.seeds) * config.evaluation.report.samples
    further = sum(_SPACE_WIDTHS[space.kind] for space in config.evaluation.spaces)
    generator = 4 * generator_parameters(config)
    encoder = 4 * sum(weights for weights, _ in _encoder_convolutions(config))
    mae = 4 * autoencoder_parameters(config)
    _, generated = evaluations(config)
    seen = width + (1008 if config.evaluation.network.kind == "inception" else config.data.expected.classes)
    trains = not config.generator.imported
    trained = (not config.encoder.before_finetune.imported) + (config.encoder.finetune is not None)
    exports = 2 if config.encoder.finetune else 1
    latents = trains * images * config.data.latents.views * latent * number
    crops = trains * config.data.expected.train_images * config.encoder.crop_views * latent * number
    cache, claim = config.data.expected.train_images * width * 4, config.evaluation.report.samples
    states, state = "latent-MAE: two states and the export", trains * 4 * mae * (trained > 0)
    return [
        Space("latents", latents, "data", latents),
        Space("latents of random crops", crops, "data", crops),
        Space("feature cache of the real images", cache, "reference", cache),
        Space(states, trains * (trained * 2 * 4 * mae + exports * (encoder + mae)), "encoder", state),
        Space("generator: two states", trains * 2 * 4 * generator, "run", trains * 4 * generator),
        Space("downloaded weights", _downloaded(config, generator, mae), "sources"),
        Space("generator: exports", len(config.milestones) * generator, "run"),
        Space("generated latents", generated * latent * 2, "run", claim * latent * 2),
        Space("features of generated images", generated * (seen * 4 + 16), "run", claim * (seen * 4 + 16)),
        Space("further feature spaces", (config.data.expected.train_images + claimed) * further * 4, "reference"),
    ]


def files(config: Configuration) -> int:
    """About how many files that is, with logs and leases; an upper bound, from counts of small runs."""
    latents, (count, _) = config.data.latents, evaluations(config)
    shards = sum(latents.shards_of(store) for store in ("train", "val"))
    return 150 + 4 * shards + 8 * len(config.milestones) + 20 * count


def _downloaded(config: Configuration, generator: float, mae: float) -> float:
    """Bytes of the authors' weights, whose encoders come with their decoders."""
    if config.generator.imported:
        return generator if config.generator.released else 0.0
    return mae if config.encoder.released else 0.0


def read_rates(path: Path = RATES) -> dict[str, Any]:
    """The rates of a file. Raises Fault when it lacks one that the shipped file has, or one is no positive number."""
    try:
        rates = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise Fault(f"{path}: no rates can be read: {error}; measure them: make rates") from error
    for key in ("device", *_keys(yaml.safe_load(RATES.read_text()))):
        try:
            found = rate_of(rates, key)
            right = isinstance(found, str) if key.endswith("device") else found["value"] > 0 and bool(found["source"])
        except (KeyError, TypeError):
            right = False
        if not right:
            raise Fault(f"{path}: {key} is not there with a value above 0 and its source; measure again: make rates")
    return rates


def _keys(rates: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Dotted keys of all that have a value and a source."""
    for name, entry in rates.items():
        if isinstance(entry, dict):
            yield from [f"{before}{name}"] if "value" in entry else _keys(entry, f"{before}{name}.")


def rate_of(rates: dict[str, Any], key: str) -> Any:
    """The entry of a dotted key, e.g. effective_tflops.training."""
    for part in key.split("."):
        rates = rates[part]
    return rates
