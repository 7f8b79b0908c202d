"""The processes that share a run, as `torchrun` starts them.

Each holds the whole model and a part of the calibration text. All take the same decisions in the same order: what
one of them reads or computes is shared before anything depends on it. One process alone needs no process group, and
everything here costs it nothing.

Messages pass through main memory and gloo, those of GPUs too: processes may share one, which NCCL refuses, and gloo
notices at once when a process ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

import mcq_ext
from mcq.errors import ConfigError, McqError

T = TypeVar("T")

#: How long a process may keep the others waiting. One that ends is noticed at once, one that lost its network is not.
PATIENCE = timedelta(hours=6)
FAILURE = "failure"


class _LostError(RuntimeError):
    """Raised when another process no longer answers."""


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started, or be alone.

    Raises
    ------
    McqError
        When another process fails, with its reason.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group("gloo", store=PrefixStore("group", store), rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield World(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    except _LostError as error:
        raise McqError(_reason(store, error)) from error
    except BaseException as error:
        # Before the connections close: that is how the others notice.
        store.set(FAILURE, f"process {rank} failed: {error if isinstance(error, McqError) else repr(error)}")
        raise
    finally:
        dist.destroy_process_group()


def _reason(store: Store, lost: _LostError) -> str:
    try:
        if store.check([FAILURE]):
            return str(store.get(FAILURE), "utf-8")
    except RuntimeError:  # the process that kept the store is the one that ended
        pass
    reason = "another process ended without a reason, perhaps for want of memory; see its output, then use --resume"
    return f"{reason} ({str(lost).partition(chr(10))[0]})"


@contextmanager
def _collective() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _LostError(str(error)) from error


def is_first() -> bool:
    """Return whether this process reports, joined or not."""
    return os.environ.get("RANK", "0") == "0"


def fair_threads() -> int | None:
    """Return how many of the available threads are for this process; None if all are, as it is alone on its machine."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, mcq_ext.num_threads() // processes) if processes > 1 else None


@dataclass(frozen=True)
class World:
    """The processes that share a run; by default this one only.

    Every method that communicates must be called by all of them.

    Attributes
    ----------
    rank : int
        Of this process. The first, 0, reads and writes all files.
    size : int
        Number of processes.
    local_size : int
        Number of processes on each machine; their ranks are consecutive.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def parts(self, windows: torch.Tensor, batch: int, cut: bool) -> list[tuple[torch.Tensor, float]]:
        """Return this process's part of the calibration windows by batch, and which fraction of each batch it is.

        Parameters
        ----------
        windows : tensor of shape (sequences, window)
        batch : int
            Windows in a batch.
        cut : bool
            False: deal out whole batches, so that each is computed exactly as in one process. True: cut each batch, so
            that a gradient step on a batch is what it is in one process; a part of the last batch may be empty.
        """
        if len(windows) < self.size:
            raise ConfigError(
                f"each process needs a calibration sequence, but there are {self.size} processes and {len(windows)} "
                f"sequences; give more calibration tokens, a smaller window, or fewer processes"
            )
        if not cut:
            batches = torch.split(windows, min(batch, len(windows) // self.size))
            return [(ids, 1.0) for ids in batches[self.rank :: self.size]]
        batches = torch.split(windows, max(batch, self.size))
        parts = [ids[self.rank :: self.size] for ids in batches]
        return [(part, len(part) / len(ids)) for part, ids in zip(parts, batches, strict=True)]

    def owners(self, work: Mapping[str, int]) -> dict[str, int]:
        """Deal out pieces of `work`, the largest first, each to the rank that has least so far."""
        loads, owners = [0] * self.size, {}
        for name in sorted(work, key=work.__getitem__, reverse=True):
            owners[name] = loads.index(min(loads))
            loads[owners[name]] += work[name]
        return owners

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _collective():
            dist.all_gather_object(values, value)
        return values

    def merge(self, values: Mapping[str, T]) -> dict[str, T]:
        """Return the entries of all processes in order of rank; of a name that several have, the first."""
        merged: dict[str, T] = {}
        for found in self.gather(values):
            merged |= {name: value for name, value in found.items() if name not in merged}
        return merged

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the first process, the only one that calls it."""
        if self.size == 1:
            return make()
        values = [make() if self.first else None]
        with _collective():
            dist.broadcast_object_list(values)
        return values[0]  # type: ignore[return-value]

    def overwrite(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give tensors, in place, the values that they have in the first process."""
        for tensor in tensors if self.size > 1 else ():
            message = tensor.detach().cpu()  # the tensor itself, if it is there
            with _collective():
                dist.broadcast(message, 0)
            if tensor.is_cuda:
                tensor.detach().copy_(message)

    def add_up(self, array: NDArray[Any], ranks: Collection[int] | None = None) -> None:
        """Replace `array`, in place, by the sum over all processes; only that in `ranks` counts, by default in all."""
        if self.size == 1:
            return
        with _collective():
            if ranks is not None and len(ranks) == 1:
                dist.reduce(torch.from_numpy(array), next(iter(ranks)))
            else:
                dist.all_reduce(torch.from_numpy(array))

    def average(self, tensors: Sequence[torch.Tensor], weight: float) -> list[torch.Tensor]:
        """Return the sums over all processes of `tensors` times `weight`, which sums to 1; in one message."""
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors]) * weight
        message = flat.cpu()
        with _collective():
            dist.all_reduce(message)
        sums = message.to(flat.device).split([tensor.numel() for tensor in tensors])
        return [total.view_as(tensor) for total, tensor in zip(sums, tensors, strict=True)]

    def each(self, tasks: Mapping[str, Callable[[], T]]) -> Iterator[tuple[str, T]]:
        """Run the tasks of this process, and yield the results of all processes by name.

        One process alone yields each result as soon as it is there.
        """
        if self.size == 1:
            for name, task in tasks.items():
                yield name, task()
            return
        with self._lent_threads(bool(tasks)):
            done = {name: task() for name, task in tasks.items()}
        yield from self.merge(done).items()

    @contextmanager
    def _lent_threads(self, busy: bool) -> Iterator[None]:
        """Compute on this machine also with the threads of processes that are not busy.

        A stage is often a single layer, which cannot be dealt out.
        """
        machine = self.rank // self.local_size * self.local_size
        workers = sum(self.gather(busy)[machine : machine + self.local_size])
        own = mcq_ext.num_threads()
        if busy:
            mcq_ext.set_num_threads(-(-own * self.local_size // workers))
        try:
            yield
        finally:
            mcq_ext.set_num_threads(own)


ALONE = World()
