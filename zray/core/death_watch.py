"""DeathWatch: which processes have ended, and who wants to know of which process's end.

Theory of operation
-------------------
A process asks its agent to watch another when it first deals with it, and is told once, with WorkerDied, when that has ended.
Processes of other nodes are watched by the agents there: this agent asks them once for each process, as a watcher among others,
and hears ProcessGone. When a whole node ends, so have all its processes, those included that nobody here has met yet.

The latest deaths are remembered, since what a process has said, or what was made for it, may come after its end. Who asks for an
earlier one hears of it all the same: the agent of its node knows that it does not live there. Only of nodes that ended nobody
else can say so; there are far fewer of them, and they are counted apart.

A node can be so new that this agent has not heard of it when one of its processes is met. It will: a new agent is told of all
nodes there are or were. Until then the question waits.
"""

from __future__ import annotations

from collections.abc import Callable

from zray.base.ids import agent_of
from zray.base.wire import WatchProcess, WorkerDied
from zray.base.wire_nodes import ProcessGone
from zray.core.effects import SEND, Effect
from zray.core.neighbours import DEAD_NODES_MAX
from zray.exceptions import InvariantError

_DEAD_MAX = 10_000  # processes that are remembered: nothing is on its way for as long as it takes so many to end


class DeathWatch:
    """The watchers that one agent knows.

    Args:
        me: process id of the agent.
        out: where effects go.
        lives_here: tells whether a process lives on this node.
        knows: tells whether an agent is that of another node that lives.
    """

    __slots__ = ("_dead_agents", "_early", "_knows", "_lives_here", "_me", "_out", "_watchers", "_watching", "dead")

    def __init__(
        self, me: bytes, out: list[Effect], lives_here: Callable[[bytes], bool], knows: Callable[[bytes], bool]
    ) -> None:
        self._me = me
        self._out = out
        self._lives_here = lives_here
        self._knows = knows
        self._watching: dict[bytes, dict[bytes, None]] = {}  # process -> those that it wants to be watched
        self._watchers: dict[bytes, dict[bytes, None]] = {}  # process -> those that want it to be watched
        self._early: dict[bytes, dict[tuple[bytes, bytes], None]] = {}  # agents not heard of yet -> (watcher, process)
        self.dead: dict[bytes, str] = {}  # processes that ended lately, and how
        self._dead_agents: dict[bytes, str] = {}  # agents, which stand for all of their node

    def is_dead(self, process: bytes) -> bool:
        """Whether a process has ended, as far as is known here, or its node has."""
        return process in self.dead or agent_of(process) in self._dead_agents

    def note(self, process: bytes, reason: str) -> bool:
        """A process has ended; whether that is news."""
        is_agent = agent_of(process) == process
        table, most = (self._dead_agents, DEAD_NODES_MAX) if is_agent else (self.dead, _DEAD_MAX)
        if process in table:
            return False
        table[process] = reason
        if len(table) > most:
            del table[next(iter(table))]
        return True

    def watch(self, watcher: bytes, process: bytes) -> None:
        """Tell ``watcher`` when ``process`` ends, or that it has."""
        agent = agent_of(process)
        if self.is_dead(process):
            self.tell(watcher, process, self.dead.get(process) or self._dead_agents[agent])
        elif agent != self._me and not self._knows(agent):
            self._early.setdefault(agent, {})[watcher, process] = None
        elif agent == self._me and process != agent and not self._lives_here(process):
            self.tell(watcher, process, "it ended earlier")
        else:
            if agent not in (self._me, process) and process not in self._watchers:
                self._out.append((SEND, agent, WatchProcess(process)))
            self._watching.setdefault(watcher, {})[process] = None
            self._watchers.setdefault(process, {})[watcher] = None

    def heard_of(self, agent: bytes) -> None:
        """There is a node of this agent, or there was."""
        for watcher, process in self._early.pop(agent, ()):
            if not self.is_dead(watcher):
                self.watch(watcher, process)

    def tell(self, watcher: bytes, process: bytes, reason: str) -> None:
        """A process is gone."""
        if watcher == self._me:
            return  # it knows
        message = ProcessGone(process, reason) if watcher == agent_of(watcher) else WorkerDied(process, reason)
        self._out.append((SEND, watcher, message))

    def ended(self, process: bytes, reason: str) -> None:
        """A process is gone: those who wanted to know are told, and nothing is told to it any more."""
        self.note(process, reason)
        for watched in self._watching.pop(process, ()):
            self._watchers[watched].pop(process)
            if not self._watchers[watched]:
                del self._watchers[watched]
        for watcher in self._watchers.pop(process, ()):
            self._watching[watcher].pop(process)
            self.tell(watcher, process, reason)

    def of_node(self, agent: bytes) -> list[bytes]:
        """The processes of a node that somebody here has to do with."""
        known = dict.fromkeys([*self._watchers, *self._watching])
        return [process for process in known if agent_of(process) == agent]

    def check(self) -> None:
        """Assert the invariants."""
        pairs = [(watcher, process) for watcher, all_of in self._watching.items() for process in all_of]
        for watcher, process in pairs:
            if watcher not in self._watchers.get(process, {}):
                raise InvariantError(f"a watcher of {process.hex()} is listed on one side only")
        if len(pairs) != sum(len(watchers) for watchers in self._watchers.values()):
            raise InvariantError("more watchers are listed than processes watched")

    def statistics(self) -> dict[str, int]:
        return {"processes_watched": len(self._watchers)}
