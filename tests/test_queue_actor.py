"""The actor behind a queue, by itself in one loop, without a cluster: random callers that give up at random moments."""

from __future__ import annotations

import asyncio
import functools
import random

import pytest

from zray.util.queue import Empty, Full, _QueueActor

PATIENCE_S = 30.0  # only a broken test waits this long


class Crowd:
    """Callers of one queue: they put or get, and at random they lose patience."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.actor = _QueueActor(3)
        self.given_up: set[int] = set()
        self.confirmed: list[int] = []  # these are in the queue, or were
        self.possible: set[int] = set()  # these may be
        self.taken: list[int] = []

    async def give_up(self, number: int) -> None:
        self.given_up.add(number)
        if str(number) in self.actor._putters:
            self.possible.discard(number)
        await self.actor.give_up(str(number))

    async def call(self, number: int) -> None:
        putting = self.dice.random() < 0.5
        timeout = self.dice.choice([None, None, 0, 0.001])
        if putting:
            self.possible.add(number)
        method = functools.partial(self.actor.put, number) if putting else self.actor.get
        call = asyncio.ensure_future(method(timeout, str(number)))
        for _ in range(self.dice.randrange(5)):
            await asyncio.sleep(0)
        end = self.dice.choice(["stay", "stay", "give up", "cancel"])
        if end == "give up":
            await self.give_up(number)
        elif end == "cancel":
            call.cancel()
        try:
            answer = await call
        except (Empty, Full, asyncio.CancelledError):
            return
        if number not in self.given_up:
            (self.confirmed if putting else self.taken).append(number if putting else answer)
        elif not putting:
            await self.actor.take_back(answer)

    async def run(self) -> list[int]:
        """Whatever came out of the queue, or is left in it."""
        calls = [asyncio.ensure_future(self.call(number)) for number in range(500)]
        for _ in range(50):
            await asyncio.sleep(0)
            getters, putters = await self.actor.blocked()
            assert not getters or (await self.actor.empty() and not putters)
            assert not putters or await self.actor.full()
        for number in range(500):
            await self.give_up(number)
        await asyncio.gather(*calls)
        assert await self.actor.blocked() == (0, 0)
        return self.taken + await self.actor.get_nowait_batch(await self.actor.qsize())


@pytest.mark.parametrize("seed", range(8))
def test_items_are_neither_lost_nor_doubled_whoever_gives_up_when(seed: int) -> None:
    crowd = Crowd(seed)
    found = asyncio.run(asyncio.wait_for(crowd.run(), PATIENCE_S))
    assert crowd.taken and len(crowd.confirmed) > 10
    assert len(found) == len(set(found))
    assert set(crowd.confirmed) <= set(found) <= crowd.possible
