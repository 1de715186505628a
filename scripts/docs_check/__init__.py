"""The documentation is run, followed and counted: `python -m scripts.docs_check`.

- `blocks`: code in Markdown is executed (Python, SQL) or checked against what exists (commands, targets, extras).
- `examples`: code in docstrings does what it shows.
- `links`: every link to a file of the repository, and to a heading in it, resolves.
- `tree`: no path of somebody's machine and no package registry's host stands in any file.
- `scripts.reference`: each observable, law, probe, panel, command, setting, view and route has its entry.
"""
