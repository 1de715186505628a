"""Runs the Python and SQL blocks of one document, given as JSON on standard input; a program of its own.

Python blocks share one namespace. SQL blocks read `learnmech.db` in the working folder: the one that Python blocks
before them have made, else an empty store, so that at least every name in them exists.
"""

import json
import runpy
import sqlite3
import sys
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

DATABASE = "learnmech.db"


def main() -> int:
    """Run every block and report each failure on standard error."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    failures = 0
    for step in json.load(sys.stdin):
        try:
            if step["after"]:
                namespace |= runpy.run_path(step["after"])
                namespace["__name__"] = "__main__"
            if step["language"] == "python":
                exec(compile(step["text"], step["place"], "exec"), namespace)  # noqa: S102 (our own documentation)
            else:
                query(step["text"])
        except Exception:  # noqa: BLE001 (every block is run, whatever became of the one before)
            failures += 1
            print(f"{step['place']} fails:\n{traceback.format_exc(limit=-3)}", file=sys.stderr)
    return 1 if failures else 0


def query(text: str) -> None:
    """Run each statement of an SQL block; named parameters are empty strings."""
    if not Path(DATABASE).exists():
        from learnmech.collector.store import Store

        Store.open(f"sqlite:///{DATABASE}").close()
    connection = sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True)
    try:
        statement = ""
        for line in text.splitlines(keepends=True):
            statement += line
            if sqlite3.complete_statement(statement):
                connection.execute(statement, defaultdict(str)).fetchall()
                statement = ""
        if statement.strip():
            connection.execute(statement, defaultdict(str)).fetchall()
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
