"""A Snakemake profile as far as jobs depend on it, and what the jobs of a configuration ask for. Light."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from drifting_core.artifacts.provenance import ROOT
from drifting_core.config import Configuration, Resources
from drifting_core.faults import Fault
from drifting_core.workflow import slurm


class Ask(NamedTuple):
    """What a job of one rule asks of SLURM, of each of its nodes; `key` is the section of the configuration that says so."""

    rule: str
    key: str
    gpus: int
    cores: int
    memory_mb: int
    minutes: int
    nodes: int = 1
    partition: str = ""  # or several, with commas; empty: the cluster's default
    options: tuple[str, ...] = ()  # of sbatch, for all of it


class Profile(NamedTuple):
    """What lies in the config.yaml of a profile."""

    path: Path
    values: Mapping[str, Any]

    @property
    def slurm(self) -> bool:
        return self.values.get("executor") == "slurm"

    @property
    def status_command(self) -> str:
        """What the SLURM plugin asks after jobs with."""
        return self.values.get("slurm-status-command") or ("sacct" if shutil.which("sacct") else "squeue")

    @property
    def first_poll(self) -> float:
        """Seconds from a job's submission until the SLURM plugin asks after it."""
        return float(self.values.get("slurm-init-seconds-before-status-checks", 40))

    @property
    def defaults(self) -> Mapping[str, Any]:
        """`default-resources`, the site's values among them."""
        return self.values.get("default-resources") or {}

    def of_rule(self, setting: str, rule: str) -> Any:
        """`set-resources` or `set-threads` of one rule."""
        return (self.values.get(setting) or {}).get(rule)


def read_profile(name: str | None) -> Profile:
    """The profile of that name in profiles/, or in that folder; without a name the one that fits this machine.

    Raises Fault when there is none, or no YAML in it.
    """
    chosen = name or ("slurm" if shutil.which("sbatch") else "local")
    places = [folder / "config.yaml" for folder in (ROOT / "profiles" / chosen, Path(chosen))]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise Fault(f"--profile {chosen}: neither {places[0]} nor {places[1]} is there; give slurm, local or a folder")
    try:
        values = yaml.safe_load(path.read_text()) or {}
        if "__use_yte__" in values:  # a template, which Snakemake fills in
            from yte import process_yaml

            values = process_yaml(path.read_text(), require_use_yte=True)
    except yaml.YAMLError as error:
        raise Fault(f"{path}: cannot be read as YAML: {error}; correct it, or give another file") from error
    return Profile(path, values)


_Job = tuple[str, dict[str, Any], int, tuple[str, ...]]  # key, resources, threads, rules


def asks(config: Configuration, profile: Profile) -> list[Ask]:
    """What the jobs of each rule ask for, as rules, profile and configuration have it; small local ones are left out."""
    site = {name: str(profile.defaults[name]) for name in slurm.SITE_VALUES if name in profile.defaults}
    return [_ask(rule, key, asked, cores, profile) for key, asked, cores, rules in _jobs(config, site) for rule in rules]


def _jobs(config: Configuration, site: Mapping[str, str]) -> Iterator[_Job]:
    """As rules/ has them: a test compares."""
    data, encoder, training, evaluation = config.data, config.encoder, config.training, config.evaluation

    def one(key: str, section: Resources, *rules: str) -> _Job:
        return key, slurm.requested(section, site), section.threads, rules

    def ranks(key: str, section: Resources, *rules: str) -> _Job:
        return key, slurm.requested_ranks(section, site), section.cores, rules

    def hour(key: str, section: Resources, *rules: str) -> _Job:
        return one(key, Resources(memory_mb=section.memory_mb, runtime_minutes=60), *rules)

    if data.pack:
        yield one("data.resources", data.resources, "pack_images")
    yield one("data.resources", data.resources, "check_archives", "index_archives")
    yield one("tokenizer.resources", config.tokenizer.resources, "make_tokenizer")
    yield one("evaluation.network.resources", evaluation.network.resources, "make_feature_network", "make_reference")
    if config.generator.imported:
        yield hour("training.resources", training.resources, "import_generator")
    else:
        yield one("data.latents.resources", data.latents.resources, "encode_latents")
        yield one("data.resources", data.resources, "verify_latents")
        yield one("data.resources", data.resources.model_copy(update={"threads": 1}), "combine_latents")
        if encoder.before_finetune.imported:
            yield hour("encoder.resources", encoder.resources, "import_encoder")
        if not encoder.imported:
            yield ranks("encoder.resources", encoder.resources, "train_encoder")
            yield hour("encoder.resources", encoder.resources, "export_encoder")
        yield one("encoder.resources", slurm.one_device(encoder.resources), "audit_encoder")
        yield ranks("training.resources", training.resources, "canary_train", "train_generator")
        yield ranks("evaluation.resources", evaluation.resources, "canary_sample")
        yield one("evaluation.resources", slurm.one_device(evaluation.resources), "canary_evaluate")
    yield ranks("evaluation.resources", evaluation.resources, "sample", "sample_claim")
    looking = ["evaluate", "evaluate_claim", *(["evaluate_claim_in_space"] if evaluation.spaces else []), "audit_neighbours"]
    yield one("evaluation.resources", slurm.one_device(evaluation.resources), *looking)
    bundle = "make_bundle_imported" if config.generator.imported else "make_bundle"
    yield hour("evaluation.resources", evaluation.resources, bundle)


def _ask(rule: str, key: str, asked: Mapping[str, Any], cores: int, profile: Profile) -> Ask:
    """With the profile's own: its defaults stand behind the rule, what it sets for the rule before it."""
    of = {**profile.defaults, **asked, **(profile.of_rule("set-resources", rule) or {})}
    threads = int(profile.of_rule("set-threads", rule) or cores)
    gpus, minutes = int(str(of.get("gres") or of.get("gpu", 0)).rpartition(":")[2]), _minutes(of["runtime"])
    options = _submission(of, threads, minutes) + [
        f"--{name}={value}" for name in ("qos", "reservation") if (value := profile.values.get(f"slurm-{name}"))
    ]
    partition, nodes = str(of.get("slurm_partition", "")), int(of.get("nodes", 1))
    return Ask(rule, key, gpus, threads, int(of["mem_mb"]), minutes, nodes, partition, tuple(options))


def _submission(of: Mapping[str, Any], threads: int, minutes: int) -> list[str]:
    """Options of sbatch that Snakemake's plugin makes of a job's resources."""
    named = {
        "partition": "slurm_partition", "account": "slurm_account", "constraint": "constraint", "qos": "qos",
        "nodes": "nodes", "mem": "mem_mb", "gres": "gres",
    }  # fmt: skip
    options = [f"--{option}={_unquoted(of[name])}" for option, name in named.items() if of.get(name)]
    if of.get("gpu"):
        model = f"{of['gpu_model']}:" if of.get("gpu_model") else ""
        options.append(f"--gpus={model}{of['gpu']}")
    if of.get("mpi"):
        options.append(f"--ntasks-per-node={of['tasks_per_node']}")
    elif not of.get("gpu"):
        options.append("--ntasks=1")
    options += [f"--cpus-per-task={of.get('cpus_per_task', threads)}", f"--time={minutes}"]
    return [*options, *shlex.split(_unquoted(of.get("slurm_extra", "")))]


def _unquoted(value: Any) -> str:
    """Texts with signs in them stand in quotes of their own in a profile."""
    return str(value).strip("'\"")


def _minutes(runtime: int | str) -> int:
    """A number of minutes, or a text such as 2h, as Snakemake reads it."""
    from humanfriendly import InvalidTimespan, parse_timespan

    try:
        return int(runtime) if str(runtime).isdigit() else round(parse_timespan(str(runtime)) / 60)
    except InvalidTimespan as error:
        raise Fault(f"runtime: {runtime}, in the profile; give minutes, or a text such as 2h") from error
