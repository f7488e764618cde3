"""Training jobs as Snakemake starts them, on latents and networks that take milliseconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from drifting_core import config as settings
from drifting_core.artifacts import LatentVerification, hashes
from drifting_core.artifacts.identity import operations
from drifting_core.models.auditing import audit_encoder
from drifting_core.models.exports import write_export
from drifting_core.models.mae import LatentEncoder
from drifting_core.training.mae import encoder_architecture
from tests.conftest import ROOT
from tests.unit.training.samples import CONTRACT, CPU, small_configuration, write_store

STEPS = 40
Network = Literal["encoder", "generator"]


class Site(NamedTuple):
    """A folder with what trainings read, and the configuration that they are of."""

    folder: Path
    config: settings.Configuration

    def run(self, name: str) -> Path:
        """Folder of the training called `name`."""
        return self.folder / name

    def command(self, network: Network, name: str, *more: str, script: str | None = None) -> list[str]:
        """The job that brings `network` to its last step in the folder of `name`."""
        stage = "encoder" if network == "encoder" else "run"
        files = {"latents": "store/manifest.json", "verification": "verification.json"}
        if network == "encoder":
            files |= {"tokenizer": "none", "index": "none"}
            output = self.run(name) / "trained.json"
        else:
            files |= {"encoder": "encoder/metadata.json", "audit": "encoder/audit.json"}
            output = self.run(name) / f"exports/step_{STEPS}/metadata.json"
            more = ("--until", str(STEPS), *more)
        made = [sys.executable, script or str(ROOT / f"workflow_scripts/train_{network}.py"), "--threads", "1"]
        made += ["--config", json.dumps(self.config.stage_slice(stage)), "--operations", json.dumps(operations(self.config))]
        for role, file in files.items():
            made += [f"--{role}", str(self.folder / file)]
        return [*made, "--output", str(output), *more]

    def start(self, network: Network, name: str, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(network, name, *more), stderr=subprocess.PIPE, text=True)

    def finish(self, network: Network, name: str, *more: str) -> str:
        """Run to the end; what it said."""
        done = subprocess.run(self.command(network, name, *more), stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Of metrics.jsonl, without what depends on the clock."""
        path = self.run(name) / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        # The last line may be half written while the job runs.
        whole = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [{key: value for key, value in line.items() if key != "time"} for line in whole]

    def state(self, name: str) -> bytes:
        """Weights, EMA, moments, bank and counters after the last step."""
        return (self.run(name) / f"state/step_{STEPS:08d}/state.safetensors").read_bytes()


def make_site(folder: Path, demo_values: dict[str, Any], **resources: Any) -> Site:
    """`resources`: of both trainings."""
    small = small_configuration(demo_values).model_dump(mode="json")
    small["encoder"]["training"].update(steps=STEPS, finetune_steps=10, finetune_ramp_steps=5)
    small["encoder"].update(commit_every=7, log_every=1, resources=resources)
    small["training"].update(steps=STEPS, milestone_every=STEPS, commit_every=7, log_every=1, resources=resources)
    small["evaluation"]["selection"]["last_k"] = 1
    config = settings.load(small)
    store = write_store(folder / "store")
    manifest = folder / "store" / "manifest.json"
    LatentVerification(
        configuration="c", code="1", inputs=hashes({"latents": manifest}), split="train", rows_looked_at=len(store),
        total_items_manifest=len(store), num_classes_manifest=10, label_min=0, label_max=9, fewest_per_class=6,
        most_per_class=6, mean=0.0, std=1.0, largest=5.0,
    ).write(folder / "verification.json")  # fmt: skip
    network = LatentEncoder(**encoder_architecture(config.encoder, 4))
    network.reset_parameters(1)
    write_export(
        folder / "encoder" / "metadata.json", "encoder", network.state_dict(), encoder_architecture(config.encoder, 4),
        step=1, ema_decay=0.9, latents=CONTRACT, configuration="c", inputs={},
    )  # fmt: skip
    audit_encoder(
        folder / "encoder" / "audit.json", config.encoder, folder / "encoder" / "metadata.json", manifest, manifest,
        device=CPU, configuration="c",
    )  # fmt: skip
    return Site(folder, config)
