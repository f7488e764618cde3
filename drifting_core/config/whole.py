"""A complete configuration: its sections together, the names of its folders, and reading it. Light."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import Field, ValidationError, model_validator

from drifting_core.artifacts.identity import Section, digest, identity, merge, operation
from drifting_core.config.data import Data, Tokenizer
from drifting_core.config.evaluation import Evaluation, Network
from drifting_core.config.networks import Encoder, Generator, Objective, Training
from drifting_core.config.values import Device, Name, Natural
from drifting_core.faults import Fault
from drifting_core.sources import published


class Configuration(Section):
    """A complete run: the content of one file in config/."""

    name: Name = Field(description="first part of the run's folder name")
    results: str = operation("results", "root of everything that is made")
    rehearsal: bool = operation(
        False, "jobs get the GPUs that they ask for and compute on the CPU: to try a scheduler without using its GPUs"
    )
    stub: bool = operation(
        False, "each job writes a small placeholder in place of computing, below stub/ beside `results`: to try the workflow"
    )
    devices: tuple[Natural | Device, ...] = operation(
        (),
        "GPUs that jobs on one machine share, by index or UUID (CUDA_VISIBLE_DEVICES); empty: all. SLURM grants its own",
    )
    seeds: tuple[Natural, ...] = operation((), "seeds of the generator's training that `snakemake seeds` compares")
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
    def root(self) -> Path:
        """Root of everything that is made: `results`, or the folder of that name below a folder `stub` beside it."""
        results = Path(self.results)
        return results.parent / "stub" / results.name if self.stub else results

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

    def relatives(self) -> list[Self]:
        """This configuration and what it also makes: the encoder before its fine-tune, other widths, seeds, spaces."""
        encoders = [self.encoder, *map(self.encoder.of_width, self.encoder.variants)]
        encoders += [encoder.before_finetune for encoder in encoders if encoder.finetune]
        made = [self.model_copy(update={"encoder": encoder}) for encoder in encoders] + self.seeded()
        return made + [self.in_space(space.kind) for space in self.evaluation.spaces]

    def seeded(self) -> list[Self]:
        """The same with each of `seeds` for the generator's training."""
        return [self.model_copy(update={"training": self.training.model_copy(update={"seed": seed})}) for seed in self.seeds]

    def in_space(self, kind: str) -> Self:
        """The same with a further space's network in place of the evaluation's, and our own statistics of the same split.

        Raises Fault when evaluation.spaces has no such kind.
        """
        evaluation = self.evaluation
        weights = {space.kind: space.weights for space in evaluation.spaces}
        if kind not in weights:
            raise Fault(f"evaluation.spaces: found {sorted(weights)}, asked for '{kind}'; name its weights there")
        network = Network.model_validate(
            {"kind": kind, "weights": weights[kind], "resources": evaluation.network.resources.model_dump()}
        )
        published = evaluation.reference.statistics  # of the other network
        split = published.split if published else evaluation.reference.split
        reference = evaluation.reference.model_copy(update={"statistics": None, "split": split})
        return self.model_copy(
            update={"evaluation": evaluation.model_copy(update={"network": network, "reference": reference})}
        )

    @property
    def family(self) -> str:
        """Folder name of the comparison of `seeds`: everything that a bundle depends on but training.seed, and the seeds."""
        alike = self.stage_slice("bundle")
        alike["training"].pop("seed", None)
        return f"{self.name}-{digest({**alike, 'seeds': sorted(self.seeds)})[:8]}"

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
            "encoder": self.encoder.folder_name,
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


def _divisions(config: Configuration) -> Iterator[tuple[str, int, str, int]]:
    """(key, part, key, whole) of all that must divide."""
    latents, encoder, objective = config.data.latents, config.encoder, config.objective
    side = "the latent's side (data.image_size / tokenizer.factor)"
    yield "tokenizer.factor", config.tokenizer.factor, "data.image_size", config.data.image_size
    yield "generator.patch_size", config.generator.patch_size, side, config.latent_size
    yield "encoder.input_patch_size", encoder.input_patch_size, side, config.latent_size
    yield "generator.num_heads", config.generator.num_heads, "generator.hidden_size", config.generator.hidden_size
    classes = "objective.classes_per_step"
    yield "training.micro_batches", config.training.micro_batches, classes, objective.classes_per_step
    chunk = "a chunk's images (data.latents.chunk_rows * data.latents.views)"
    yield "data.latents.compute_batch", latents.compute_batch, chunk, latents.chunk_rows * latents.views
    if encoder.crop_views:
        chunk = "a chunk's crops (data.latents.chunk_rows * encoder.crop_views)"
        yield "data.latents.compute_batch", latents.compute_batch, chunk, latents.chunk_rows * encoder.crop_views
    ranks = config.training.resources.processes
    yield "training.resources (its ranks)", ranks, classes, objective.classes_per_step
    ranks = encoder.resources.processes
    yield "encoder.resources (its ranks)", ranks, "encoder.training.batch", encoder.training.batch
    if encoder.finetune:
        yield "encoder.resources (its ranks)", ranks, "encoder.finetune.batch", encoder.finetune.batch
    if config.evaluation.sampling.label_plan == "balanced":
        for kind in ("selection", "report"):
            samples = getattr(config.evaluation, kind).samples
            yield "data.expected.classes", config.data.expected.classes, f"evaluation.{kind}.samples", samples


def _misfits(config: Configuration) -> list[str]:
    """What each section accepts alone but the whole cannot be."""
    problems = [
        f"{part_key}: {part} must divide {whole}, {whole_key}; {whole} / {part} = {whole / part:.4g}"
        for part_key, part, whole_key, whole in _divisions(config)
        if whole % part
    ]
    for where, single in {
        "data.resources": config.data.resources,
        "data.latents.resources": config.data.latents.resources,
        "tokenizer.resources": config.tokenizer.resources,
        "evaluation.network.resources": config.evaluation.network.resources,
    }.items():
        if max(single.nodes, single.ranks) > 1:
            problems.append(
                f"{where}: nodes {single.nodes}, ranks {single.ranks}; only trainings and sampling have several processes"
            )
    problems += _encoder_misfits(config.encoder)
    if config.training.init_from and config.generator.imported:
        problems.append(
            f"training.init_from: the generator is imported ({config.generator.source}), not trained; remove one"
        )
    if config.objective.bank.pushes_per_step < config.objective.classes_per_step:
        problems.append(
            f"objective.bank.pushes_per_step: {config.objective.bank.pushes_per_step} must be at least "
            f"objective.classes_per_step ({config.objective.classes_per_step}): labels come from the pushes"
        )
    if config.training.canary_samples <= config.evaluation.contract.precision_recall_k:
        problems.append(
            f"training.canary_samples ({config.training.canary_samples}) must exceed evaluation.contract.precision_recall_k "
            f"({config.evaluation.contract.precision_recall_k})"
        )
    if len(set(config.seeds)) < len(config.seeds):
        problems.append(f"seeds: found {list(config.seeds)}; name each seed once")
    if config.seeds and config.generator.imported:
        problems.append("seeds: an imported generator is not trained here, so there is nothing to repeat; leave seeds out")
    for kind in ("selection", "report"):
        samples, held = getattr(config.evaluation, kind).samples, config.data.expected.val_images
        if config.evaluation.sampling.label_plan == "validation" and samples > held:
            problems.append(
                f"evaluation.{kind}.samples: {samples}, but evaluation.sampling.label_plan: validation has labels for the "
                f"{held} validation images only (data.expected.val_images); lower it, or set label_plan to balanced"
            )
    if not config.generator.imported and config.evaluation.selection.last_k > len(config.training.milestones) - 1:
        problems.append(
            f"evaluation.selection.last_k ({config.evaluation.selection.last_k}) exceeds the "
            f"{len(config.training.milestones) - 1} trained milestones"
        )
    return problems


def _encoder_misfits(encoder: Encoder) -> list[str]:
    problems = []
    given = encoder.init_from or (encoder.source if encoder.before_finetune.imported else None)
    if encoder.init_from and encoder.before_finetune.imported:
        problems.append(f"encoder.init_from: the encoder is imported ({encoder.source}), not trained; remove one")
    if encoder.variants and given:
        problems.append(f"encoder.variants: {given} has one width; remove variants, or train all widths from the beginning")
    if len({encoder.base_width, *encoder.variants}) != 1 + len(encoder.variants):
        problems.append(
            f"encoder.variants: {list(encoder.variants)} beside base_width {encoder.base_width}; each width is named once"
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
    """Check `values`: a parsed preset with its overrides, or a run's config.json.

    Raises Fault with every problem in one message: the dotted key, what was found, what was expected.
    """
    if values.get("kind") == "run":  # overrides stand beside what the file records
        overrides = {name: values[name] for name in Configuration.model_fields if name in values}
        values = merge(values["values"], overrides)
    try:
        return Configuration.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors(include_url=False)]
        listed = "\n".join(f"  {line}" for line in lines)
        raise Fault(
            f"{origin} has {len(lines)} problem(s):\n{listed}\nset these keys; docs/configuration.md lists them all"
        ) from None


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
        if isinstance(part, str):  # else an index into a list of sections
            model = _section_type(model, part)
    return sorted(model.model_fields)


def load_file(path: Path, overrides: Sequence[str] = ()) -> Configuration:
    """Read a preset (YAML, safe subset) or a run's config.json; `overrides` are what Snakemake takes as --config.

    Raises Fault.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise Fault(f"{path}: cannot be read as YAML: {error}; correct it, or give another file") from error
    if not isinstance(values, dict):
        raise Fault(
            f"{path}: found {type(values).__name__}, expected a mapping of sections; write it as config/demo.yaml is"
        )
    for override in overrides:
        name, given, text = override.partition("=")
        try:
            # Leaves stay strings, as Snakemake leaves them.
            values = merge(values, {name: yaml.load(text, yaml.BaseLoader)})  # noqa: S506
        except yaml.YAMLError as error:
            raise Fault(f"--config {override}: {error}; give NAME=VALUE, a YAML value in quotes") from error
        if not given:
            raise Fault(f"--config {override}: no value; give one as in --config 'training={{steps: 400000}}'")
    return load(values, str(path))
