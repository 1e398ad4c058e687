"""Training inside a program that has other things to do.

    python examples/embed.py

One task ticks every 10 ms, as a web server or an animation would. Next to it a model trains, and a third task watches
the run's events, pauses it, resumes it and stops it. In the end: how late the ticks were.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import asyncloop
from asyncloop import AfterEpoch, Paused, Resumed

CONFIG = Path(__file__).parent / "digits" / "cfg.toml"
TICK_S = 0.010


async def tick(lateness_s: list[float]) -> None:
    """Wake every 10 ms and note how late it was."""
    due = time.perf_counter()
    while True:
        due += TICK_S
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        lateness_s.append(time.perf_counter() - due)
        due = max(due, time.perf_counter() - TICK_S)


async def watch(run: asyncloop.Run) -> None:
    """Print events as they come; pause after epoch 3 for half a second, stop after epoch 8."""
    async for event in run.events(AfterEpoch, Paused, Resumed):
        if isinstance(event, AfterEpoch):
            valid = event.data["valid"]
            print(
                f"epoch {event.epoch:2}  step {event.step:4}  valid loss {valid['loss']:.3f}  accuracy {valid['accuracy']:.3f}"
            )
            if event.epoch == 3:
                run.control.pause()
            if event.epoch == 8:
                run.control.stop("eight epochs are enough for a demonstration")
        elif isinstance(event, Paused):
            print(f"paused after step {event.step}; the program goes on")
            await asyncio.sleep(0.5)
            run.control.resume()
        else:
            print("resumed")


async def main() -> None:
    lateness_s: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        ticking = tasks.create_task(tick(lateness_s))
        # a long run, to be stopped, without the hooks of its config: here only this program watches
        async with asyncloop.open_run(CONFIG, set={"engine.epochs": 1000, "hooks": []}) as run:
            await watch(run)
            result = await run
        ticking.cancel()
    lateness_ms = sorted(late * 1000 for late in lateness_s)
    print(f"{result.reason}: {result.epochs} epochs, {result.steps} steps, {result.dir}")
    print(
        f"{len(lateness_ms)} ticks, late by {lateness_ms[len(lateness_ms) // 2]:.2f} ms in the median, "
        f"{lateness_ms[int(len(lateness_ms) * 0.99)]:.2f} ms at p99, {lateness_ms[-1]:.2f} ms at most"
    )


if __name__ == "__main__":
    asyncio.run(main())
