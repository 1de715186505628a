"""Running the application: on a socket of our own, with a shutdown that open streams do not hold up."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import uvicorn
from fastapi import FastAPI

from learnmech.collector.service.app import create_app
from learnmech.collector.service.settings import Settings, SettingsError
from learnmech.collector.service.state import state_of
from learnmech.collector.store import Store

_BACKLOG = 512
# Longer than the pause between two batches of any writer, so that connections are kept.
_IDLE = 75


def bind(settings: Settings) -> socket.socket:
    """Take the address, so that a taken port is told before anything else happens.

    Raises:
        SettingsError: The address cannot be had.
    """
    host, port = settings.host.strip("[]") or "0.0.0.0", settings.port  # noqa: S104 (what an empty host means)
    try:
        # asyncio switches Nagle's algorithm off only on sockets that name their protocol; else each answer waits 40 ms.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsError(
            f"host {settings.host!r} is no address of this machine ({error}); expected for instance 127.0.0.1"
        ) from error
    try:
        # A restarted collector takes its port at once instead of waiting for old connections to fade.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Listen now: with SO_REUSEADDR two sockets can be bound to one port as long as neither listens.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"port {port} on {settings.host} cannot be taken ({error.strerror}); expected a free one that this user "
            f"may use; is another collector running there? stop it, or type --port 0 for any free port"
        ) from error
    return listener


class CollectorServer(uvicorn.Server):
    """uvicorn, told when it is up, and ending event streams before it waits for connections to close."""

    def __init__(self, app: FastAPI, settings: Settings, ready: Callable[[], None]) -> None:
        """Prepare to serve `app`; `ready` is called once requests are answered."""
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",  # the parser that the tests of bodies and limits run against
                loop="asyncio",
                lifespan="on",
                log_config=None,
                log_level="warning",  # its start and stop are ours to tell
                access_log=False,  # /metrics counts requests
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_IDLE,
                timeout_graceful_shutdown=max(1, round(settings.shutdown)),
            )
        )
        self._changes = state_of(app).changes
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then wait for what is under way."""
        self._changes.close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Turn SIGTERM and SIGINT into a shutdown; not raised again, for a stop that was asked for is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Service:
    """One running collector: on this thread (`run`) or on one of its own (`start`, `stop`, or as a context manager).

    >>> with Service(Settings(port=0), Store.open("sqlite:///learnmech.db")) as service:  # doctest: +SKIP
    ...     print(service.url)
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        """Take the address. Requests wait until `run` or `start`.

        Args:
            settings: Address, token and limits.
            store: An open store; whoever opened it closes it after the service has stopped.

        Raises:
            SettingsError: The address cannot be had.
        """  # noqa: DOC502 (raised by `bind`)
        self._listener = bind(settings)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://{settings.address}:{self.port}"
        self._ready = threading.Event()
        app = create_app(settings, store)
        self.state = state_of(app)
        self._server = CollectorServer(app, settings, self._ready.set)
        self._thread = threading.Thread(target=self._serve, name="learnmech-collector", daemon=True)

    def run(self, ready: Callable[[], None]) -> None:
        """Serve on this thread until SIGTERM or SIGINT; `ready` is called once requests are answered."""
        self._server.ready = ready
        self._serve()

    def start(self) -> str:
        """Serve on a thread of its own; return the address once requests are answered.

        Raises:
            RuntimeError: The service did not start; its log says why.
        """
        self._thread.start()
        # The thread ends when start-up fails, so this waits for one or the other and for no fixed time.
        while not self._ready.wait(0.05):
            if not self._thread.is_alive():
                raise RuntimeError(f"the collector did not start at {self.url}; see the log of learnmech.collector")
        return self.url

    def stop(self) -> None:
        """Finish what is under way, judge what waits, and end."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def _serve(self) -> None:
        with self._listener:
            self._server.run(sockets=[self._listener])
