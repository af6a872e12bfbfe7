"""A backend of joblib: ``Parallel``, and all that is built on it, with zray's workers.

joblib itself makes batches of short calls. Here they become calls of an ``Executor``. Large arrays among the arguments, which are
the same for many calls, are put into the object store once, and are read there without a copy.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import zray as ray
from zray.util.executor import Executor

__all__ = ["register_ray", "register_zray"]

_MAX_NBYTES = 1 << 20  # joblib's own default
_OF_JOBLIB = {"context", "mmap_mode", "temp_folder", "verbose"}  # options that mean nothing here


def register_zray() -> None:
    """Make the backend known to joblib, under the name "zray".

    Raises:
        ImportError: joblib is not installed.

    Example:
        >>> from joblib import Parallel, delayed, parallel_config
        >>> register_zray()  # doctest: +SKIP
        >>> with parallel_config(backend="zray"):  # doctest: +SKIP
        ...     Parallel()(delayed(abs)(i) for i in range(-3, 0))
        [3, 2, 1]
    """
    _register("zray")


def register_ray() -> None:
    """As ``register_zray``, under the name "ray": for programs that were written for Ray.

    Raises:
        ImportError: joblib is not installed.

    Example:
        >>> register_ray()  # doctest: +SKIP
    """
    _register("ray")


def _register(name: str) -> None:
    try:
        import joblib
    except ImportError as error:
        raise ImportError("joblib is not installed: pip install 'zray[joblib]'") from error
    joblib.register_parallel_backend(name, _backend())


class _Shared:
    """A large array that was put once."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref


class Arrays:
    """The large arrays that calls of one ``Parallel`` have in common.

    Args:
        max_nbytes: larger ones are put, as joblib writes them to a file; None: none of them.
    """

    def __init__(self, max_nbytes: int | None = _MAX_NBYTES) -> None:
        self._max_nbytes = float("inf") if max_nbytes is None else max_nbytes
        self._put: dict[int, tuple[Any, _Shared]] = {}  # by the id of the array, which is kept

    def share(self, value: Any) -> Any:
        """What to send for an argument."""
        if type(value).__module__ != "numpy" or getattr(value, "nbytes", 0) <= self._max_nbytes:
            return value
        found = self._put.get(id(value))
        if found is None:
            found = self._put[id(value)] = (value, _Shared(ray.put(value)))
        return found[1]

    def shared_by(self, batch: Any) -> Any:
        """A batch of joblib's with references in place of large arrays."""
        items = getattr(batch, "items", None)
        if not isinstance(items, list):
            return batch
        batch = copy.copy(batch)
        batch.items = [
            (function, tuple(map(self.share, args)), {name: self.share(value) for name, value in kwargs.items()})
            for function, args, kwargs in items
        ]
        return batch


def _run(batch: Any) -> Any:
    """In a worker."""
    items = getattr(batch, "items", None)
    if isinstance(items, list):
        batch.items = [
            (function, tuple(map(_read, args)), {name: _read(value) for name, value in kwargs.items()})
            for function, args, kwargs in items
        ]
    return batch()


def _read(value: Any) -> Any:
    return ray.get(value.ref) if isinstance(value, _Shared) else value


@functools.cache
def _backend() -> Any:
    """The class of the backend, made when joblib is there."""
    from joblib._parallel_backends import AutoBatchingMixin, FallbackToBackend, SequentialBackend
    from joblib.parallel import ParallelBackendBase

    class ZrayBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
        """Runs the batches of ``Parallel`` in zray's workers."""

        supports_retrieve_callback = True
        default_n_jobs = -1

        def configure(
            self, n_jobs: int = 1, parallel: Any = None, prefer: Any = None, require: Any = None, **options: Any
        ) -> int:
            count: int = self.effective_n_jobs(n_jobs)
            if count == 1:
                raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
            self.parallel = parallel
            self._max_nbytes = options.pop("max_nbytes", _MAX_NBYTES)
            given = {**self.backend_kwargs, **options}
            self._options = {name: value for name, value in given.items() if name not in _OF_JOBLIB}
            self._n_jobs = count
            self._begin()
            return count

        def effective_n_jobs(self, n_jobs: int | None) -> int:
            if n_jobs == 0:
                raise ValueError("n_jobs == 0 in Parallel has no meaning: give the number of jobs, or -1 for all CPUs")
            if n_jobs is None:
                return 1
            if n_jobs < 0:
                return max(int(ray.cluster_resources().get("CPU", 1)) + 1 + n_jobs, 1)
            return n_jobs

        def submit(self, func: Any, callback: Callable[[Future[Any]], object] | None = None) -> Future[Any]:
            future = self._executor.submit(_run, self._arrays.shared_by(func))
            if callback is not None:
                future.add_done_callback(callback)
            return future

        def retrieve_result_callback(self, out: Future[Any]) -> Any:
            return out.result()

        def terminate(self) -> None:
            self._end()
            self.reset_batch_stats()

        def abort_everything(self, ensure_ready: bool = True) -> None:
            self._end()
            if ensure_ready:
                self._begin()

        def _begin(self) -> None:
            self._arrays = Arrays(self._max_nbytes)
            self._executor = Executor(self._n_jobs, **self._options)

        def _end(self) -> None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._arrays = Arrays()

    return ZrayBackend
