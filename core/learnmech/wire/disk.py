"""The few file system calls of the spool, in one place, so that a test can make any of them fail."""

import os
from pathlib import Path


class Disk:
    """The real file system. Every method raises `OSError` as the call below it does."""

    def make_folder(self, path: Path) -> None:
        """Create a folder and its parents; an existing one is fine."""
        path.mkdir(parents=True, exist_ok=True)

    def create(self, path: Path) -> int:
        """Create a file that did not exist and return its descriptor, for reading and appending."""
        # O_APPEND: after a cut-back the next write lands at the new end without a seek. O_CLOEXEC is Python's default.
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)

    def open(self, path: Path) -> int:
        """Open an existing file for reading."""
        return os.open(path, os.O_RDONLY)

    def size(self, fd: int) -> int:
        """Return a file's size in bytes."""
        return os.fstat(fd).st_size

    def linked(self, fd: int) -> bool:
        """Whether an open file still has a name in some folder."""
        return os.fstat(fd).st_nlink > 0

    def write(self, fd: int, data: bytes) -> int:
        """Append; may write less than asked, as on a disk that is nearly full."""
        return os.write(fd, data)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Read at a position without moving any."""
        return os.pread(fd, size, offset)

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file back to a size."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Wait until the file's contents would survive a power cut."""
        # macOS has no fdatasync.
        getattr(os, "fdatasync", os.fsync)(fd)

    def close(self, fd: int) -> None:
        """Give a descriptor back."""
        os.close(fd)

    def move(self, source: Path, target: Path) -> None:
        """Rename within one file system, replacing the target."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file; a missing one is fine."""
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()


DISK = Disk()
"""The real one."""
