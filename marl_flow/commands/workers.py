"""Many tasks side by side on one machine: a process and one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, TypeVar

from marl_flow.interfaces import UserError

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

CHECKPOINT_SECONDS = 4.0
"""How long a worker without its main program may go on, to write a checkpoint."""

T = TypeVar("T")
R = TypeVar("R")


def workers_for(device: str, num_tasks: int) -> int:
    """How many tasks to run at once: one per core on a CPU, one on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(num_tasks, cores)) if device == "cpu" else 1


def as_done(work: Callable[[T], R], tasks: Iterable[T], num_workers: int) -> Iterator[tuple[T, R]]:
    """Every task with its result, in the order they finish; `num_workers` at a time, started in the order given.

    On a CPU each task has a process and one thread of its own: small networks gain more from that than from threads,
    and the numbers do not depend on how many cores there are. After an error or Ctrl-C no further task is started.
    """
    if num_workers == 1:
        for task in tasks:
            yield task, work(task)
        return
    context = multiprocessing.get_context("spawn")
    bar_positions = context.Queue()
    for position in range(num_workers):
        bar_positions.put(position)
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (bar_positions, context.RLock()))
    try:
        futures = {pool.submit(work, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died (out of memory?); start the same command again: what is finished is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Ends the worker when the main program has gone, whichever way; a training gets the time for a checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(CHECKPOINT_SECONDS)
    os._exit(128 + signal.SIGTERM)


def _start_worker(bar_positions: Queue[int], lock: Any) -> None:
    """One thread, and a line of its own for the progress bar (tqdm reads the variable when it is imported)."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TQDM_POSITION"] = str(bar_positions.get())
    import torch
    from tqdm import tqdm

    tqdm.set_lock(lock)
    torch.set_num_threads(1)
