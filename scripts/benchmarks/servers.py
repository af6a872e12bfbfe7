"""The actor classes that run in the engines' workers."""


class Server:
    def nop(self):
        return b"ok"

    def nop_of(self, x):
        return b"ok"

    def pid(self):
        import os

        return os.getpid()


class AsyncServer:
    async def nop(self):
        return b"ok"

    async def nop_of(self, x):
        return b"ok"


class Client(Server):
    """Calls other actors from inside an actor, and gets the results."""

    def __init__(self, engine, servers):
        self._api = __import__(engine)
        self._servers = servers

    def calls(self, n):
        self._api.get([server.nop.remote() for server in self._servers for _ in range(n)])

    def calls_with_object(self, n):
        ref = self._api.put(0)
        self._api.get([server.nop_of.remote(ref) for server in self._servers for _ in range(n)])
