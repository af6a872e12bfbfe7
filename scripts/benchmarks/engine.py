"""The engines, behind the few verbs that cases need of all of them.

This module must stay cheap to import: a session loads it before it takes the start time.
"""

from benchmarks import tasks

CPUS = 2


class Absent(Exception):
    """The engine is not installed here, or has no `init` yet."""


class Cluster:
    """An engine with Ray's API. Cases about objects use `api` directly."""

    def __init__(self, name, **options):
        self.name = name
        self.options = options
        self.api = None

    def load(self):
        try:
            self.api = __import__(self.name)
        except ImportError as error:
            raise Absent(str(error)) from error

    @property
    def version(self):
        return str(getattr(self.api, "__version__", "?"))

    def start(self):
        try:
            # With lazily loaded names this look-up is part of what a user waits for, hence not in load().
            init = self.api.init
        except (AttributeError, ImportError) as error:
            raise Absent(str(error)) from error
        init(num_cpus=CPUS, **self.options)
        self._nop = self.api.remote(tasks.nop)

    def call_one(self):
        self.api.get(self._nop.remote())

    def call_batch(self, n):
        remote = self._nop.remote
        self.api.get([remote() for _ in range(n)])

    def occupy(self, seconds):
        nap = self.api.remote(tasks.nap)
        self.api.get([nap.remote(seconds) for _ in range(CPUS)])

    def stop(self):
        self.api.shutdown()


class Pool:
    name = "Pool"

    def load(self):
        import multiprocessing

        self._module = multiprocessing

    @property
    def version(self):
        return "standard library, " + self._module.get_start_method()

    def start(self):
        self.pool = self._module.Pool(CPUS)

    def call_one(self):
        self.pool.apply_async(tasks.nop).get()

    def call_batch(self, n):
        apply_async = self.pool.apply_async
        for result in [apply_async(tasks.nop) for _ in range(n)]:
            result.get()

    def occupy(self, seconds):
        for result in [self.pool.apply_async(tasks.nap, (seconds,)) for _ in range(CPUS)]:
            result.get()

    def stop(self):
        self.pool.terminate()
        self.pool.join()


class Executor:
    name = "Executor"

    def load(self):
        import concurrent.futures

        self._class = concurrent.futures.ProcessPoolExecutor

    @property
    def version(self):
        import multiprocessing

        return "standard library, " + multiprocessing.get_start_method()

    def start(self):
        self.executor = self._class(CPUS)

    def call_one(self):
        self.executor.submit(tasks.nop).result()

    def call_batch(self, n):
        submit = self.executor.submit
        for future in [submit(tasks.nop) for _ in range(n)]:
            future.result()

    def occupy(self, seconds):
        for future in [self.executor.submit(tasks.nap, seconds) for _ in range(CPUS)]:
            future.result()

    def stop(self):
        self.executor.shutdown()


ENGINES = {
    "zray": lambda: Cluster("zray"),
    "ray": lambda: Cluster("ray", include_dashboard=False),
    "Pool": Pool,
    "Executor": Executor,
}
SUBJECT = "zray"
CLUSTERS = ("zray", "ray")
PEERS = tuple(name for name in ENGINES if name != SUBJECT)
