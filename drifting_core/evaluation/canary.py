"""The end of a canary: what it has shown stays, what it took to show it goes."""

from __future__ import annotations

import shutil
from pathlib import Path

from drifting_core.artifacts import Canary, Metrics, hashes
from drifting_core.artifacts.provenance import code_version


def pass_canary(metrics: Path, output: Path) -> None:
    """Remove `state/` and `exports/` beside `output`, then publish it: log, numbers and the few samples stay.

    Raises Fault when `metrics` is no evaluation.
    """
    measured = Metrics.read(metrics)
    for promise in output.parent.glob("exports/step_*/metadata.json"):
        promise.unlink()  # before the weights that it lists
    for folder in ("exports", "state"):
        if (output.parent / folder).exists():
            shutil.rmtree(output.parent / folder)
    Canary(
        configuration=measured.configuration,
        code=code_version(),
        inputs=hashes({"metrics": metrics}),
        contract_hash=measured.contract_hash,
        samples=measured.contract.samples,
    ).write(output)
