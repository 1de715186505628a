"""Who owns a writer's folder: a lock that a dead process cannot hold."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path

STALE = 180.0
"""Seconds without a sign of life after which an owner on another machine counts as dead; it gives one every 15 s."""
CHILLED = 30.0
"""Seconds after which a lock or a folder without an owner's name is no longer just being made."""
_WIDTH = 512  # bytes of a lock file; a host name has at most 255

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class WriterLock:
    """An exclusive `flock` on a file that also names its owner.

    The kernel drops the lock with the process, so on one machine there is nothing to guess. Where the file system has
    no `flock`, or only one for each machine, the owner's name and the file's age decide.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, path: Path) -> "WriterLock":
        """Take a new lock; an `OSError` when the file exists, cannot be created, or somebody was faster."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _flock(fd)
            _sign(fd)
        except BaseException:  # Ctrl-C too
            os.close(fd)
            raise
        return cls(path, fd)

    @classmethod
    def adopt(cls, path: Path, now: float | None = None) -> "WriterLock | None":
        """Take over the lock of a dead owner, or return None when it lives or may live.

        Args:
            path: The lock file; a missing one is created.
            now: Seconds since the epoch by the clock of that file system, which may be another machine's.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        # An error means that it is held, or that the file system fails: either way it is not ours to take.
        with contextlib.suppress(OSError):
            locked = _flock(fd)
            if os.fstat(fd).st_nlink and _dead(fd, locked, time.time() if now is None else now):
                _sign(fd)
                return cls(path, fd)
        os.close(fd)
        return None

    def touch(self) -> float:
        """Give a sign of life and return its time by the file system's clock; 0 when it failed."""
        try:
            os.utime(self._fd)
            return os.fstat(self._fd).st_mtime
        except OSError:
            return 0.0

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back; releasing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with contextlib.suppress(OSError):
            if remove and os.fstat(fd).st_nlink:
                self.path.unlink(missing_ok=True)
            else:
                # Where locks do not reach from machine to machine, this word does.
                _write(fd, {"released": True})
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def leave(self) -> None:
        """Close the copy that a fork made, without unlocking the parent's."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def _flock(fd: int) -> bool:
    """Lock; False where the file system cannot. A lock held by another is an `OSError`."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _sign(fd: int) -> None:
    _write(fd, {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())})


def _write(fd: int, owner: dict[str, object]) -> None:
    # One write over the whole of what was there: a process killed here leaves no lock without a name.
    os.pwrite(fd, json.dumps(owner).encode().ljust(_WIDTH), 0)


def _dead(fd: int, locked: bool, now: float) -> bool:
    """Whether the owner that signed is gone, given whether we could lock."""
    age = now - os.fstat(fd).st_mtime
    try:
        owner = json.loads(os.pread(fd, _WIDTH, 0) or b"{}")
        if owner.get("released"):
            return True
        host, pid, born = owner["host"], int(owner["pid"]), owner["born"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return age > CHILLED
    if host != socket.gethostname():
        return age > STALE
    return locked or not _alive(pid, born)


def _alive(pid: int, born: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return _born(pid) == born


def _born(pid: int) -> str:
    """Return when a process started, to tell it from a later one with its number; '' where that cannot be had."""
    try:
        # Field 22 of stat; the name in field 2 may hold spaces, so count from its closing bracket.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
