"""The reference pages under docs/reference, written from the code: `python -m scripts.reference`.

Each page enumerates what the code declares, so a new observable, law, command, setting or view has its entry as soon as
the pages are written again; `--check` says which page is behind.
"""
