"""The messages about what workers write. They belong to the one schema, as those of ``wire`` do."""

from typing import Any, NamedTuple

from zray.base.schema import message

OUT, ERR, BAR = 0, 1, 2  # kinds of rows: standard output, standard error, and the state of a progress bar


@message(180, "agent", "control")
class FindDriver(NamedTuple):
    """The first words of a job's workers are there: who wants to read them?"""

    job_id: bytes


@message(181, "control", "agent")
class DriverFound(NamedTuple):
    """The answer to FindDriver."""

    job_id: bytes
    driver: bytes
    endpoint: str
    wants_output: bool


@message(182, "owner", "agent")
class FlushOutput(NamedTuple):
    """The driver leaves: the reply comes after everything that was written up to now."""

    request_id: int
    job_id: bytes


@message(183, "agent", "owner", rows=4)
class Output(NamedTuple):
    """What workers wrote, ``(pid, name, kind, whole lines)`` each, and how many lines were dropped before that."""

    dropped: int
    rows: list[Any]
