"""Both benchmarks: `make bench`."""

import os

# Before anything imports torch or NumPy: CPU times are of one thread, unless --threads gives torch more.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell of its every start


if __name__ == "__main__":
    from benchmarks.command import main

    main()
