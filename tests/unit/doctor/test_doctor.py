"""The doctor: each fault made to happen, and found; texts are those of SLURM 22.05.8 unless a test says otherwise."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from drifting_core.config import Configuration, load_file
from drifting_core.doctor import cluster, disk, machine, outside, slurm, software, storage
from drifting_core.doctor.findings import Finding, gather
from drifting_core.doctor.profile import Ask, Profile, asks, read_profile
from drifting_core.doctor.staging import Need
from drifting_core.faults import Fault
from drifting_core.jobs.subprocesses import Answer, ask
from drifting_core.sources.published import File

PARTITIONS = """\
gpu|up|2:00:00|gpu:h200:4|16|64000|1|idle
gpu|up|2:00:00|gpu:h200:4|16|128000|1|mix
long|up|7-00:00:00|(null)|8|32000|1|idle
long|up|7-00:00:00|gpu:h200:4|16|128000|1|idle*
cpu*|up|infinite|(null)|8|32000|1|idle
old|down|1:00|gpu:2|8|32000|2|down
"""
SETTINGS = """\
Configuration data as of 2026-11-26T04:26:11
AccountingStorageEnforce = none
AccountingStorageType   = accounting_storage/none
AuthInfo                = socket=/run/munge/munge.socket.2
ClusterName             = spike
MinJobAge               = 300 sec
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at vm is UP
"""
JOB = Ask(
    "train",
    "training.resources",
    gpus=4,
    cores=16,
    memory_mb=100_000,
    minutes=120,
    partition="gpu",
    options=("--partition=gpu",),
)


def only(findings: Iterator[Finding]) -> Finding:
    [finding] = findings
    return finding


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- other programs ---------------------------------------------------------------------------------------------------


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    program(tmp_path, "hangs", f"sleep 60 & echo $! >{tmp_path}/child\nwait")
    began = time.monotonic()
    answer = ask([str(tmp_path / "hangs")], 0.5)
    assert time.monotonic() - began < 5
    assert answer.code is None
    assert "no answer within 0.5 s" in answer.failure
    child, until = int((tmp_path / "child").read_text()), time.monotonic() + 5
    while is_alive(child):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_failures_of_programs_are_told_in_their_words() -> None:
    assert ask(["no_such_program_here"], 1).failure == "no_such_program_here is not on PATH"
    assert ask(["sh", "-c", "echo one >&2; echo two >&2; exit 3"], 5).failure == "one two"
    assert ask(["sh", "-c", "exit 3"], 5).failure == "ended with code 3"
    assert ask(["sh", "-c", "echo fine"], 5) == Answer(0, "fine\n", "")


def test_a_check_that_hangs_is_left_and_one_that_breaks_is_raised() -> None:
    def hangs() -> Iterator[Finding]:
        time.sleep(3)
        yield Finding("ok", "slow", "never told")

    began = time.monotonic()
    told = list(gather({"slow": hangs, "quick": lambda: iter([Finding("ok", "quick", "done")])}, seconds=0.3))
    assert time.monotonic() - began < 2
    assert [(each.level, each.check) for each in told] == [("FAIL", "slow"), ("ok", "quick")]

    def breaks() -> Iterator[Finding]:
        raise ValueError("a mistake of ours")
        yield

    with pytest.raises(ValueError, match="a mistake of ours"):
        list(gather({"broken": breaks}))


# --- software ---------------------------------------------------------------------------------------------------------


def test_packages_are_compared_with_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pyproject(python: str, *dependencies: str) -> Path:
        path = tmp_path / "pyproject.toml"
        path.write_text(f'[project]\nrequires-python = "{python}"\ndependencies = {list(dependencies)}\n')
        return path

    assert only(software.check_packages(pyproject(">=3.11", "numpy>=2"))).level == "ok"
    missing = only(software.check_packages(pyproject(">=3.11", "numpy>=900", "no-such-package-here")))
    assert missing.level == "FAIL"
    assert "numpy>=900 is needed" in missing.found
    assert "no-such-package-here is needed, found none" in missing.found
    assert "python>=9 is needed" in only(software.check_packages(pyproject(">=9"))).found
    monkeypatch.setattr(software, "pinned", lambda: {"numpy": "1.0"})
    other = only(software.check_packages(pyproject(">=3.11", "numpy>=2")))
    assert (other.level, "(CI: 1.0)" in other.found) == ("warn", True)


def test_torch_for_cpus_does_not_do_where_gpus_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_installed", lambda name: "2.13.0+cpu")
    assert only(software.check_torch([JOB])).level == "FAIL"
    assert only(software.check_torch([JOB._replace(gpus=0)])).level == "ok"
    monkeypatch.setattr(software, "_installed", lambda name: "2.13.0")
    assert only(software.check_torch([JOB])).level == "ok"


def test_the_plugin_is_there_in_the_version_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    for version in (software.pinned()[software.PLUGIN], "1.0.0", None):
        monkeypatch.setattr(software, "_installed", lambda name, version=version: version)
        levels.append(only(software.check_plugin()).level)
    assert levels == ["ok", "warn", "FAIL"]


# --- files from outside -----------------------------------------------------------------------------------------------


@pytest.fixture
def ablation(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    """The preset, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return load_file(root / "config/ablation.yaml")


def stage(need: Need, size: int | None = None) -> None:
    need.place.parent.mkdir(parents=True, exist_ok=True)
    with need.place.open("wb") as file:
        file.truncate(need.file.bytes if size is None else size)  # sparse


def assert_only_the_whole_will_do(check: Callable[[], Iterator[Finding]], need: Need, size: int, said: str) -> None:
    """The needed file, cut to `size` bytes, fails with these words; whole it is fine."""
    stage(need, size)
    cut = only(check())
    assert cut.level == "FAIL"
    assert said in cut.found
    stage(need)
    assert only(check()).level == "ok"


def test_images_are_there_with_their_sizes(ablation: Configuration, tmp_path: Path) -> None:
    archives = [need for need in outside.needs(ablation) if need.key.startswith("data.")]
    stage(archives[1])
    stage(archives[2])
    missing = only(outside.check_images(ablation))
    assert missing.level == "FAIL"
    assert "data/ILSVRC2012_img_train.tar (data.archives.train): missing" in missing.found
    assert "img_val" not in missing.found
    checked = tmp_path / "results/data" / ablation.key("data") / "archives.json"
    checked.parent.mkdir(parents=True)
    checked.write_text("{}")
    assert only(outside.check_images(ablation)).level == "warn"  # removed once latents were verified
    assert_only_the_whole_will_do(
        lambda: outside.check_images(ablation), archives[0], 1000, "1,000 bytes, expected 147,897,477,120"
    )


def test_downloads_are_here_or_within_reach(ablation: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        reachable = only(outside.check_downloads(ablation))
    assert reachable.level == "ok"
    assert "fetch will bring 2 of 2 files; internet here" in reachable.found
    offline = only(outside.check_downloads(ablation))  # nobody listens there now
    assert offline.level == "FAIL"
    assert "config.json (tokenizer.hub): missing" in offline.found
    assert "no internet here (127.0.0.1:" in offline.found
    files = [need for need in outside.needs(ablation) if need.command]
    stage(files[0])
    assert_only_the_whole_will_do(lambda: outside.check_downloads(ablation), files[1], 10, "10 bytes, expected 334,643,276")


def test_a_proxy_is_the_way_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert outside.no_internet() == ""
    assert "refused" in outside.no_internet()


def test_weights_and_statistics_are_known_by_their_hashes(root: Path, tmp_path: Path) -> None:
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    right, wrong = tmp_path / f"pt-{digest[:8]}.safetensors", tmp_path / "pt-00000000.safetensors"
    statistics = tmp_path / "statistics.npz"
    for path in (right, wrong, statistics):
        path.write_bytes(content)

    def found(weights: Path, sha256: str) -> Finding:
        section = {"network": {"inception_weights": str(weights)}}
        section["reference"] = {"statistics": {"path": str(statistics), "sha256": sha256}}
        return only(outside.check_own_files(load_file(root / "config/ablation.yaml", [f"evaluation={section}"])))

    assert found(right, digest).level == "ok"
    other = found(wrong, digest)
    assert other.level == "FAIL"
    assert f"SHA-256 begins with {digest[:8]}, expected 00000000" in other.found
    assert "evaluation.reference.statistics.path" in found(right, "ab" * 32).found
    assert "missing" in found(tmp_path / "no-00000000.safetensors", digest).found


def test_a_renamed_file_is_held_to_the_published_hash(tmp_path: Path) -> None:
    path = tmp_path / "inception.pth"
    path.write_bytes(b"12")
    need = Need("weights", "a.b", path, File("", 2, sha256=hashlib.sha256(b"12").hexdigest()))
    assert outside.other_hash(need) == ""
    path.write_bytes(b"21")
    assert "SHA-256 begins with" in outside.other_hash(need)


# --- the results' disk ------------------------------------------------------------------------------------------------

MOUNTS = """\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:41 / /home rw,nosuid shared:7 - nfs4 server:/export/home rw,vers=4.2
31 30 0:42 / /home/a\\040b rw - lustre mgs@tcp:/scratch rw,flock
32 22 0:43 / /data rw - tmpfs tmpfs rw
33 22 0:44 / /data rw master:2 - beegfs beegfs_nodev rw
"""


@pytest.mark.parametrize(("path", "kind", "source", "network"), [
    ("/homework/x", "ext4", "/dev/vda", False), ("/home/x", "nfs4", "server:/export/home", True),
    ("/home/a b/c", "lustre", "mgs@tcp:/scratch", True), ("/data/x", "beegfs", "beegfs_nodev", True),
])  # fmt: skip
def test_the_mount_of_a_path(path: str, kind: str, source: str, network: bool) -> None:
    found = storage.file_system(Path(path), MOUNTS)
    assert (found.kind, found.source, found.network) == (kind, source, network)


# Written after the manuals of quota and lfs; no file system with quotas could be had.
QUOTA = """\
Disk quotas for user alice (uid 1001):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/export/home  900000  1000000 1100000       0    4990    5000    6000       0
/dev/sdb1         12*       10      20  604800       3       0       0       0
"""
LUSTRE = "     /scratch\n                 307200       0  409600       -   10211       0       0       -\n"


@pytest.mark.parametrize(("text", "system", "left"), [
    (QUOTA, storage.FileSystem("/home", "nfs4", "server:/export/home"), (100_000 * 1024, 10)),
    (QUOTA, storage.FileSystem("/b", "ext4", "/dev/sdb1"), (0, None)),
    (QUOTA, storage.FileSystem("/", "ext4", "/dev/vda"), (None, None)),
    (LUSTRE, storage.FileSystem("/scratch", "lustre", "mgs@tcp:/scratch"), (102_400 * 1024, None)),
    ("Disk quotas for user root (uid 0): none\n", storage.FileSystem("/", "ext4", "/dev/vda"), (None, None)),
    ("", storage.FileSystem("/", "ext4", "/dev/vda"), (None, None)),
])  # fmt: skip
def test_what_a_quota_leaves(text: str, system: storage.FileSystem, left: tuple[float | None, float | None]) -> None:
    assert storage.left_of_quota(text, system) == left


def at(root: Path, results: Path, preset: str = "demo") -> Configuration:
    return load_file(root / f"config/{preset}.yaml", [f"results={results}"])


def test_a_disk_that_is_too_small_is_found_before_it_is_full(root: Path, small_disk: Path) -> None:
    short = only(disk.check_room(at(root, small_disk / "results")))
    assert short.level == "FAIL"
    assert "0.00 GB" in short.found
    assert "bytes of the disk" in short.remedy
    assert "files of the disk" not in short.remedy
    subprocess.run(["mount", "-o", "remount,size=2g,nr_inodes=50", small_disk], check=True)
    few = only(disk.check_room(at(root, small_disk / "results")))
    assert (few.level, "files of the disk" in few.remedy, "bytes" in few.remedy) == ("FAIL", True, False)
    subprocess.run(["mount", "-o", "remount,nr_inodes=5000", small_disk], check=True)
    assert only(disk.check_room(at(root, small_disk / "results"))).level == "ok"


def test_what_is_there_already_needs_no_room(root: Path, tmp_path: Path) -> None:
    config = at(root, tmp_path)
    before = only(disk.check_room(config)).found
    store = tmp_path / "data" / config.key("data") / "latents/train"
    store.mkdir(parents=True)
    with (store / "shard_0.h5").open("wb") as file:
        file.truncate(10**12)
    assert "still takes 0.20 GB" in before
    assert "still takes 0.00 GB" in only(disk.check_room(config)).found


def test_a_quota_counts_like_a_disk(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = storage.file_system(tmp_path, Path("/proc/self/mountinfo").read_text())
    program(tmp_path / "bin", "quota", f"echo '{system.source} 100 200 0 0 5 0 0 0'")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    short = only(disk.check_room(at(root, tmp_path)))
    assert short.level == "FAIL"
    assert "bytes of your quota" in short.remedy


def test_locks_and_renames_work_here(root: Path, tmp_path: Path) -> None:
    finding = only(disk.check_file_system(at(root, tmp_path / "not/there/yet"), slurm=False))
    assert finding.level == "ok"
    assert "locks (between processes here) and renames work" in finding.found
    assert list(tmp_path.iterdir()) == []
    assert only(disk.check_file_system(at(root, tmp_path), slurm=True)).level == "warn"  # compute nodes must see it


def test_a_disk_that_is_read_only_is_found(root: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    finding = only(disk.check_file_system(at(root, small_disk), slurm=False))
    assert finding.level == "FAIL"
    assert "Read-only file system" in finding.found


@pytest.mark.parametrize(("fault", "said"), [
    (lambda file, how: None, "two processes got the same lock"), (OSError(38, "Function not implemented"), "flock fails"),
])  # fmt: skip
def test_locks_that_keep_nobody_out_are_found(
    fault: Any, said: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lustre without its flock option, and network file systems that keep locks to themselves."""

    def flock(file: object, how: int) -> None:
        if isinstance(fault, OSError):
            raise fault

    monkeypatch.setattr(fcntl, "flock", flock)
    finding = only(disk.check_file_system(at(root, tmp_path), slurm=False))
    assert finding.level == "FAIL"
    assert said in finding.found


def test_renames_that_copy_are_found(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(source: Path, target: Path) -> None:
        shutil.copyfile(source, target)
        source.unlink()

    monkeypatch.setattr(os, "replace", copy)
    finding = only(disk.check_file_system(at(root, tmp_path), slurm=False))
    assert finding.level == "FAIL"
    assert "after a rename an open file reads 'new'" in finding.found


# --- SLURM ------------------------------------------------------------------------------------------------------------


def test_partitions_are_read() -> None:
    found = cluster.partitions(PARTITIONS)
    assert {name: part.minutes for name, part in found.items()} == {"gpu": 120, "long": 10_080, "cpu": None, "old": 1}
    assert [name for name, part in found.items() if part.default] == ["cpu"]
    assert [name for name, part in found.items() if not part.up] == ["old"]
    assert found["gpu"].nodes[1] == cluster.Nodes(4, 16, 128_000, 1, "mix")
    assert [nodes.usable for nodes in found["long"].nodes] == [True, False]
    assert found["old"].nodes[0].number == 2


@pytest.mark.parametrize(("gres", "gpus"), [
    ("(null)", 0), ("gpu:4", 4), ("gpu:h200:4", 4), ("gpu:h200:4(S:0-1)", 4),
    ("gpu:a100:2(S:0),gpu:v100:1(S:1),lustre:1", 3), ("gpu:a100_1g.5gb:7", 7), ("craynetwork:4", 0), ("gpu:no_consume:4", 4),
])  # fmt: skip
def test_gpus_of_a_node_are_counted(gres: str, gpus: int) -> None:
    [found] = cluster.partitions(f"p|up|1:00|{gres}|16+|64000+|1|idle\n").values()
    assert found.nodes[0][:3] == (gpus, 16, 64_000)


@pytest.mark.parametrize(("change", "partition", "said"), [
    ({}, "gpu", []), ({"minutes": 121}, "gpu", ["at most 120 minutes, not 121"]),
    ({"gpus": 5}, "gpu", ["at most 4 GPUs a node, not 5"]), ({"cores": 17}, "gpu", ["at most 16 CPUs a node, not 17"]),
    ({"memory_mb": 128_001}, "gpu", ["at most 128000 MB a node, not 128001"]),
    ({"gpus": 0, "cores": 8, "memory_mb": 32_000, "minutes": 10**6}, "cpu", []),
    ({"gpus": 1, "cores": 8, "memory_mb": 1}, "cpu", ["at most 0 GPUs a node, not 1"]),
])  # fmt: skip
def test_what_a_partition_will_never_run(change: dict[str, int], partition: str, said: list[str]) -> None:
    assert cluster.misfits(JOB._replace(**change), cluster.partitions(PARTITIONS)[partition]) == said


def test_one_node_must_have_everything() -> None:
    text = "p|up|1:00:00|gpu:4|8|64000|1|idle\np|up|1:00:00|(null)|64|512000|1|idle\n"
    said = cluster.misfits(JOB._replace(minutes=1), cluster.partitions(text)["p"])
    assert said == ["0 nodes that each have 4 GPUs, 16 CPUs and 100000 MB, not 1"]
    pair = JOB._replace(nodes=2, memory_mb=64_000)
    assert cluster.misfits(pair, cluster.partitions(PARTITIONS)["gpu"]) == []
    assert cluster.misfits(pair._replace(nodes=3), cluster.partitions(PARTITIONS)["gpu"])[0].startswith("2 nodes that each")


@pytest.mark.parametrize(("settings", "command", "poll", "said"), [
    (SETTINGS, "squeue", 20, None), (SETTINGS, "squeue", 100, None), (SETTINGS, "squeue", 101, "forgets a job 300 s"),
    (SETTINGS.replace("= 300", "= 0"), "squeue", 1000, None), (SETTINGS, "sacct", 20, "keeps no accounts"),
    (SETTINGS.replace("storage/none", "storage/slurmdbd"), "sacct", 1000, None),
])  # fmt: skip
def test_status_queries_that_lose_jobs(settings: str, command: str, poll: float, said: str | None) -> None:
    fault = cluster.status_fault(cluster.configuration(settings), command, poll)
    assert (fault is None) if said is None else (fault is not None and said in fault[0])


class Site:
    """SLURM's clients as scripts in front of PATH, and a profile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answer("sinfo", PARTITIONS)
        self.answer("scontrol", SETTINGS)
        self.answer("squeue", "17\n18\n")
        self.answer("sacctmgr", "", "You are not running a supported accounting_storage plugin", code=1)
        program(folder, "sbatch", f'echo "$@" >>{folder}/asked')
        self.values: dict[str, Any] = {"executor": "slurm", "slurm-status-command": "squeue"}
        self.values["default-resources"] = {}

    def answer(self, name: str, text: str, error: str = "", code: int = 0) -> None:
        (self.folder / f"{name}.txt").write_text(text)
        program(self.folder, name, f"cat {self.folder}/{name}.txt\necho '{error}' >&2\nexit {code}")

    def check(self, *jobs: Ask) -> dict[str, Finding]:
        """Findings by the name of their check (the last of several)."""
        profile = Profile(Path("profile.yaml"), self.values)
        return {each.check: each for each in slurm.check_slurm(list(jobs) or [JOB], profile)}

    def submitted(self) -> list[str]:
        return [line for line in (self.folder / "asked").read_text().splitlines() if line != "--version"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "bin").mkdir()
    return Site(tmp_path / "bin")


def test_a_cluster_that_fits_is_asked_about_every_kind_of_job(site: Site) -> None:
    small = Ask("small", "data.resources", 0, 1, 100, 10, options=("--mem=100",))
    found = site.check(JOB, JOB._replace(rule="again"), small)
    assert {each.level for each in found.values()} == {"ok"}
    assert "22.05.8 on cluster spike; 2 of your jobs" in found["slurm"].found
    assert "2 kinds of job" in found["jobs"].found
    assert sorted(site.submitted()) == ["--test-only --mem=100 --wrap=true", "--test-only --partition=gpu --wrap=true"]


def test_a_partition_that_is_too_short_is_found_though_sbatch_takes_the_job(site: Site) -> None:
    found = site.check(JOB._replace(minutes=2880))
    assert found["jobs"].level == "FAIL"
    assert "training.resources: gpu has at most 120 minutes, not 2880 (train)" in found["jobs"].found
    # SLURM takes the one that does.
    assert site.check(JOB._replace(minutes=2880, partition="gpu,long"))["jobs"].level == "ok"


def test_a_partition_that_does_not_exist_is_found(site: Site) -> None:
    other = site.check(JOB._replace(partition="gpus"))["partition"]
    assert (other.level, other.found) == ("FAIL", "gpus: no such partition")
    assert "cpu, gpu, long, old" in other.remedy
    anywhere = Ask("small", "data.resources", 0, 1, 100, 10)
    assert site.check(anywhere)["partition"].found.startswith("cpu is up")
    site.answer("sinfo", PARTITIONS.replace("cpu*", "cpu"))
    assert "none set, and no default" in site.check(anywhere)["partition"].found


def test_a_partition_that_is_down_is_told(site: Site) -> None:
    site.answer("sinfo", PARTITIONS.replace("gpu|up", "gpu|down"))
    assert site.check()["partition"].level == "warn"
    site.answer("sinfo", PARTITIONS.replace("idle", "down*").replace("mix", "drain"))
    unusable = site.check()["partition"]
    assert (unusable.level, "0 of 2 nodes usable" in unusable.found) == ("warn", True)


def test_what_only_slurm_can_know_is_asked_of_it(site: Site) -> None:
    program(
        site.folder,
        "sbatch",
        'test "$1" = --version || { echo "allocation failure: Invalid feature specification" >&2; exit 1; }',
    )
    found = site.check(JOB, JOB._replace(rule="sample", options=("--gpus=1",)))["jobs"]
    assert found.level == "FAIL"
    assert found.found == "SLURM refuses train, sample: allocation failure: Invalid feature specification"
    assert "sbatch --test-only --partition=gpu --wrap=true" in found.remedy


def test_a_status_command_that_loses_jobs_is_found(site: Site) -> None:
    site.values["slurm-status-command"] = "sacct"
    assert site.check()["status command"].level == "FAIL"
    site.values |= {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 120}
    assert "at most 100" in site.check()["status command"].remedy


def test_accounts_are_compared_where_there_are_some(site: Site) -> None:
    site.values["default-resources"]["slurm_account"] = "lab"
    unknown = site.check()["account"]
    assert (unknown.level, "not checked (You are not running" in unknown.found) == ("ok", True)
    site.answer("sacctmgr", "physics\nlab\n")
    assert (site.check()["account"].level, site.check()["account"].found) == ("ok", "lab")
    site.answer("sacctmgr", "physics\n")
    other = site.check()["account"]
    assert (other.level, "lab: not one of yours" in other.found, "physics" in other.remedy) == ("FAIL", True, True)


def test_clients_that_hang_cost_seconds_not_minutes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As all do where no controller answers."""
    monkeypatch.setattr(slurm, "ANSWER_SECONDS", 0.5)
    for name in ("sinfo", "squeue", "scontrol", "sacctmgr"):
        program(site.folder, name, "sleep 60")
    began = time.monotonic()
    found = site.check()
    assert time.monotonic() - began < 5
    assert list(found) == ["slurm"]
    assert found["slurm"].level == "FAIL"
    assert "sinfo gave no answer within 0.5 s" in found["slurm"].found


def test_a_machine_without_clients_is_no_login_node(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.folder / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(site.folder))
    found = site.check()
    assert list(found) == ["slurm"]
    assert "sbatch is not on PATH" in found["slurm"].found


# --- one machine ------------------------------------------------------------------------------------------------------


def test_gpus_against_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-2)'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def found(gpus: int, profile: dict[str, Any], *named: int) -> Finding:
        return only(machine.check_gpus([JOB._replace(gpus=gpus)], named, Profile(Path("profile.yaml"), profile)))

    assert found(0, {}).level == only(machine.check_gpus([], (), Profile(Path("p"), {}))).level == "ok"
    assert "2 here (NVIDIA H200)" in found(2, {}).found
    assert (found(2, {}, 0).level, found(1, {}, 0).level) == ("FAIL", "ok")
    assert "devices: found '7'" in found(1, {}, 7).found
    assert found(2, {"resources": {"gpu": 2}}).level == "ok"
    too_many = found(4, {"resources": {"gpu": 2}})
    assert (too_many.level, "2 here" in too_many.found, "asks for 4 (training.resources.gpus)" in too_many.found) == (
        "FAIL", True, True,
    )  # fmt: skip
    capped = found(2, {"resources": {"gpu": 0}})
    assert (capped.level, "--resources gpu=2" in capped.remedy) == ("warn", True)
    (tmp_path / "nvidia-smi").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "0 here (nvidia-smi shows none)" in found(1, {}).found


def test_cores_and_memory_of_the_machine_are_compared() -> None:
    here = len(os.sched_getaffinity(0))
    small = JOB._replace(gpus=0, cores=1, memory_mb=10)
    assert only(machine.check_machine([small])).level == "ok"
    assert only(machine.check_machine([small, small._replace(cores=here + 1)])).level == "warn"
    assert only(machine.check_machine([small, small._replace(memory_mb=10**9)])).level == "warn"
    several = only(machine.check_machine([small, small._replace(nodes=2)]))
    assert (several.level, "training.resources.nodes" in several.found) == ("FAIL", True)


# --- profiles ---------------------------------------------------------------------------------------------------------


def test_profiles_are_found_by_name_by_folder_and_by_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_profile("slurm").slurm
    (tmp_path / "config.yaml").write_text("__use_yte__: true\nresources:\n  gpu: ?1 + 1\n")
    assert read_profile(str(tmp_path)).values["resources"] == {"gpu": 2}
    with pytest.raises(Fault, match="--profile nonsense: neither .* is there; give slurm, local or a folder"):
        read_profile("nonsense")
    program(tmp_path / "bin", "sbatch", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert read_profile(None).slurm
    (tmp_path / "bin/sbatch").unlink()
    assert not read_profile(None).slurm


def profiled(root: Path, values: dict[str, Any], *overrides: str) -> dict[str, Ask]:
    config = load_file(root / "config/ablation.yaml", overrides)
    return {each.rule: each for each in asks(config, Profile(Path("profile.yaml"), values))}


def test_a_profile_goes_before_the_configuration(root: Path) -> None:
    own = {"train_generator": {"runtime": "2h", "mem_mb": 7, "gpu": 3, "slurm_partition": "long"}}
    found = profiled(root, {"set-resources": own, "set-threads": {"sample": 5}})
    assert found["train_generator"][2:8] == (3, 32, 7, 120, 1, "long")
    assert found["sample"].cores == 5
    assert found["canary_train"].gpus == 8
    with pytest.raises(Fault, match="runtime: soon, in the profile; give minutes"):
        profiled(root, {"set-resources": {"sample": {"runtime": "soon"}}})


def test_sbatch_is_told_what_the_plugin_would_tell_it(root: Path) -> None:
    """As snakemake-executor-plugin-slurm 2.8.0 puts it (submit_string.py)."""
    site = {"slurm_partition": "gpu", "cpu_partition": "cpu", "gpu_type": "h200", "slurm_account": "lab", "nodes": 1}
    site |= {"constraint": "'ib'", "slurm_extra": "'--signal=USR1@180 --exclusive'"}
    found = profiled(root, {"default-resources": site, "slurm-qos": "high", "slurm-reservation": "ours"})
    shared = "--account=lab --constraint=ib --nodes=1"
    behind = "--signal=USR1@180 --exclusive --qos=high --reservation=ours"
    assert " ".join(found["check_archives"].options) == (
        f"--partition=cpu {shared} --mem=8000 --ntasks=1 --cpus-per-task=4 --time=240 {behind}"
    )
    assert " ".join(found["sample"].options) == (
        f"--partition=gpu {shared} --mem=32000 --gpus=h200:1 --cpus-per-task=8 --time=240 {behind}"
    )
    two = profiled(root, {"default-resources": site}, "training={resources: {nodes: 2, gpus: 4}}")["train_generator"]
    assert (two.gpus, two.cores, two.nodes) == (4, 16, 2)
    assert " ".join(two.options) == (
        "--partition=gpu --account=lab --constraint=ib --nodes=2 --mem=256000 --gres=gpu:h200:4 --ntasks-per-node=4 "
        "--cpus-per-task=4 --time=2880 --signal=USR1@180 --exclusive"
    )


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.fixture
def doctor(root: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The script, where no cluster is at hand."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(root / "workflow_scripts/doctor.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_the_demo_is_ready_to_run_anywhere(root: Path, doctor: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    began = time.monotonic()
    done = doctor("--profile", "local", "--configfile", str(root / "config/demo.yaml"))
    assert time.monotonic() - began < 10
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 10
    assert all(line.startswith(("ok    ", "warn  ")) for line in lines)


def test_what_fails_is_counted_and_is_the_exit_code(
    root: Path, doctor: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = doctor("--profile", "local", "--configfile", str(root / "config/ablation.yaml"), "--config", "name=other")
    assert done.returncode == 1
    assert "run other-" in done.stdout
    assert "FAIL  images" in done.stdout
    assert f"error: {done.stdout.count('FAIL  ')} check(s) failed" in done.stderr


def test_a_configuration_that_is_wrong_is_a_finding(
    root: Path, doctor: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    values = yaml.safe_load((root / "config/demo.yaml").read_text())
    values["training"]["stesp"] = 3
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values))
    done = doctor("--profile", "local", "--configfile", "wrong.yaml")
    assert done.returncode == 1
    assert "training.stesp: unknown key; did you mean 'steps'?" in done.stdout
    assert "FAIL  configuration" in done.stdout
    assert "Traceback" not in done.stderr
