"""How numbers are made: section `evaluation`. Light."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from drifting_core.artifacts import SpaceKind
from drifting_core.artifacts.identity import Section, operation
from drifting_core.config.values import Natural, Positive, Precision, Rate, Resources


class Classifier(Section):
    """A small classifier trained on the training images: the feature network where Inception does not fit."""

    width: Positive = Field(description="channels of its first stage")
    steps: Positive = Field(description="optimisation steps")
    batch: Positive = Field(description="images per step")
    learning_rate: Rate = Field(description="peak of the cosine schedule")
    seed: Natural = Field(0, description="seed of initialisation and order")


class Network(Section):
    """The feature network of the evaluation."""

    kind: Literal["inception", "classifier"] | SpaceKind = Field(
        description="inception: the FID network; classifier: trained here; the others for `evaluation.spaces`"
    )
    inception_weights: str | None = operation(None, "for kind: inception; the published FID weights, a local file")
    classifier: Classifier | None = Field(None, description="for kind: classifier")
    weights: str | None = Field(None, description="for kinds dinov2 and clip: as in `evaluation.spaces`")
    resources: Resources = operation(Resources(), "making the network and the reference, those of further spaces too")

    @model_validator(mode="after")
    def _kind_is_described(self) -> Self:
        key = {"inception": "inception_weights", "classifier": "classifier"}.get(self.kind, "weights")
        if getattr(self, key) is None:
            raise ValueError(f"kind: {self.kind} needs the key '{key}' beside it")
        return self


class Space(Section):
    """A further feature space that the claim is measured in."""

    kind: SpaceKind = Field(description="dinov2: class token of a DINOv2; clip: image embedding of a CLIP")
    weights: str = Field(description="folder in Hugging Face format: config.json and model.safetensors; never downloaded")


class PublishedStatistics(Section):
    """Moments that somebody else computed: an npz with mu and sigma, or ref_mu and ref_sigma."""

    path: str = operation(description="the file")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="its SHA-256: which statistics the numbers compare with")
    images: Positive = Field(1_281_167, description="images that they were computed from")
    split: Literal["train", "val"] = Field("train", description="which images these were")


class Reference(Section):
    """Real images under the feature network."""

    statistics: PublishedStatistics | None = Field(
        None, description="published moments in place of our own; features of single images are still computed here"
    )
    split: Literal["train", "val"] = Field(
        "train", description="images of our own moments; val: the distance is FID-val, which compares with no published FID"
    )
    compute_batch: Positive = Field(64, description="images per feature call (bits depend on it)")
    precision_recall_images: Positive = Field(10_000, description="validation images of the precision/recall manifold")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.statistics and self.split != "train":
            raise ValueError("split: of which images published moments are is said by statistics.split; remove one")
        return self


class Sampling(Section):
    """Generated latents."""

    compute_batch: Positive = Field(64, description="samples per generator call (bits depend on it)")
    label_plan: Literal["balanced", "validation"] = Field(
        "balanced",
        description="balanced: every class equally often; validation: sample i has the label of validation image i",
    )
    precision: Precision = Field("float32", description="number format of the generator's activations")


class Contract(Section):
    """From latents to numbers (docs/decisions/09)."""

    uint8: Literal["truncate", "round", "adm"] = Field("truncate", description="how [0, 1] pixels become bytes")
    compute_batch: Positive = Field(64, description="images per decoder and feature call (bits depend on it)")
    precision_recall_k: Positive = Field(3, description="neighbours that define the manifolds")
    bootstrap: Natural = Field(20, description="resamples behind the distance's standard error; 0: none")
    kernel_subsets: Natural = Field(0, description="subsets of the kernel distance (KID; published ones use 100); 0: none")
    kernel_subset_size: Positive = Field(1000, ge=2, description="images of each, at most as many as there are")
    extrapolation: Natural = Field(
        0, description="sample counts of the line that extrapolates the distance to infinitely many (published: 15); 0: none"
    )

    @model_validator(mode="after")
    def _spreads_have_points(self) -> Self:
        for key, fewest in (("bootstrap", 2), ("extrapolation", 3)):
            if 0 < getattr(self, key) < fewest:
                raise ValueError(f"{key}: found {getattr(self, key)}; at least {fewest}, or 0 for none")
        return self


class Selection(Section):
    """What the recommendation may look at: its own seeds, never those of the report."""

    samples: Positive = Field(description="generated images per evaluation")
    seeds: tuple[Natural, ...] = Field(min_length=1, description="sampling seeds")
    last_k: Positive = Field(description="latest exports that compete")
    alpha: Rate = Field(description="guidance at which exports are compared")
    alphas: tuple[Rate, ...] = Field(min_length=1, description="guidance strengths of the sweep on the last export")
    tie_errors: Rate = Field(2.0, description="choices within this many standard errors of the best are tied with it")
    rule: Literal["latest_tied", "best_score_tied", "lowest_distance"] = Field(
        "latest_tied", description="which of those tied with the lowest distance is taken; lowest_distance: that one itself"
    )
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
    """How numbers are made (docs/decisions/09 and 10)."""

    network: Network = Field(description="feature network")
    reference: Reference = Field(Reference(), description="real images")
    sampling: Sampling = Field(Sampling(), description="generated latents")
    contract: Contract = Field(Contract(), description="latents to numbers")
    selection: Selection = Field(description="choosing export and guidance")
    report: Report = Field(description="the claim")
    neighbours: Neighbours = Field(description="memorisation audit")
    spaces: tuple[Space, ...] = Field((), description="further feature spaces that the claim is measured in, each kind once")
    resources: Resources = operation(Resources(), "one sampling or evaluation job; several GPUs are for sampling")

    @model_validator(mode="after")
    def _selection_has_a_score(self) -> Self:
        if self.network.weights:
            raise ValueError(
                f"network.kind: {self.network.kind} has no classes, so no score to select by; use inception or a "
                "classifier, and name this one in spaces"
            )
        return self

    @model_validator(mode="after")
    def _spaces_are_named_once(self) -> Self:
        kinds = [space.kind for space in self.spaces]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"spaces: found the kinds {kinds}; each once, since paths and tables are named by them")
        return self

    @model_validator(mode="after")
    def _seeds_are_disjoint(self) -> Self:
        shared = sorted(set(self.selection.seeds) & set(self.report.seeds))
        if shared:
            raise ValueError(f"selection.seeds and report.seeds share {shared}: a claim needs seeds that chose nothing")
        return self
