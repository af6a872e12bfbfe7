"""ActorManager: the life of every actor of the cluster, from its registration to its death.

Theory of operation
-------------------
An actor is *registered* by its owner, the process that called ``Cls.remote()``: from then on its name is taken and
handles of it can be looked up. When the arguments of its constructor are there, the owner sends the constructor's call
(``creation``, which nobody reads here), and the actor is *placed*: a node agent finds a worker and tells it to become
the actor. The worker reports when the constructor has returned; only then callers are told where the actor is. They talk to
it directly: nothing here is on the path of a call.

Whoever wants to call an actor *subscribes* to it and hears where it is, now and at each change. An *incarnation* is one process
of an actor; words about an earlier one are ignored.

When its process ends, an actor with restarts left is placed again with the same creation: at once the first time, and after
a delay that doubles each time when it keeps dying young. It is dead for good when it was killed, ended itself, failed in its
constructor, has no handle left anywhere, or when its job or its owner ended; a *detached* actor outlives these last three,
once the arguments of its constructor are there. The reason of a death is kept as the error that every later call gets; of the
oldest dead nothing is remembered.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from zray.base.config import Config
from zray.base.ids import agent_of
from zray.base.resources import ResourceSet
from zray.base.wire import Reply
from zray.base.wire_actors import ActorUpdated, EndActor, Notice, PlaceActor
from zray.core.actor import Actor, ActorState, changed, saved
from zray.core.actor_places import ELSEWHERE, INFEASIBLE, WAITING, Member, Place
from zray.core.actor_rows import explained, found, row_of, update_of
from zray.core.effects import AFTER_PERSIST, PERSIST, SEND, TIMER, Effect
from zray.exceptions import ActorDiedError, ActorUnavailableError, ActorUnschedulableError, InvariantError, RayError

RESTART_TIMER = "actors.restart"
INFEASIBLE_TIMER = "actors.infeasible"
UNKNOWN_TIMER = "actors.unknown"


class ActorManager:
    """All actors of the cluster.

    Args:
        config: limits.
        out: where effects go.
        choose_node: a place for what the node of an actor must have, by its strategy.
        told: called with the time and the id of an actor that is dead for good.
    """

    __slots__ = (
        "_by_agent",
        "_choose_node",
        "_config",
        "_dead",
        "_ended",
        "_killed",
        "_out",
        "_subscriptions",
        "_told",
        "_unknown",
        "actors",
        "names",
    )

    def __init__(
        self,
        config: Config,
        out: list[Effect],
        choose_node: Callable[[dict[str, int], tuple[Any, ...]], Place],
        told: Callable[[float, bytes], None] = lambda now, actor_id: None,
    ) -> None:
        self._config = config
        self._out = out
        self._choose_node = choose_node
        self._told = told
        self._by_agent: dict[bytes, dict[bytes, Actor]] = {}  # those that live, by their places; b"": they have none
        self._dead: dict[bytes, None] = {}  # the dead that are remembered, the oldest first
        self._ended: dict[bytes, None] = {}  # processes: what they have sent may arrive later
        self._killed: dict[bytes, None] = {}  # actors that were not registered yet
        self._subscriptions: dict[bytes, dict[bytes, None]] = {}  # process -> actors
        self._unknown: dict[bytes, dict[bytes, None]] = {}  # actors asked for before their registration
        self.actors: dict[bytes, Actor] = {}
        self.names: dict[tuple[str, str], Actor] = {}  # (namespace, name) of those that live

    # -- what owners and callers ask for --------------------------------------------------------------------------

    def on_register_actor(
        self,
        now: float,
        peer: bytes,
        request_id: int,
        actor_id: bytes,
        job_id: bytes,
        endpoint: str,
        handle_id: bytes,
        class_name: str,
        name: str,
        namespace: str,
        detached: bool,
        get_if_exists: bool,
        max_restarts: int,
        placement: dict[str, int],
        resources: dict[str, int],
        description: bytes,
        strategy: tuple[Any, ...] = ("default",),
    ) -> None:
        if actor_id in self.actors:
            self._register_again(peer, request_id, self.actors[actor_id])
            return
        known = self.names.get((namespace, name)) if name else None
        if known is not None:
            text = f"the name {name!r} is taken in namespace {namespace!r} by {known.title()}"
            reply = Reply(request_id, True, found(known)) if get_if_exists else Reply(request_id, False, text)
            self._out.append((SEND, peer, reply))
            return
        actor = Actor(actor_id, job_id, (peer, endpoint))
        actor.handle_id = handle_id
        actor.class_name = class_name
        actor.name = name
        actor.namespace = namespace
        actor.detached = detached
        actor.max_restarts = max_restarts
        actor.placement = placement
        actor.resources = resources
        actor.description = description
        actor.strategy = strategy
        self.actors[actor_id] = actor
        self._by_agent.setdefault(b"", {})[actor_id] = actor
        if name:
            self.names[namespace, name] = actor
        self._subscribe(peer, actor)
        for waiting in self._unknown.pop(actor_id, ()):
            self._subscribe(waiting, actor)
        self._out.append((PERSIST, "save_actor", saved(actor)))
        self._out.append((AFTER_PERSIST, peer, Reply(request_id, True, None)))
        if self._has_ended(peer):
            self._end(now, actor, "the process that created it ended", force=True)
        elif actor_id in self._killed:
            del self._killed[actor_id]
            self._end(now, actor, "zray.kill() was called on it", force=True)

    def _register_again(self, peer: bytes, request_id: int, actor: Actor) -> None:
        """The answer may have been lost with an earlier control."""
        if actor.owner[0] != peer:
            return  # nobody else registers it
        self._out.append((AFTER_PERSIST, peer, Reply(request_id, True, None)))
        if actor.state is ActorState.DEAD:
            self._tell(peer, update_of(actor))
        else:
            self._subscribe(peer, actor)

    def on_create_actor(self, now: float, peer: bytes, actor_id: bytes, creation: bytes, error: bytes) -> None:
        actor = self.actors.get(actor_id)
        if actor is None or actor.state is not ActorState.DEPENDENCIES_UNREADY:
            return
        if error:
            actor.error = error
            self._end(now, actor, "an argument of its constructor is an error", force=True, error=None)
            return
        actor.creation = creation
        actor.move("created")
        self._out.append((PERSIST, "save_creation", (creation, actor_id)))
        self._out.append((PERSIST, "update_actor", changed(actor)))
        self._place(now, actor)

    def on_subscribe_actor(self, now: float, peer: bytes, actor_id: bytes) -> None:
        if self._has_ended(peer):
            return
        actor = self.actors.get(actor_id)
        if actor is not None:
            if actor.state is not ActorState.DEAD:
                self._subscribe(peer, actor)
            if actor.state is not ActorState.DEPENDENCIES_UNREADY:
                self._tell(peer, update_of(actor))
            return
        if actor_id not in self._unknown:
            at = now + self._config.function_fetch_timeout_s
            self._out.append((TIMER, at, (UNKNOWN_TIMER, actor_id)))
        self._unknown.setdefault(actor_id, {})[peer] = None

    def on_unsubscribe_actor(self, now: float, peer: bytes, actor_id: bytes) -> None:
        self._unknown.get(actor_id, {}).pop(peer, None)
        actor = self.actors.get(actor_id)
        if actor is not None and actor.owner[0] != peer:  # an owner's end ends the actor: that must be noticed
            actor.subscribers.pop(peer, None)
            self._subscriptions.get(peer, {}).pop(actor_id, None)

    def on_kill_actor(self, now: float, peer: bytes, actor_id: bytes, no_restart: bool, incarnation: int = 0) -> None:
        actor = self.actors.get(actor_id)
        if actor is None:
            if no_restart:  # a handle may travel faster than the registration
                self._remember(self._killed, actor_id)
        elif actor.state is ActorState.DEAD:
            return
        elif no_restart:
            self._end(now, actor, "zray.kill() was called on it", force=True)
        elif actor.agent and incarnation in (0, actor.incarnation):
            self._tell(actor.agent, EndActor(actor_id, actor.incarnation, True))

    def on_get_actor(self, now: float, peer: bytes, request_id: int, name: str, namespace: str) -> None:
        actor = self.names.get((namespace, name))
        if actor is not None:
            self._out.append((SEND, peer, Reply(request_id, True, found(actor))))
            return
        others = sorted(n for space, n in self.names if space == namespace)[:10]
        known = f"its actors are {', '.join(map(repr, others))}" if others else "it has no named actors"
        text = f"there is no actor named {name!r} in namespace {namespace!r}: {known}"
        self._out.append((SEND, peer, Reply(request_id, False, text)))

    def on_list_actors(self, now: float, peer: bytes, request_id: int) -> None:
        self._out.append((SEND, peer, Reply(request_id, True, [row_of(actor) for actor in self.actors.values()])))

    def on_explain_actor(self, now: float, peer: bytes, request_id: int, actor_id: bytes) -> None:
        self._out.append((SEND, peer, Reply(request_id, True, explained(self.actors.get(actor_id)))))

    def on_actor_out_of_scope(self, now: float, peer: bytes, actor_id: bytes) -> None:
        actor = self.actors.get(actor_id)
        if actor is not None and actor.state is not ActorState.DEAD and not actor.detached:
            self._end(now, actor, "its last handle went out of scope; an actor lives as long as a handle of it", force=False)

    # -- what becomes of it ---------------------------------------------------------------------------------------

    def on_actor_placed(
        self,
        now: float,
        peer: bytes,
        actor_id: bytes,
        incarnation: int,
        node_id: bytes,
        worker_id: bytes,
        endpoint: str,
        pid: int,
    ) -> None:
        actor = self._placed(actor_id, incarnation)
        if actor is None:
            return
        actor.node_id = node_id
        actor.worker_id = worker_id
        actor.endpoint = endpoint
        actor.pid = pid
        actor.infeasible = ""
        if actor.early is not None:
            self.on_actor_started(now, actor.early[0], actor_id, incarnation, actor.early[1])

    def on_actor_refused(
        self, now: float, peer: bytes, actor_id: bytes, incarnation: int, kind: str, reason: str
    ) -> None:
        actor = self._placed(actor_id, incarnation)
        if actor is None:
            return
        self._move(actor, b"")
        if kind == ELSEWHERE:
            self._place(now, actor)
        else:
            self._wait(now, actor, kind, reason)

    def on_actor_started(self, now: float, peer: bytes, actor_id: bytes, incarnation: int, error: bytes) -> None:
        """The constructor is over."""
        actor = self._placed(actor_id, incarnation)
        if actor is None or actor.state is ActorState.ALIVE:
            return
        if not actor.worker_id:
            actor.early = (peer, error)  # its agent has still to say where that is
            return
        if peer != actor.worker_id:
            return
        if error:
            actor.error = error
            self._end(now, actor, "its constructor raised an error", force=False, error=None)
            return
        actor.error = b""
        actor.started_at = now
        actor.move("started")
        self._changed(actor)

    def on_actor_lost(
        self, now: float, peer: bytes, actor_id: bytes, incarnation: int, reason: str, willing: bool = False
    ) -> None:
        """The process of an actor is gone; by its own will, it does not come back."""
        actor = self._placed(actor_id, incarnation)
        if actor is None:
            return
        self._move(actor, b"")
        if willing:
            self._end(now, actor, reason, force=True)
        elif 0 <= actor.max_restarts <= actor.restarts:
            allowed = f"it was restarted {actor.restarts} time(s)" if actor.restarts else "it may not be restarted"
            self._end(now, actor, f"{reason}; {allowed}, max_restarts allows more", force=True)
        else:
            self._restart(now, actor, reason)

    def process_ended(self, now: float, process: bytes) -> None:
        """A driver or worker is gone: nothing is told to it any more, and the actors it owned end."""
        self._remember(self._ended, process)
        for actor_id in self._subscriptions.pop(process, ()):
            actor = self.actors.get(actor_id)
            if actor is not None:
                actor.subscribers.pop(process, None)
                stays = actor.detached and actor.state is not ActorState.DEPENDENCIES_UNREADY
                if actor.owner[0] == process and not stays:
                    self._end(now, actor, "the process that created it ended", force=True)
        for waiting in self._unknown.values():
            waiting.pop(process, None)

    def owned_by(self, process: bytes) -> list[tuple[bytes, bytes, str]]:
        """The actors of an owner that live."""
        owned = [self.actors[actor_id] for actor_id in self._subscriptions.get(process, ())]
        return [(actor.id, actor.handle_id, actor.state.name) for actor in owned if actor.owner[0] == process]

    def restore(self, actor: Actor) -> None:
        """An actor that an earlier control process knew."""
        self.actors[actor.id] = actor
        if actor.state is ActorState.DEAD:
            self._dead[actor.id] = None
            return
        self._by_agent.setdefault(actor.agent, {})[actor.id] = actor
        if actor.name:
            self.names[actor.namespace, actor.name] = actor
        self._subscribe(actor.owner[0], actor)

    def place_again(self, now: float, actor: Actor) -> None:
        """Its node never heard that it was placed there."""
        self._tell(actor.agent, EndActor(actor.id, actor.incarnation, True))
        self._move(actor, b"")
        self._place(now, actor)

    def place_waiting(self, now: float) -> None:
        """There are nodes for those that wait for one."""
        for actor in self._unplaced():
            self._place(now, actor)

    def jobs(self) -> set[bytes]:
        """Those that have actors that live."""
        return {actor.job_id for actors in self._by_agent.values() for actor in actors.values()}

    def count_by_agent(self) -> dict[bytes, int]:
        """How many actors each node has or is to have."""
        return {agent: len(actors) for agent, actors in self._by_agent.items()}

    def placed_at(self, agent: bytes) -> list[Actor]:
        """The actors that a node has or is to have."""
        return list(self._by_agent.get(agent, {}).values())

    def node_ended(self, now: float, agent: bytes, reason: str) -> None:
        """A node is dead: the actors that were there are placed elsewhere if they may; those end whose owners were there."""
        self._remember(self._ended, agent)
        for process in [process for process in self._subscriptions if agent_of(process) == agent]:
            self.process_ended(now, process)
        for actor in self.placed_at(agent):
            if actor.agent == agent:  # still
                self.on_actor_lost(now, agent, actor.id, actor.incarnation, reason)

    def members(self, group_id: bytes) -> list[Member]:
        """The actors that have, or are to have, their place in a placement group."""
        return [
            Member(agent, actor.strategy[2], ResourceSet(actor.resources))
            for agent, actors in self._by_agent.items()
            for actor in actors.values()
            if agent and actor.strategy[:2] == ("bundle", group_id)
        ]

    def group_changed(self, now: float, group_id: bytes) -> None:
        """A placement group has its places, or is gone."""
        for actor in self._unplaced():
            if actor.strategy[:2] == ("bundle", group_id):
                self._place(now, actor)

    def node_joined(self, now: float) -> None:
        """What no other node can run may run on the new one."""
        for actor in self._unplaced():
            if actor.infeasible and self._choose_node(actor.placement, actor.strategy).agent:
                self._place(now, actor)

    def _unplaced(self) -> list[Actor]:
        waits = (ActorState.PENDING_CREATION, ActorState.RESTARTING)
        return [actor for actor in self.placed_at(b"") if actor.state in waits]

    def job_finished(self, now: float, job_id: bytes) -> None:
        """A job is over: its actors end, except the detached ones."""
        living = [actor for actors in self._by_agent.values() for actor in actors.values()]
        for actor in living:
            if actor.job_id == job_id and not actor.detached and actor.state is not ActorState.DEAD:
                self._end(now, actor, "its job ended", force=True)

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None:
        if key[0] == UNKNOWN_TIMER:
            text = f"actor {key[1].hex()} is unknown: it died long ago, or the process that created it ended at once"
            error = pickle.dumps(ActorDiedError(text, key[1].hex()), 5)
            for peer in self._unknown.pop(key[1], ()):
                self._out.append((SEND, peer, ActorUpdated(key[1], ActorState.DEAD.name, 0, b"", "", error)))
            return
        actor = self._current(key[1], key[2])
        if actor is None or actor.agent:
            return
        if key[0] == INFEASIBLE_TIMER and self._config.infeasible != "wait":
            text = f"no node can run it: {actor.infeasible}"
            self._end(now, actor, text, force=True, error=ActorUnschedulableError)
        else:
            self._place(now, actor)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _current(self, actor_id: bytes, incarnation: int) -> Actor | None:
        """The actor, if it lives and the word is about its present incarnation."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.incarnation != incarnation or actor.state is ActorState.DEAD:
            return None
        return actor

    def _placed(self, actor_id: bytes, incarnation: int) -> Actor | None:
        """The actor, if the word is about the process that it has now, or will have."""
        actor = self._current(actor_id, incarnation)
        return actor if actor is not None and actor.agent else None

    def _has_ended(self, process: bytes) -> bool:
        """Whether a process, or its node, is known to be gone."""
        return process in self._ended or agent_of(process) in self._ended

    def _remember(self, table: dict[bytes, None], id: bytes) -> None:
        """Note what may matter for something that is still on its way."""
        table[id] = None
        if len(table) > self._config.dead_actors_max:
            del table[next(iter(table))]

    def _subscribe(self, peer: bytes, actor: Actor) -> None:
        if not self._has_ended(peer):
            actor.subscribers[peer] = None
            self._subscriptions.setdefault(peer, {})[actor.id] = None

    def _place(self, now: float, actor: Actor) -> None:
        """Have a worker become the actor: a new incarnation."""
        agent, kind, reason = self._choose_node(actor.placement, actor.strategy)
        if not agent:
            self._wait(now, actor, kind, reason)
            return
        actor.incarnation += 1
        self._move(actor, agent)
        place = PlaceActor(
            actor.id,
            actor.incarnation,
            actor.job_id,
            actor.detached,
            actor.placement,
            actor.resources,
            actor.max_restarts != 0,
            actor.creation,
            actor.strategy,
        )
        self._out.append((PERSIST, "update_actor", changed(actor)))
        self._tell(agent, place)

    def _move(self, actor: Actor, agent: bytes) -> None:
        """An actor has another place, or none."""
        self._leave(actor)
        actor.agent = agent
        self._by_agent.setdefault(agent, {})[actor.id] = actor

    def _leave(self, actor: Actor) -> None:
        here = self._by_agent[actor.agent]
        del here[actor.id]
        if not here:
            del self._by_agent[actor.agent]

    def _wait(self, now: float, actor: Actor, kind: str, reason: str) -> None:
        """There is no place for it now, or there will never be one."""
        grace_s = self._config.infeasible_grace_s
        if kind == WAITING:
            self._out.append((TIMER, now + grace_s, (RESTART_TIMER, actor.id, actor.incarnation)))
        elif kind != INFEASIBLE:
            self._end(now, actor, reason, force=True, error=ActorUnschedulableError)
        else:
            if not actor.infeasible:
                fate = "it waits for a node that can" if self._config.infeasible == "wait" else f"it fails in {grace_s:g} s"
                self._out.append((SEND, actor.owner[0], Notice(f"no node can run {actor.title()}: {reason}; {fate}")))
            actor.infeasible = reason
            self._out.append((TIMER, now + grace_s, (INFEASIBLE_TIMER, actor.id, actor.incarnation)))

    def _restart(self, now: float, actor: Actor, reason: str) -> None:
        """Its process ended and it may live on."""
        config = self._config
        lived = actor.state is ActorState.ALIVE and now - actor.started_at >= config.actor_restart_delay_max_s
        actor.young_deaths = 1 if lived else actor.young_deaths + 1
        actor.restarts += 1
        text = (
            f"{actor.title()} is restarting because its process ended: {reason}. The call may have run or not; "
            "max_task_retries has such calls sent again"
        )
        actor.error = pickle.dumps(ActorUnavailableError(text, actor.id.hex()), 5)
        actor.worker_id = b""
        actor.early = None
        actor.move("lost")
        self._changed(actor)
        if actor.young_deaths <= 1:
            self._place(now, actor)
            return
        delay_s = config.actor_restart_delay_ms / 1000 * 2.0 ** min(actor.young_deaths - 2, 20)
        at = now + min(delay_s, config.actor_restart_delay_max_s)
        self._out.append((TIMER, at, (RESTART_TIMER, actor.id, actor.incarnation)))

    def _end(
        self, now: float, actor: Actor, reason: str, *, force: bool, error: type[RayError] | None = ActorDiedError
    ) -> None:
        """It is dead for good; ``error`` is what its calls get, unless they get the error of its constructor."""
        actor.reason = reason
        if error is not None:
            text = f"{actor.title()} is dead: {reason}"
            where = f" (pid {actor.pid} on node {actor.node_id.hex()[:8]})" if actor.pid else ""
            actor.error = pickle.dumps(error(text + where, actor.id.hex()), 5)
        if actor.agent:
            self._tell(actor.agent, EndActor(actor.id, actor.incarnation, force))
        self._leave(actor)
        actor.agent = b""
        actor.move("ended")
        if actor.name:
            del self.names[actor.namespace, actor.name]
        self._changed(actor)
        if actor.creation:
            actor.creation = b""
            self._out.append((PERSIST, "save_creation", (b"", actor.id)))
        for peer in actor.subscribers:
            self._subscriptions[peer].pop(actor.id, None)
        actor.subscribers.clear()
        self._dead[actor.id] = None
        self._told(now, actor.id)
        if len(self._dead) > self._config.dead_actors_max:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            del self.actors[oldest]
            self._out.append((PERSIST, "forget_actor", (oldest,)))

    def _changed(self, actor: Actor) -> None:
        """Write it down, and tell who wants to know."""
        self._out.append((PERSIST, "update_actor", changed(actor)))
        update = update_of(actor)
        for peer in actor.subscribers:
            self._tell(peer, update)

    def _tell(self, peer: bytes, message: Any) -> None:
        """What others hear is on disk: a control that begins anew knows it too."""
        self._out.append((AFTER_PERSIST, peer, message))

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants."""
        for (namespace, name), actor in self.names.items():
            if (actor.namespace, actor.name) != (namespace, name) or actor.state is ActorState.DEAD:
                raise InvariantError(f"name {name!r} belongs to {actor.title()}, which is {actor.state.name}")
        for actor in self.actors.values():
            if (actor.id in self._by_agent.get(actor.agent, {})) != (actor.state is not ActorState.DEAD):
                raise InvariantError(f"{actor.title()} is {actor.state.name}, not where it is listed")
            if (actor.id in self._dead) != (actor.state is ActorState.DEAD):
                raise InvariantError(f"{actor.title()} is {actor.state.name}, not as listed")
            if actor.state is ActorState.DEAD and (actor.agent or not actor.error or actor.subscribers):
                raise InvariantError(f"{actor.title()} is dead and not settled")
            if 0 <= actor.max_restarts < actor.restarts:
                raise InvariantError(f"{actor.title()} was restarted {actor.restarts} times")
            for peer in actor.subscribers:
                if actor.id not in self._subscriptions.get(peer, {}):
                    raise InvariantError(f"a subscription of {peer.hex()} is listed on one side only")

    def statistics(self) -> dict[str, int]:
        return {"actors": len(self.actors) - len(self._dead), "dead_actors": len(self._dead)}
