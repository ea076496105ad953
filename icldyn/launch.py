"""`icldyn submit N -- run STUDY --out FOLDER ...`: the shards 1/N ... N/N of a command as jobs, by submitit (an extra).

There is nothing to coordinate: every job runs the same command with its own `--shard`. A job that dies, is preempted or runs out
of time is simply submitted again; what it had done is kept.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import checks


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to submit."""

    shards: int
    """Number of jobs."""
    executor: str = "slurm"
    """"slurm", or "local" for processes of this machine."""
    log: str = "submitted"
    """Folder for the jobs' output."""
    minutes: int = 240
    """Time limit of a job."""
    memory_gb: float = 8
    """Memory of a job."""
    cpus: int = 2
    """CPU cores of a job."""
    gpus: int = 0
    """GPUs of a job."""
    partition: str | None = None
    """Slurm partition."""
    wait: bool = False
    """Wait for the jobs and exit as the worst of them."""
    json: bool = False
    """Print for machines."""


ICLDYN = [sys.executable, "-m", "icldyn"]


class Shard:
    """What a job runs: one share of a command, as a process of its own."""

    def __call__(self, command: list[str]) -> int:
        """Run it; returns the exit code."""
        return subprocess.run(command).returncode

    def checkpoint(self, command: list[str]) -> Any:
        """Asked by submitit when the job is preempted or out of time: the same again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, command)


def submit(words: list[str]) -> int:
    """Run the verb; returns the exit code."""
    import tyro

    if "--" not in words:
        raise checks.BadArgument(
            "Give the command after `--`, such as icldyn submit 8 -- run mainali2025 --out FOLDER."
        )
    cut = words.index("--")
    ours, command = words[:cut], words[cut + 1 :]
    checks.one_of("command", command[0] if command else "", ("run", "sweep"))
    for flag in ("--shard", "--distributed"):
        if any(word.split("=")[0] == flag for word in command):
            raise checks.BadArgument(f"Argument `{flag.strip('-')}` must be left to icldyn submit, but is given.")
    if not any(word.split("=")[0] == "--out" for word in command):
        raise checks.BadArgument("Argument `out` must name the folder that the jobs share, but is missing.")
    settings = tyro.cli(
        tyro.conf.PositionalRequiredArgs[Settings],
        prog="icldyn submit",
        args=ours,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    checks.integer("shards", settings.shards, 1)
    checks.one_of("executor", settings.executor, ("slurm", "local"))
    try:
        import submitit
    except ImportError:
        raise checks.BadArgument('The verb `submit` needs submitit: pip install "icldyn[slurm]".') from None
    executor = submitit.AutoExecutor(Path(settings.log), cluster=settings.executor)
    executor.update_parameters(
        name="icldyn",
        timeout_min=settings.minutes,
        mem_gb=settings.memory_gb,
        cpus_per_task=settings.cpus,
        gpus_per_node=settings.gpus,
        **({"slurm_partition": settings.partition} if settings.partition else {}),
    )
    shards = [f"{k}/{settings.shards}" for k in range(1, settings.shards + 1)]
    jobs = executor.map_array(Shard(), [[*ICLDYN, *command, "--shard", shard, "--resume"] for shard in shards])
    ids = [job.job_id for job in jobs]
    codes = [job.result() for job in jobs] if settings.wait else []
    if settings.json:
        print(json.dumps({"jobs": ids, "exit_codes": codes}))
    else:
        print(f"submitted {', '.join(ids)}; output in {settings.log}")
    return max(codes, default=0)
