"""What a run is.

Every preset in `config/` is one complete `Configuration`. Each field is either identity (it changes the result, so it is
part of the hashes that name folders and of the rules' params) or an operation: see identity.py.

This module is light: the Snakefile imports it on login nodes and in every cluster job. No torch, no h5py.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from drifting_core import published
from drifting_core.faults import Fault
from drifting_core.identity import Section, digest, identity, merge, operation

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Precision = Literal["float32", "bfloat16"]

TRAINED = "trained"
_RELEASED = "released:"
_SOURCE = (
    "trained: here, from the latents; released:NAME (or released:NAME@COMMIT): the authors' weights; else the path of a "
    "folder as they publish one, or of an export of this project"
)


class Resources(Section):
    """What one job of a stage asks of the scheduler."""

    threads: Positive = operation(1, "CPU threads")
    gpus: Natural = operation(0, "GPUs; 0 means that the job computes on the CPU")
    memory_mb: Positive = operation(4000, "memory in MB")
    runtime_minutes: Positive = operation(60, "wall-time limit in minutes")


class Archives(Section):
    """Where the three ImageNet-shaped archives lie."""

    train: str = operation(description="tar of one tar of JPEGs per class")
    val: str = operation(description="flat tar of validation JPEGs")
    devkit: str = operation(description="tar.gz with data/meta.mat and the validation ground truth")


class Checksums(Section):
    """MD5 of the archives as published; null where nobody publishes one."""

    train: str | None = None
    val: str | None = None
    devkit: str | None = None


class Expected(Section):
    """Counts that the index must find before anything is encoded."""

    classes: Positive = Field(description="number of classes")
    train_images: Positive = Field(description="images in the training archive")
    val_images: Positive = Field(description="images in the validation archive")
    train_per_class: tuple[Positive, Positive] = Field(description="fewest and most training images of a class")
    val_per_class: tuple[Positive, Positive] = Field(description="fewest and most validation images of a class")


class Latents(Section):
    """How images become rows of the latent store."""

    posterior: Literal["sample", "mean"] = Field("sample", description="a posterior sample seeded per image, or the mean")
    views: Literal[1, 2] = Field(2, description="1: the image; 2: the image and its mirror")
    dtype: Literal["float16", "float32"] = Field("float16", description="stored number format")
    precision: Precision = Field("float32", description="number format that the tokenizer computes in")
    compute_batch: Positive = Field(64, description="images per tokenizer call (bits depend on it)")
    chunk_rows: Positive = Field(64, description="rows per HDF5 chunk; a multiple of compute_batch / views")
    shards_train: Positive = Field(1, description="files of the training split, one job each")
    shards_val: Positive = Field(1, description="files of the validation split, one job each")
    seed: Natural = Field(0, description="seed of the posterior samples")
    resources: Resources = operation(Resources(), "one shard job")


class Data(Section):
    """From archives to a verified latent store."""

    name: Name = Field(description="folder name below results/data")
    archives: Archives = operation(description="where the archives lie")
    pack: Literal["photos"] | None = Field(None, description="make the archives from the embedded photos first")
    md5: Checksums = Field(Checksums(), description="published checksums")
    check_md5: bool = operation(True, "read the archives once to compare their MD5; recorded as skipped if false")
    expected: Expected = Field(description="counts to be found")
    image_size: Positive = Field(description="side of the square centre crop in pixels")
    max_rejects: Natural = Field(0, description="unreadable images that are tolerated (and listed)")
    latents: Latents = Field(Latents(), description="the latent store")
    resources: Resources = operation(Resources(), "packing, checking and indexing jobs")


class HubTokenizer(Section):
    """A tokenizer of the Hugging Face hub, pinned."""

    id: str = Field(description="repository")
    revision: str = Field(min_length=7, description="commit")


class TokenizerTraining(Section):
    """A small AutoencoderKL trained on the training images (for data that no published tokenizer fits)."""

    channels: tuple[Positive, ...] = Field(description="channels per resolution")
    norm_groups: Positive = Field(description="groups of its GroupNorms")
    steps: Positive = Field(description="optimisation steps")
    batch: Positive = Field(description="images per step")
    learning_rate: Rate = Field(description="peak of the cosine schedule")
    kl_weight: Rate = Field(1e-5, description="weight of the KL term")
    seed: Natural = Field(0, description="seed of initialisation and order")


class Tokenizer(Section):
    """The autoencoder between pixels and latents (diffusers' AutoencoderKL)."""

    source: Literal["hub", "folder", "trained"] = Field(description="where it comes from")
    hub: HubTokenizer | None = Field(None, description="for source: hub")
    folder: str | None = Field(None, description="for source: folder; made by save_pretrained")
    training: TokenizerTraining | None = Field(None, description="for source: trained")
    factor: Positive = Field(8, description="pixels per latent pixel, along a side")
    channels: Positive = Field(4, description="latent channels")
    resources: Resources = operation(Resources(), "training job")

    @property
    def download(self) -> published.Download | None:
        """What a job with internet must fetch first."""
        hub = self.hub if self.source == "hub" else None
        return published.tokenizer_download(hub.id, hub.revision) if hub else None

    @model_validator(mode="after")
    def _source_is_described(self) -> Self:
        section = {"hub": "hub", "folder": "folder", "trained": "training"}[self.source]
        if getattr(self, section) is None:
            raise ValueError(f"source: {self.source} needs the key '{section}' beside it")
        return self


class EncoderTraining(Section):
    """Optimisation of the latent-MAE (protocol: paper A.3, Table 8; released configs/mae)."""

    steps: Positive = Field(description="optimisation steps, the fine-tune included")
    batch: Positive = Field(description="latents per step")
    learning_rate: Rate = Field(description="constant after the warm-up")
    warmup_steps: Natural = Field(description="linear warm-up from 1e-6")
    weight_decay: float = Field(0.01, ge=0, description="AdamW decay, on all parameters")
    clip: Rate = Field(2.0, description="limit of the global gradient norm")
    ema: Decay = Field(description="decay of the exponential moving average of the weights")
    finetune_steps: Natural = Field(0, description="last steps that add the classifier's cross-entropy")
    finetune_ramp_steps: Natural = Field(0, description="steps in which its weight grows from 0")
    finetune_weight: Fraction = Field(0.0, description="weight of the cross-entropy after the ramp")
    precision: Precision = Field("float32", description="number format of activations")
    seed: Natural = Field(42, description="seed of initialisation, order and masks")


class Importable(Section):
    """A network that is trained here or imported; what an import brings must be what these sections say."""

    source: str = Field(TRAINED, min_length=1, description=_SOURCE)

    @property
    def imported(self) -> bool:
        return self.source != TRAINED

    @property
    def released(self) -> str | None:
        """Name in the authors' repository, if it comes from there."""
        return self.source.removeprefix(_RELEASED).partition("@")[0] if self.source.startswith(_RELEASED) else None

    @property
    def download(self) -> published.Download | None:
        """What a job with internet must fetch first."""
        if self.released is None:
            return None
        return published.download(self.released, self.source.partition("@")[2])


def _released_exists(network: Literal["encoder", "generator"], source: str) -> str:
    name = source.removeprefix(_RELEASED).partition("@")[0]
    if source.startswith(_RELEASED) and name not in published.names(network):
        known = ", ".join(_RELEASED + each for each in published.names(network))
        raise ValueError(f"the authors publish no {network} '{name}'; known: {known}; or give a folder")
    return source


class Encoder(Importable):
    """The latent-MAE whose features the drift is computed in."""

    name: Name = Field(description="folder name below results/encoders")
    base_width: Positive = Field(description="channels of the first stage")
    blocks: tuple[Positive, Positive, Positive, Positive] = Field((3, 4, 6, 3), description="residual blocks per stage")
    input_patch_size: Positive = Field(1, description="side of the patches folded into channels first")
    norm_groups: Positive = Field(32, description="groups of the GroupNorms (largest divisor up to this)")
    mask_patch_size: Positive = Field(2, description="side of the masked latent patches")
    mask_ratio: Fraction = Field(0.5, description="probability that a patch is masked")
    augmentation: Literal["online", "none"] = Field(
        description="online: random resized crops of the images, encoded in the loop; none: the stored latents"
    )
    crop_scale: tuple[Fraction, Fraction] = Field((0.2, 1.0), description="area of the random crops")
    training: EncoderTraining = Field(description="optimisation")
    commit_every: Positive = operation(1000, "steps between committed states")
    log_every: Positive = operation(50, "steps between lines of metrics.jsonl")
    resources: Resources = operation(Resources(), "the training job")

    @field_validator("source")
    @classmethod
    def _is_published(cls, source: str) -> str:
        return _released_exists("encoder", source)


class Generator(Importable):
    """The one-step generator (protocol section 3)."""

    patch_size: Positive = Field(2, description="latent pixels per token, along a side")
    hidden_size: Positive = Field(description="width of the transformer")
    depth: Positive = Field(description="transformer blocks")
    num_heads: Positive = Field(description="attention heads")
    cond_dim: Positive = Field(description="width of the conditioning vector")
    in_context_tokens: Natural = Field(16, description="tokens made of the condition, prepended")
    style_tables: Natural = Field(32, description="style codebooks")
    style_entries: Positive = Field(64, description="entries per style codebook")
    attention_fp32: bool = Field(True, description="attention and rotary angles in float32")

    @field_validator("source")
    @classmethod
    def _is_published(cls, source: str) -> str:
        return _released_exists("generator", source)


class AlphaLaw(Section):
    """Distribution of the guidance strength in training: density ~ alpha^-power on [low, high]."""

    low: Rate = Field(1.0, description="smallest alpha")
    high: Rate = Field(4.0, description="largest alpha")
    power: float = Field(description="exponent k of alpha^-k")
    point_mass: Fraction = Field(0.0, description="probability of alpha = low exactly")


class Bank(Section):
    """The queue of real samples (paper A.8; protocol 1.8)."""

    per_class: Positive = Field(128, description="latest samples kept per class")
    unconditional: Positive = Field(1000, description="latest samples kept of all classes")
    pushes_per_step: Positive = Field(description="real samples pushed per global step")


class Objective(Section):
    """The drifting loss and its batch (protocol 1.4 to 1.8)."""

    temperatures: tuple[Rate, ...] = Field((0.2, 0.05, 0.02), description="kernel temperatures at mean distance 1")
    classes_per_step: Positive = Field(description="N_c: labels per step")
    generated_per_class: Positive = Field(description="N_neg: generated samples per label, also the negatives")
    positives_per_class: Positive = Field(description="N_pos: real samples of the label")
    unconditional_per_class: Natural = Field(description="N_unc: real samples of any class")
    alpha: AlphaLaw = Field(description="guidance in training")
    bank: Bank = Field(description="queue of real samples")
    encoder_features: bool = Field(True, description="false: the raw latent is the only feature (an ablation)")


class Training(Section):
    """Optimisation of the generator; `steps` is a horizon: a longer run continues the shorter one."""

    learning_rate: Rate = Field(description="constant after the warm-up")
    warmup_steps: Natural = Field(description="linear warm-up from 1e-6")
    weight_decay: float = Field(ge=0, description="AdamW decay, on all parameters")
    clip: Rate = Field(2.0, description="limit of the global gradient norm")
    ema: Decay = Field(0.999, description="decay of the exponential moving average of the weights")
    precision: Precision = Field("float32", description="number format of activations")
    seed: Natural = Field(42, description="seed of initialisation and of every draw")
    steps: Positive = operation(description="horizon in steps")
    milestone_every: Positive = operation(description="steps per slice: each slice is a job and ends in an export")
    commit_every: Positive = operation(1000, "steps between committed states inside a slice")
    log_every: Positive = operation(50, "steps between lines of metrics.jsonl")
    micro_batches: Positive = operation(1, "parts that a step's labels are computed in; the numbers stay the same")
    compile_objective: bool = operation(False, "torch.compile for the element-wise part of the drift loss")
    resources: Resources = operation(Resources(), "one slice job")

    @model_validator(mode="after")
    def _milestones_divide(self) -> Self:
        if self.steps % self.milestone_every:
            raise ValueError(f"steps ({self.steps}) must be a multiple of milestone_every ({self.milestone_every})")
        return self

    @property
    def milestones(self) -> list[int]:
        """Steps that are exported, the untrained network (0) first."""
        return list(range(0, self.steps + 1, self.milestone_every))


class Classifier(Section):
    """A small classifier trained on the training images: the feature network where Inception does not fit."""

    width: Positive = Field(description="channels of its first stage")
    steps: Positive = Field(description="optimisation steps")
    batch: Positive = Field(description="images per step")
    learning_rate: Rate = Field(description="peak of the cosine schedule")
    seed: Natural = Field(0, description="seed of initialisation and order")


class Network(Section):
    """The feature network of the evaluation."""

    kind: Literal["inception", "classifier"] = Field(description="inception: the FID network; classifier: trained here")
    inception_weights: str | None = operation(None, "for kind: inception; the published FID weights, a local file")
    classifier: Classifier | None = Field(None, description="for kind: classifier")
    resources: Resources = operation(Resources(), "making the network and the reference")

    @model_validator(mode="after")
    def _kind_is_described(self) -> Self:
        key = {"inception": "inception_weights", "classifier": "classifier"}[self.kind]
        if getattr(self, key) is None:
            raise ValueError(f"kind: {self.kind} needs the key '{key}' beside it")
        return self


class Reference(Section):
    """Real images under the feature network."""

    compute_batch: Positive = Field(64, description="images per feature call (bits depend on it)")
    precision_recall_images: Positive = Field(10_000, description="validation images of the precision/recall manifold")


class Sampling(Section):
    """Generated latents."""

    compute_batch: Positive = Field(64, description="samples per generator call (bits depend on it)")
    label_plan: Literal["balanced"] = Field("balanced", description="labels: every class equally often")
    precision: Precision = Field("float32", description="number format of the generator's activations")


class Contract(Section):
    """From latents to numbers (architecture.md, decision 9)."""

    uint8: Literal["truncate", "round", "adm"] = Field("truncate", description="how [0, 1] pixels become bytes")
    compute_batch: Positive = Field(64, description="images per decoder and feature call (bits depend on it)")
    precision_recall_k: Positive = Field(3, description="neighbours that define the manifolds")
    bootstrap: Natural = Field(20, description="resamples behind the distance's standard error")


class Selection(Section):
    """What the recommendation may look at: its own seeds, never those of the report."""

    samples: Positive = Field(description="generated images per evaluation")
    seeds: tuple[Natural, ...] = Field(min_length=1, description="sampling seeds")
    last_k: Positive = Field(description="latest exports that compete")
    alpha: Rate = Field(description="guidance at which exports are compared")
    alphas: tuple[Rate, ...] = Field(min_length=1, description="guidance strengths of the sweep on the last export")
    tie_errors: Rate = Field(2.0, description="choices within this many standard errors of the best are tied with it")
    curve: bool = operation(True, "also evaluate every earlier milestone, the untrained network included")


class Report(Section):
    """The claim set, drawn with seeds that selection never saw."""

    samples: Positive = Field(description="generated images of the claim")
    seeds: tuple[Natural, ...] = Field(min_length=1, description="sampling seeds")


class Neighbours(Section):
    """The audit of generated images against the training set."""

    samples: Positive = Field(description="generated images that are looked up")
    top: Positive = Field(10, description="neighbours listed per image")


class Evaluation(Section):
    """How numbers are made (architecture.md, decisions 9 and 10)."""

    network: Network = Field(description="feature network")
    reference: Reference = Field(Reference(), description="real images")
    sampling: Sampling = Field(Sampling(), description="generated latents")
    contract: Contract = Field(Contract(), description="latents to numbers")
    selection: Selection = Field(description="choosing export and guidance")
    report: Report = Field(description="the claim")
    neighbours: Neighbours = Field(description="memorisation audit")
    resources: Resources = operation(Resources(), "one sampling or evaluation job")

    @model_validator(mode="after")
    def _seeds_are_disjoint(self) -> Self:
        shared = sorted(set(self.selection.seeds) & set(self.report.seeds))
        if shared:
            raise ValueError(f"selection.seeds and report.seeds share {shared}: a claim needs seeds that chose nothing")
        return self


class Configuration(Section):
    """A complete run: the content of one file in config/."""

    name: Name = Field(description="first part of the run's folder name")
    results: str = operation("results", "root of everything that is made")
    data: Data = Field(description="images and latents")
    tokenizer: Tokenizer = Field(description="pixels to latents and back")
    encoder: Encoder = Field(description="features of the drift")
    generator: Generator = Field(description="the network that is trained")
    objective: Objective = Field(description="what it is trained for")
    training: Training = Field(description="how it is trained")
    evaluation: Evaluation = Field(description="how it is measured")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        problems = list(_misfits(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def latent_size(self) -> int:
        """Side of the latent, in latent pixels."""
        return self.data.image_size // self.tokenizer.factor

    @property
    def milestones(self) -> list[int]:
        """Steps that are exported: the training's, or the one that an imported generator stands for."""
        return [self.training.steps] if self.generator.imported else self.training.milestones

    @property
    def downloads(self) -> dict[str, published.Download]:
        """What must come from the Hugging Face hub, by the folder's name below results/sources."""
        wanted = (self.tokenizer.download, self.encoder.download, self.generator.download)
        return {each.key: each for each in wanted if each}

    def slice(self, *paths: str) -> dict[str, dict[str, Any]]:
        """The identities of the sections at these dotted paths: what a rule passes to its script as params."""
        chosen = {}
        for path in paths:
            section: Any = self
            for part in path.split("."):
                section = getattr(section, part)
            chosen[path] = identity(section)
        return chosen

    # Names of folders: a name and the first 8 digits of the digest of the slice that decides the content. That slice is
    # what the stage's jobs are given, so their artifacts record the same digest in full.

    def key(self, stage: str) -> str:
        """Folder name of a stage: data, tokenizer, network, reference, encoder or run."""
        names = {
            "data": self.data.name,
            "tokenizer": f"{self.tokenizer.source}_{self.data.name}" if self._trains_tokenizer else self.tokenizer.source,
            "network": self.evaluation.network.kind,
            "reference": f"{self.data.name}_{self.evaluation.network.kind}",
            "encoder": self.encoder.name,
            "run": self.name,
        }
        return f"{names[stage]}-{digest(self.stage_slice(stage))[:8]}"

    def stage_slice(self, stage: str) -> dict[str, dict[str, Any]]:
        """Everything above the stage in the picture of architecture.md."""
        source = ("data", "tokenizer")
        trained = self._trains_tokenizer
        training = ("encoder", "generator", "objective", "training")
        paths = {
            "data": source,
            "tokenizer": source if trained else ("tokenizer",),  # a published one is shared by all data
            "network": (*source, "evaluation.network") if self.evaluation.network.classifier else ("evaluation.network",),
            "reference": (*source, "evaluation.network", "evaluation.reference"),
            "encoder": (*source, "encoder"),
            "run": (*source, "generator") if self.generator.imported else (*source, *training),
            "bundle": (*source, *training, "evaluation"),
        }
        return self.slice(*paths[stage])

    @property
    def _trains_tokenizer(self) -> bool:
        return self.tokenizer.source == "trained"


def _misfits(config: Configuration) -> list[str]:
    """What each section accepts alone but the whole cannot be."""
    problems = []

    def must_divide(whole: int, part: int, what: str) -> None:
        if whole % part:
            problems.append(f"{what}: {part} must divide {whole}")

    must_divide(config.data.image_size, config.tokenizer.factor, "tokenizer.factor and data.image_size")
    must_divide(config.latent_size, config.generator.patch_size, "generator.patch_size and the latent's side")
    must_divide(config.latent_size, config.encoder.input_patch_size, "encoder.input_patch_size and the latent's side")
    must_divide(config.generator.hidden_size, config.generator.num_heads, "generator.num_heads and hidden_size")
    must_divide(
        config.objective.classes_per_step, config.training.micro_batches, "training.micro_batches and classes_per_step"
    )
    latents = config.data.latents
    must_divide(latents.chunk_rows * latents.views, latents.compute_batch, "data.latents.compute_batch and a chunk's images")
    if config.objective.bank.pushes_per_step < config.objective.classes_per_step:
        problems.append(
            "objective.bank.pushes_per_step must be at least objective.classes_per_step: labels come from the pushes"
        )
    for kind in ("selection", "report"):
        samples = getattr(config.evaluation, kind).samples
        must_divide(samples, config.data.expected.classes, f"evaluation.{kind}.samples and the number of classes")
    if not config.generator.imported and config.evaluation.selection.last_k > len(config.training.milestones) - 1:
        problems.append(
            f"evaluation.selection.last_k ({config.evaluation.selection.last_k}) exceeds the "
            f"{len(config.training.milestones) - 1} trained milestones"
        )
    return problems


def sections(identities: Mapping[str, Any], how: Mapping[str, Any]) -> dict[str, Any]:
    """The typed sections of a slice, put together again from identities and the whole configuration's operations."""
    typed = {}
    for path, values in identities.items():
        model: type[Section] = Configuration
        own: Mapping[str, Any] = how
        for part in path.split("."):
            model = _section_type(model, part)
            own = own.get(part, {})
        typed[path] = model.model_validate(merge(values, own))
    return typed


def _section_type(model: type[Section], name: str) -> type[Section]:
    annotation = model.model_fields[name].annotation
    return next(c for c in (annotation, *get_args(annotation)) if isinstance(c, type) and issubclass(c, Section))


def load(values: Mapping[str, Any], origin: str = "configuration") -> Configuration:
    """Check `values` (a parsed preset with its overrides).

    Raises Fault with every problem in one message: the dotted key, what was found, what was expected.
    """
    try:
        return Configuration.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors(include_url=False)]
        raise Fault(f"{origin} has {len(lines)} problem(s):\n" + "\n".join(f"  {line}" for line in lines)) from None


def _explain(problem: Any) -> str:
    dotted = ".".join(str(part) for part in problem["loc"]) or "configuration"
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys here: {', '.join(known)}"
        return f"{dotted}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{dotted}: missing; a preset is complete, see docs/configuration.md"
    if problem["type"] == "value_error":
        return f"{dotted}: {problem['ctx']['error']}"
    return f"{dotted}: found {problem['input']!r}; {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _keys_beside(location: tuple[str | int, ...]) -> list[str]:
    model: type[Section] = Configuration
    for part in location[:-1]:
        model = _section_type(model, str(part))
    return sorted(model.model_fields)


def load_file(path: Path) -> Configuration:
    """Read a preset (YAML, safe subset) or a run's config.json. Raises Fault."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise Fault(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise Fault(f"{path}: found {type(values).__name__}, expected a mapping of sections; see docs/configuration.md")
    return load(values, str(path))
