"""What happens when tasks fail: exceptions keep their type, errors travel, crashes and flaky calls are tried again."""

import os
import tempfile
from pathlib import Path

import zray as ray


@ray.remote
def parse(text):
    return int(text)


@ray.remote
def double(number):
    return 2 * number


@ray.remote(max_retries=3, retry_exceptions=[ConnectionError])
def flaky(marks):
    """Fails twice in all, then works."""
    attempt = len(os.listdir(marks))
    Path(marks, str(attempt)).touch()
    if attempt < 2:
        raise ConnectionError("nobody answers")
    return attempt


@ray.remote(max_retries=0)
def crash():
    os._exit(3)


def error_of(ref, kind):
    try:
        ray.get(ref)
    except kind as error:
        return error
    raise AssertionError("it should have failed")


if __name__ == "__main__":
    with ray.init(), tempfile.TemporaryDirectory() as marks:
        error = error_of(parse.remote("seven"), ValueError)  # the exception's own type, with the worker's traceback
        assert isinstance(error, ray.exceptions.RayTaskError)
        assert "seven" in str(error)
        print(f"parse raised {type(error.cause).__name__}: {error.cause}")

        error_of(double.remote(parse.remote("seven")), ValueError)  # double never ran: its argument's error is its result
        assert ray.get(double.remote(parse.remote("7"))) == 14

        assert ray.get(flaky.remote(marks)) == 2
        print("flaky worked at its third attempt")

        print(f"crash: {error_of(crash.remote(), ray.exceptions.WorkerCrashedError)}")
