"""The processes of a distributed run: how they join before jax is used, and what they tell each other."""

import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import jax
import numpy as np
from jax.experimental import multihost_utils

from .. import checks

T = TypeVar("T")

WAIT_SECONDS = 300  # for the other processes to start


def initialise(
    address: str | None = None, processes: int | None = None, index: int | None = None, *, heartbeat_seconds: int = 100
) -> None:
    """Join the other processes, before any other use of jax. TPU pods, Slurm and Open MPI need no arguments.

    Args:
        address: HOST:PORT where process 0 listens and the others call; whoever reaches it is let in.
        processes: how many there are.
        index: which this is, from 0.
        heartbeat_seconds: the silence after which a process counts as dead, and the others end.

    Raises:
        icldyn.BadArgument: a sentence that names the argument, what it must be and what it is.
    """
    checks.coordinator(address, processes, index)
    if address is not None:
        _reach(address, listening=index == 0)
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself
    try:
        jax.distributed.initialize(
            address,
            processes,
            index,
            coordinator_bind_address=address,  # the default is all addresses of this machine
            initialization_timeout=WAIT_SECONDS,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
        devices = Counter(device.process_index for device in jax.devices())
        if len(set(devices.values())) > 1:
            raise ValueError(f"they have different numbers of devices, {sorted(devices.values())}")
        multihost_utils.process_allgather(np.int32(0))  # now: later the network waits half a minute, and no longer
    except (RuntimeError, ValueError, TypeError) as error:
        told = str(error).splitlines()[0][:200]
        raise checks.BadArgument(
            "Argument `distributed` must be for processes that find each other, by themselves or by `coordinator`, "
            f"`processes` and `process-index`, but: {told}"
        ) from None


def gathered(numbers: np.ndarray) -> np.ndarray:
    """(processes, ...) the numbers of every process, in every process.

    Raises:
        icldyn.checks.Stopped: if one of them is lost.
    """
    try:
        return multihost_utils.process_allgather(numbers)
    except Exception as error:  # of a type that depends on the network
        raise checks.Stopped(f"Another process was lost: {str(error).splitlines()[0][:200]}") from error


def together(make: Callable[[], T]) -> T:
    """What `make` returns, once it has returned in every process.

    Raises:
        icldyn.checks.Stopped: if it failed in another process; where it failed, its own error.
    """
    error: BaseException | None = None
    try:
        made = make()
    except BaseException as failure:
        error = failure
    failed = gathered(np.int32(error is not None))
    if error is not None:
        raise error
    if failed.any():
        raise checks.Stopped("Another process failed.")
    return made


def _reach(address: str, listening: bool) -> None:
    """Try the address before jax does, which would end the process with a stack trace."""
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise checks.refuse("coordinator", "be HOST:PORT, such as 10.0.0.1:29400", address)
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            if listening:
                return socket.create_server(found[4][:2], family=found[0]).close()
            return socket.create_connection(found[4][:2], timeout=5).close()
        except OSError as error:
            if listening or isinstance(error, socket.gaierror) or time.monotonic() > until:
                raise checks.BadArgument(
                    f"Argument `coordinator` must be an address of process 0, but {address!r} is not: {error.strerror or error}."
                ) from None
            time.sleep(0.2)
