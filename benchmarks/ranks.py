"""What the noise scale costs that is read from the processes of data-parallel training: two of them, on this machine.

    python -m benchmarks.ranks NETWORK SECONDS RANK FOLDER

is one of the two; `row` starts them.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.twins import Case, Row, Twins
from learnmech.probes import GradientNoiseScale

CASE = Case("noise of 2 processes alone", lambda: [GradientNoiseScale(source="pieces")], 0.01, 1, 0.002)
PROCESSES = 2
WAIT = timedelta(minutes=5)


def row(name: str, seconds: float) -> Row:
    """Measure one row in two processes.

    Args:
        name: Which of the networks.
        seconds: For so long.

    Raises:
        RuntimeError: One of them failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ranks", name, str(seconds)]
        processes = [subprocess.Popen([*command, str(rank), folder], env=environment) for rank in range(PROCESSES)]
        ends = [process.wait() for process in processes]
        if any(ends):
            raise RuntimeError(f"{CASE.title} on {name}: the processes ended with {ends}; see above")
        found: Row = pickle.loads((Path(folder) / "row.pickle").read_bytes())
        return found


def _agreed(answer: bool) -> bool:
    told = torch.tensor([float(answer)])
    dist.broadcast(told, 0)
    return bool(told)


def _main() -> None:
    name, seconds, rank, folder = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=WAIT)
    twins = Twins(name, CASE, "cpu", str(folder / f"spool{rank}"), DistributedDataParallel)
    found = twins.row(seconds, lambda _: None, _agreed)
    if rank == 0:
        (folder / "row.pickle").write_bytes(pickle.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main()
