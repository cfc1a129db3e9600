"""Training: Hugging Face's Trainer, accelerate, checkpointing, optimizers, averages."""

from __future__ import annotations

import copy
import functools
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .tool import IDS, LONGER, Make, hold_equal, hold_step, logits, step, tool


class Rows(torch.utils.data.Dataset):
    """Examples of one length."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, 60, (9,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


def _trainer(model: Any, folder: str, **options: Any) -> Any:
    import transformers

    quiet = {"report_to": [], "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no", "use_cpu": True}
    sizes = {"per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 1e-2, "seed": 1}
    args = transformers.TrainingArguments(folder, **{**quiet, **sizes, **options})
    made = transformers.Trainer(model, args, train_dataset=Rows(), eval_dataset=Rows())
    made.remove_callback(transformers.PrinterCallback)
    return made


def _losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _trains(make: Make, within: float = 1e-5, **options: Any) -> None:
    """The losses of the plain model at the start's first step; they fall; new parameters move; a known end."""
    found = []
    for model in (make.plain(), make.start(), make()):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = _trainer(model, folder, **options)
            before_all = trainer.evaluate()["eval_loss"]
            trainer.train()
            found.append(_losses(trainer))
            assert trainer.evaluate()["eval_loss"] < before_all, "the loss over all examples does not fall"
        for name, parameter in model.named_parameters():
            assert not torch.equal(parameter, before[name]), f"{name} does not move"
    plain, start, _ = found
    assert abs(plain[0] - start[0]) <= within * plain[0], f"first loss {plain[0]} became {start[0]}"


@tool("HF Trainer: train, evaluate", needs="accelerate")
def trainer(make: Make) -> None:
    _trains(make)


@tool("HF Trainer: bf16=True", needs="accelerate")
def trainer_bf16(make: Make) -> None:
    _trains(make, bf16=True)


@tool("HF Trainer: gradient_checkpointing=True", needs="accelerate")
def trainer_checkpointing(make: Make) -> None:
    _trains(make, gradient_checkpointing=True)


@tool("HF Trainer: gradient accumulation, label smoothing", needs="accelerate")
def trainer_accumulation(make: Make) -> None:
    _trains(make, gradient_accumulation_steps=2, label_smoothing_factor=0.1)


@tool("HF Trainer: torch_compile=True", needs="accelerate", seconds=400)
def trainer_compiled(make: Make) -> None:
    _trains(make, torch_compile=True, torch_compile_backend="aot_eager")


@tool("HF Trainer: a checkpoint saved and gone on from", needs="accelerate")
def trainer_resumed(make: Make) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        whole = _trainer(make(), folder, **options)
        whole.train()
        again = _trainer(make(), folder, **options)
        again.train(resume_from_checkpoint=str(Path(folder) / "checkpoint-2"))
        hold_equal(torch.tensor(_losses(whole)[2:]), torch.tensor(_losses(again)[2:]), 1e-6, "losses")
        hold_equal(logits(whole.model), logits(again.model), 1e-6, "the models at the end")


@tool("HF Trainer: load_best_model_at_end", needs="accelerate")
def trainer_best(make: Make) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
        one = _trainer(make(), folder, load_best_model_at_end=True, **options)
        one.train()
        best = min(e["eval_loss"] for e in one.state.log_history if "eval_loss" in e)
        assert abs(one.evaluate()["eval_loss"] - best) <= 1e-5


@tool("HF Trainer: a PEFT model, adapters alone trained", needs="accelerate peft")
def trainer_peft(make: Make) -> None:
    import peft

    found = []
    for model in (make.plain(), make.start()):
        torch.manual_seed(5)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = _trainer(adapted, folder)
            one.train()
        found.append(_losses(one))
    hold_equal(torch.tensor(found[0]), torch.tensor(found[1]), 1e-5, "losses")


@tool("HF Trainer: PEFT, bf16=True and gradient_checkpointing=True together, accumulated", needs="accelerate peft")
def trainer_all(make: Make) -> None:
    import peft

    found = []
    for model in (make.plain(), make.start(), make()):
        torch.manual_seed(5)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"bf16": True, "gradient_checkpointing": True, "gradient_accumulation_steps": 2}
            one = _trainer(adapted, folder, **options)
            before = one.evaluate()["eval_loss"]
            one.train()
            assert one.evaluate()["eval_loss"] < before, "the loss over all examples does not fall"
        found.append(_losses(one))
    hold_equal(torch.tensor(found[0][:1]), torch.tensor(found[1][:1]), 1e-5, "first loss")


@tool("accelerate: gradient accumulation, save_state and load_state", needs="accelerate")
def accelerate_state(make: Make) -> None:
    import accelerate

    def train(model: Any, optimizer: Any, accelerator: Any, steps: int) -> list[torch.Tensor]:
        losses = []
        for i in range(steps):
            with accelerator.accumulate(model):
                loss = model(input_ids=IDS.roll(i), labels=IDS.roll(i)).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
        return losses

    with tempfile.TemporaryDirectory() as folder:
        found = []
        for again in (False, True):
            accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
            model = make().train()
            model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
            if again:
                accelerator.load_state(folder)
            else:
                train(model, optimizer, accelerator, 2)
                accelerator.save_state(folder)
            found.append(train(model, optimizer, accelerator, 4))
            accelerator.free_memory()
    hold_equal(*found, within=1e-6)


@tool("gradient_checkpointing_enable(), reentrant and not, on and off")
def checkpointing(make: Make) -> None:
    for reentrant in (False, True):
        plain, start, twin, moved = make.plain().train(), make.start().train(), make().train(), make().train()
        for model in (plain, start, moved):
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            if reentrant:
                model.enable_input_require_grads()
        for ids in (IDS, LONGER):
            hold_step(plain, start, ids)
            hold_step(twin, moved, ids, what="of what is not recomputed")
        moved.gradient_checkpointing_disable()
        hold_step(twin, moved)


@tool("checkpoint_wrapper around blocks; torch.utils.checkpoint around a call")
def wrapper(make: Make) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
    from torch.utils.checkpoint import checkpoint

    twin, moved = make().train(), make().train()
    layer = type(moved.model.layers[0])
    apply_activation_checkpointing(moved, check_fn=lambda m: type(m) is layer)
    names = {n.replace("_checkpoint_wrapped_module.", ""): p for n, p in moved.named_parameters()}
    for ids in (IDS, LONGER):
        loss, want = step(twin, ids)
        found, _ = step(moved, ids)
        hold_equal(loss, found)
        for name, grad in want.items():
            hold_equal(grad, names[name].grad, 1e-4, name)
    moved = make().train()
    run = lambda ids: checkpoint(lambda i: moved(input_ids=i, labels=i, use_cache=False).loss, ids, use_reentrant=False)
    loss, want = step(twin)
    run(IDS).backward()
    for name, parameter in moved.named_parameters():
        hold_equal(want[name], parameter.grad, 1e-4, name)


@tool("dropout recomputed the same under checkpointing")
def checkpointed_dropout(make: Make) -> None:
    twin, moved = make(host="gpt2").train(), make(host="gpt2").train()
    moved.gradient_checkpointing_enable({"use_reentrant": False})
    for ids in (IDS, LONGER):
        hold_step(twin, moved, ids)


def _optimizers() -> Iterator[tuple[str, Any]]:
    for options in ({"foreach": True}, {"fused": True}, {"foreach": False}):
        yield str(options), functools.partial(torch.optim.AdamW, lr=1e-2, **options)
    yield "SGD", functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True)
    yield "Adafactor", functools.partial(torch.optim.Adafactor, lr=1e-2)
    yield "LBFGS", functools.partial(torch.optim.LBFGS, lr=1e-3)


@tool("optimizers of torch (foreach, fused, LBFGS), clip_grad_norm_, groups of new parameters")
def optimizers(make: Make) -> None:
    for name, build in _optimizers():
        model = make().train()

        def closure(model: Any = model) -> torch.Tensor:
            model.zero_grad()
            loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            assert torch.isfinite(norm)
            return loss

        optimizer = build(model.parameters())
        losses = [float(optimizer.step(closure)) for _ in range(4)]
        assert losses[-1] < losses[0], (name, losses)


def _step_one(each: dict[Any, Any], parameter: torch.Tensor) -> None:
    each[parameter].step()
    each[parameter].zero_grad()


@tool("an optimizer stepped in the backward pass (post_accumulate_grad_hook)")
def in_backward(make: Make) -> None:
    found = []
    for inside in (False, True):
        model = make().train()
        each = {p: torch.optim.SGD([p], lr=1e-2) for p in model.parameters()}
        if inside:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(functools.partial(_step_one, each))
        for _ in range(2):
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
            if not inside:
                for one in each.values():
                    one.step()
                    one.zero_grad()
        found.append(logits(model.eval()))
    hold_equal(*found, within=1e-6)


@tool("AveragedModel: moving averages of weights")
def averaged(make: Make) -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = make().train()
    before = logits(make())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        step(model)
        optimizer.step()
        average.update_parameters(model)
    hold_equal(logits(model.eval()), logits(average.module.eval()), 1e-6)
    assert not torch.equal(before, logits(model))


@tool("torch.__future__.set_swap_module_params_on_conversion")
def swap(make: Make) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        late, twin = make(), make()
        held = late.lm_head.weight
        late.bfloat16()
        assert late.lm_head.weight is held and held.dtype == torch.bfloat16
        hold_equal(logits(twin.to(torch.bfloat16)), logits(late))
        hold_step(twin.train(), late.train())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@tool("gradients of examples added over micro batches; zero_grad(set_to_none)")
def micro(make: Make) -> None:
    model = make().train()
    _, whole = step(model, LONGER)
    for none in (True, False):
        model.zero_grad(set_to_none=none)
        for row in LONGER.split(1):
            (model(input_ids=row, labels=row, use_cache=False).loss / len(LONGER)).backward()
        scale = max(float(g.abs().max()) for g in whole.values())
        for name, grad in whole.items():
            assert float((model.get_parameter(name).grad - grad).abs().max()) <= 1e-5 * scale, name


@tool("the original trained beside it (shared parameters), a copy left alone")
def beside(make: Make) -> None:
    import resfx

    if make.mode is None:
        return
    model = make.plain()
    new = resfx.rewrite(model, make.mode, args=(IDS,))
    twin = copy.deepcopy(new)
    kept = logits(twin)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(model.train())
    optimizer.step()
    hold_equal(logits(model.eval()), logits(new))
    hold_equal(kept, logits(twin))
