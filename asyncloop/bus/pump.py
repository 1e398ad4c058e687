"""Pump: carries what the model thread has finished to the hooks' mailboxes, and disturbs the model as little as can be.

    model thread ──► outbox (a deque) ──► one call on the loop for all that piled up ──► fan out

Waking a sleeping loop costs the thread that does it up to 70 µs, mostly in the kernel. So while steps are quick the
loop looks by itself every DELIVER_EVERY_S, and the thread wakes it only when the outbox fills or a step took longer.
Delivering is a function that the loop calls, not a task: while a model takes and drops the interpreter lock around each
of its operations, every further round of the loop costs the model a wait for that lock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import anyio

from asyncloop.batch import nbytes_of
from asyncloop.bus.finished import Finished, as_event, has_arrived
from asyncloop.bus.subscription import MAILBOX_BYTES, Marker
from asyncloop.events import AfterBatch, Event
from asyncloop.threads import Handful, LoopHandle, LoopSleeper, Notice, ThreadSleeper

__all__ = ["DELIVER_EVERY_S", "OUTBOX", "Pump"]

DELIVER_EVERY_S = 4e-3
"""Hooks hear of a step within this time, or right after it if it took longer."""
OUTBOX = 256
_FAN_OUT = 64


class Pump:
    """Owns the outbox. The model thread calls `post`, `handed_over`, `wake` and `wake_soon`; the rest is the loop's.

    `room()` says how many batches the mailboxes take, `fan_out` delivers those, `pass_on` anything else, and `fail` is
    told what they raise.
    """

    def __init__(
        self,
        loop: LoopHandle,
        room: Callable[[], int],
        fan_out: Callable[[list[AfterBatch]], None],
        pass_on: Callable[[Event | Marker], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self.outbox: deque[Event | Finished | Marker] = deque()
        self.post: Callable[[Finished | AfterBatch], None] = self.outbox.append
        """Hand over one batch from the model thread. Never waits; after as many as `handed_over` said, call it."""
        self._loop, self._room, self._fan_out, self._pass_on, self._fail = loop, room, fan_out, pass_on, fail
        self._handful = Handful(_FAN_OUT)
        self._called = False
        """Whether a call is on its way; nobody needs to ask for another."""
        self._blocked = False
        """Whether some mailbox is full; the next call comes when it is not."""
        self._awaited = False
        """Whether the oldest batch waits for values from a device; the next look comes by itself."""
        self._closed = False
        self._ticking = False
        """Whether the loop looks by itself every now and then."""
        self._thread = ThreadSleeper()
        self._released = False
        self._most = OUTBOX
        """How many events may wait in the outbox; less than OUTBOX when they are large. Written by the model thread."""
        self._ticker = LoopSleeper(loop)
        self._emptied = Notice()

    # --- from the model thread ----------------------------------------------------------------------------------

    def handed_over(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, soon: bool) -> int:
        """After posting a batch with these inputs and outputs: have it delivered, and sleep while the outbox is full.

        `soon`: within DELIVER_EVERY_S will do, unless the outbox is half full. Returns how many more may be posted
        before this is called again.
        """
        n_bytes = nbytes_of(inputs, outputs)
        self._most = most = min(OUTBOX, max(MAILBOX_BYTES // n_bytes, 2)) if n_bytes else OUTBOX
        if soon and len(self.outbox) * 2 < most:
            self.wake_soon()
        else:
            self.wake()
        while self._must_wait():
            self._thread.asleep = True
            self.wake()
            if self._must_wait():
                self._thread.sleep(0.5)
            self._thread.asleep = False
        return most // 2

    def _must_wait(self) -> bool:
        return len(self.outbox) >= self._most and not self._closed and not self._released

    def wake(self) -> None:
        """Have everything posted so far delivered. Thread-safe."""
        if not self._called:
            self._called = True
            self._loop.soon(self._deliver)

    def wake_soon(self) -> None:
        """Have it delivered within DELIVER_EVERY_S. Costs the thread nothing while the loop looks by itself."""
        if self.outbox and not self._ticking and self._ticker.asleep:
            self._ticker.wake()

    def release_thread(self, released: bool) -> None:
        """While released, the thread never waits for room: the run is being stopped or has failed. Thread-safe."""
        self._released = released
        if released:
            self._thread.wake()

    # --- on the loop --------------------------------------------------------------------------------------------

    def put(self, entry: Event | Marker) -> None:
        """Something that is no batch; it is delivered behind the batches before it."""
        self.outbox.append(entry)
        self.wake()

    async def flush(self) -> None:
        """Wait until everything posted has reached the mailboxes."""
        while self.outbox and not self._closed:
            self.wake()
            await self._emptied.wait()

    def room_freed(self) -> None:
        """Some mailbox has room again."""
        if self._blocked:
            self._blocked = False
            self.wake()

    def drop(self) -> None:
        """Forget what was not delivered yet."""
        self.outbox.clear()
        self._blocked = False
        self._emptied.tell()
        self._thread.wake()

    def close(self) -> None:
        self._closed = True
        self._thread.wake()
        self._emptied.tell()

    async def tick(self) -> None:
        """The task that looks every DELIVER_EVERY_S, for as long as it finds something. Runs until cancelled."""
        while True:
            self._ticker.asleep = True
            if not self.outbox:
                await self._ticker.sleep()
            self._ticking, self._ticker.asleep = True, False
            while self.outbox:
                self._deliver()
                await anyio.sleep(DELIVER_EVERY_S)
            self._ticking = False

    def _deliver(self) -> None:
        """One handful of batches, or whatever stands before them; the rest in the next round of the loop."""
        self._called = self._blocked = self._awaited = False
        try:
            self._deliver_some()
        except Exception as error:  # nobody waits for a call of the loop's, so it would be lost
            self._fail(error)
        if not self.outbox:
            self._emptied.tell()
        elif self._awaited:
            self.wake_soon()
        elif not self._blocked:
            self.wake()
        if self._thread.asleep and len(self.outbox) * 2 <= self._most:
            self._thread.wake()

    def _deliver_some(self) -> None:
        outbox = self.outbox
        while outbox and not self._closed:
            entry = outbox[0]
            if isinstance(entry, tuple | AfterBatch):
                room = self._room()
                if room <= 0:
                    self._blocked = True
                    return
                events = self._take(min(room, self._handful.size))
                if not events:
                    self._awaited = True
                    return
                began_s = time.perf_counter()
                self._fan_out(events)
                self._handful.took(len(events), time.perf_counter() - began_s)
                return
            outbox.popleft()
            self._pass_on(entry)

    def _take(self, most: int) -> list[AfterBatch]:
        """Up to `most` batches from the front of the outbox, as events; those after one that is awaited stay."""
        outbox = self.outbox
        events: list[AfterBatch] = []
        for _ in range(min(most, len(outbox))):
            entry = outbox[0]
            if isinstance(entry, tuple):
                events.append(as_event(entry))
            elif isinstance(entry, AfterBatch) and has_arrived(entry):
                events.append(entry)
            else:
                break
            outbox.popleft()
        return events
