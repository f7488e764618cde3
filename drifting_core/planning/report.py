"""The plan of a configuration put together, as a dict for scripts and as the page that `make plan` prints. Light."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drifting_core.config import Configuration, load_file
from drifting_core.costs import estimates, table8
from drifting_core.doctor.profile import asks, read_profile
from drifting_core.planning.disk import usage
from drifting_core.planning.hours import Task, schedule, tasks
from drifting_core.planning.jobs import Planned, ask_snakemake, stages_of_rules
from drifting_core.planning.limits import ask_cluster, limits

STAGES = ("sources", "data", "tokenizer", "reference", "encoder", "generator", "evaluation", "selection", "claims")


def make_plan(
    preset: Path,
    overrides: Sequence[str],
    folder: Path,
    gpus: Sequence[int],
    profile: str | None,
    minutes: float | None,
    speeds: Path = estimates.RATES,
) -> dict[str, Any]:
    """Everything about a plan, as JSON has it; `gpus` are the numbers to give wall-clock for, `minutes` the time limit of
    the partition where SLURM is not to be asked, `speeds` a file like config/rates.yaml. Nothing is run or written. Raises
    Fault when Snakemake cannot plan or the rates cannot be read.

    name, run        the configuration's name and the folder of its run
    command          the dry run that says what would run
    jobs             by stage: there (not to be run), to_run, why (jobs by their first reason), rules (jobs by rule)
    gpu_hours        rows: by part of the whole plan, with the keys of its rates; whole, of all of it; to_run, of jobs that
                     would run, by stage, and devices, the most GPUs that one of them asks for
    wall_clock       by number of GPUs: hours, and by stage those that the end waits for (0: not on the critical path)
    rates            by dotted key of config/rates.yaml: value and source; hardware; the file that they are from
    disk             rows: GB when done by kind of file; systems: by file system, what is free, there, added, and at peak
    table8           column (the nearest), rows, agree, departures (row, paper, release, here)
    refusals         why the plan cannot work; warnings; time_limits: where those of the partitions come from
    """
    config, rates = load_file(preset, overrides), estimates.read_rates(speeds)
    # A partition's limit speaks of a cluster, so that its profile is meant.
    chosen = read_profile(profile or ("slurm" if minutes is not None else None))
    with ThreadPoolExecutor() as beside:  # SLURM and Snakemake take their seconds at the same time
        cluster = beside.submit(ask_cluster) if chosen.slurm and minutes is None else None
        planned = ask_snakemake(config, preset, overrides, chosen.path.parent, folder)
        answer = cluster.result() if cluster else None
    asked = asks(config, chosen)
    jobs = tasks(config, planned.jobs, {each.rule: each.gpus * each.nodes for each in asked}, rates)
    disks = usage(config, planned.jobs, folder)
    found = limits(config, asked, jobs, disks, chosen, minutes if answer is None else answer)
    return {
        "name": config.name,
        "run": config.key("run"),
        "command": planned.command,
        "jobs": _jobs(planned),
        "gpu_hours": _gpu_hours(config, jobs, rates),
        "wall_clock": [_wall_clock(jobs, count) for count in sorted(set(gpus))],
        "rates": {**_rates(config, rates), "file": "config/rates.yaml" if speeds == estimates.RATES else str(speeds)},
        "disk": {
            "rows": {space.what: space.bytes / 1e9 for space in estimates.disk(config)},
            "systems": [_system(each._asdict()) for each in disks],
        },
        "table8": _table8(config),
        "refusals": found.refusals,
        "warnings": found.warnings,
        "time_limits": found.source,
    }


def _jobs(planned: Planned) -> dict[str, Any]:
    stages, found = stages_of_rules(), {}
    for stage in STAGES:
        own = [job for job in planned.jobs if job.stage == stage]
        there = sum(count for rule, count in planned.there.items() if stages[rule] == stage)
        why, rules = Counter(job.reasons[0] for job in own), Counter(job.rule for job in own)
        found[stage] = {"there": there, "to_run": len(own), "why": dict(why), "rules": dict(rules)}
    return found


def _gpu_hours(config: Configuration, jobs: Sequence[Task], rates: dict[str, Any]) -> dict[str, Any]:
    rows = {
        cost.stage: {
            "hours": estimates.gpu_hours(cost, rates),
            "rates": [*(f"effective_tflops.{rate}" for rate in cost.macs), *cost.counted],
        }
        for cost in estimates.costs(config, rates)
    }
    to_run = {stage: sum(job.gpu_hours for job in jobs if job.stage == stage) for stage in STAGES}
    devices = {stage: max((job.devices for job in jobs if job.stage == stage), default=0) for stage in STAGES}
    return {"rows": rows, "whole": sum(row["hours"] for row in rows.values()), "to_run": to_run, "devices": devices}


def _wall_clock(jobs: Sequence[Task], gpus: int) -> dict[str, Any]:
    made = schedule(jobs, gpus)
    return {"gpus": gpus, "hours": made.hours, "waits": {stage: made.waits.get(stage, 0.0) for stage in STAGES}}


def _rates(config: Configuration, rates: dict[str, Any]) -> dict[str, Any]:
    """Those behind the hours of this configuration."""
    costs = [cost for cost in estimates.costs(config, rates) if cost.gpus and any(cost.macs.values())]
    keys = dict.fromkeys(f"effective_tflops.{rate}" for cost in costs for rate, macs in cost.macs.items() if macs)
    keys |= dict.fromkeys(key for cost in costs for key in cost.counted)
    if any(cost.rule == "encode_latents" for cost in costs):
        own = ("md5_bytes_per_second", "seconds_per_page", "jpegs_per_second_and_thread", "verified_bytes_per_second")
        keys |= dict.fromkeys(f"data.{name}" for name in own)
    return {"hardware": rates["device"], "used": {key: estimates.rate_of(rates, key) for key in keys}}


def _system(system: dict[str, Any]) -> dict[str, Any]:
    """A Usage with the names that JSON has for it."""
    return {**system, **{name: system[name]._asdict() for name in ("free", "there", "adds")}}


def _table8(config: Configuration) -> dict[str, Any]:
    column = table8.nearest(config)
    departures = table8.departures(config, column)
    return {
        "column": table8.COLUMNS[column],
        "rows": len(table8.ROWS),
        "agree": len(table8.ROWS) - len(departures),
        "departures": [departure._asdict() for departure in departures],
    }


# --- as a page --------------------------------------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    """The same as text of at most 120 columns."""
    parts = [_jobs_text, _hours_text, _wall_clock_text, _rates_text, _disk_text, _table8_text, _limits_text]
    return "\n".join([f"plan of {found['name']}: {found['run']}", *(line for part in parts for line in part(found))])


def _jobs_text(found: dict[str, Any]) -> Iterator[str]:
    yield from ("", f"jobs ({found['command']})", f"  {'':<12}{'there':>7}{'to run':>8}   why they would run")
    for stage, of in found["jobs"].items():
        if of["there"] or of["to_run"]:
            why = ", ".join(f"{count} {reason}" for reason, count in of["why"].items())
            yield f"  {stage:<12}{of['there']:>7}{of['to_run']:>8}   {why}".rstrip()
    there, to_run = (sum(of[name] for of in found["jobs"].values()) for name in ("there", "to_run"))
    yield f"  {'all':<12}{there:>7}{to_run:>8}{'' if to_run else '   nothing would run'}"


def _hours_text(found: dict[str, Any]) -> Iterator[str]:
    hours = found["gpu_hours"]
    if not any(row["hours"] for row in hours["rows"].values()):
        yield from ("", "GPU-hours: none; this configuration asks for no GPU. Hours on CPUs are not planned")
        return
    yield from ("", f"GPU-hours of the whole plan on {found['rates']['hardware']}, and the rates that they follow from")
    for part, row in hours["rows"].items():
        if row["hours"]:
            yield from _folded(f"  {part:<39}{row['hours']:>11,.2f}   ", ", ".join(row["rates"]))
    yield f"  {'all':<39}{hours['whole']:>11,.2f}"
    yield f"  {'of jobs that would run':<39}{sum(hours['to_run'].values()):>11,.2f}"


def _wall_clock_text(found: dict[str, Any]) -> Iterator[str]:
    clocks = found["wall_clock"]
    if not any(found["gpu_hours"]["to_run"].values()):
        return
    heads = "".join(f"{clock['gpus']:>9,} GPU{'s' * (clock['gpus'] > 1):<1}" for clock in clocks)
    yield from (
        "",
        "hours of wall-clock for what would run, by the stage that the end waits for (-: not on the way)",
    )
    yield f"  {'':<12}{'GPU-hours':>12}{'GPUs a job':>12}{heads}"
    for stage in STAGES:
        to_run = found["gpu_hours"]["to_run"][stage]
        if to_run or any(clock["waits"][stage] for clock in clocks):
            cells = (f"{clock['waits'][stage]:,.2f}" if clock["waits"][stage] else "-" for clock in clocks)
            devices = found["gpu_hours"]["devices"][stage]
            yield f"  {stage:<12}{to_run:>12,.2f}{devices:>12}{''.join(f'{cell:>14}' for cell in cells)}"
    total = "".join(f"{clock['hours']:>14,.2f}" for clock in clocks)
    yield f"  {'all':<12}{sum(found['gpu_hours']['to_run'].values()):>12,.2f}{'':>12}{total}"
    yield "  assumed: a job divides ideally over the GPUs it asks for (or all there are); queues and start-up take no time"


def _rates_text(found: dict[str, Any]) -> Iterator[str]:
    used = found["rates"]["used"]
    if used:
        yield from ("", f"rates ({found['rates']['file']})")
    for key, rate in used.items():
        yield from _folded(f"  {key:<34}{rate['value']:>12,g}   ", rate["source"])


def _folded(start: str, text: str) -> Iterator[str]:
    """Text behind `start`, its further lines below its first, at most 120 columns wide."""
    line = start
    for word in text.split():
        if len(line) + len(word) > 119:
            yield line.rstrip()
            line = " " * len(start)
        line += f"{word} "
    yield line.rstrip()


def _disk_text(found: dict[str, Any]) -> Iterator[str]:
    rows = found["disk"]["rows"]
    yield from ("", "disk in GB (10^9 bytes) when all is done")
    yield from (f"  {what:<40}{size:>11,.2f}" for what, size in rows.items() if size)
    yield f"  {'all':<40}{sum(rows.values()):>11,.2f}"
    yield from ("", f"  {'file system of':<32}{'there':>11}{'plan adds':>12}{'at peak':>11}{'free':>13}")
    for system in found["disk"]["systems"]:
        free = system["free"]
        sizes = [system["there"]["bytes"], system["adds"]["bytes"], system["peak"]]
        room = "no limit" if free["bytes"] is None else f"{free['bytes'] / 1e9:,.2f}"
        yield f"  {', '.join(system['folders'])[:31]:<32}{_gb(sizes)}{room:>10} GB   {system['place']}"
        room = "no limit" if free["files"] is None else f"{free['files']:,.0f}"
        counts = f"{system['there']['files']:>11,}{system['adds']['files']:>12,}{'':>11}"
        yield f"  {'':<32}{counts}{room:>10} inodes"


def _gb(sizes: Sequence[float]) -> str:
    return "".join(f"{size / 1e9:>{width},.2f}" for size, width in zip(sizes, (11, 12, 11), strict=True))


def _table8_text(found: dict[str, Any]) -> Iterator[str]:
    table = found["table8"]
    rows, departures = table["rows"], table["departures"]
    yield from ("", f"Table 8 of the paper, column {table['column']} (the nearest): {table['agree']} of {rows} rows agree")
    if len(departures) > rows / 2:
        yield "  none of its columns is meant: this is another experiment"
    yield f"  {'':<38}{'paper':<40}{'release':<20}here"
    for departure in departures:
        cells = (departure["row"], departure["paper"], departure["release"], departure["here"])
        shown = zip(cells, (38, 40, 20, 20), strict=True)
        line = "".join(f"{cell if len(cell) < width else f'{cell[: width - 2]}…':<{width}}" for cell, width in shown)
        yield f"  {line.rstrip()}"


def _limits_text(found: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield from _folded("time limits of partitions: ", found["time_limits"])
    for kind in ("warnings", "refusals"):
        for said in found[kind]:
            yield from _folded(f"  {kind.removesuffix('s')}: ", said)
    if not found["refusals"]:
        yield "  nothing stands against this plan"
