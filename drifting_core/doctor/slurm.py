"""A SLURM cluster against what profile and configuration ask of it. Light."""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Iterator, Mapping

from drifting_core.doctor import cluster
from drifting_core.doctor.cluster import Partition
from drifting_core.doctor.findings import ANSWER_SECONDS, Finding
from drifting_core.doctor.profile import Ask, Profile
from drifting_core.jobs.subprocesses import Answer, ask_all


def check_slurm(asked: list[Ask], profile: Profile) -> Iterator[Finding]:
    """Its clients answer; then status queries, account, partitions and a trial of each kind of job."""
    answers = ask_all(cluster.commands(getpass.getuser()), ANSWER_SECONDS)
    accounts = answers.pop("accounts")
    failures = dict.fromkeys(answer.failure for answer in answers.values() if answer.failure)
    if failures:
        remedy = "start this where SLURM's commands work; partitions, account and jobs were not checked"
        yield Finding("FAIL", "slurm", ", ".join(failures), remedy)
        return
    settings = cluster.configuration(answers["configuration"].text)
    waiting = len(answers["queue"].text.split())
    version = f"{settings.get('SLURM_VERSION', '?')} on cluster {settings.get('ClusterName', '?')}"
    yield Finding("ok", "slurm", f"{version}; {waiting} of your jobs are in its queue")
    yield from _check_status_command(settings, profile)
    yield from _check_account(accounts, profile.defaults.get("slurm_account"))
    yield from _check_jobs(asked, profile, cluster.partitions(answers["partitions"].text))


def _check_status_command(settings: Mapping[str, str], profile: Profile) -> Iterator[Finding]:
    command = profile.status_command
    fault = cluster.status_fault(settings, command, profile.first_poll)
    if fault:
        yield Finding("FAIL", "status command", *fault)
    else:
        yield Finding("ok", "status command", f"{command}, first asked after {profile.first_poll:g} s")


def _check_account(answer: Answer, wanted: str | None) -> Iterator[Finding]:
    known = sorted(set(answer.text.split()))
    if answer.failure:
        yield Finding("ok", "account", f"not checked ({answer.failure})")
    elif wanted and wanted not in known:
        remedy = f"set slurm_account in the profile; yours: {', '.join(known) or 'none'}"
        yield Finding("FAIL", "account", f"{wanted}: not one of yours", remedy)
    else:
        yield Finding("ok", "account", wanted or f"SLURM's default; yours: {', '.join(known) or 'none'}")


def _check_jobs(asked: list[Ask], profile: Profile, partitions: Mapping[str, Partition]) -> Iterator[Finding]:
    default = next((name for name, partition in partitions.items() if partition.default), "")
    chosen = {ask: (ask.partition or default).split(",") for ask in asked}
    names = sorted({name for several in chosen.values() for name in several})
    unknown = [name or "(none set, and no default)" for name in names if name not in partitions]
    if unknown:
        remedy = f"set slurm_partition in {profile.path}; there are {', '.join(sorted(partitions))}"
        yield Finding("FAIL", "partition", f"{', '.join(unknown)}: no such partition", remedy)
        return
    yield from (_check_partition(partitions[name]) for name in names)
    misfits: dict[tuple[str, str], list[str]] = {}
    for ask, several in chosen.items():
        reasons = {name: cluster.misfits(ask, partitions[name]) for name in several}
        if all(reasons.values()):
            why = "; ".join(f"{name} has {', '.join(problems)}" for name, problems in reasons.items())
            misfits.setdefault((ask.key, why), []).append(ask.rule)
    for (key, why), rules in misfits.items():
        remedy = f"lower {key}, or give these rules another slurm_partition (set-resources in the profile)"
        yield Finding("FAIL", "jobs", f"{key}: {why} ({', '.join(rules)})", remedy)
    if not misfits:
        yield from _try(asked)


def _check_partition(used: Partition) -> Finding:
    usable, nodes = sum(each.number for each in used.nodes if each.usable), sum(each.number for each in used.nodes)
    limit = "no time limit" if used.minutes is None else f"at most {used.minutes:g} minutes"
    found = f"{used.name} is {'up' if used.up else 'down'}, {usable} of {nodes} nodes usable, {limit}"
    if used.up and usable:
        return Finding("ok", "partition", found)
    return Finding("warn", "partition", found, "jobs would wait; sinfo --list-reasons says why")


def _try(asked: list[Ask]) -> Iterator[Finding]:
    """SLURM itself is the judge: limits of accounts, features and reservations are its own."""
    trials: dict[tuple[str, ...], list[str]] = {}
    for ask in asked:
        trials.setdefault(tuple(cluster.trial(ask)), []).append(ask.rule)
    answers = ask_all({rules[0]: command for command, rules in trials.items()}, ANSWER_SECONDS)
    refused: dict[str, tuple[list[str], str]] = {}
    for command, rules in trials.items():
        if failure := answers[rules[0]].failure:
            refused.setdefault(failure, ([], shlex.join(command)))[0].extend(rules)
    for failure, (rules, example) in refused.items():
        yield Finding("FAIL", "jobs", f"SLURM refuses {', '.join(rules)}: {failure}", f"to try again: {example}")
    if not refused:
        yield Finding("ok", "jobs", f"SLURM would take each of {len(trials)} kinds of job (sbatch --test-only)")
