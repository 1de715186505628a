"""Write the reference pages, or check that they are what the code says."""

import argparse
import difflib
import sys
from pathlib import Path

from scripts.reference import pages

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"


def main() -> int:
    """Write the pages; with `--check` compare instead and say what differs."""
    parser = argparse.ArgumentParser(prog="python -m scripts.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with docs/reference and write nothing")
    check = parser.parse_args().check
    written = pages.everything(ROOT)
    stale = {path.name for path in FOLDER.glob("*.md")} - set(written)
    if not check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
        for name in stale:
            (FOLDER / name).unlink()
        print(f"wrote {len(written)} pages to {FOLDER.relative_to(ROOT)}")
        return 0
    differences = [f"{name}: no longer written" for name in sorted(stale)]
    for name, text in written.items():
        path = FOLDER / name
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        differences += list(
            difflib.unified_diff(old.splitlines(), text.splitlines(), f"committed {name}", "code", lineterm="")
        )
    if differences:
        print("\n".join(differences[:80]))
        print("docs/reference is behind the code; type: make docs")
        return 1
    print(f"{len(written)} reference pages are what the code says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
