"""Where things lie below results/, and which configuration a path belongs to.

The Snakefile's functions: light, no arithmetic beyond what names folders. Every path of a run, of its data or of its
evaluations follows from a configuration, so the whole DAG is known before anything runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from drifting_core import config as settings
from drifting_core.artifacts import STUB, publish_text
from drifting_core.artifacts.identity import operations
from drifting_core.config import Configuration
from drifting_core.faults import Fault
from drifting_core.jobs.pool import REHEARSAL

_STUBS = "STUBS"  # a file in the results root of stub mode


class Layout:
    """Paths below one results root, for the active configuration and for runs that left theirs there."""

    def __init__(self, active: Configuration) -> None:
        """Raises Fault where stubs would come among results, or results among stubs."""
        self.active = active
        self.root = str(active.root)
        self._stored: list[Configuration] | None = None
        _keep_stubs_apart(active.root, active.stub)

    def find(self, stage: str, key: str) -> Configuration:
        """The configuration whose `stage` folder is named `key`. Raises Fault when none is known."""
        for known in (self.active, *self._runs()):
            for relative in known.relatives():
                if relative.key(stage) == key:
                    return relative
        raise Fault(
            f"no known configuration has the {stage} '{key}': the active one has '{self.active.key(stage)}', and no "
            f"run below {self.root}/runs has it; give the configuration that made it with --configfile (where it is an "
            "init_from that is there, its absolute path does as well)"
        )

    def _runs(self) -> list[Configuration]:
        if self._stored is None:
            self._stored = [settings.load(json.loads(path.read_text())["values"], str(path)) for path in self._records()]
        return self._stored

    def _records(self) -> list[Path]:
        return sorted(Path(self.root).glob("runs/*/config.json"))

    def slice(self, stage: str, key: str, *paths: str) -> str:
        """JSON of a slice of the configuration that owns `key`; without `paths`, of everything the stage depends on."""
        owner = self.find(stage, key)
        return _json(owner.slice(*paths) if paths else owner.stage_slice(stage))

    # --- folders of the stages ---------------------------------------------------------------------------------------

    def folder(self, stage: str, owner: Configuration | None = None) -> str:
        """Folder of a stage for its owner (by default the active configuration)."""
        parents = {
            "data": "data",
            "tokenizer": "tokenizer",
            "network": "features",
            "reference": "reference",
            "encoder": "encoders",
            "run": "runs",
            "bundle": "bundles",
        }
        key = (owner or self.active).key("run" if stage == "bundle" else stage)
        return f"{self.root}/{parents[stage]}/{key}"

    def of(self, stage: str, key: str, wanted: str, rest: str) -> str:
        """A file of the stage `wanted`, as needed by the one that has `key` as its folder of `stage`."""
        return f"{self.folder(wanted, self.find(stage, key))}/{rest}"

    def index_of(self, stage: str, key: str) -> list[str]:
        """The data's index where the stage needs one: published tokenizers and networks need none."""
        owner = self.find(stage, key)
        trained = {"tokenizer": owner.tokenizer.source == "trained", "network": bool(owner.evaluation.network.classifier)}
        return [f"{self.folder('data', owner)}/index.json"] if trained[stage] else []

    def fetched_of(self, stage: str, key: str) -> list[str]:
        """The manifest of what a stage needs from the hub: its tokenizer, or an imported encoder or generator."""
        owner = self.find(stage, key)
        wanted = owner.tokenizer.download if stage == "tokenizer" else self._network(owner, stage).download
        return [f"{self.root}/sources/{wanted.key}/manifest.json"] if wanted else []

    def download(self, key: str) -> str:
        """JSON of what `sources/<key>` is to hold. Raises Fault when no known configuration needs it."""
        for owner in (self.active, *self._runs()):
            if key in owner.downloads:
                return _json(owner.downloads[key]._asdict())
        raise Fault(
            f"no known configuration downloads '{key}'; the active one: {', '.join(self.active.downloads) or 'nothing'}; "
            "give the configuration that needs it with --configfile"
        )

    def imported(self, stage: str) -> str:
        """Regular expression of the folders of a stage (encoder or run) whose network is imported, not trained."""
        found = self._imported_of(self.active, stage)
        for path in self._records():
            # Every job parses the rules: runs that import nothing are not loaded.
            values = json.loads(path.read_text())["values"]
            source = values["generator" if stage == "run" else "encoder"].get("source", settings.TRAINED)
            if source != settings.TRAINED:
                found |= {path.parent.name} if stage == "run" else self._imported_of(settings.load(values, str(path)), stage)
        return "|".join(sorted(found)) or "(?!)"

    def _imported_of(self, owner: Configuration, stage: str) -> set[str]:
        return {each.key(stage) for each in owner.relatives() if self._network(each, stage).imported}

    @staticmethod
    def _network(owner: Configuration, stage: str) -> settings.Importable:
        return owner.encoder if stage == "encoder" else owner.generator

    def trained_from(self, run: str, wanted: str, rest: str) -> list[str]:
        """A file that a run was trained from; nothing for an imported generator."""
        owner = self.find("run", run)
        return [] if owner.generator.imported else [f"{self.folder(wanted, owner)}/{rest}"]

    def packed_of(self, data: str) -> list[str]:
        """What makes the archives first, where the configuration says that they are made."""
        owner = self.find("data", data)
        return [f"{self.root}/archives/{owner.data.pack}/packed.json"] if owner.data.pack else []

    def shards(self, data: str, split: str) -> list[str]:
        """The shards of a latent store: train, val or crops_K."""
        owner = self.find("data", data)
        count = owner.data.latents.shards_of(split)
        return [f"{self.folder('data', owner)}/latents/{split}/shard_{shard}.json" for shard in range(count)]

    def crops_of(self, encoder: str) -> list[str]:
        """The stored crops that an encoder is trained on, and their verification; nothing without them."""
        owner = self.find("encoder", encoder)
        store = f"crops_{owner.encoder.crop_views}"
        files = [f"latents/{store}/manifest.json", f"verify_{store}.json"] if owner.encoder.crop_views else []
        return [f"{self.folder('data', owner)}/{file}" for file in files]

    def init_from(self, stage: str, key: str) -> list[str]:
        """The export that a training (encoder or run) starts from: before its fine-tune, or `init_from`; else nothing."""
        owner = self.find(stage, key)
        if stage == "encoder" and owner.encoder.finetune:
            before = owner.model_copy(update={"encoder": owner.encoder.before_finetune})
            return [f"{self.folder('encoder', before)}/export/metadata.json"]
        start = owner.encoder.init_from if stage == "encoder" else owner.training.init_from
        return [start] if start else []

    def audits(self) -> list[str]:
        """The audit of every encoder of the active configuration: before and after its fine-tune, at each width."""
        encoders = dict.fromkeys(self.folder("encoder", relative) for relative in self.active.relatives())
        return [f"{encoder}/export/audit.json" for encoder in encoders]

    # --- a run -------------------------------------------------------------------------------------------------------

    def export(self, run: str, step: int) -> str:
        return f"{self.root}/runs/{run}/exports/step_{step}/metadata.json"

    def slice_before(self, run: str, step: int) -> list[str]:
        """The export that a slice continues from: the milestone before it (none for the untrained network)."""
        earlier = [milestone for milestone in self.find("run", run).milestones if milestone < step]
        return [self.export(run, earlier[-1])] if earlier else []

    def canary(self, run: str, step: int) -> list[str]:
        """What a slice waits for: the canary of its run before the first, nothing before the others."""
        return [] if self.slice_before(run, step) else [f"{self.root}/runs/{run}/canary/passed.json"]

    @property
    def not_begun(self) -> str:
        """Regular expression of the folders of runs that have no export yet.

        No rule makes the canary of a run that has one: lost or outdated, it would be made again, and with it the run.
        (`ancient` would not do: Snakemake trains again after a canary that is missing, and forgets to look whether what
        comes after an ancient file has reasons of its own to be made.)
        """
        begun = sorted({path.parts[-4] for path in Path(self.root).glob("runs/*/exports/step_*/metadata.json")})
        return f"(?!(?:{'|'.join(begun)})/)[a-z0-9_]+-[0-9a-f]{{8}}" if begun else "[a-z0-9_]+-[0-9a-f]{8}"

    def metrics(self, run: str, step: int, alpha: float, seed: int, samples: int) -> str:
        return f"{self.root}/runs/{run}/eval/step_{step}/alpha_{alpha:g}/seed_{seed}/n_{samples}/metrics.json"

    def table(self, run: str, name: str) -> list[str]:
        """The evaluations that a table of the run is made of: curve, last_k, alpha_sweep, claim, or claim_ and a space."""
        owner = self.find("run", run)
        selection, milestones = owner.evaluation.selection, owner.milestones
        if name.startswith("claim"):
            metrics = "metrics.json" if name == "claim" else f"spaces/{name.removeprefix('claim_')}/metrics.json"
            return [f"{self.root}/runs/{run}/claim/seed_{seed}/{metrics}" for seed in owner.evaluation.report.seeds]
        steps = {
            "curve": milestones if selection.curve else milestones[-selection.last_k :],
            "last_k": milestones[-selection.last_k :],
            "alpha_sweep": milestones[-1:],
        }[name]
        alphas = selection.alphas if name == "alpha_sweep" else (selection.alpha,)
        return [
            self.metrics(run, step, alpha, seed, selection.samples)
            for step in steps
            for alpha in alphas
            for seed in selection.seeds
        ]

    def evaluations(self, run: str) -> list[str]:
        """The evaluations behind all tables of a run but the claim's, each once."""
        return sorted(
            {
                path
                for name in ("curve", "last_k", "alpha_sweep")
                if name != "curve" or self.curve(run)
                for path in self.table(run, name)
            }
        )

    def curve(self, run: str) -> list[str]:
        """The table over training steps; an imported generator has one step only."""
        return [] if self.find("run", run).generator.imported else [f"{self.root}/runs/{run}/tables/curve.json"]

    def candidates(self, run: str) -> list[str]:
        """Exports that the recommendation may choose."""
        owner = self.find("run", run)
        return [self.export(run, step) for step in owner.milestones[-owner.evaluation.selection.last_k :]]

    def of_space(self, run: str, space: str, wanted: str, rest: str) -> str:
        """A file of a further space's network or reference. Raises Fault when the run's configuration has no such space."""
        return f"{self.folder(wanted, self.find('run', run).in_space(space))}/{rest}"

    def in_spaces(self, run: str, kind: str) -> list[str]:
        """What there is of the claim in every further space: its `table`, `metrics`, `network` or `reference`."""
        found = []
        for space in (each.kind for each in self.find("run", run).evaluation.spaces):
            if kind == "table":
                found.append(f"{self.root}/runs/{run}/tables/claim_{space}.json")
            elif kind == "metrics":
                found += self.table(run, f"claim_{space}")
            else:
                found.append(self.of_space(run, space, kind, "manifest.json"))
        return found

    def labels_of(self, run: str) -> list[str]:
        """The index whose validation labels the samples of a run have; nothing where their labels are balanced."""
        owner = self.find("run", run)
        wanted = owner.evaluation.sampling.label_plan == "validation"
        return [f"{self.folder('data', owner)}/index.json"] if wanted else []

    def claim_samples(self, run: str) -> str:
        """The samples that the neighbour audit looks at: those of the first report seed."""
        return f"{self.root}/runs/{run}/claim/seed_{self.find('run', run).evaluation.report.seeds[0]}/samples/manifest.json"

    def bundle_slice(self, run: str) -> str:
        """JSON of the whole identity of a run and its evaluation."""
        return _json(self.find("run", run).stage_slice("bundle"))

    # --- runs that differ in their seed ------------------------------------------------------------------------------

    @property
    def seeds_table(self) -> str:
        """The comparison of the active configuration's seeds. Raises Fault where it names none."""
        if not self.active.seeds:
            raise Fault(
                "seeds: empty, so there is nothing to compare; name some, e.g. --config 'seeds=[0,1,2]', or in the preset"
            )
        return f"{self.root}/seeds/{self.active.family}/table.json"

    def claims_of(self, family: str) -> dict[int, str]:
        """The claim's table of each seed of a comparison. Raises Fault when no known configuration has it."""
        for known in (self.active, *self._runs()):
            if known.family == family:
                return {each.training.seed: f"{self.folder('run', each)}/tables/claim.json" for each in known.seeded()}
        raise Fault(
            f"no known configuration compares seeds as '{family}': the active one is '{self.active.family}', seeds "
            f"{list(self.active.seeds)}; give the configuration that does with --configfile and --config 'seeds=[...]'"
        )

    @property
    def pack_slice(self) -> str:
        """JSON of what the packed archives depend on."""
        return _json(self.active.slice("data"))

    def mark_stubs(self) -> None:
        """In stub mode, say so in the results root before anything is made there."""
        if self.active.stub:
            publish_text(Path(self.root) / _STUBS, "Made in stub mode (docs/operations.md): nothing here was computed.\n")

    def set_environment(self, workflow: str) -> None:
        """Set what the rules' shell commands read from the environment and not from params.

        Where the code lies and how work is done (threads, intervals, horizon) are no reasons to do it again, and every
        param is. `python` is the interpreter of Snakemake unless --sdm puts another one in front.
        """
        os.environ["HF_HUB_OFFLINE"] = "1"  # only the jobs that fetch may ask the hub; ends telemetry, too
        # An image may hold an older copy of this package. (In conda environments Snakemake takes this away.)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [workflow, os.environ.get("PYTHONPATH")]))
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        os.environ["WORKFLOW_SCRIPTS"] = f"{workflow}/workflow_scripts"
        os.environ["OPERATIONS"] = _json(operations(self.active))
        os.environ["CONFIGURATION"] = _json(self.active.model_dump(mode="json"))
        if self.active.rehearsal:
            os.environ[REHEARSAL] = "1"
        os.environ.pop(STUB, None)  # what the user's shell says makes no stubs
        if self.active.stub:
            os.environ[STUB] = "1"


def mark_of_stubs(root: Path) -> Path | None:
    """The file that says that a results root holds stubs, or None where it holds none."""
    marks = (folder / _STUBS for folder in (root, *root.absolute().parents))
    return next((mark for mark in marks if mark.is_file()), None)


def _keep_stubs_apart(root: Path, stub: bool) -> None:
    mark = mark_of_stubs(root)
    if mark and not stub:
        raise Fault(
            f"results: {root} holds stubs ({mark} says so), of which nothing real can be made; name another "
            "folder (stub mode is stub: true with `results` as it was)"
        )
    # Logs may be there before anything is made.
    made = sorted(path.name for path in root.glob("*") if path.name != "logs") if stub and not mark else []
    if made:
        raise Fault(
            f"stub: true makes its files in {root}, where others are that are no stubs ({', '.join(made)}); move that "
            "folder away, or name other `results`"
        )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
