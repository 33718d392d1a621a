"""The driver's side: which actor works on which units, and what happens if an actor is lost."""

from __future__ import annotations

import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from latentkit.contracts import Unit, UnitResult, Worker
from latentkit.errors import LatentkitError
from latentkit_ray.actor import Event, Signal, UnitActor
from latentkit_ray.cluster import Share, check_that_worker_fits, list_nodes
from latentkit_ray.plugin import RayConfig

TICK_SECONDS = 1.0
"""Interval at which the nodes are checked if nothing happens."""

BUSY_CLUSTER_SECONDS = 30.0
"""If no actor has started for this long, a message is printed."""

STOP_SECONDS = 20.0
"""Time that workers have to drop their units before their processes are killed."""


class State(Enum):
    """State of an actor, as far as the driver knows."""

    STARTING = "it waits for its share, or loads"
    BUSY = "its worker runs"
    IDLE = "its worker has ended"


@dataclass(eq=False)
class WorkerHandle:
    """One actor with its unfinished units, in the order in which it got them."""

    actor: Any
    state: State = State.STARTING
    held: list[Unit] = field(default_factory=list)


class WorkerPool:
    """Actors that share the units among them.

    Args:
        config: how many actors, and how many may be lost.
        share: what each takes of a node.
        make_worker: takes a device and returns a worker, as for an executor.
    """

    def __init__(
        self, config: RayConfig, share: Share, make_worker: Callable[[str], Worker]
    ) -> None:
        self.config, self.share = config, share
        self.num_wanted = 1
        """Actors that should be there now."""
        self._make_worker = ray.put(make_worker)
        self._units: deque[Unit] = deque()
        self._members: list[WorkerHandle] = []
        self._inbox: SimpleQueue[tuple[WorkerHandle, Future[Event]]] = SimpleQueue()
        self._num_lost = 0
        self._began, self._said_waiting = time.monotonic(), False

    def run(self, units: Sequence[Unit]) -> Iterator[UnitResult]:
        """Yield results as they arrive. Units of other processes give none.

        Raises:
            LatentkitError: of a worker; or workers are lost again and again, or can't start.
            RecipeError: no node has room for a worker any more.
        """
        self._units.extend(units)
        try:
            while self._units or any(
                actor_handle.state is State.BUSY for actor_handle in self._members
            ):
                if self._units:
                    self._start_actors()
                # All actors are answered before a result is yielded, so none waits for the caller.
                events = [self._take(actor_handle, future) for actor_handle, future in self._wait()]
                yield from (event for event in events if isinstance(event, UnitResult))
        finally:
            self._stop_actors()

    # ------------------------------------------------------------ who is there

    def _start_actors(self) -> None:
        """Start as many actors as fit on the living nodes, up to the number of units left."""
        nodes = list_nodes()
        check_that_worker_fits(self.share, nodes)
        at_work = sum(actor_handle.state is State.BUSY for actor_handle in self._members)
        self.num_wanted = min(
            self.share.num_fitting(nodes),
            self.config.num_workers or sys.maxsize,
            len(self._units) + at_work,
        )
        for actor_handle in self._members:
            if actor_handle.state is State.IDLE:
                actor_handle.state = State.BUSY
                self._listen(actor_handle)
        options = {
            "num_cpus": self.share.cpus,
            "num_gpus": self.share.gpus,
            "max_concurrency": 2,
            "scheduling_strategy": "SPREAD",
        }
        while len(self._members) < self.num_wanted:
            actor_handle = WorkerHandle(
                ray.remote(UnitActor)
                .options(**options)
                .remote(self._make_worker, self.share.device)
            )
            self._members.append(actor_handle)
            self._listen(actor_handle)
        if not self._said_waiting and time.monotonic() - self._began > BUSY_CLUSTER_SECONDS:
            self._said_waiting = True
            if all(actor_handle.state is State.STARTING for actor_handle in self._members):
                print_remark(
                    "no worker has started yet; is the whole cluster in use? Each worker needs"
                    f" {self.share}"
                )

    def _handle_lost_actor(self, actor_handle: WorkerHandle, error: RayError) -> None:
        """Put a lost actor's units at the end of the queue, so that one that kills its workers
        delays no other.

        Raises:
            LatentkitError: too many actors were lost, or they can't start.
        """
        self._members.remove(actor_handle)
        ray.kill(actor_handle.actor)
        self._units.extend(actor_handle.held)
        self._num_lost += 1
        reason = textwrap.shorten(str(error).strip().splitlines()[-1], 200)
        if isinstance(error, RayActorError) and error.actor_init_failed:
            advice = "install the same latentkit, latentkit-ray and plugins on every node"
            raise LatentkitError(f"ray: a worker can't start: {reason}; {advice}") from error
        names = ", ".join(unit.name for unit in actor_handle.held) or "no unit"
        if self._num_lost > self.config.retries * self.num_wanted:
            advice = "where memory ran out, lower batch_size or give each worker more of a node"
            raise LatentkitError(
                f"ray: {self._num_lost} workers were lost without a unit being finished in"
                f" between; the last had {names}: {reason}; {advice}"
            ) from error
        print_remark(f"lost a worker that had {names}, which goes to others: {reason}")

    def _stop_actors(self) -> None:
        """Interrupt what is running, and end all actors."""
        stopping = [
            actor_handle.actor.stop.remote().future()
            for actor_handle in self._members
            if actor_handle.state is State.BUSY
        ]
        wait(stopping, timeout=STOP_SECONDS)
        for actor_handle in self._members:
            ray.kill(actor_handle.actor)

    # ------------------------------------------------------------ what they print_remark

    def _listen(self, actor_handle: WorkerHandle, *given: Unit | None) -> None:
        """Wait for an actor's next event in the background."""
        # Waiting in Ray itself would lose the exceptions that signal handlers raise.
        future: Future[Event] = actor_handle.actor.next_event.remote(*given).future()
        future.add_done_callback(lambda done: self._inbox.put((actor_handle, done)))

    def _wait(self) -> Iterator[tuple[WorkerHandle, Future[Event]]]:
        """Yield events that have arrived; wait a while for the first."""
        try:
            yield self._inbox.get(timeout=TICK_SECONDS)
            while True:
                yield self._inbox.get_nowait()
        except Empty:
            return

    def _take(self, actor_handle: WorkerHandle, future: Future[Event]) -> Event | None:
        """Answer an actor, and return its event; None if the actor is lost."""
        try:
            event = future.result()
        except RayTaskError as error:
            cause = error.cause
            raise cause from (None if isinstance(cause, LatentkitError) else error)
        except RayError as error:
            self._handle_lost_actor(actor_handle, error)
            return None
        if event is Signal.ENDED:
            actor_handle.state = State.IDLE
            actor_handle.held.clear()
        elif event is Signal.WANTS:
            actor_handle.state = State.BUSY
            unit = self._units.popleft() if self._units else None
            actor_handle.held += [unit] if unit else []
            self._listen(actor_handle, unit)
        elif isinstance(event, UnitResult):
            self._num_lost = 0
            # Earlier units without a result belong to other processes, because results come in the
            # order of the units. If several encoders share a pass, each gives a result with its
            # own plan's number; the first has removed the unit from the list.
            numbers = [unit.number for unit in actor_handle.held]
            if event.unit.number in numbers:
                del actor_handle.held[: numbers.index(event.unit.number) + 1]
            self._listen(actor_handle)
        return event


def print_remark(text: str) -> None:
    """Print a remark for the user."""
    print(f"ray: {text}", file=sys.stderr, flush=True)
