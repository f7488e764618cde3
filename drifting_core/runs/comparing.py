"""All runs of a results folder in a table, and two of them side by side; numbers of one contract to a table. Light."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drifting_core.config import Configuration
from drifting_core.faults import Fault
from drifting_core.housekeeping.disk_use import measure
from drifting_core.runs.reading import Run
from drifting_core.workflow.status import in_columns

log = logging.getLogger(__name__)

_LISTED = 8  # differences of a run that the table names
_SHOWN = ("distance", "distance_error", "score", "precision", "recall", "within_class_diversity")


def runs_of(results: Path) -> Iterator[Run]:
    """Those that this version can read; of others it is said."""
    for path in sorted(results.glob("runs/*/config.json")):
        run = Run(path.parent)
        try:
            run.configuration  # noqa: B018 (is read here)
        except Fault as fault:
            log.warning("%s is left out: %s", run.folder, fault)
        else:
            yield run


def differences(first: Configuration, second: Configuration) -> dict[str, list[Any]]:
    """Dotted keys whose values differ, with both values; but for the run's name and place."""
    left, right = (_flat(each.model_dump(mode="json", exclude={"name", "results"})) for each in (first, second))
    keys = [*left, *(key for key in right if key not in left)]
    return {key: [left.get(key), right.get(key)] for key in keys if left.get(key) != right.get(key)}


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return flat


def summary(run: Run, first: Run) -> dict[str, Any]:
    """One run as plain values. `differences`: its own values of keys that differ from those of `first`.

    `number`: what stands for it: its claim, or before that the evaluation of its latest step. `hours` are those of training,
    from metrics.jsonl; `gpu_hours` by the GPUs that its configuration asked for.
    """
    config, lines = run.configuration, run.metrics()
    hours = sum(line.get("time", {}).get("seconds", 0.0) for line in lines) / 3600
    steps = [*(line["step"] for line in lines[-1:]), *run.exports()]
    return {
        "run": run.name,
        "state": run.state,
        "step": max(steps, default=0),
        "horizon": config.training.steps,
        "number": _number(run),
        "hours": hours,
        "gpu_hours": hours * config.training.resources.gpus * config.training.resources.nodes,
        "disk_bytes": measure([run.folder]).bytes,
        "differences": {key: own for key, (_, own) in differences(first.configuration, config).items()},
    }


def _number(run: Run) -> dict[str, Any] | None:
    """Mean over the claim's seeds, or one evaluation on the way; with its contract, and which it is."""
    rows = run.claim()
    if not rows:
        how = run.configuration.evaluation.selection
        rows = [row for row in run.evaluations() if row["of"] == "selection"]
        rows.sort(key=lambda row: (row["step"], row["alpha"] == how.alpha, row["samples"] == how.samples, -row["seed"]))
        rows = rows[-1:]
    if not rows:
        return None
    last, seeds = rows[-1], [row["seed"] for row in rows]
    return {
        "of": last["of"],
        "seeds": seeds,
        **{name: last[name] for name in ("distance_name", "contract_hash", "contract", "samples", "step", "alpha")},
        "distance": statistics.mean(row["distance"] for row in rows),
        "distance_error": last["distance_error"] if len(rows) == 1 else None,
    }


def table(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Runs in lines for a terminal: those whose numbers are under one contract in one table; then what they differ in."""
    lines = []
    for contract in dict.fromkeys(_contract_of(each) for each in summaries):
        group = [each for each in summaries if _contract_of(each) == contract]
        number = group[0]["number"]
        head = ["run", "state", "step", *([number["distance_name"], "alpha", "of"] if number else []), "hours", "GPU-hours"]
        lines += [_title(number) if number else "not evaluated yet", *in_columns([[*head, "disk"], *map(_line, group)]), ""]
    first = summaries[0]["run"] if summaries else ""
    for each in summaries:
        if named := each["differences"]:
            shown = ", ".join(f"{key}={value}" for key, value in list(named.items())[:_LISTED])
            more = f", and {len(named) - _LISTED} more (--compare {first} {each['run']})" if len(named) > _LISTED else ""
            lines.append(f"{each['run']} differs from {first} in {shown}{more}")
    return lines


def _contract_of(summary: Mapping[str, Any]) -> str | None:
    return summary["number"]["contract_hash"] if summary["number"] else None


def _title(number: Mapping[str, Any]) -> str:
    how = f"network: {number['contract']['network']}, {number['samples']:,} samples"
    return f"{number['distance_name']} under contract {number['contract_hash'][:12]} ({how})"


def _line(each: Mapping[str, Any]) -> list[str]:
    number, measured = each["number"], []
    if number:
        error = f" ± {number['distance_error']:.2g}" if number["distance_error"] is not None else ""
        seeds = ", ".join(map(str, number["seeds"]))
        of = f"{number['of']}, step {number['step']}, seed{'s' if len(number['seeds']) > 1 else ''} {seeds}"
        measured = [f"{number['distance']:.4g}{error}", f"{number['alpha']:g}", of]
    cost = [f"{each['hours']:.2f}", f"{each['gpu_hours']:.1f}", f"{each['disk_bytes'] / 1e6:,.0f} MB"]
    return [each["run"], each["state"], f"{each['step']:,} of {each['horizon']:,}", *measured, *cost]


# --- two runs --------------------------------------------------------------------------------------------------------


def compare(first: Run, second: Run) -> dict[str, Any]:
    """Configuration and numbers side by side: `tables` under contracts that both have, `apart` what has no common one."""
    both = (first.evaluations(), second.evaluations())
    tables, apart = [], []
    for of in sorted({row["of"] for rows in both for row in rows}):
        left, right = ([row for row in rows if row["of"] == of] for rows in both)
        contracts = [{row["contract_hash"]: row["contract"] for row in rows} for rows in (left, right)]
        shared = [digest for digest in contracts[0] if digest in contracts[1]]
        tables += [{"of": of, "contract_hash": digest, **_beside(left, right, digest)} for digest in shared]
        if not shared:
            apart.append({"of": of, "contracts": [list(each) for each in contracts], "differing": _differing(*contracts)})
    named = differences(first.configuration, second.configuration)
    return {"runs": [first.name, second.name], "differences": named, "tables": tables, "apart": apart}


def _beside(left: Iterable[dict[str, Any]], right: Iterable[dict[str, Any]], digest: str) -> dict[str, Any]:
    """Step, alpha and seed of each evaluation under a contract, and the numbers of both runs; None where one has none."""
    sides = [
        {(row["step"], row["alpha"], row["seed"]): row for row in rows if row["contract_hash"] == digest}
        for rows in (left, right)
    ]
    rows = []
    for step, alpha, seed in sorted(sides[0].keys() | sides[1].keys()):
        found = [side.get((step, alpha, seed)) for side in sides]
        numbers = {name: [row and row[name] for row in found] for name in _SHOWN}
        rows.append({"step": step, "alpha": alpha, "seed": seed, **numbers})
    one = next(iter(sides[0].values()))
    named = {name: one[name] for name in ("distance_name", "score_name", "samples", "contract")}
    return {**named, "rows": rows}


def _differing(left: Mapping[str, Mapping[str, Any]], right: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Fields of the contracts in which two runs differ; none where one run has no such evaluation."""
    if not left or not right:
        return []
    one, other = next(iter(left.values())), next(iter(right.values()))
    return [name for name in one if one[name] != other[name]]


def comparison(compared: Mapping[str, Any]) -> list[str]:
    """`compare` in lines for a terminal."""
    names, lines = compared["runs"], []
    if compared["differences"]:
        rows = [[key, *map(str, values)] for key, values in compared["differences"].items()]
        lines += ["configuration", *in_columns([["key", *names], *rows]), ""]
    else:
        lines += ["configuration: the same in everything but name and place", ""]
    for each in compared["tables"]:
        rows = [
            [
                str(row["step"]),
                f"{row['alpha']:g}",
                str(row["seed"]),
                *map(_measured, row["distance"], row["distance_error"]),
            ]
            for row in each["rows"]
        ]
        lines += [f"{each['of']}: {_title(each)}", *in_columns([["step", "alpha", "seed", *names], *rows]), ""]
    for each in compared["apart"]:
        if each["differing"]:
            why = f"their contracts differ in {', '.join(each['differing'])}, so their numbers share no table"
        else:
            why = f"only {names[0] if each['contracts'][0] else names[1]} has such evaluations"
        lines.append(f"{each['of']}: {why}")
    return lines


def _measured(distance: float | None, error: float | None) -> str:
    return "-" if distance is None else f"{distance:.4g} ± {error:.2g}"
