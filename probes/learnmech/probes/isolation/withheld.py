"""What a model holds that no copy stands in for: open files, queues, sockets, programs, and trackers of experiments.

During an evaluation something else stands in their place. Trackers swallow what they are told, as the trainer's own
loggers do. The others refuse: a line written through an open file, or an item put into a queue, cannot be taken back.
"""

import sys
import threading
from typing import Any

from learnmech.probes.isolation.outward import stop

_CHANNELS = {
    "_io": ("TextIOWrapper", "BufferedWriter", "BufferedReader", "BufferedRandom", "FileIO"),
    "queue": ("Queue", "LifoQueue", "PriorityQueue"),
    "_queue": ("SimpleQueue",),
    "socket": ("socket",),
    "ssl": ("SSLSocket",),
    "subprocess": ("Popen",),
    "sqlite3": ("Connection", "Cursor"),
    "tempfile": ("_TemporaryFileWrapper",),
    "http.client": ("HTTPConnection", "HTTPSConnection"),
    "multiprocessing.queues": ("Queue", "SimpleQueue", "JoinableQueue"),
    "multiprocessing.connection": ("Connection",),
    "multiprocessing.pool": ("Pool", "ThreadPool"),
    "concurrent.futures.thread": ("ThreadPoolExecutor",),
    "concurrent.futures.process": ("ProcessPoolExecutor",),
    "torch.multiprocessing.queue": ("Queue", "SimpleQueue"),
}
"""Ways out of the process, or to another thread, by the module and name of their class: nothing is imported to ask."""

_TRACKERS = ("wandb", "mlflow", "tensorboardX", "torch.utils.tensorboard", "neptune", "comet_ml", "aim", "clearml",
             "swanlab", "dvclive", "lightning.pytorch.loggers", "pytorch_lightning.loggers")  # fmt: skip
"""Packages whose objects take what is logged."""


def is_channel(value: Any) -> bool:
    """Tell whether `value` is a way out of the process or to another thread.

    >>> import queue
    >>> is_channel(queue.Queue()), is_channel([])
    (True, False)
    """
    return any(cls.__name__ in _CHANNELS.get(cls.__module__, ()) for cls in type(value).__mro__)


def is_tracker(value: Any) -> bool:
    """Tell whether `value` keeps what is logged of an experiment."""
    module = type(value).__module__
    return any(module == name or module.startswith(f"{name}.") for name in _TRACKERS)


def stand_in(value: Any, name: str, *, users: bool) -> Any:
    """Return what stands in for a channel, a tracker, or an object of the user's that holds a channel, else None.

    Args:
        value: An attribute of a model, or an item of a container there.
        name: Where it is, for the reason.
        users: Whether it is of a class of the user's.
    """
    if is_tracker(value):
        return Silent(value)
    if any(value is stream for stream in (sys.stdout, sys.stderr)):
        return None  # a line printed twice harms nothing
    if is_channel(value) or (users and any(map(is_channel, _attributes(value)))):
        return Withheld(value, name)
    return None


def _attributes(value: Any) -> list[Any]:
    state = getattr(value, "__dict__", None) if type(value).__dictoffset__ else None
    return list(state.values()) if isinstance(state, dict) else []


class _StandIn:
    """Stands in for an object in the thread that made it; other threads meet the object itself."""

    def __init__(self, original: Any) -> None:
        object.__setattr__(self, "_original", original)
        object.__setattr__(self, "_thread", threading.get_ident())

    def _is_own_thread(self) -> bool:
        return bool(object.__getattribute__(self, "_thread") == threading.get_ident())


class Withheld(_StandIn):
    """Refuses the evaluation when it is used.

    Args:
        original: What it stands for.
        name: Where that is.
    """

    def __init__(self, original: Any, name: str) -> None:
        super().__init__(original)
        object.__setattr__(self, "_name", name)

    def _used(self) -> Any:
        original = object.__getattribute__(self, "_original")
        if self._is_own_thread():
            stop(f"uses {object.__getattribute__(self, '_name')} (a {type(original).__name__})")
        return original

    def __getattr__(self, attribute: str) -> Any:
        """Refuse."""
        return getattr(self._used(), attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        """Refuse."""
        setattr(self._used(), attribute, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse."""
        return self._used()(*args, **kwargs)

    def __enter__(self) -> Any:
        """Refuse."""
        return self._used().__enter__()

    def __exit__(self, *failure: object) -> Any:
        """Refuse."""
        return self._used().__exit__(*failure)

    def __iter__(self) -> Any:
        """Refuse."""
        return iter(self._used())

    def __next__(self) -> Any:
        """Refuse."""
        return next(self._used())


class Silent(_StandIn):
    """Takes whatever it is told and does nothing; what it returns is silent too."""

    def __getattr__(self, attribute: str) -> Any:
        """Return something silent."""
        return self if self._is_own_thread() else getattr(self._original, attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        """Forget it."""
        if not self._is_own_thread():
            setattr(self._original, attribute, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return something silent."""
        return self if self._is_own_thread() else self._original(*args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        """Return something silent."""
        return self if self._is_own_thread() else self._original[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forget it."""
        if not self._is_own_thread():
            self._original[key] = value
