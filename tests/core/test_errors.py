"""How mistakes are collected."""

from __future__ import annotations

import pytest

from apdm.core.errors import Faults, UserError, UserErrors, absent


def test_a_mistake_that_two_checks_find_is_told_once_with_what_the_later_one_knows() -> None:
    with pytest.raises(UserErrors) as caught, Faults() as faults:
        faults.add(UserError('in "mix:foo=1": mix has no option "foo"; leave it out'))
        faults.add(absent("photos", "photos does not exist; give a folder"))
        faults.add(UserError('in "mix:foo=1": mix has no option "foo"; it has clean'))
        faults.add(UserError("nothing can be read from photos; give another folder"))
        faults.add(UserError("there is no attack"))
        faults.add(UserError("there is no attack"))
    assert str(caught.value).splitlines() == [
        'in "mix:foo=1": mix has no option "foo"; it has clean',
        "photos does not exist; give a folder",
        "there is no attack",
    ]
