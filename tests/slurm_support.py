"""Debian's real SLURM on this machine: a controller and two nodes, all of them ours, on free ports, without systemd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")

_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=3
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
MpiDefault=none
ReturnToService=2
KillWait=20
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why SLURM cannot be started here."""
    absent = [name for name in COMMANDS if shutil.which(name) is None]
    if absent:
        return f"needs SLURM (Debian: apt-get install slurm-wlm munge): no {', '.join(absent)}"
    return None if os.getuid() == 0 else "needs root: SLURM's daemons are started as it"


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A running cluster with its files in ``folder``; yields the environment for SLURM's commands."""
    (folder / "state").mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    with ExitStack() as sockets:
        probes = [sockets.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    config = folder / "slurm.conf"
    config.write_text(
        _CONFIG.format(folder=folder, host=socket.gethostname().partition(".")[0], ports=ports, user="root")
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | {"SLURM_CONF": str(config)}
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    munge += [f"--socket={folder}/munge.socket"]
    with ExitStack() as daemons:
        for name, command in {
            "munged": ["munged", "--foreground", "--force", *munge],
            "slurmctld": ["slurmctld", "-D", "-c"],
            "n1": ["slurmd", "-D", "-N", "n1"],
            "n2": ["slurmd", "-D", "-N", "n2"],
        }.items():
            daemons.enter_context(_daemon(command, folder / f"{name}.txt", environment))
            if name == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), folder)
        _wait(lambda: _run(["sinfo", "-h", "-o", "%T"], environment) == "idle", folder)
        yield environment


def job_facts(job: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What ``scontrol show job`` says."""
    words = _run(["scontrol", "show", "job", job], environment).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


@contextmanager
def _daemon(command: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def _wait(condition: object, folder: Path) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        logs = "\n".join(f"{path.name}: {path.read_text()[-500:]}" for path in sorted(folder.glob("*.txt")))
        assert time.monotonic() < deadline, f"SLURM does not start:\n{logs}"
        time.sleep(0.1)
