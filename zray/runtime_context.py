"""What a driver or a task can know of itself."""

from __future__ import annotations

import json
from typing import Any

from zray import api, state
from zray.actor import ActorHandle
from zray.runtime.actor import Actor, current_call


class RuntimeContext:
    """The identity of the running driver or task. Made by ``get_runtime_context()``."""

    def __init__(self) -> None:
        self._worker = api.runtime()

    def get_job_id(self) -> str:
        """The job, as hexadecimal text."""
        return self._worker.job_id.hex()

    def get_node_id(self) -> str:
        """The node this process lives on, as hexadecimal text."""
        return self._worker.node_id.hex()

    def get_worker_id(self) -> str:
        """This process, as hexadecimal text."""
        return (self._worker.executor() or self._worker).me.hex()

    def get_task_id(self) -> str | None:
        """The running task; None in a driver."""
        executor = self._worker.executor()
        call = current_call.get()
        if call is not None:
            return call[0].hex()
        return executor.task_id.hex() if executor is not None else None

    def get_task_name(self) -> str | None:
        """The name of the running task; None in a driver."""
        executor = self._worker.executor()
        call = current_call.get()
        if call is not None:
            return call[1]
        return executor.task_name if executor is not None else None

    def get_actor_id(self) -> str | None:
        """The actor this process is, as hexadecimal text; None in tasks and drivers."""
        actor = self._actor()
        return actor.id.hex() if actor is not None else None

    def get_actor_name(self) -> str | None:
        """The name of the actor this process is, empty if it has none; None in tasks and drivers."""
        actor = self._actor()
        return actor.name if actor is not None else None

    def is_canceled(self) -> bool:
        """Whether the running task, or call of an actor with plain methods, was cancelled.

        Raises:
            RuntimeError: this is a driver, or an asynchronous actor, whose coroutines are cancelled by asyncio's own means.
        """
        executor = self._worker.executor()
        if executor is None:
            raise RuntimeError("is_canceled() is for tasks and methods of actors: a driver can not be cancelled")
        if executor.becoming is not None and executor.becoming.extra["asyncio"]:
            raise RuntimeError("is_canceled() is not for asynchronous actors: their coroutines get asyncio.CancelledError")
        return executor.cancellation.current() in executor.cancellation.cancelled

    @property
    def current_actor(self) -> ActorHandle[Any]:
        """A handle of the actor this process is. It does not keep the actor alive by itself.

        Raises:
            RuntimeError: this is not an actor.
        """
        actor = self._actor()
        if actor is None:
            raise RuntimeError("current_actor is only known in the methods of an actor: this is a task or a driver")
        blob, detached = actor.extra["handle"]
        return ActorHandle(self._worker, actor.id, actor.extra["handle_id"], actor.owner, blob, None, detached=detached)

    def get_placement_group_id(self) -> str | None:
        """The placement group in which the running task or actor is, as hexadecimal text; None if it is in none."""
        current = self._worker.placement_group
        return current[0].hex() if current is not None else None

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what is submitted here goes into the placement group of this task or actor; True in a driver, as in Ray."""
        current = self._worker.placement_group
        return current[1] if current is not None else self._worker.executor() is None

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task was given; empty in a driver."""
        executor = self._worker.executor()
        return executor.assigned_resources() if executor is not None else {}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The accelerators that the running task was given, by the name of their resource; none in a driver."""
        return {"GPU": [str(number) for number in api.get_gpu_ids()]}

    def get_node_labels(self) -> dict[str, str]:
        """The labels of the node this process lives on."""
        here = self.get_node_id()
        return next((dict(node["Labels"]) for node in state.nodes() if node["NodeID"] == here), {})

    def get_runtime_env_string(self) -> str:
        """The runtime environment as JSON."""
        return json.dumps(self.runtime_env)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """The runtime environment of this process."""
        return {"env_vars": dict(self._worker.env_vars)} if self._worker.env_vars else {}

    @property
    def namespace(self) -> str:
        """The namespace of the job."""
        return self._worker.namespace

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this actor was restarted; False in tasks and drivers."""
        actor = self._actor()
        return actor is not None and actor.incarnation > 1

    @property
    def gcs_address(self) -> str:
        """Where the control process can be reached."""
        return self._worker.control_endpoint()

    def get(self) -> dict[str, Any]:
        """The ids that are known, by name."""
        known: dict[str, Any] = {
            "job_id": self.get_job_id(),
            "node_id": self.get_node_id(),
            "namespace": self.namespace,
        }
        if self.get_task_id() is not None:
            known["task_id"] = self.get_task_id()
        if self.get_actor_id() is not None:
            known["actor_id"] = self.get_actor_id()
        return known

    def _actor(self) -> Actor | None:
        executor = self._worker.executor()
        return executor.becoming if executor is not None else None


def get_runtime_context() -> RuntimeContext:
    """The identity of the running driver or task.

    Example:
        >>> get_runtime_context().get_job_id()  # doctest: +SKIP
        '00000001'
    """
    return RuntimeContext()
