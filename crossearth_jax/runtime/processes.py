"""Several processes of one command, connected by JAX: start, end and failures (`--distributed`)."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

import jax

from crossearth_jax.config import UserError
from crossearth_jax.runtime import parallel


@contextlib.contextmanager
def joined(coordinator: str | None, count: int | None, index: int | None) -> Iterator[None]:
    """Connect this process to the others for the block, which ends when all of them have reached its end.

    If the block raises an error, this process ends at once with the exit code of the error. Otherwise JAX would wait at
    exit for the other processes, which wait for this one.

    Args:
      coordinator: host:port of process 0.
      count: number of processes.
      index: index of this process from 0.
        All three may be None where JAX detects them: with SLURM, Open MPI, Kubernetes and on Cloud TPU.

    Raises:
      UserError: the processes cannot be connected.
    """
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"cannot join the other processes ({error}); outside SLURM, Open MPI, Kubernetes and Cloud TPU give "
            "--coordinator_address=HOST:PORT --num_processes=N --process_id=I"
        ) from None
    try:
        yield
        # At exit JAX waits five minutes for the other processes, then fails. One of them may need longer.
        parallel.wait_for_all("finished")
    except UserError as error:
        _leave(2, f"error: {error}")
    except KeyboardInterrupt:
        _leave(130, "interrupted")
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        _leave(3, f"a device or another process failed ({reason}); see its log. Run the same command again to continue")
    except Exception as error:
        traceback.print_exc()
        _leave(1, f"{type(error).__name__}, see above")


def _leave(code: int, message: str) -> None:
    print(f"process {jax.process_index()} of {jax.process_count()}: {message}", file=sys.stderr, flush=True)
    os._exit(code)
