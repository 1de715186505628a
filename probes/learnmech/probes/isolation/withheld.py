"""What a model holds that no copy stands in for: open files, queues, sockets, programs, iterators, and trackers.

During an evaluation something else stands in their place. Trackers swallow what they are told, as the trainer's own
loggers do. The others refuse: a line written through an open file, an item put into a queue, or one drawn from an
iterator over the data cannot be taken back, nor what is done to an object of the user's that other threads work on. An
iterator of a class of the user's is put back with its attributes, and the iterators among those are withheld.
"""

from typing import Any

from learnmech.probes.isolation.quiet import is_screen
from learnmech.probes.isolation.stand_ins import Silent, StandIn, Withheld

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

_THREADS = {"threading", "_thread", "queue", "_queue", "multiprocessing", "concurrent", "socket", "asyncio"}
"""Packages whose objects are held by what works with other threads: locks, queues, pools."""

_TRACKERS = ("wandb", "mlflow", "tensorboardX", "torch.utils.tensorboard", "neptune", "comet_ml", "aim", "clearml",
             "swanlab", "dvclive", "tqdm", "lightning.pytorch.loggers", "pytorch_lightning.loggers")  # fmt: skip
"""Packages whose objects take what is logged or shown."""


def is_channel(value: Any) -> bool:
    """Tell whether `value` is a way out of the process or to another thread.

    >>> import queue
    >>> is_channel(queue.Queue()), is_channel([])
    (True, False)
    """
    return not is_screen(value) and any(
        cls.__name__ in _CHANNELS.get(cls.__module__, ()) for cls in type(value).__mro__
    )


def is_tracker(value: Any) -> bool:
    """Tell whether `value` keeps what is logged of an experiment."""
    module = type(value).__module__
    return any(module == name or module.startswith(f"{name}.") for name in _TRACKERS)


def is_iterator(value: Any) -> bool:
    """Tell whether `value` gives each item once.

    >>> is_iterator(iter([1])), is_iterator(zip()), is_iterator([1])
    (True, True, False)
    """
    return hasattr(type(value), "__next__")


def stand_in(value: Any, name: str, *, users: bool, kept: bool) -> StandIn | None:
    """Return what stands in for a channel, a tracker, an iterator, or an object of the user's with a channel or a lock.

    Args:
        value: An attribute of a model, or an item of a container there.
        name: Where it is, for the reason.
        users: Whether it is of a class of the user's.
        kept: Whether all its attributes are put back after an evaluation, so that it may be advanced.
    """
    if is_tracker(value):
        return Silent(value, name)
    if is_screen(value):
        return None
    if is_channel(value) or (users and (holds_threads(value) or any(map(is_channel, _attributes(value))))):
        return Withheld(value, name)
    return Withheld(value, name) if is_iterator(value) and not kept else None


def holds_threads(value: Any) -> bool:
    """Tell whether an object works with other threads, so that its content may change behind our back.

    >>> import threading, types
    >>> holds_threads(types.SimpleNamespace(lock=threading.Lock())), holds_threads(types.SimpleNamespace(count=0))
    (True, False)
    """
    return any(type(held).__module__.partition(".")[0] in _THREADS for held in _attributes(value))


def _attributes(value: Any) -> list[Any]:
    state = getattr(value, "__dict__", None) if type(value).__dictoffset__ else None
    return list(state.values()) if isinstance(state, dict) else []
