"""Borrowed names: which of them the installed versions have, and that none is used elsewhere or listed in vain."""

from __future__ import annotations

import pytest

from .borrowed import LENDERS, TABLE, files_of, leads_somewhere, private_names, users


@pytest.mark.parametrize("one", TABLE, ids=lambda one: one.name)
def test_a_borrowed_name_is_there(one):
    assert one.there(), (
        f"the installed {one.lender} has no {one.name}: mend {one.through} in src/resfx/{LENDERS[one.lender]}."
        f" Without it breaks: {one.breaks}. Used in {', '.join(users(one.through))}"
    )


def test_a_name_that_is_not_there_is_noticed():
    assert not leads_somewhere("torch._C._no_such_name") and not leads_somewhere("torch._no_such_module.name")


@pytest.mark.parametrize("lender", LENDERS)
def test_the_table_lists_what_is_borrowed(lender):
    listed = {part for one in TABLE if one.lender == lender for part in one.name.split(".") if part.startswith("_")}
    assert listed == set().union(*map(private_names, files_of(lender)))


def test_every_borrowed_name_is_used():
    assert not [one.name for one in TABLE if not users(one.through)]


def test_our_cache_layer_offers_what_a_cache_asks_of_one():
    from transformers.cache_utils import DynamicLayer

    from resfx.runtime.huggingface import ShortState

    # A host writes keys and values, and sizes its masks, by layers it addresses by number: never by ours.
    of_hosts = {"update", "get_mask_sizes", "lazy_initialization"}
    asked = {n for n in dir(DynamicLayer) if not n.startswith("_")}
    assert asked - set(dir(ShortState)) == of_hosts
