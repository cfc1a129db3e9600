"""A slice of ``tests/ecosystem``: what is spread over processes computes what one process does."""

from __future__ import annotations

import pytest

from .ecosystem.distributed import _ddp, processes
from .ecosystem.distributed_checkpoint import _between, _meta
from .ecosystem.sharded import _fsdp2, _uneven
from .ecosystem.tensor_parallel import _both, _new_call, _sequence
from .ecosystem.tool import MODES, Make

pytest.importorskip("transformers")


@pytest.mark.parametrize("mode", MODES)
def test_layers_sharded_over_four_processes(mode):
    processes(4, _fsdp2, Make(mode), {})


def test_copies_whose_gradients_are_averaged():
    processes(2, _ddp, Make("mhc"), {"static_graph": True, "gradient_as_bucket_view": True})


def test_a_call_that_is_new_in_one_process_only():
    processes(2, _uneven, Make("attnres"))


def test_layers_split_and_sharded():
    processes(4, _both, Make("attnres"))


def test_a_checkpoint_of_two_processes_for_four():
    _between(Make("ddl"), [(2, 4)])


def test_a_model_from_the_meta_device_starts_as_it_would_have():
    """Copies of the host's norms too: their class is a wrapper's by then."""
    processes(2, _meta, Make("short_swa"), "host")


@pytest.mark.parametrize("mode", ["attnres", "short_swa"])
def test_norms_over_a_part_of_the_positions_are_refused(mode):
    with pytest.raises(RuntimeError, match=r"cannot run model.* on a part of a sequence"):
        processes(2, _sequence, Make(mode))


def test_split_layers_take_calls_not_seen_before():
    """With a cache, too: the heads in it are those of one process."""
    processes(2, _new_call, Make("ddl"))
