"""The command of the benchmarks: what is measured, where it is written."""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import curvature, overhead, probe_cost
from benchmarks.report import markdown

HERE = Path(__file__).parent


def main() -> None:
    """Run what is asked for and write it beside this file."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=["probes", "curvature", "overhead"], help="one of the three")
    parser.add_argument("--quick", action="store_true", help="a shorter look; prints and writes nothing unless --out")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    parser.add_argument("--out", type=Path, help="folder to write into")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = arguments.out or (None if arguments.quick else HERE)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    for name, table in {"probes": probe_cost, "overhead": overhead}.items():
        if arguments.only in {None, name}:
            text = table.measured(device, arguments.threads, quick=arguments.quick)
            console.print(Markdown(text))
            if folder:
                (folder / f"{table.__name__.rpartition('.')[2]}.md").write_text(text, encoding="utf-8")
    if arguments.only in {None, "curvature"}:
        with curvature.bar() as progress:
            plan = curvature.QUICK if arguments.quick else curvature.Plan()
            results = curvature.run(plan, curvature.Ticker(progress), device=device)
        if folder:
            curvature.write(results, folder)
        console.print(Markdown(markdown(results)))
