"""What must stand in no file: paths of the machine it was written on, hosts of package registries."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Assembled from parts, so that this file does not break its own rule.
HOSTS = tuple("".join(parts) for parts in (
    ("files.python", "hosted.org"), ("pypi.", "org/simple"), ("download.", "pytorch.org"), ("registry.", "npmjs.org"),
    ("registry.", "yarnpkg.com"), ("conda.", "anaconda.org"),
))  # fmt: skip
HOMES = re.compile(
    "(?<![\\w.}$~/-])/(" + "|".join(("ro" + "ot", "home/[a-z][a-z0-9_-]*", "Us" + "ers/[A-Za-z]+", "wo" + "rk")) + ")/"
)
# A lock file is written by its tool, addresses included, and is what makes an installation verifiable.
LOCK_FILES = frozenset({"package-lock.json"})
LARGEST = 2 << 20
# A checkout right under the root has a path that may stand in a file for other reasons.
MEANINGFUL = 2


def files(root: Path) -> list[Path]:
    """Return the files that are or would be committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    return [path for name in listed.stdout.decode().split("\0") if name and (path := root / name).is_file()]


def foreign(path: Path, root: Path) -> Iterator[str]:
    """Yield a sentence for each line of a text file that only makes sense on one machine."""
    if path.name in LOCK_FILES or path.stat().st_size > LARGEST:
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    here = f"{root}/" if len(root.parts) > MEANINGFUL else ""
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{path.relative_to(root)}:{number}"
        if (found := HOMES.search(line)) or (here and here in line):
            yield f"{place}: a path of one machine ({found.group() if found else here}); write a relative path"
        for host in HOSTS:
            if host in line:
                yield f"{place}: the host of a package registry ({host}); installers know where packages come from"
