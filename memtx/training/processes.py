"""Several processes that train one run together: how they find each other, and how they agree.

Each process has some of the devices of the mesh, on one or several machines. All make the same calls in the same order. Process
0 alone prints and writes metrics. All processes write their shares of a checkpoint, and each prints its errors.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from memtx.errors import UserError
from memtx.sharding import Layout

# The variables of each launcher: the number of processes, the index of this one, and its index on its machine.
LAUNCHERS = (
    ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", ""),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),  # of srun
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),  # of Open MPI's mpirun
)
TPU_HOST = "TPU_ML_PLATFORM"  # JAX sets it on a machine with TPUs
HEARTBEAT = 30  # seconds after which a silent process counts as dead
WATCH = 5  # seconds between two looks at the other processes
PATIENCE = 240  # seconds to wait for process 0, less than the five minutes after which JAX aborts
FAREWELL = 1  # seconds that process 0, which the others are connected to, ends after them
LONGEST_ERROR = 4000  # bytes
LOST = re.compile(r"Gloo .* failed: .*(by peer|Broken pipe)")  # a transfer between CPUs whose other process ended


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Connect this process with the others of its run. Call this before JAX starts its backend.

    coordinator: HOST:PORT of process 0. processes: their number. process: the index of this one. What is None comes from the
    launcher: srun, mpirun, the metadata of a TPU machine, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    Does nothing if there is only one process. A process that a launcher starts on a machine with GPUs uses the GPU with its
    index there. Raises UserError if the settings are not complete, if JAX refuses them, or if process 0 is not at HOST:PORT
    within four minutes. JAX aborts process 0 if it does not see all others within five minutes.
    """
    device = None
    for count, index, local in LAUNCHERS:
        if processes is None and process is None and count in os.environ and index in os.environ:
            processes, process = _number(count), _number(index)
            device = _number(local) if local in os.environ and not _on_tpu_host() else None
    if (processes is None) != (process is None):
        raise UserError("--processes and --process must be given together")
    if processes == 1 or (processes is None and not _on_tpu_host()):
        if coordinator and processes is None:
            raise UserError(f"--coordinator={coordinator} needs --processes and --process, or a launcher such as srun")
        return
    address = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address and processes and process and 0 < process < processes:
        _wait_for_first(address, f"process {process} of {processes}")
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM, which interrupt.py handles
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            device,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        if processes is None and isinstance(error, ValueError):  # a machine with TPUs that is not part of a slice
            return
        hint = "; give --coordinator=HOST:PORT of process 0" if coordinator is None else ""
        raise UserError(f"process {process} of {processes} did not find the others: {_line(error)}{hint}") from error


@contextmanager
def joined(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> Iterator[bool]:
    """Connect this process with the others, as `start` does, and yield whether it is the one that prints.

    While the block runs, a thread watches the other processes. If one dies, this one ends too, with one line and status 1. It
    could otherwise wait for a device of the dead process forever. If a transfer fails first, this process waits for the thread.
    The end of the block waits for all processes, and then only process 0 may use JAX.
    """
    jax.config.update("jax_enable_recoverability", True)  # otherwise JAX aborts this process when another one dies
    start(coordinator, processes, process)
    if jax.process_count() == 1:
        yield True
        return
    if is_first():
        atexit.register(time.sleep, FAREWELL)
    left = threading.Event()
    threading.Thread(target=_watch, args=(left,), daemon=True).start()
    try:
        yield is_first()
        multihost_utils.sync_global_devices("memtx: the end")
        left.set()
        if not is_first():
            jax.distributed.shutdown()
    except Exception as error:
        if LOST.search(str(error)):
            time.sleep(2 * HEARTBEAT)  # until then the thread has seen the death and ended this process
        raise
    finally:
        left.set()


def _watch(left: threading.Event) -> None:
    """End this process if another one ends. left: set when this one no longer needs the others."""
    while not left.wait(WATCH):
        try:
            with multihost_utils.live_devices(jax.devices()):
                pass
        except (multihost_utils.ProcessFailureError, RuntimeError):  # RuntimeError: of process 0
            if left.wait(FAREWELL):
                return
            print("memtx: another process of the run ended, so this one ends too", file=sys.stderr, flush=True)
            os._exit(1)


def is_first() -> bool:
    """Return whether this is process 0, which prints and writes metrics."""
    return jax.process_index() == 0


def on_first(f: Callable):
    """Call f() on process 0 and return its result there, None elsewhere. Its UserError is raised on all processes."""
    result, message = None, ""
    if is_first():
        try:
            result = f()
        except UserError as error:
            if jax.process_count() == 1:
                raise
            message = str(error)
    if jax.process_count() > 1:
        text = np.zeros(LONGEST_ERROR, np.uint8)
        data = message.encode()[:LONGEST_ERROR]
        text[: len(data)] = np.frombuffer(data, np.uint8)
        if found := bytes(multihost_utils.broadcast_one_to_all(text)).rstrip(b"\0").decode(errors="ignore"):
            raise UserError(found)
    return result


def check_same(**texts: str) -> None:
    """Raise a UserError on all processes unless each text is the same on all of them. The names are for the message."""
    if jax.process_count() == 1:
        return
    digests = np.stack([np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts.values()])
    for process, found in enumerate(multihost_utils.process_allgather(digests)):
        if different := [name for name, same in zip(texts, (found == digests).all(1), strict=True) if not same]:
            here = jax.process_index()
            names = " and ".join(different)
            raise UserError(f"processes {here} and {process} have different {names}; give all the same command")


class Agreement:
    """The agreement of all processes to stop, without waiting for a device.

    A call with `stop` starts a small program on all devices, and returns the answer to the call before it. That answer is
    ready, because its program ran before the last train step. All processes therefore stop at the same step, one step after
    the first that wants to. With one process, a call returns `stop`.
    """

    def __init__(self, layout: Layout):
        self._each = NamedSharding(layout.mesh, P(layout.mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=layout.whole)
        self._size, self._answer = layout.mesh.size, None

    def __call__(self, stop: bool) -> bool:
        """Return whether all processes stop now (see the class)."""
        if jax.process_count() == 1:
            return stop
        flags = jax.make_array_from_callback((self._size,), self._each, lambda _: np.full(1, stop))
        answer, self._answer = self._answer, self._any(flags)
        return answer is not None and bool(answer)


def _wait_for_first(address: str, here: str) -> None:
    """Return when something answers at the address of process 0, because JAX would abort if nothing ever did."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"the coordinator must be HOST:PORT, not {address!r}")
    until = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=WATCH).close()
            return
        except UnicodeError:
            raise UserError(f"{host!r} is not the name of a host") from None
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(f"{here} cannot reach process 0 at {address}: {_line(error)}") from None
            time.sleep(0.1)


def _on_tpu_host() -> bool:
    return TPU_HOST in os.environ and os.environ.get("JAX_PLATFORMS", "").split(",")[0] != "cpu"


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f"the variable {name} must be an integer, not {os.environ[name]!r}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
