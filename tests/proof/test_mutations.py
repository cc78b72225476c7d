"""The mutations are of what there is: each text still stands where it says, and no unique index is forgotten."""

from collections import Counter

import pytest
from django.apps import apps
from django.db import models

from tests.proof.mutants import MUTATIONS, Mutation
from tests.proof.mutations import ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_a_mutation_takes_away_is_there_and_so_are_those_who_notice(mutation: Mutation) -> None:
    assert bool(mutation.index) != bool(mutation.changes)
    for before, after in mutation.changes:
        assert before in (ROOT / mutation.path).read_text()
        assert before != after
    assert mutation.noticed_by
    assert [path for path in mutation.noticed_by if not (ROOT / path.partition("::")[0]).is_file()] == []


def test_each_unique_index_is_taken_away_once() -> None:
    unique = [
        constraint.name
        for model in apps.get_app_config("mailbox").get_models()
        for constraint in model._meta.constraints
        if isinstance(constraint, models.UniqueConstraint)
    ]
    assert Counter(mutation.index for mutation in MUTATIONS if mutation.index) == Counter(unique)
