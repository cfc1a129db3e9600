"""A probe of a whole model: what it gathers, in which order, and that it leaves no trace."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from hosts.small import batch, net
from torch import nn

import resfx
from resfx.errors import InputError, OptionError, ResfxError
from resfx.probes.quantity import Quantity
from resfx.probes.result import Probe

IDS = torch.arange(12).reshape(2, 6)


@functools.cache
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    ))  # fmt: skip


CALL = {"input_ids": IDS, "labels": IDS, "use_cache": False}


def rewritten(mode):
    return resfx.rewrite(llama(), mode, kwargs=CALL, check=False)


@functools.cache
def ddl():
    new = resfx.rewrite(net(), resfx.DDL(start="published"), args=(batch(),))
    for i, name in enumerate(n for n, _ in new.named_modules() if n.endswith(".gate")):
        gate = new.get_submodule(name)
        nn.init.zeros_(gate.weight)
        nn.init.constant_(gate.bias, [-1.0, 2.0][i])
    return new


def test_known_gates_come_out_in_order():
    quantity = resfx.probe(ddl(), batch())["ddl/beta"]
    assert quantity.places == ("blocks.0:0", "blocks.1:0")
    known = 2 * torch.sigmoid(torch.tensor([-1.0, 2.0])).numpy()
    np.testing.assert_allclose(quantity.by_depth(), known, rtol=1e-6)
    np.testing.assert_allclose(quantity.by_token(), np.broadcast_to(known[:, None], (2, 5)), rtol=1e-6)
    assert quantity.values[0].shape == (3, 5)


def test_the_stream_is_what_blocks_hand_on():
    new, x = ddl(), batch()
    seen = resfx.probe(new, x, loss=lambda y: y.square().sum())
    states = []
    hooks = [block.register_forward_hook(lambda m, a, y: states.append(y) or y.retain_grad()) for block in new.blocks]
    new(x).square().sum().backward()
    for hook in hooks:
        hook.remove()
    new.zero_grad()
    for i, state in enumerate(states):
        np.testing.assert_allclose(seen["stream/norm"].values[i], state.detach().norm(dim=-1), rtol=1e-6)
        np.testing.assert_allclose(seen["stream/gradient"].values[i], state.grad.norm(dim=-1), rtol=1e-6)
    original = net()
    np.testing.assert_allclose(
        seen["original/norm"].values[0], original.blocks[0](original.inp(x)).detach().norm(dim=-1), rtol=1e-6
    )


def test_a_probe_leaves_no_trace():
    class Stirred(type(net())):
        def __init__(self):
            super().__init__()
            self.drop, self.tell = nn.Dropout(0.5), nn.BatchNorm1d(5)

        def forward(self, x):
            return self.drop(self.out(self.body(self.tell(x))))

    new = resfx.rewrite(Stirred().train(), "ddl", args=(batch(),))
    before = {n: t.clone() for n, t in new.state_dict().items()}
    state = torch.get_rng_state()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in new.modules())
    resfx.probe(new, batch(), loss=lambda y: y.sum())
    assert torch.equal(state, torch.get_rng_state()) and new.training
    assert all(torch.equal(t, before[n]) for n, t in new.state_dict().items())
    assert all(p.grad is None for p in new.parameters())
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in new.modules())


def test_compiled_blocks_and_kept_reads_are_seen_once():
    new = resfx.rewrite(net(), resfx.DenseFormer(recompute=True), args=(batch(),)).train()
    new.compile(backend="eager")
    new(batch())  # compiled without hooks
    quantity = resfx.probe(new, batch(), loss=lambda y: y.sum())["denseformer/weights"]
    assert len(quantity.places) == 2
    np.testing.assert_array_equal(quantity.by_depth(), [[0, 1, np.nan], [0, 0, 1]])


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("mode", "name", "shape"),
    [
        (resfx.AttnRes(block=2), "attnres/weights", (4, 3)),
        (resfx.MHC(n=3), "mhc/mixing, product", (4, 3, 3)),
    ],
)
def test_maps_over_depth_and_matrices_and_a_stream_that_is_the_hosts(mode, name, shape, tmp_path):
    seen = resfx.probe(rewritten(mode), kwargs=CALL)
    assert seen[name].by_depth().shape == shape
    for kind in ("norm", "gradient"):  # at a preserving start the stream is the host's
        for one, other in zip(seen[f"stream/{kind}"].values, seen[f"original/{kind}"].values, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4)
    assert all(path.stat().st_size > 1000 for path in seen.draw(tmp_path))
    assert name in str(seen)
    if mode.name == "attnres":
        # Reads 1 to 4 over the start and the sums of outputs (1), (1, 2), (1, 2) and (3), (1, 2) and (3, 4).
        assert seen[name].places[-2:] == ("model.layers.1:1, read", "model.layers.1:1, exit")
        assert seen[name].columns == ((0, 1), (0, 1), (0, 1, 3), (0, 1, 3)) and seen[name].labels == [0, 1, 3]


def test_a_state_that_nothing_reads_has_no_gradient():
    seen = resfx.probe(rewritten(resfx.AttnRes(start="published")), kwargs=CALL)
    assert not seen["stream/gradient"].by_depth().any() and seen["original/gradient"].by_depth().all()


def test_matrices_are_multiplied_over_depth():
    new = resfx.rewrite(net(), resfx.HyperConnections(n=2, dynamic=False), args=(batch(),))
    matrices = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.5], [0.0, 1.0]]])
    reads = [p.path for p in new._resfx.applications[0].placed.values() if p.role == "read"]
    for path, matrix in zip(reads, matrices, strict=True):
        new.get_submodule(path).mix.data.copy_(matrix)
    seen = resfx.probe(new, batch())
    np.testing.assert_array_equal(seen["hyper_connections/mixing"].by_depth(), matrices)
    np.testing.assert_array_equal(
        seen["hyper_connections/mixing, product"].by_depth(), [matrices[0].tolist(), [[0.0, 1.0], [1.0, 0.5]]]
    )


def test_scalars_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    seen = resfx.probe(ddl(), batch())
    with SummaryWriter(tmp_path) as writer:
        seen.write(writer, 7)
    events = EventAccumulator(str(tmp_path)).Reload()
    written = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert set(written) == set(seen.scalars()) and {e.step for [e] in written.values()} == {7}
    assert written["ddl/beta/blocks.1:0"][0].value == pytest.approx(float(2 * torch.sigmoid(torch.tensor(2.0))))
    depth = Quantity("a/b", ("source",), ("x",), (np.array([1.0, 2.0]),), ((0, 3),))
    assert depth.scalars() == {"a/b/x/0": 1.0, "a/b/x/3": 2.0}


def test_a_trainer_probes_without_disturbing(tmp_path):
    from transformers import Trainer, TrainingArguments

    from resfx.probes.trainer import ProbeCallback

    new = rewritten("ddl")

    def trained(*callbacks):
        twin = copy.deepcopy(new)
        options = TrainingArguments(
            str(tmp_path), max_steps=3, per_device_train_batch_size=2, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, use_cpu=True, learning_rate=1e-2,
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in IDS]
        Trainer(twin, options, train_dataset=data, callbacks=list(callbacks)).train()
        return twin.state_dict()

    callback = ProbeCallback(kwargs=CALL, every=2)
    probed, plain = trained(callback), trained()
    assert list(callback.kept) == [0, 2]
    assert not callback.kept[0]["ddl/mix"].by_depth().any() and callback.kept[2]["ddl/mix"].by_depth().any()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in probed.items())
    with pytest.raises(ValueError, match="every must be at least 1"):
        ProbeCallback(args=(IDS,), every=0)


def test_what_cannot_be_probed_is_said():
    with pytest.raises(ResfxError, match="not a rewritten module"):
        resfx.probe(net(), batch())
    with pytest.raises(InputError, match="a probe needs a batch"):
        resfx.probe(ddl())
    with pytest.raises(OptionError, match="there are ddl/beta"):
        resfx.probe(ddl(), batch())["ddl/beat"]
    with pytest.warns(UserWarning, match="attnres: its modules told nothing"):
        resfx.probe(rewritten(resfx.AttnRes(block=2, two_phase=True)), kwargs=CALL)


def test_a_page_has_a_map_of_each_quantity(tmp_path):
    beta = Quantity("ddl/beta", (), ("a:0", "b:0"), (np.array([[1.0, 2.0]]), np.array([[3.0, np.nan]])), ((), ()))
    mixing = Quantity("mhc/mixing", ("from", "to"), ("a:0",), (np.eye(2)[None],), ((0, 1),))
    gates, matrix = Probe({"ddl/beta": beta, "mhc/mixing": mixing}).figures()
    assert gates["data"][0]["z"] == [[1.0, 2.0], [3.0, None]] and gates["data"][0]["y"] == ["a:0", "b:0"]
    assert matrix["data"][0]["z"] == [[1.0, 0.0], [0.0, 1.0]] and matrix["data"][0]["y"] == ["a:0 from 0", "a:0 from 1"]
    assert matrix["layout"]["title"]["text"] == "mhc/mixing"
