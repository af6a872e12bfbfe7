"""The way of arrivals into an event loop, without a cluster."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from zray.runtime.futures import Events, Wish


class Nothing:
    """Futures whose values all lie in memory."""

    def __init__(self) -> None:
        self.watched: list[list[Wish]] = []

    def watch(self, wishes: list[Wish]) -> None:
        self.watched.append(wishes)

    def read_first(self, wish: Wish, ref: Any) -> bool:
        return False


def test_what_is_awaited_goes_and_comes_together() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls: list[Any] = []
        real = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args, **more: (calls.append(args), real(*args, **more))[1]  # type: ignore
        futures: Any = Nothing()
        events = Events(futures, loop)
        wishes = [Wish(events, object(), loop.create_future()) for _ in range(500)]  # type: ignore[arg-type]
        for wish in wishes:
            events.ask(wish)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert futures.watched == [wishes]
        wishes[7].take_back()
        thread = threading.Thread(target=lambda: [events.on_there(wish) for wish in wishes])
        thread.start()
        thread.join()  # the event loop did not turn meanwhile
        assert len(calls) == 1
        await asyncio.gather(*[wish.future for wish in wishes if wish is not wishes[7]])
        assert not wishes[7].future.done()

    asyncio.run(main())
