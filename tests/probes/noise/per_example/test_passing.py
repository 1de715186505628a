"""Hooks of all modules leave nothing behind, the filters of warnings included."""

import warnings

from torch import nn

from learnmech.probes.noise.per_example.passing import Passing


def test_python_forgets_no_warning_and_keeps_no_filter(monkeypatch):
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(str(message)))
        filters = warnings.filters[:]
        for _ in range(3):
            passing = Passing([nn.Linear(1, 1)], print, print, print)
            warnings.warn("the user's", stacklevel=1)
            passing.arm()
            warnings.warn_explicit("Using `torch.compile(module)` when there are global hooks", UserWarning, "a", 1)
            passing.disarm()
        assert warnings.filters == filters
    assert shown == ["the user's"]
