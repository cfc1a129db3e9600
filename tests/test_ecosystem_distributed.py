"""A slice of ``tests/ecosystem``: what is spread over processes computes what one process does."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from .ecosystem.spread.distributed import _ddp, processes
from .ecosystem.spread.distributed_checkpoint import _between, _meta
from .ecosystem.spread.sharded import _fsdp2, _uneven
from .ecosystem.spread.tensor_parallel import _both, _new_call, _sequence, _split_first
from .ecosystem.tool import MODES, Make

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def alone():
    """Runs a function where no backward pass was run before: torch refuses one after a fork where it has CUDA."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        yield lambda run, *given: pool.submit(run, *given).result()


@pytest.mark.every(2)
@pytest.mark.parametrize("mode", MODES)
def test_layers_sharded_over_four_processes(mode, alone):
    alone(processes, 4, _fsdp2, Make(mode), {})


def test_copies_whose_gradients_are_averaged(alone):
    alone(processes, 2, _ddp, Make("mhc"), {"static_graph": True, "gradient_as_bucket_view": True})


def test_a_call_that_is_new_in_one_process_only(alone):
    alone(processes, 2, _uneven, Make("attnres"))


def test_layers_split_and_sharded(alone):
    alone(processes, 4, _both, Make("attnres"))


def test_layers_split_before_the_rewrite(alone):
    alone(processes, 2, _split_first, Make("ddl"))


def test_a_checkpoint_of_two_processes_for_four(alone):
    alone(_between, Make("ddl"), [(2, 4)])


def test_a_model_from_the_meta_device_starts_as_it_would_have(alone):
    """Copies of the host's norms too: their class is a wrapper's by then."""
    alone(processes, 2, _meta, Make("short_swa"), "host")


@pytest.mark.parametrize("mode", ["attnres", "short_swa"])
def test_norms_over_a_part_of_the_positions_are_refused(mode, alone):
    with pytest.raises(RuntimeError, match=r"cannot run model.* on a part of a sequence"):
        alone(processes, 2, _sequence, Make(mode))


@pytest.mark.matrix
def test_split_layers_take_calls_not_seen_before(alone):
    """With a cache, too: the heads in it are those of one process."""
    alone(processes, 2, _new_call, Make("ddl"))
