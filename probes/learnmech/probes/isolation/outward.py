"""Effects that leave the process: files, sockets, programs. Nothing undoes them, so an evaluation stops before them.

A training step that appends to a file, sends to a server or starts a program would do so once more in every replay.
While code of the user's evaluates the loss, the doors that Python has to the world outside are guarded: in the thread
that evaluates they raise, so nothing is opened, sent or started; other threads pass. Files that were opened earlier are
guarded by `withheld`, where the model holds them.

The interpreter's own audit hooks (PEP 578) see more and cannot be removed: `id` is an audit event, and a Lightning step
of 300 tensors has 400 of them, 40 us with a hook that does nothing. Guarded doors cost nothing outside of evaluations.
"""

import builtins
import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, NoReturn

import torch

from learnmech.probes.isolation.refusal import Refusal

_FILES = ("remove", "unlink", "rename", "replace", "mkdir", "rmdir", "link", "symlink", "truncate")
_PROGRAMS = ("system", "fork", "forkpty", "posix_spawn", "posix_spawnp")
_SENDS = ("connect", "connect_ex", "send", "sendall", "sendto", "sendmsg", "recv", "recv_into", "recvfrom")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_COMPILERS = ("torch._inductor", "torch._dynamo.convert_frame", "triton", "torch._functorch._aot_autograd")
"""Modules that keep compiled kernels in files: no effect of the step."""

_EVALUATION = "learnmech.probes.isolation.source"
"""The module whose frame calls the user's code."""


class _Watch(threading.local):
    """What this thread's evaluation tried to do.

    Attributes:
        origin: What is evaluated, None outside of evaluations.
        remedy: What to do instead.
        found: The first effect, as a sentence.
    """

    origin: str | None = None
    remedy: str = ""
    found: str = ""


_watch = _Watch()
_lock = threading.Lock()
_active = 0
"""Evaluations under way in all threads; doors are guarded while there are any."""
_doors: list[tuple[Any, str, Any, Any]] = []
"""Owner, name, what its own attribute was (a `_Missing` if inherited), and its guard."""


class _Missing:
    """Stands for an attribute that the owner inherits."""


def stop(effect: str) -> NoReturn:
    """Refuse an effect, such as "writes to the file 'log.txt'".

    Raises:
        Refusal: Always; told again at the end of the evaluation, should the user's code have caught it.
    """
    said = _watch.found or f"{_watch.origin or 'The loss'} {effect}, which measuring would do once more."
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
    before = (_watch.origin, _watch.remedy, _watch.found)
    _watch.origin, _watch.remedy, _watch.found = origin, remedy, ""
    _guard_doors(1)
    try:
        yield
        found = _watch.found
    except Exception:
        if not _watch.found:
            raise
        found = _watch.found
    finally:
        _guard_doors(-1)
        _watch.origin, _watch.remedy, _watch.found = before
    if found:  # also where the user's code caught it, or made another exception of it
        raise Refusal(found, remedy)


def _guard_doors(more: int) -> None:
    """Count evaluations; guard the doors with the first, leave them as they were with the last."""
    global _active  # noqa: PLW0603 (the doors are those of the process)
    with _lock:
        _active += more
        if _active == 1 and more == 1:
            for owner, name, effect in _places():
                original = owner.__dict__.get(name, _Missing)
                guard = _guarded(getattr(owner, name), effect)
                _doors.append((owner, name, original, guard))
                setattr(owner, name, guard)
        elif _active == 0:
            while _doors:
                owner, name, original, guard = _doors.pop()
                if owner.__dict__.get(name) is not guard:  # somebody else has put something there since
                    continue
                if original is _Missing:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)


def _places() -> Iterator[tuple[Any, str, Callable[..., str]]]:
    """Yield the doors: an owner, a name, and what a call of it does to the world outside, '' for nothing."""
    for module in (builtins, io):
        yield module, "open", _opens
    yield os, "open", _opens_descriptor
    yield os, "write", _writes_descriptor
    yield torch, "save", _saves
    for name in _FILES:
        yield os, name, _changes
    for name in _PROGRAMS:
        if hasattr(os, name):
            yield os, name, _starts
    yield subprocess.Popen, "__init__", _starts
    if "sqlite3" in sys.modules:  # otherwise nobody has it
        yield sys.modules["sqlite3"], "connect", _changes
    sockets = [socket.socket] + ([sys.modules["ssl"].SSLSocket] if "ssl" in sys.modules else [])
    for owner in sockets:
        for name in _SENDS:
            yield owner, name, _sends


def _guarded(original: Any, effect: Callable[..., str]) -> Any:
    @wraps(original)
    def guard(*arguments: Any, **keywords: Any) -> Any:
        if _watch.origin is not None:
            said = effect(*arguments, **keywords)
            if said and not _compiles(sys._getframe(1)):  # noqa: SLF001 (there is no other way to the caller)
                stop(said)
        return original(*arguments, **keywords)

    return guard


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


def _compiles(frame: FrameType | None) -> bool:
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == _EVALUATION:
            return False
        if name.startswith(_COMPILERS):
            return True
        frame = frame.f_back
    return False
