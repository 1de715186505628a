"""A loop that clips says so, and laws of the plain update then keep quiet."""

import pytest
import torch

from learnmech.laws import State, get
from learnmech.probes import Recorder


@pytest.mark.parametrize("bound", [None, 0.5])
def test_the_bound_reaches_the_laws(bound, spool, mean_square):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, mean_square, [], sink=spool.url, gradient_clip=bound) as recorder:
        recorder.after_step((torch.randn(4, 2), torch.randn(4, 1)))
    prediction = get("edge_of_stability").predict(State("sharpness", 1, context=spool().context))
    assert ("clipped" in prediction.not_applicable) is (bound is not None)
