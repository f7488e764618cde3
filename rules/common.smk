# Paths and resources; everything is decided in drifting_core/workflow/layout.py.
import signal
from typing import get_args

from snakemake.exceptions import WorkflowError

from drifting_core import config as settings
from drifting_core.jobs import pool
from drifting_core.artifacts import SpaceKind
from drifting_core.faults import Fault
from drifting_core.workflow.layout import Layout
from drifting_core.workflow.slurm import (
    SITE_VALUES,
    one_device,
    requested,
    requested_ranks,
)

# A signal sent to the process group is for the jobs, which commit and stop; Snakemake itself must survive it.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

try:
    LAYOUT = Layout(settings.load(config))
except Fault as fault:
    raise WorkflowError(str(fault)) from None

ACTIVE = LAYOUT.active
RESULTS = LAYOUT.root
LOGS = f"{RESULTS}/logs"

SPACES = "|".join(get_args(SpaceKind))

# Every cluster job parses this file, so its shell command finds the same environment there.
LAYOUT.set_environment(ROOT)


# Values of the profile that the rules turn into what Snakemake's plugin understands.
SITE = {
    name: resource.raw
    for name, resource in (workflow.resource_settings.default_resources or {}).items()
    if name in SITE_VALUES
}


def resources_of(section):
    """Keyword arguments for `resources:` from a Resources section."""
    return requested(section, SITE)


def one_device_of(section):
    """The same for a job that computes on one device, where others of its section have ranks."""
    return requested(one_device(section), SITE)


def ranks_of(section):
    """The same for a training or sampling, which has ranks."""
    return requested_ranks(section, SITE)


def light(minutes, memory_mb=2000):
    """The same for a job that computes next to nothing."""
    return requested(
        settings.Resources(memory_mb=memory_mb, runtime_minutes=minutes), SITE
    )


def share_devices():
    """Give the jobs of this machine its GPUs to share, and Snakemake their number: it has read its resources by now."""
    wanted = {job.rule.name: job.rule.resources for job in workflow.dag.needrun_jobs()}
    asked = {rule: has["gpu"].value for rule, has in wanted.items() if "gpu" in has}
    limit = workflow.global_resources.get("gpu")
    try:
        count = pool.share(ACTIVE, asked, limit.value if limit else None)
    except Fault as fault:
        raise WorkflowError(str(fault)) from None
    counters = workflow.scheduler.global_resources, workflow.scheduler.resources
    for counted in (workflow.global_resources, *counters):
        counted["gpu"] = count


def record_adopted_jobs():
    """Note what the outputs of jobs that ended while no head was there were made from.

    Without a record Snakemake would judge by time alone, and train again after a touched file.
    """
    for job in workflow.dag.jobs:
        if workflow.dag.reason(job).no_metadata and not workflow.dag.needrun(job):
            workflow.async_run(workflow.persistence.finished(job))


# The last handler that is named counts: all that a start does stands here.
onstart:
    LAYOUT.mark_stubs()
    record_adopted_jobs()
    if workflow.executor_plugin.name == "local":
        share_devices()


def owned(stage, *paths):
    """Params function: JSON of the configuration slice that the wildcard named `stage` stands for."""

    def of_wildcards(wildcards):
        return LAYOUT.slice(stage, wildcards[stage], *paths)

    return of_wildcards


def file_of(stage, wanted, rest):
    """Input function: a file of another stage, found through the wildcard named `stage`."""

    def of_wildcards(wildcards):
        return LAYOUT.of(stage, wildcards[stage], wanted, rest.format(**wildcards))

    return of_wildcards


def file_of_space(wanted):
    """Input function: the manifest of a further feature space's network or reference."""

    def of_wildcards(wildcards):
        return LAYOUT.of_space(wildcards.run, wildcards.space, wanted, "manifest.json")

    return of_wildcards


def in_spaces(kind):
    """Input function: what there is of a run's claim in all further feature spaces."""
    return lambda wildcards: LAYOUT.in_spaces(wildcards.run, kind)


def trained_from(wanted, rest):
    """Input function: a file that the run was trained from; none for an imported generator."""

    def of_wildcards(wildcards):
        return LAYOUT.trained_from(wildcards.run, wanted, rest)

    return of_wildcards


def shown(category, folder, *names):
    """Outputs of a bundle for the report, each with its caption in report/."""
    for name in names:
        about = {
            "caption": f"../report/{name.partition('.')[0]}.rst",
            "category": category,
            "labels": {"run": "{run}", "what": name},
        }
        yield report(f"{RESULTS}/bundles/{{run}}/{folder}{name}", **about)


def named(inputs):
    """(role, path) of every input of a job, lists taken apart."""
    for role, paths in inputs.items():
        for path in [paths] if isinstance(paths, str) else paths:
            yield role, path


wildcard_constraints:
    data="[a-z0-9_]+-[0-9a-f]{8}",
    tokenizer="[a-z0-9_]+-[0-9a-f]{8}",
    network="[a-z0-9_]+-[0-9a-f]{8}",
    reference="[a-z0-9_]+-[0-9a-f]{8}",
    encoder="[a-z0-9_]+-[0-9a-f]{8}",
    run="[a-z0-9_]+-[0-9a-f]{8}",
    family="[a-z0-9_]+-[0-9a-f]{8}",
    source="[A-Za-z0-9_.-]+-[0-9a-f]{8}",
    pack="photos|cifar10",
    split="train|val|crops_[1-9][0-9]*",
    shard=r"\d+",
    step=r"\d+",
    alpha=r"[0-9]+(\.[0-9]+)?",
    seed=r"\d+",
    n=r"\d+",
    space=SPACES,
    table=f"curve|last_k|alpha_sweep|claim(_({SPACES}))?",
