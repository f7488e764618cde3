"""A SLURM cluster on this machine: its real daemons on loopback, two nodes with four GPUs each and a node without.

Jobs really run here. GPUs are character devices, so that SLURM grants them and sets CUDA_VISIBLE_DEVICES; memory and
cores are declared, not enforced. SLURM's programs look for their configuration in /etc/slurm (Snakemake's plugin takes
SLURM_CONF from its jobs), so that file is written, with privileges, where there is none.

Example: python -m tests.slurm.cluster        (a cluster to try things on; ends with Ctrl-C)
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CONFIGURATION = Path("/etc/slurm")
HOSTS = Path("/etc/hosts")
MARK = "# written by tests/slurm, removed when its cluster stops"
PACKAGES = "slurmctld slurmd slurm-client munge"
GPUS = 4  # of each node that has some

SLURM_CONF = """{mark}
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.log
MinJobAge=300
KillWait=5
SlurmdTimeout=20
SchedulerParameters=bf_interval=2,sched_min_interval=200000,batch_sched_delay=0
{accounting}
NodeName=DEFAULT CPUs=16 CoresPerSocket=16 RealMemory=64000
NodeName=gpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} Gres=gpu:h200:4
NodeName=gpu2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} Gres=gpu:h200:4
NodeName=cpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]}
PartitionName=gpu Nodes=gpu1,gpu2 MaxTime=02:00:00 DefaultTime=00:10:00 DefMemPerCPU=500
PartitionName=urgent Nodes=gpu1,gpu2 MaxTime=02:00:00 DefMemPerCPU=500 PriorityTier=10 PreemptMode=OFF
PartitionName=cpu Nodes=cpu1 MaxTime=1-00:00:00 DefaultTime=00:10:00 DefMemPerCPU=500 Default=YES
"""
NODES = ("gpu1", "gpu2", "cpu1")

SLURMDBD_CONF = """AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdPort={ports[4]}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageLoc=slurm_acct_db
StorageUser=root
"""


def why_not(accounting: bool = False) -> str:
    """Why no cluster can be started here; empty where one can."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "srun") if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install {PACKAGES}"
    if accounting and not (shutil.which("slurmdbd") and shutil.which("mariadbd")):
        return "no slurmdbd with mariadbd: apt-get install slurmdbd mariadb-server"
    if os.geteuid():
        return "starting SLURM's daemons, and making devices for its GPUs, needs root"
    conf = CONFIGURATION / "slurm.conf"
    if conf.exists() and not conf.read_text().startswith(MARK):
        return f"{conf} is of another cluster"
    return ""


class Cluster:
    """The daemons, by pid; `accounting` with slurmdbd and its database."""

    def __init__(self, accounting: bool = False) -> None:
        self.accounting = accounting
        self.folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short: sockets have at most 107 characters
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._write_configuration()
        socket_of_munge = self.folder / "munge.sock"
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        self._run(
            "munged", "--foreground", "--force", f"--key-file={self.folder}/munge.key", f"--socket={socket_of_munge}",
            f"--pid-file={self.folder}/munge.pid", f"--seed-file={self.folder}/munge.seed",
            f"--log-file={self.folder}/munge.log",
        )  # fmt: skip
        self._until(socket_of_munge.exists, "munged")
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for node in NODES:  # a node that comes before the controller tries again ten seconds later
            self._run("slurmd", "-D", "-N", node, name=node)
        self._until(lambda: set(self.sinfo().splitlines()) == {f"{node} idle" for node in NODES}, "the nodes")
        if self.accounting:
            for words in ("account name=lab", "user name=root account=lab"):
                self.call("sacctmgr", "--immediate", "add", *words.split())

    def start_controller(self) -> None:
        self._run("slurmctld", "-D", name="slurmctld")
        self._until(lambda: "UP" in self.call("scontrol", "ping", check=False), "slurmctld")

    def stop_controller(self) -> None:
        """As when its machine is gone; `start_controller` brings it back with what it had saved."""
        self._stop("slurmctld")

    def _start_accounting(self) -> None:
        database = self.folder / "database"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={database}", "--auth-root-authentication-method=socket",
             "--skip-test-db", "--user=root"], check=True, capture_output=True,
        )  # fmt: skip
        self._run(
            "mariadbd", "--no-defaults", f"--datadir={database}", "--user=root", "--skip-networking",
            f"--socket={self.folder}/mysql.sock", "--innodb-buffer-pool-size=32M",
        )  # fmt: skip
        self._until((self.folder / "mysql.sock").exists, "mariadbd", seconds=60)
        # slurmdbd reaches "localhost" by the library's own socket.
        Path("/run/mysqld").mkdir(exist_ok=True)
        default = Path("/run/mysqld/mysqld.sock")
        default.unlink(missing_ok=True)
        default.symlink_to(self.folder / "mysql.sock")
        self._run("slurmdbd", "-D")
        self._until(lambda: _listens(self.ports[4]), "slurmdbd", seconds=60)

    def _write_configuration(self) -> None:
        self.ports = _free_ports(5)
        known = {"folder": self.folder, "host": socket.gethostname(), "ports": self.ports, "mark": MARK}
        accounting = "AccountingStorageType=accounting_storage/none"
        if self.accounting:
            accounting = (
                f"AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=localhost\n"
                f"AccountingStoragePort={self.ports[4]}\nAccountingStoragePass={self.folder}/munge.sock\n"
                "AccountingStoreFlags=job_comment\nAccountingStorageTRES=gres/gpu"
            )
            _write(CONFIGURATION / "slurmdbd.conf", SLURMDBD_CONF.format(**known), 0o600)
        _write(CONFIGURATION / "slurm.conf", SLURM_CONF.format(**known, accounting=accounting))
        devices = {node: self.folder / "dev" / node for node in NODES[:2]}
        for folder in (self.folder / "state", *devices.values(), *(self.folder / f"spool.{node}" for node in NODES)):
            folder.mkdir(parents=True)
        for folder in devices.values():
            for number in range(GPUS):  # a file will not do: SLURM then grants it and does not say which
                os.mknod(folder / f"nvidia{number}", 0o666 | 0o020000, os.makedev(1, 3))
        gres = [f"NodeName={node} Name=gpu Type=h200 File={at}/nvidia[0-{GPUS - 1}]\n" for node, at in devices.items()]
        _write(CONFIGURATION / "gres.conf", "".join(gres))
        if not all(_resolves(node) for node in NODES):
            with HOSTS.open("a") as file:  # ranks of several nodes meet by these names
                file.write(f"127.0.0.1 {' '.join(NODES)} {MARK}\n")

    def stop(self) -> None:
        for job in self.call("squeue", "-h", "-o", "%i", check=False).split():
            self.call("scancel", "--signal=KILL", "--full", job, check=False)
        for name in reversed(list(self.daemons)):
            self._stop(name)
        for name in ("slurm.conf", "gres.conf", "slurmdbd.conf"):
            (CONFIGURATION / name).unlink(missing_ok=True)
        HOSTS.write_text("".join(line for line in HOSTS.read_text().splitlines(True) if MARK not in line))
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- talking to it -----------------------------------------------------------------------------------------------

    def call(self, *command: str, check: bool = True) -> str:
        """Output of one of SLURM's client programs."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def sinfo(self) -> str:
        return self.call("sinfo", "-h", "-N", "-o", "%N %t", check=False)

    def jobs(self) -> list[dict[str, str]]:
        """Every attempt of every job that has ended, oldest first, as SLURM's own log has it."""
        log = self.folder / "jobs.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [dict(pair.partition("=")[::2] for pair in line.split() if "=" in pair) for line in lines]

    # --- daemons -----------------------------------------------------------------------------------------------------

    def _run(self, *command: str, name: str = "") -> None:
        log = (self.folder / f"{name or command[0]}.out").open("ab")
        program = shutil.which(command[0]) or command[0]
        self.daemons[name or command[0]] = subprocess.Popen([program, *command[1:]], stdout=log, stderr=log)

    def _stop(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        daemon.send_signal(signal.SIGTERM if name in ("mariadbd", "munged") else signal.SIGKILL)
        daemon.wait(20)

    def _until(self, done: Callable[[], bool], what: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end or any(daemon.poll() is not None for daemon in self.daemons.values()):
                logs = "\n".join(f"{log.name}: {log.read_text()[-800:]}" for log in self.folder.glob("*.out"))
                raise RuntimeError(f"{what} did not come up\n{logs}\n{self.sinfo()}")
            time.sleep(0.02)


@contextmanager
def cluster(accounting: bool = False) -> Iterator[Cluster]:
    """A running cluster. Raises RuntimeError where `why_not` has a reason."""
    if reason := why_not(accounting):
        raise RuntimeError(reason)
    made = Cluster(accounting)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _resolves(name: str) -> bool:
    try:
        socket.gethostbyname(name)
    except OSError:
        return False
    return True


def main(argv: Sequence[str]) -> None:
    with cluster("--accounting" in argv) as made:
        print(f"{made.sinfo()}logs in {made.folder}; Ctrl-C stops it")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main(sys.argv[1:])
