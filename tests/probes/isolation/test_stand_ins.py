"""What stands in for trackers and channels: silent or refusing in an evaluation, the object itself elsewhere."""

import collections
import copy
import pickle
import queue
import threading

import pytest
import torch

from learnmech.probes.isolation import Refusal
from learnmech.probes.isolation.flag import probing
from learnmech.probes.isolation.stand_ins import Silent, Withheld


@pytest.fixture
def measuring():
    with probing():
        yield


def in_another_thread(work):
    found = []

    def run():
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


USES = [
    len, iter, bool, repr, str, list, sorted, copy.copy, copy.deepcopy, hash, type(None).__eq__,
    lambda q: pickle.loads(pickle.dumps(q)),
    lambda q: 1 in q, lambda q: q[1], lambda q: q + q, lambda q: q * 2, lambda q: 2 * q, lambda q: q == 1,
    lambda q: q == [1, 2], lambda q: q < [3], lambda q: q < 3, float, int, lambda q: -q, lambda q: q.append(3),
    lambda q: q.__setitem__(0, 5), lambda q: q.__delitem__(0), next, lambda q: q.nothing, lambda q: isinstance(q, list),
    lambda q: f"{q:>9}", lambda q: 7 - q, reversed, lambda q: q(), lambda q: q.__enter__(), lambda q: q.count(1),
]  # fmt: skip


def told(work, thing):
    try:
        result = work(thing)
    except Exception as error:
        return repr(type(error))
    return type(result), result if not hasattr(result, "__next__") else list(result)


@pytest.mark.parametrize("kind", [Withheld, Silent])
@pytest.mark.parametrize("original", [[1, 2], 4.5, collections.Counter("ab"), "word"], ids=str)
def test_another_thread_meets_the_original(kind, original, measuring):
    """A consumer that looks at the model meanwhile can do all that it could do, and nothing else."""
    for place, use in enumerate(USES):
        met = kind(copy.deepcopy(original), "Model.thing")
        expected = told(use, copy.deepcopy(original))
        assert in_another_thread(lambda use=use, met=met: told(use, met)) == expected, place


@pytest.mark.parametrize("kind", [Withheld, Silent])
def test_after_the_measurement_everybody_meets_the_original(kind):
    """One that escaped into a global variable must not raise into training."""
    with probing():
        stand_in = kind([1, 2], "Model.thing")
    assert len(stand_in) == 2
    stand_in.append(3)
    assert list(stand_in) == [1, 2, 3] == stand_in


@pytest.mark.parametrize("use", [lambda q: q.qsize(), iter, next, len, lambda q: q(), lambda q: q.__enter__(),
                                 lambda q: 1 in q, lambda q: q[0], lambda q: q + 1, copy.copy])  # fmt: skip
def test_what_is_withheld_refuses(use, measuring):
    withheld = Withheld(queue.Queue(), "Model.queue")
    assert withheld
    assert isinstance(withheld, queue.Queue)
    with pytest.raises(Refusal, match=r"uses Model\.queue \(a Queue\)"):
        use(withheld)


class Tracker:
    def __init__(self):
        self.step, self._name, self.rows, self.summary = 3, "own", [], {"best": 1.0}

    def log(self, row):
        self.rows.append(row)


def test_what_is_silent_swallows(measuring):
    tracker = Tracker()
    silent = Silent(tracker, "Model.tracker")
    silent.log({"a": 1})
    silent.step += 1
    silent.summary["best"] += 1
    del silent.summary["best"], silent.rows
    silent.anything.at_all(1).b = 4
    with silent.section("x") as section:
        section.log(f"{section:.3f} {silent.summary['best'] + 1}")
    assert silent
    assert (silent.step, silent._name) == (3, "own"), "plain values are read"
    assert vars(tracker) == vars(Tracker())


@pytest.mark.parametrize(
    "use",
    [
        lambda s: "best" in s.summary, lambda s: list(s.rows), len, lambda s: float(s.summary["best"]),
        lambda s: 1.0 if s.busy() else 2.0, lambda s: s.summary["best"] < 3, lambda s: s.mode == "x",
        lambda s: torch.tensor([s.summary["best"]]), lambda s: [1, 2][s.place()], lambda s: max(1, s.summary["best"]),
    ],
)  # fmt: skip
def test_what_is_silent_has_no_answers(use, measuring):
    with pytest.raises(Refusal, match=r"reads from Model\.tracker \(a Tracker\)"):
        use(Silent(Tracker(), "Model.tracker"))


def test_numbers_made_of_an_answer_are_none(measuring):
    answer = Silent(Tracker(), "Model.tracker").summary["best"]
    for made in (torch.ones(2) * answer, answer * torch.ones(2), -answer + 1, 2**answer):
        assert not isinstance(made, torch.Tensor)
        with pytest.raises(Refusal):
            float(made)
