"""Many pieces of work side by side on one machine: a process and one thread each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, TypeVar

from marl_flow.interfaces import UserError

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

T = TypeVar("T")
R = TypeVar("R")


def workers_for(device: str, pieces: int) -> int:
    """How many pieces of work to do at once: one per core on a CPU, one on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(pieces, cores)) if device == "cpu" else 1


def as_done(work: Callable[[T], R], pieces: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    """Every piece with its result, in the order they finish; `workers` at a time, begun in the order given.

    On a CPU each piece has a process and one thread of its own: small networks gain more from that than from threads,
    and the numbers do not depend on how many cores there are. After an error or Ctrl-C no further piece begins.
    """
    if workers == 1:
        for piece in pieces:
            yield piece, work(piece)
        return
    context = multiprocessing.get_context("spawn")
    places = context.Queue()
    for place in range(workers):
        places.put(place)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (places, context.RLock()))
    try:
        waiting = {pool.submit(work, piece): piece for piece in pieces}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a working process died (out of memory?); start the same command again: what is finished is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(places: Queue[int], lock: Any) -> None:
    """One thread, and a line of its own for the progress bar (tqdm reads the variable when it is imported)."""
    os.environ["TQDM_POSITION"] = str(places.get())
    import torch
    from tqdm import tqdm

    tqdm.set_lock(lock)
    torch.set_num_threads(1)
