"""The options of tasks, actors and methods: tables of names, checks and defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from zray.base import serialization
from zray.base.resources import UNIT, ResourceSet, to_units
from zray.strategy import strategy_of


class Option(NamedTuple):
    """One option: what it accepts, in words and as a check, and its default."""

    accepts: str
    check: Callable[[Any], bool]
    default: Any = None


def _amount(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return to_units(value) >= 0
    except (ValueError, OverflowError):
        return False


def _optional_amount(value: Any) -> bool:
    return value is None or _amount(value)


def _gpus(value: Any) -> bool:
    """A share of one GPU, or whole ones."""
    return value is None or (_amount(value) and (to_units(value) < UNIT or to_units(value) % UNIT == 0))


def _count(minimum: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _num_returns(value: Any) -> bool:
    return value is None or value in ("dynamic", "streaming") or _count(0)(value)


def _resources(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(k, str) and k not in ("CPU", "GPU", "memory") and _amount(v) for k, v in value.items())


def _retry_exceptions(value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return True
    return isinstance(value, (list, tuple)) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in value
    )


def _optional(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda value: value is None or isinstance(value, kind)


def _groups(value: Any) -> bool:
    if value is None:
        return True
    limit = _count(1)
    return isinstance(value, Mapping) and all(isinstance(k, str) and k and limit(v) for k, v in value.items())


def _optional_count(minimum: int) -> Callable[[Any], bool]:
    check = _count(minimum)
    return lambda value: value is None or check(value)


_COMMON_OPTIONS: dict[str, Option] = {
    "num_cpus": Option("a number >= 0", _optional_amount),
    "num_gpus": Option("a number >= 0, and whole above 1", _gpus),
    "memory": Option("bytes, a number >= 0", _optional_amount),
    "resources": Option("a dict of amounts >= 0, without CPU, GPU and memory, which have options of their own", _resources),
    "accelerator_type": Option("a string", _optional(str)),
    "label_selector": Option("a dict", _optional(dict)),
    "scheduling_strategy": Option('"DEFAULT", "SPREAD" or a strategy object', lambda value: True),
    "placement_group": Option("a placement group", lambda value: True),  # the way before there were strategies
    "placement_group_bundle_index": Option("an integer >= -1; -1 is any", _optional_count(-1)),
    "placement_group_capture_child_tasks": Option("a bool", _optional(bool)),
    "runtime_env": Option("a dict", _optional(dict)),
    "_metadata": Option("a dict", _optional(dict)),
    "enable_task_events": Option("a bool", _optional(bool)),
}

_CALL_OPTIONS: dict[str, Option] = {
    "num_returns": Option('an integer >= 0, "dynamic" or "streaming"', _num_returns, 1),
    "retry_exceptions": Option("a bool or a list of exception types", _retry_exceptions, False),
    "_generator_backpressure_num_objects": Option(
        "an integer >= 1; -1 or None is no limit", lambda value: value is None or value == -1 or _count(1)(value)
    ),
}

TASK_OPTIONS: dict[str, Option] = {
    **_COMMON_OPTIONS,
    **_CALL_OPTIONS,
    "name": Option("a string", _optional(str)),
    "max_calls": Option("an integer >= 0; 0 is no limit", _count(0), 0),
    "max_retries": Option("an integer >= -1; -1 is no limit", _count(-1)),
}

ACTOR_OPTIONS: dict[str, Option] = {
    **_COMMON_OPTIONS,
    "name": Option("a string that is not empty", lambda value: value is None or (isinstance(value, str) and value != "")),
    "namespace": Option(
        "a string that is not empty", lambda value: value is None or (isinstance(value, str) and value != "")
    ),
    "lifetime": Option('None, "detached" or "non_detached"', lambda value: value in (None, "detached", "non_detached")),
    "get_if_exists": Option("a bool; with a name", lambda value: isinstance(value, bool), False),
    "max_restarts": Option("an integer >= -1; -1 is no limit", _optional_count(-1), 0),
    "max_task_retries": Option("an integer >= -1; -1 is no limit", _optional_count(-1), 0),
    "max_concurrency": Option("an integer >= 1", _optional_count(1)),
    "concurrency_groups": Option("a dict of limits >= 1 by name", _groups),
    "max_pending_calls": Option("an integer >= 1; -1 is no limit", _optional_count(-1), -1),
    "allow_out_of_order_execution": Option("a bool", _optional(bool)),
}

METHOD_OPTIONS: dict[str, Option] = {
    **_CALL_OPTIONS,
    "name": Option("a string", _optional(str)),
    "concurrency_group": Option("a string", _optional(str)),
    "max_task_retries": Option("an integer >= -1; -1 is no limit", _optional_count(-1)),
    "enable_task_events": Option("a bool", _optional(bool)),
}


_FORMER_NAMES = {"num_return_vals": "num_returns"}


def with_current_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names they have now: old programs use the names of early versions of Ray."""
    return {_FORMER_NAMES.get(name, name): value for name, value in options.items()}


def check_task_options(options: Mapping[str, Any]) -> None:
    """Check options by the table.

    Raises:
        ValueError: an option is unknown, or has a value that is not accepted; the text names it.
    """
    _check("a task", TASK_OPTIONS, options)
    _check_common("a task", options)


def check_actor_options(options: Mapping[str, Any]) -> None:
    """Check options by the table.

    Raises:
        ValueError: an option is unknown, or has a value that is not accepted; the text names it.
    """
    _check("an actor", ACTOR_OPTIONS, options)
    _check_common("an actor", options)
    if options.get("get_if_exists") and not options.get("name"):
        raise ValueError("option 'get_if_exists' needs a name: which actor should be looked for?")


def check_method_options(options: Mapping[str, Any]) -> None:
    """Check options by the table.

    Raises:
        ValueError: an option is unknown, or has a value that is not accepted; the text names it.
    """
    _check("a method", METHOD_OPTIONS, options)


def check_generator_options(name: str, options: Mapping[str, Any], *, generates: bool) -> None:
    """Check that what is to be streamed is a generator.

    Raises:
        ValueError: it is none.
    """
    returns = options.get("num_returns")
    if returns in ("dynamic", "streaming") and not generates:
        raise ValueError(f"{name}() has num_returns={returns!r}, which is for generators: it has no yield")


def check_known(options: Mapping[str, Any]) -> None:
    """Check what can be checked before it is known whether these are options of a task or of an actor.

    Raises:
        ValueError: an option is unknown, or has a value that is not accepted; the text names it.
    """
    _check("a task or actor", {**ACTOR_OPTIONS, **TASK_OPTIONS}, options)


def _check(what: str, table: Mapping[str, Option], options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        option = table.get(name)
        if option is None:
            known = ", ".join(sorted(n for n in table if not n.startswith("_")))
            raise ValueError(f"unknown option {name!r} for {what}: the options are {known}")
        if not option.check(value):
            raise ValueError(f"option {name!r} must be {option.accepts}, not {value!r}")


def _check_common(what: str, options: Mapping[str, Any]) -> None:
    if options.get("runtime_env"):
        raise NotImplementedError(f"runtime_env of {what} is not supported yet: init(runtime_env={{'env_vars': ...}}) is")
    strategy_of(options)


def task_resources(options: Mapping[str, Any]) -> ResourceSet:
    """What a task with these options demands."""
    return _resources_with(options, 1)


def actor_resources(options: Mapping[str, Any]) -> tuple[ResourceSet, ResourceSet]:
    """What the node of an actor with these options must have, and what the actor holds while it lives.

    By default that is one CPU and none, as in Ray: an actor that mostly waits should not keep tasks from running.
    """
    return _resources_with(options, 1), _resources_with(options, 0)


def exceptions_payload(kinds: Any) -> Any:
    """``retry_exceptions`` as it travels: True, or the pickled exception types."""
    return True if kinds is True else serialization.serialize(tuple(kinds)).inline()


def _resources_with(options: Mapping[str, Any], default_cpus: float) -> ResourceSet:
    cpus = options.get("num_cpus")
    amounts: dict[str, float] = {"CPU": default_cpus if cpus is None else cpus}
    if options.get("num_gpus"):
        amounts["GPU"] = options["num_gpus"]
    if options.get("memory"):
        amounts["memory"] = options["memory"]
    if options.get("accelerator_type"):
        amounts[f"accelerator_type:{options['accelerator_type']}"] = 0.001
    amounts.update(options.get("resources") or {})
    return ResourceSet.of(amounts)
