"""The child process of a dry run: `python -m learnmech.probes.doctor.inside PLAN TARGET [argument ...]`.

It exits with 0 when the dry run came to its end, with 3 when the target cannot be trained, with 4 when the script ended
without training, and otherwise as the script does.
"""

import json
import random
import runpy
import sys
import traceback
from pathlib import Path
from types import TracebackType

import torch

from learnmech.probes.doctor import huggingface_train, lightning_fit, recorder_loop, targets
from learnmech.probes.doctor.after_import import AfterImport
from learnmech.probes.doctor.session import Session, Stop

UNUSABLE, NOTHING = 3, 4
"""Exit codes: the target cannot be trained; the script ended and had trained nothing."""


def main() -> int:
    """Run the target under a dry run."""
    folder, (target, *words) = Path(sys.argv[1]), sys.argv[2:]
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    session = Session(folder, plan["uses"], plan["updates"])
    AfterImport(
        {
            "lightning.pytorch.trainer.trainer": lambda module: lightning_fit.patch(module, session),
            "pytorch_lightning.trainer.trainer": lambda module: lightning_fit.patch(module, session),
            "transformers.trainer": lambda module: huggingface_train.patch(module, session),
        }
    ).install()
    recorder_loop.intercept(session)
    _seed()
    script = target.endswith(".py")
    session.tell("begins")
    try:
        if script:
            sys.argv = [target, *words]
            sys.path[0] = str(Path(target).resolve().parent)  # as for `python script.py`
            runpy.run_path(target, run_name="__main__")
        else:
            targets.train(target, plan["data"])
    except Stop:
        return 0
    except targets.Unusable as error:
        (folder / "problem").write_text(str(error), encoding="utf-8")
        return UNUSABLE
    except SystemExit:
        if not session.over:
            raise
    except BaseException as error:  # noqa: BLE001 (shown as the interpreter would show it)
        if not session.over:
            own = _own(error.__traceback__, target) if script else error.__traceback__
            traceback.print_exception(type(error), error, own)
            return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0 if session.over else NOTHING


def _seed() -> None:
    """Begin both runs of a script alike, whether it seeds or not."""
    random.seed(0)
    torch.manual_seed(0)
    try:
        import numpy as np
    except ImportError:
        return
    np.random.seed(0)  # noqa: NPY002 (the global stream is the one that scripts use)


def _own(trace: TracebackType | None, script: str) -> TracebackType | None:
    """Return the part of a traceback from the script on."""
    found = trace
    while found is not None and found.tb_frame.f_code.co_filename != script:
        found = found.tb_next
    return found or trace


if __name__ == "__main__":
    sys.exit(main())
