"""The driver's half: who is working on which units, and what happens when somebody is lost."""

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
from latentkit_ray.cluster import Share, check_room, living_nodes
from latentkit_ray.plugin import RayConfig

TICK_SECONDS = 1.0
"""How often the nodes are looked at when nothing happens."""

BUSY_CLUSTER_SECONDS = 30.0
"""When no actor has started for so long, the user is told."""

STOP_SECONDS = 20.0
"""Workers get so long to drop what they have in hand, before their processes are killed."""


class State(Enum):
    """What an actor is doing, as far as the driver knows."""

    STARTING = "it waits for its share, or loads"
    BUSY = "its worker runs"
    IDLE = "its worker has ended"


@dataclass(eq=False)
class WorkerHandle:
    """One actor, with the units that it got and that may not be finished, in the order it got them.
    """

    actor: Any
    state: State = State.STARTING
    held: list[Unit] = field(default_factory=list)


class WorkerPool:
    """Actors that share out units among them.

    Args:
        config: how many, and how many may be lost.
        share: what each takes of a node.
        make_worker: as an executor gets it.
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
        """Results as they come; units that another process has or did give none.

        Raises:
            LatentkitError: of a worker; or workers are lost again and again, or can't start.
            RecipeError: no node has room for a worker any more.
        """
        self._units.extend(units)
        try:
            while self._units or any(member.state is State.BUSY for member in self._members):
                if self._units:
                    self._hire()
                # All are answered before a result is given away, so that nobody waits for what its
                # receiver does.
                events = [self._take(member, future) for member, future in self._wait()]
                yield from (event for event in events if isinstance(event, UnitResult))
        finally:
            self._dismiss()

    # ------------------------------------------------------------ who is there

    def _hire(self) -> None:
        """As many actors as the living nodes have room for and units are left for."""
        nodes = living_nodes()
        check_room(self.share, nodes)
        at_work = sum(member.state is State.BUSY for member in self._members)
        self.num_wanted = min(
            self.share.num_fitting(nodes),
            self.config.num_workers or sys.maxsize,
            len(self._units) + at_work,
        )
        for member in self._members:
            if member.state is State.IDLE:
                member.state = State.BUSY
                self._listen(member)
        options = {
            "num_cpus": self.share.cpus,
            "num_gpus": self.share.gpus,
            "max_concurrency": 2,
            "scheduling_strategy": "SPREAD",
        }
        while len(self._members) < self.num_wanted:
            member = WorkerHandle(
                ray.remote(UnitActor)
                .options(**options)
                .remote(self._make_worker, self.share.device)
            )
            self._members.append(member)
            self._listen(member)
        if not self._said_waiting and time.monotonic() - self._began > BUSY_CLUSTER_SECONDS:
            self._said_waiting = True
            if all(member.state is State.STARTING for member in self._members):
                say(
                    "no worker has started yet; is all of the cluster in use? Each needs"
                    f" {self.share}"
                )

    def _lose(self, member: WorkerHandle, error: RayError) -> None:
        """Put a lost actor's units back; they are taken last, so that one that kills its worker
        holds up no other.

        Raises:
            LatentkitError: too many were lost, or they can't start.
        """
        self._members.remove(member)
        ray.kill(member.actor)
        self._units.extend(member.held)
        self._num_lost += 1
        reason = textwrap.shorten(str(error).strip().splitlines()[-1], 200)
        if isinstance(error, RayActorError) and error.actor_init_failed:
            advice = "install the same latentkit, latentkit-ray and plugins on every node"
            raise LatentkitError(f"ray: a worker can't start: {reason}; {advice}") from error
        names = ", ".join(unit.name for unit in member.held) or "no unit"
        if self._num_lost > self.config.retries * self.num_wanted:
            advice = "where memory ran out, lower batch_size or give each worker more of a node"
            raise LatentkitError(
                f"ray: {self._num_lost} workers were lost and no unit was finished between; the"
                f" last had {names}: {reason}; {advice}"
            ) from error
        say(f"lost a worker that had {names}, which goes to others: {reason}")

    def _dismiss(self) -> None:
        """Break off what is running, and end all actors."""
        stopping = [
            member.actor.stop.remote().future()
            for member in self._members
            if member.state is State.BUSY
        ]
        wait(stopping, timeout=STOP_SECONDS)
        for member in self._members:
            ray.kill(member.actor)

    # ------------------------------------------------------------ what they say

    def _listen(self, member: WorkerHandle, *given: Unit | None) -> None:
        # Waiting in Ray itself would lose the exceptions that signal handlers raise.
        future: Future[Event] = member.actor.next_event.remote(*given).future()
        future.add_done_callback(lambda done: self._inbox.put((member, done)))

    def _wait(self) -> Iterator[tuple[WorkerHandle, Future[Event]]]:
        """What has come in; waits a while for the first."""
        try:
            yield self._inbox.get(timeout=TICK_SECONDS)
            while True:
                yield self._inbox.get_nowait()
        except Empty:
            return

    def _take(self, member: WorkerHandle, future: Future[Event]) -> Event | None:
        """What an actor said, answered; None when it is lost."""
        try:
            event = future.result()
        except RayTaskError as error:
            cause = error.cause
            raise cause from (None if isinstance(cause, LatentkitError) else error)
        except RayError as error:
            self._lose(member, error)
            return None
        if event is Signal.ENDED:
            member.state = State.IDLE
            member.held.clear()
        elif event is Signal.WANTS:
            member.state = State.BUSY
            unit = self._units.popleft() if self._units else None
            member.held += [unit] if unit else []
            self._listen(member, unit)
        elif isinstance(event, UnitResult):
            self._num_lost = 0
            # Those before it that gave no result are somebody else's: results come in the order of
            # the units. Where several encoders share a pass, each of them gives a result, under its
            # own plan's number; the first has taken the unit off the list.
            numbers = [unit.number for unit in member.held]
            if event.unit.number in numbers:
                del member.held[: numbers.index(event.unit.number) + 1]
            self._listen(member)
        return event


def say(text: str) -> None:
    """A remark for the user."""
    print(f"ray: {text}", file=sys.stderr, flush=True)
