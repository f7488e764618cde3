"""What a claim is made of: every artifact that goes into the bundle, where it goes, and whether they fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from drifting_core.artifacts import (
    Artifact,
    Export,
    FeatureNetwork,
    Imported,
    Index,
    Metrics,
    MetricsTable,
    Neighbours,
    ProvenanceNode,
    Recommendation,
    ReferenceStatistics,
    TokenizerManifest,
    sha256_file,
)
from drifting_core.evaluation.contract import STATISTICS, require_same
from drifting_core.faults import Fault

SINGLE: dict[str, type[Artifact]] = {
    "last_k": MetricsTable,
    "alpha_sweep": MetricsTable,
    "claim": MetricsTable,
    "recommendation": Recommendation,
    "neighbours": Neighbours,
    "network": FeatureNetwork,
    "reference": ReferenceStatistics,
    "tokenizer": TokenizerManifest,
    "index": Index,
}
OPTIONAL: dict[str, type[Artifact]] = {"curve": MetricsTable}
MANY: dict[str, type[Artifact]] = {
    "metrics": Metrics,
    "claim_metrics": Metrics,
    "exports": Export,
    "space": Metrics,
    "space_table": MetricsTable,
    "space_network": FeatureNetwork,
    "space_reference": ReferenceStatistics,
}
_IN_TABLES = ("curve", "last_k", "alpha_sweep", "claim", "recommendation", "neighbours")

Kind = TypeVar("Kind", bound=Artifact)


class Source(NamedTuple):
    """One JSON: its role, its file, its path below results/, its path in the bundle, its hash, what it says."""

    role: str
    path: Path
    below_results: str
    place: str
    sha256: str
    json: dict[str, Any]
    content: Artifact | None  # the same as its model, for the roles that have one


class Sources:
    """All artifacts of a claim. Raises Fault where one is missing or they do not fit together."""

    def __init__(self, given: Sequence[Source]) -> None:
        """The roles of SINGLE once each, `metrics` often, any other JSON under any role."""
        self.all = sorted(given, key=lambda source: source.below_results)
        for role in (*SINGLE, *OPTIONAL):
            found = sum(source.role == role for source in self.all)
            if found > 1 or (found == 0 and role in SINGLE):
                raise Fault(f"bundle: {found} inputs have the role '{role}', expected one; give --inputs {role}=PATH once")
        self.by_hash = {source.sha256: source for source in self.all}
        self._check_rows()
        self._check_contracts()
        self._check_choice()
        self._check_neighbours()

    @classmethod
    def below(cls, results: Path, given: Sequence[tuple[str, Path]]) -> Sources:
        """From the workflow's own files, as (role, path) below `results`."""
        found = []
        for role, path in given:
            try:
                below = path.absolute().relative_to(results.absolute()).as_posix()
            except ValueError:
                raise Fault(
                    f"{path}: is not below {results}; a bundle takes in what the workflow made there: give the file below it"
                ) from None
            found.append(_read(role, path, below))
        return cls(found)

    @classmethod
    def inside(cls, bundle: Path, roles: Mapping[str, str]) -> Sources:
        """From the copies that a bundle holds; `roles` by path below results/, as its manifest has them."""
        return cls([_read(role, bundle / _place(role, below), below) for below, role in roles.items()])

    def source(self, role: str) -> Source:
        return next(source for source in self.all if source.role == role)

    def one(self, role: str, kind: type[Kind]) -> Kind:
        content = self.source(role).content
        assert isinstance(content, kind)
        return content

    @property
    def tables(self) -> dict[str, MetricsTable]:
        """The tables by role, in the order in which a reader needs them."""
        order = ("claim", "curve", "last_k", "alpha_sweep")
        return {role: self.one(role, MetricsTable) for role in order if any(s.role == role for s in self.all)}

    @property
    def imported(self) -> Imported | None:
        """Where the generator comes from, if it was not trained here."""
        exports = [source.content for source in self.all if isinstance(source.content, Export)]
        return next((export.imported for export in exports if export.imported), None)

    def of_row(self, row: Mapping[str, Any]) -> Source:
        """The metrics file behind a table's row."""
        return self.by_hash[row["metrics_sha256"]]

    def graph(self) -> list[ProvenanceNode]:
        """The provenance graph: each artifact and, by role, what it was made from (a path in the bundle, or a hash)."""
        return [
            ProvenanceNode(
                artifact=source.place,
                kind=source.json.get("kind"),
                sha256=source.sha256,
                configuration=source.json.get("configuration"),
                code=source.json.get("code"),
                made_from={role: self._place_of(of) for role, of in source.json.get("inputs", {}).items()},
            )
            for source in sorted(self.all, key=lambda source: source.place)
        ]

    def _place_of(self, digest: str) -> str:
        return self.by_hash[digest].place if digest in self.by_hash else f"sha256:{digest}"

    def _check_rows(self) -> None:
        for role, table in self.tables.items():
            for row in table.rows:
                source = self.by_hash.get(row["metrics_sha256"])
                if source is None or not isinstance(source.content, Metrics):
                    raise Fault(
                        f"bundle: the table '{role}' has a row for step {row['step']}, alpha {row['alpha']:g}, seed "
                        f"{row['seed']}, but no metrics input has its hash; give that metrics.json, or make the table again"
                    )
                differing = [c for c, v in row.items() if c != "metrics_sha256" and getattr(source.content, c) != v]
                if differing:
                    raise Fault(f"bundle: the table '{role}' and {source.path} differ in {differing}; make the table again")

    def _check_contracts(self) -> None:
        """Selection and claim may differ in the number of samples, and in nothing else."""
        same = {role: table.contract.model_copy(update={"samples": 0}) for role, table in self.tables.items()}
        require_same({f"the table '{role}'": contract for role, contract in same.items()})
        claim, network = same["claim"], self.one("network", FeatureNetwork)
        held = {
            "network": (claim.network_sha256, network.weights_sha256),
            "tokenizer": (claim.tokenizer_sha256, self.one("tokenizer", TokenizerManifest).weights_sha256),
            "reference": (claim.reference_sha256, self.one("reference", ReferenceStatistics).files[STATISTICS].sha256),
        }
        for role, (ours, theirs) in held.items():
            if ours != theirs:
                raise Fault(
                    f"bundle: the claim was made with the {role} {ours[:16]}…, {self.source(role).path} is {theirs[:16]}…; "
                    "give the one that the evaluations were made with, or make them again"
                )

    def _check_choice(self) -> None:
        recommendation, claim = self.one("recommendation", Recommendation), self.one("claim", MetricsTable)
        for role in ("last_k", "alpha_sweep"):
            if recommendation.inputs[role] != self.source(role).sha256:
                raise Fault(f"bundle: the recommendation was made from another '{role}' table; make it again")
        chosen = recommendation.recommended
        selection_seeds = {row["seed"] for row in (*self.tables["last_k"].rows, *self.tables["alpha_sweep"].rows)}
        for row in claim.rows:
            if (row["step"], row["alpha"]) != (chosen.step, chosen.alpha):
                raise Fault(
                    f"bundle: the claim has step {row['step']} at alpha {row['alpha']:g}, the recommendation says step "
                    f"{chosen.step} at alpha {chosen.alpha:g}; make the claim again"
                )
            if row["seed"] in selection_seeds:
                raise Fault(f"bundle: the claim's seed {row['seed']} took part in the selection; report on a fresh one")

    def _check_neighbours(self) -> None:
        of = self.one("neighbours", Neighbours).inputs["samples"]
        if of not in {self.of_row(row).json["inputs"]["samples"] for row in self.tables["claim"].rows}:
            raise Fault("bundle: the neighbours were looked up for other samples than the claim's; make the audit again")


def _place(role: str, below_results: str) -> str:
    """Where an artifact lies in the bundle."""
    return f"tables/{role}.json" if role in _IN_TABLES else f"artifacts/{below_results}"


def _read(role: str, path: Path, below_results: str) -> Source:
    model = (SINGLE | OPTIONAL | MANY).get(role)
    content = model.read(path) if model else None
    try:
        values = json.loads(path.read_bytes())
    except (OSError, json.JSONDecodeError) as error:
        raise Fault(f"{path}: {error}; a bundle takes in JSON files only: remove the file to make it again") from None
    return Source(role, path, below_results, _place(role, below_results), sha256_file(path), values, content)
