"""Effects that leave the process: files, sockets, programs, threads. Nothing undoes them: an evaluation stops first.

A training step that appends to a file, sends to a server or starts a program would do so once more in every replay.
While code of the user's evaluates the loss, the doors that Python has to the world outside are guarded: in the thread
that evaluates they raise, so nothing is opened, sent or started. Other threads pass; none is started or given work,
since what it does there would not be seen. Files that were opened earlier are guarded by `withheld`, where the model
holds them.

The interpreter's own audit hooks (PEP 578) see more and cannot be removed: `id` is an audit event, and a Lightning step
of 300 tensors has 400 of them, 40 us with a hook that does nothing. Guarded doors cost nothing outside of evaluations.
"""

import builtins
import io
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, NoReturn

import torch

from learnmech.probes.isolation.doors import Doors, Place
from learnmech.probes.isolation.refusal import Refusal

_FILES = ("remove", "unlink", "rename", "replace", "mkdir", "rmdir", "link", "symlink", "truncate")
_PROGRAMS = ("system", "fork", "forkpty", "posix_spawn", "posix_spawnp")
_SENDS = ("connect", "connect_ex", "send", "sendall", "sendto", "sendmsg", "recv", "recv_into", "recvfrom")
_DESCRIPTORS = ("write", "writev", "pwrite", "pwritev", "sendfile")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_COMPILERS = ("torch._inductor", "torch._dynamo.convert_frame", "triton", "torch._functorch._aot_autograd")
"""Modules that keep compiled kernels in files: no effect of the step."""

_LIBRARIES = ("torch", "tqdm")
"""Packages that may start threads of their own: replicas on several devices, the watcher of a progress bar."""

_EVALUATION = "learnmech.probes.isolation.source"
"""The module whose frame calls the user's code."""


class _Watch(threading.local):
    """What this thread's evaluation tried to do.

    Attributes:
        origin: What is evaluated, None outside of evaluations.
        remedy: What to do instead.
        found: The first effect, as a sentence.
        made: Queues that it made itself, which nobody else knows.
    """

    origin: str | None = None
    remedy: str = ""
    found: str = ""
    made: tuple[object, ...] = ()


_watch = _Watch()


def stop(effect: str, why: str = "which measuring would do once more") -> NoReturn:
    """Refuse an effect, such as "writes to the file 'log.txt'".

    Args:
        effect: What was about to happen.
        why: Why it must not.

    Raises:
        Refusal: Always; told again at the end of the evaluation, should the user's code have caught it.
    """
    said = _watch.found or f"{_watch.origin or 'The loss'} {effect}, {why}."
    if _watch.origin is not None:  # in a backward pass, that computes activations again, there is no end to wait for
        _watch.found = said
    raise Refusal(said, _watch.remedy)


@contextmanager
def nothing_leaves(origin: str, remedy: str) -> Iterator[None]:
    """Stop code of the user's, in this thread, before it changes files, uses the network or starts programs.

    Args:
        origin: What runs, for the reason: "training_step", "The loss function".
        remedy: What to pass or change.

    Raises:
        Refusal: It was about to.
    """
    before = (_watch.origin, _watch.remedy, _watch.found, _watch.made)
    _watch.origin, _watch.remedy, _watch.found, _watch.made = origin, remedy, "", ()
    try:
        with _doors.guarded():
            yield
        found = _watch.found
    except Exception:
        if not _watch.found:
            raise
        found = _watch.found
    finally:
        _watch.origin, _watch.remedy, _watch.found, _watch.made = before
    if found:  # also where the user's code caught it, or made another exception of it
        raise Refusal(found, remedy)


def _places() -> Iterator[Place]:
    """Yield the doors, each with what a call of it does to the world outside, '' for nothing."""
    for module in (builtins, io):
        yield module, "open", _guard(_opens)
    yield os, "open", _guard(_opens_descriptor)
    yield torch, "save", _guard(_saves)
    for names, effect in ((_DESCRIPTORS, _writes_descriptor), (_FILES, _changes), (_PROGRAMS, _starts)):
        for name in names:
            if hasattr(os, name):
                yield os, name, _guard(effect)
    yield subprocess.Popen, "__init__", _guard(_starts)
    yield threading.Thread, "start", _guard(_hands_over, _LIBRARIES)
    yield ThreadPoolExecutor, "submit", _guard(_hands_over, _LIBRARIES)
    yield queue.Queue, "__init__", _guard(_makes)
    for name in ("put", "get"):
        yield queue.Queue, name, _guard(_uses_queue, _LIBRARIES)
    for package, name, effect in (("_posixsubprocess", "fork_exec", _starts), ("sqlite3", "connect", _changes)):
        if package in sys.modules:  # otherwise nobody has it
            yield sys.modules[package], name, _guard(effect)
    sockets = [socket.socket] + ([sys.modules["ssl"].SSLSocket] if "ssl" in sys.modules else [])
    for owner in sockets:
        for name in _SENDS:
            yield owner, name, _guard(_sends)


_doors = Doors(_places)


def _guard(effect: Callable[..., str], callers: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Return what makes a guard: it stops the effect, unless a compiler or one of these packages calls."""

    def make(original: Any) -> Any:
        @wraps(original)
        def guard(*arguments: Any, **keywords: Any) -> Any:
            if _watch.origin is not None:
                said = effect(*arguments, **keywords)
                if said and not _is_exempt(sys._getframe(1), callers):  # noqa: SLF001 (no other way to the caller)
                    stop(said)
            return original(*arguments, **keywords)

        return guard

    return make


def _named(effect: str, path: Any) -> str:
    """Return the effect on a file by its name; '' for devices, and for files that were opened before."""
    if not isinstance(path, str | bytes | os.PathLike):
        return ""
    name = os.fsdecode(path)
    return "" if name.startswith(("/dev/", "/proc/")) else f"{effect} the file {name!r}"


def _opens(file: Any = "", mode: Any = "r", *_: Any, **__: Any) -> str:
    return _named("writes to", file) if set(str(mode)) & set("wax+") else ""


def _opens_descriptor(path: Any = "", flags: Any = 0, *_: Any, **__: Any) -> str:
    return _named("writes to", path) if flags & _WRITES else ""


def _writes_descriptor(descriptor: Any = 0, *_: Any, **__: Any) -> str:
    return "writes to a file" if descriptor > 2 else ""  # 1 and 2: a line printed twice harms nothing


def _saves(_: Any = None, f: Any = None, *__: Any, **___: Any) -> str:
    return _named("writes to", f)


def _changes(path: Any = "", *_: Any, **__: Any) -> str:
    return _named("changes", path)


def _starts(*_: Any, **__: Any) -> str:
    return "starts a program"


def _sends(*_: Any, **__: Any) -> str:
    return "uses the network"


def _hands_over(*_: Any, **__: Any) -> str:
    return "hands work to another thread"


def _makes(made: object, *_: Any, **__: Any) -> str:
    _watch.made += (made,)
    return ""


def _uses_queue(found: object, *_: Any, **__: Any) -> str:
    return "" if any(found is made for made in _watch.made) else "shares a queue with another thread"


def _is_exempt(frame: FrameType, callers: tuple[str, ...]) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in callers or _compiles(frame)


def _compiles(frame: FrameType | None) -> bool:
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == _EVALUATION:
            return False
        if name.startswith(_COMPILERS):
            return True
        frame = frame.f_back
    return False
