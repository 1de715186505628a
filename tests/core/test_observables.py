"""The vocabulary: complete, unique, and helpful about what it does not have."""

import pytest

from learnmech import laws, observables


def test_every_observable_is_fully_declared_once():
    names = [o.name for o in observables.catalogue()]
    assert len(names) == len(set(names))
    for o in observables.catalogue():
        assert o.name.isidentifier()
        assert o.unit
        assert o.description.endswith(".")


@pytest.mark.parametrize(
    "name",
    [
        "loss",
        "grad_norm",
        "sharpness",
        "sharpness_preconditioned",
        "batch_sharpness",
        "hessian_trace",
        "hessian_eigenvalue",
        "noise_scale",
        "noise_trace",
        "grad_sq_norm",
        "weight_norm",
        "weight_norm_sq",
        "update_norm",
        "angular_update",
        "learning_rate",
        "momentum",
        "weight_decay",
        "batch_size",
    ],
)
def test_the_fixed_names_are_there(name):
    assert observables.get(name).name == name


def test_every_observable_that_a_law_reads_is_declared():
    for law in laws.catalogue():
        for name in (*law.measures, *law.needs, *law.uses):
            assert observables.is_declared(name), (law.name, name)


def test_an_unknown_name_gets_the_nearest_and_the_way_out():
    with pytest.raises(observables.UnknownObservable, match=r"did you mean sharpness.*'user.sharpnes'"):
        observables.get("sharpnes")


def test_the_user_space_is_free_but_needs_a_name():
    assert observables.get("user.my_metric").name == "user.my_metric"
    assert not observables.is_declared("user.")


def test_every_status_has_its_sentence():
    assert all(status.sentence.endswith(".") for status in observables.Status)
    assert observables.Status("ok") is observables.Status.OK
