"""Forward passes that pause before chosen layers, so that a block is run once however often it must stop.

To quantize the layers of a block in order of execution, each needs the input that the layers quantized before
it produce. Running the block anew up to every such layer costs two to three times as much as one pass. Here
every batch has its own thread, which waits inside the forward pass until its next layer is ready. Only one
thread runs at a time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from mcq.errors import InputError


class _Abandoned(BaseException):
    """Unwinds a paused pass that nobody will resume."""


class _Pass(threading.Thread):
    """One call that can pause itself and be resumed from outside."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._go = threading.Semaphore(0)
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._abandoned = False
        self.start()

    def run(self) -> None:
        self._go.acquire()
        if self._abandoned:
            return
        try:
            with torch.inference_mode():  # holds for one thread only
                result = self._call()
            self._events.put(("", result))
        except BaseException as error:
            self._events.put(error)

    def pause(self, name: str, layer_input: torch.Tensor) -> None:
        """Report where the pass stands, and wait. Called in this thread."""
        self._events.put((name, layer_input))
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def advance(self) -> tuple[str, Any]:
        """Run to the next pause and return its report, or ("", result) at the end."""
        self._go.release()
        event: tuple[str, Any] | BaseException = self._events.get()
        if isinstance(event, BaseException):
            raise event
        return event

    def abandon(self) -> None:
        """End the pass wherever it stands."""
        self._abandoned = True
        self._go.release()
        self.join()


def step_through(calls: Sequence[Callable[[], Any]], layers: dict[str, nn.Module]) -> Iterator[tuple[str, list[Any]]]:
    """Run all `calls`, pausing each whenever one of `layers` is about to compute.

    Between two steps the caller may change the layer that was reported last, and every layer after it.

    Parameters
    ----------
    calls : sequence of callable
        The forward passes of one block, one per batch.
    layers : dict of str to Module
        Where to pause, by name.

    Yields
    ------
    name : str
        The layer that is about to compute; "" once at the end.
    values : list
        The input of that layer in every call; at the end, what the calls returned.
    """
    hooks = [layer.register_forward_pre_hook(_pausing(name)) for name, layer in layers.items()]
    passes = [_Pass(call) for call in calls]
    try:
        name = None
        while name != "":
            reports = [a_pass.advance() for a_pass in passes]
            names = {report[0] for report in reports}
            if len(names) > 1:
                raise InputError(
                    f"the order of layers depends on the data: batches reached {sorted(names)} at one step; "
                    f"models that choose layers by input (such as lists of experts) cannot be calibrated"
                )
            name = names.pop()
            yield name, [report[1] for report in reports]
            del reports  # its inputs too, which the passes themselves will soon let go
    finally:
        for hook in hooks:
            hook.remove()
        for a_pass in passes:
            a_pass.abandon()


def _pausing(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        current = threading.current_thread()
        if isinstance(current, _Pass):  # the caller may run the layer himself between two steps
            current.pause(name, args[0])

    return hook
