"""The networks and their training: sections `encoder`, `generator`, `objective` and `training`. Light."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from drifting_core.artifacts.identity import Section, operation
from drifting_core.config.values import Decay, Fraction, Name, Natural, Positive, Precision, Rate, Resources
from drifting_core.sources import published

TRAINED = "trained"
_RELEASED = "released:"
_SOURCE = (
    "trained: here, from the latents; released:NAME (or released:NAME@COMMIT): the authors' weights; else the path of a "
    "folder as they publish one, or of an export of this project"
)


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


class EncoderFinetune(Section):
    """The classifier's fine-tune as a stage of its own, from the encoder that the rest of the section describes."""

    steps: Positive = Field(description="optimisation steps")
    batch: Positive = Field(description="latents per step")
    learning_rate: Rate = Field(description="constant after the warm-up")
    warmup_steps: Natural = Field(0, description="linear warm-up from 1e-6")
    ramp_steps: Natural = Field(0, description="steps in which the weight of the cross-entropy grows from 0")
    weight: Fraction = Field(0.1, description="weight of the cross-entropy after the ramp")
    weight_decay: float = Field(0.01, ge=0, description="AdamW decay, on all parameters")
    clip: Rate = Field(2.0, description="limit of the global gradient norm")
    ema: Decay = Field(description="decay of the exponential moving average of the weights")
    precision: Precision = Field("float32", description="number format of activations")
    seed: Natural = Field(42, description="seed of order and masks")

    @property
    def training(self) -> EncoderTraining:
        """The same as a training that is fine-tune from its first step to its last."""
        shared = self.model_dump(exclude={"ramp_steps", "weight"})
        return EncoderTraining(
            **shared, finetune_steps=self.steps, finetune_ramp_steps=self.ramp_steps, finetune_weight=self.weight
        )


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
    augmentation: Literal["online", "views", "none"] = Field(
        description="online: random resized crops of the images, encoded in the loop; views: stored latents of such crops; "
        "none: the latents of the centre crops"
    )
    crop_views: Natural = Field(0, description="for augmentation: views; random crops that are stored per image")
    crop_scale: tuple[Fraction, Fraction] = Field((0.2, 1.0), description="area of the random crops")
    init_from: str | None = Field(None, min_length=1, description="metadata.json of an encoder's export to start from")
    training: EncoderTraining = Field(description="optimisation")
    finetune: EncoderFinetune | None = Field(None, description="a second stage, which ends in an encoder of its own")
    variants: tuple[Positive, ...] = operation((), "other base widths that `snakemake encoders` trains beside this one")
    commit_every: Positive = operation(1000, "steps between committed states")
    log_every: Positive = operation(50, "steps between lines of metrics.jsonl")
    tensorboard: bool = operation(False, "also write the metrics as TensorBoard events")
    micro_batches: Positive = operation(1, "parts that a rank's latents are computed in; the numbers stay the same")
    parallel: Literal["ddp", "fsdp"] = operation("ddp", "ranks hold the whole network each, or a part of it")
    resources: Resources = operation(Resources(), "the training job")

    @field_validator("source")
    @classmethod
    def _is_published(cls, source: str) -> str:
        return _released_exists("encoder", source)

    @property
    def imported(self) -> bool:
        """A fine-tuned encoder is trained here, wherever the one comes from that it starts from."""
        return super().imported and self.finetune is None

    @property
    def recipe(self) -> EncoderTraining:
        """The optimisation of the last stage."""
        return self.finetune.training if self.finetune else self.training

    @property
    def folder_name(self) -> str:
        return f"{self.name}_ft" if self.finetune else self.name

    @property
    def before_finetune(self) -> Self:
        """The encoder that the fine-tune starts from; without one, this."""
        return self.model_copy(update={"finetune": None})

    def of_width(self, width: int) -> Self:
        """The variant of another base width, whose name says so."""
        stem = self.name.removesuffix(f"_w{self.base_width}")
        return self.model_copy(update={"base_width": width, "name": f"{stem}_w{width}"})

    @model_validator(mode="after")
    def _views_are_counted(self) -> Self:
        if (self.augmentation == "views") != (self.crop_views > 0):
            raise ValueError(
                f"augmentation: {self.augmentation} and crop_views: {self.crop_views}; views needs some crops, no other does"
            )
        if self.augmentation == "views" and self.crop_scale != (0.2, 1.0):
            raise ValueError(f"crop_scale: {list(self.crop_scale)}; stored crops have the scale [0.2, 1.0]")
        return self


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
    init_from: str | None = Field(None, min_length=1, description="metadata.json of a generator's export to start from")
    steps: Positive = operation(description="horizon in steps")
    milestone_every: Positive = operation(description="steps per slice: each slice is a job and ends in an export")
    commit_every: Positive = operation(1000, "steps between committed states inside a slice")
    log_every: Positive = operation(50, "steps between lines of metrics.jsonl")
    micro_batches: Positive = operation(1, "parts that a step's labels are computed in; the numbers stay the same")
    compile_objective: bool = operation(False, "torch.compile for the element-wise part of the drift loss")
    tensorboard: bool = operation(False, "also write the metrics as TensorBoard events")
    export_raw: bool = operation(False, "exports also hold the weights without averaging (raw.safetensors)")
    # the score has 10 splits
    canary_samples: Positive = operation(500, "images of the evaluation that is tried before the first slice", ge=10)
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
