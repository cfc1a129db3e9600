"""AltUp in the form of Gemma 3n's code, against that code: predictions, corrections, the choice of a channel."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3nTextConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAltUp

from resfx import AltUp
from resfx.methods.base import Place

WIDTH, CHANNELS = 12, 4


@pytest.fixture(autouse=True)
def in_double(monkeypatch):
    """Their code takes norms and ``tanh`` in float32, by ``float()``."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def place(depth):
    return Place(
        width=WIDTH, context_width=WIDTH, kind="mlp", dtype=torch.float64, device=torch.device("cpu"), depth=depth,
        rank=3,
    )  # fmt: skip


def theirs_with(weights, active):
    """Gemma 3n's own module with the weights of one read of ours, its router's gain at random."""
    config = Gemma3nTextConfig(hidden_size=WIDTH, num_attention_heads=2, num_key_value_heads=1,
                               altup_num_inputs=CHANNELS, altup_active_idx=active)  # fmt: skip
    module = Gemma3nTextAltUp(config).eval()
    with torch.no_grad():
        module.router_norm.weight.uniform_(0.5, 1.5)
        module.modality_router.weight.copy_(weights["router"] / module.router_norm.weight)
        module.prediction_coefs.weight.copy_(weights["predict"].flatten(0, 1))
        module.correction_coefs.weight.copy_(weights["correct"])
    return module


@pytest.mark.parametrize("active", [0, 2])
def test_one_add_is_what_their_module_computes(active):
    torch.manual_seed(active)
    stream = AltUp.gemma3n(choose="alternating").build_stream([place(i) for i in range(active + 1)])
    read, write = stream.reads[active], stream.writes[active]
    for parameter in read.parameters():
        torch.nn.init.normal_(parameter, std=3.0)  # far enough for tanh to bend
    theirs = theirs_with(dict(read.named_parameters()), active)
    state = torch.randn(2, 5, CHANNELS, WIDTH, requires_grad=True)
    branch = torch.randn(WIDTH, WIDTH)

    x, memo = read(state)
    new = write(state, torch.sin(x @ branch), x, None, memo)
    predictions = theirs.predict(state.movedim(-2, 0))
    activated = predictions[active] + torch.sin(predictions[active] @ branch)
    corrected = theirs.correct(predictions, activated)

    assert (new - state).abs().max() > 0.1
    gradients = [torch.autograd.grad(torch.sin(y).sum(), state)[0] for y in (new, corrected.movedim(0, -2))]
    for ours, other in (x, predictions[active]), (new, corrected.movedim(0, -2)), gradients:
        assert (ours - other).abs().max() <= 1e-12 * other.abs().max()
