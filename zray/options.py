"""The options of tasks: one table of names, checks and defaults. Actors add theirs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from zray.base.resources import ResourceSet, to_units


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


TASK_OPTIONS: dict[str, Option] = {
    "num_cpus": Option("a number >= 0", _optional_amount),
    "num_gpus": Option("a number >= 0", _optional_amount),
    "memory": Option("bytes, a number >= 0", _optional_amount),
    "resources": Option("a dict of amounts >= 0, without CPU, GPU and memory, which have options of their own", _resources),
    "accelerator_type": Option("a string", _optional(str)),
    "label_selector": Option("a dict", _optional(dict)),
    "num_returns": Option('an integer >= 0, "dynamic" or "streaming"', _num_returns, 1),
    "max_calls": Option("an integer >= 0; 0 is no limit", _count(0), 0),
    "max_retries": Option("an integer >= -1; -1 is no limit", _count(-1)),
    "retry_exceptions": Option("a bool or a list of exception types", _retry_exceptions, False),
    "scheduling_strategy": Option('"DEFAULT", "SPREAD" or a strategy object', lambda value: True),
    "runtime_env": Option("a dict", _optional(dict)),
    "name": Option("a string", _optional(str)),
    "_metadata": Option("a dict", _optional(dict)),
    "_generator_backpressure_num_objects": Option("an integer", _optional(int)),
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
    for name, value in options.items():
        option = TASK_OPTIONS.get(name)
        if option is None:
            known = ", ".join(sorted(n for n in TASK_OPTIONS if not n.startswith("_")))
            raise ValueError(f"unknown option {name!r} for a task: the options are {known}")
        if not option.check(value):
            raise ValueError(f"option {name!r} must be {option.accepts}, not {value!r}")
    if options.get("runtime_env"):
        raise NotImplementedError("runtime_env of a task is not supported yet: init(runtime_env={'env_vars': ...}) is")
    strategy = options.get("scheduling_strategy")
    if isinstance(strategy, str) and strategy not in ("DEFAULT", "SPREAD"):
        raise ValueError(f"option 'scheduling_strategy' must be \"DEFAULT\", \"SPREAD\" or an object, not {strategy!r}")


def task_resources(options: Mapping[str, Any]) -> ResourceSet:
    """What a task with these options demands."""
    cpus = options.get("num_cpus")
    amounts: dict[str, float] = {"CPU": 1 if cpus is None else cpus}
    if options.get("num_gpus"):
        amounts["GPU"] = options["num_gpus"]
    if options.get("memory"):
        amounts["memory"] = options["memory"]
    if options.get("accelerator_type"):
        amounts[f"accelerator_type:{options['accelerator_type']}"] = 0.001
    amounts.update(options.get("resources") or {})
    return ResourceSet.of(amounts)
