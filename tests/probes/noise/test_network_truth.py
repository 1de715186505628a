"""Every source of noise in one process, on networks with all per-example gradients: unbiased, and as sure as it says.

From training's own loop, through hooks or replays, to what is recorded. Problems and counts are in `heads.py`, the
processes of data parallelism in `tests/distributed/test_noise_truth.py`.
"""

import pytest


@pytest.mark.parametrize("source", ["micro_batches", "unequal", "examples", "split_batch_in_4"])
def test_unbiased_and_as_sure_as_it_says(heads, tmp_path, source):
    found, methods = heads.judged("network", source, tmp_path)
    assert methods == {"micro_batches" if source == "unequal" else source}
    print(source, "network", found)
    heads.check(found)
