"""Serving: ``generate()``, threads and processes, copies, offload, files."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
import threading
import warnings
from typing import Any

import torch

from .tool import IDS, LONGER, Limit, Make, hold_equal, hold_step, logits, step, tool

GREEDY = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}


def _generates(make: Make, host: str = "llama", ids: torch.Tensor = IDS, **options: Any) -> None:
    """The plain model's tokens at the start; off it, those of generation without a cache."""
    found = []
    for model in (make.plain(host), make.start(host)):
        torch.manual_seed(2)
        found.append(model.generate(ids, attention_mask=torch.ones_like(ids), **{**GREEDY, **options}))
    assert torch.equal(*found), "other tokens than the plain model's"
    found = []
    for cache in (True, False):
        torch.manual_seed(2)
        kept = {k: v for k, v in options.items() if cache or k != "cache_implementation"}
        model = make(host=host)
        mask = torch.ones_like(ids)
        found.append(model.generate(ids, attention_mask=mask, use_cache=cache, **{**GREEDY, **kept}))
    assert torch.equal(*found), "other tokens with a cache than without"


@tool("generate(): greedy, sampling, beams")
def generates(make: Make) -> None:
    _generates(make)
    _generates(make, do_sample=True, top_p=0.9, temperature=0.7)
    _generates(make, num_beams=3, num_return_sequences=2)
    _generates(make, num_beams=2, do_sample=True)


@tool("generate(): left padding, several lengths, one after another")
def padded(make: Make) -> None:
    mask = torch.ones_like(LONGER)
    mask[0, :4], mask[1, :2] = 0, 0
    model = make()
    found = model.generate(LONGER.masked_fill(mask == 0, 0), attention_mask=mask, **GREEDY)
    for row, keep in enumerate(mask):
        alone = model.generate(LONGER[row : row + 1, keep.bool()], **GREEDY)
        assert torch.equal(found[row, -8:], alone[0, -8:]), f"row {row} alone has other tokens"


@tool("generate(): static cache", seconds=300)
def static(make: Make) -> None:
    _generates(make, cache_implementation="static", disable_compile=True)


@tool("generate(): output_hidden_states, output_attentions, output_scores")
def outputs(make: Make) -> None:
    options = {"output_hidden_states": True, "output_attentions": True, "output_scores": True}
    found = []
    for model in (make.plain("llama, eager attention"), make.start("llama, eager attention")):
        mask = torch.ones_like(IDS)
        out = model.generate(IDS, attention_mask=mask, return_dict_in_generate=True, **GREEDY, **options)
        found.append([out.sequences, *out.scores, *(t for s in out.hidden_states for t in s),
                      *(t for s in out.attentions for t in s)])  # fmt: skip
    hold_equal(*found, within=1e-6)


@tool("hidden states and attentions of a plain call")
def states(make: Make) -> None:
    found = []
    for model in (make.plain("llama, eager attention"), make.start("llama, eager attention")):
        with torch.no_grad():
            out = model(input_ids=IDS, output_hidden_states=True, output_attentions=True)
        found.append([out.logits, *out.hidden_states, *out.attentions])
    hold_equal(*found, within=1e-6)


@tool("generate(): assisted by a small model, by prompt lookup")
def assisted(make: Make) -> None:
    model, ids = make(), IDS[:1]
    want = model.generate(ids, **GREEDY)
    helper = make.plain()
    try:
        found = model.generate(ids, assistant_model=helper, **GREEDY)
    except ValueError as error:
        if "can be cropped" not in str(error):
            raise
        raise Limit("it takes tokens back from the cache, and a mixer keeps only its last few: transformers refuses"
                    " every cache that cannot be cropped, those of recurrent layers too") from error  # fmt: skip
    assert torch.equal(want, found), "assisted"
    assert torch.equal(want, model.generate(ids, prompt_lookup_num_tokens=2, **GREEDY)), "prompt lookup"
    assert torch.equal(helper.generate(ids, **GREEDY), helper.generate(ids, assistant_model=model, **GREEDY)), "as help"


@tool("generate(): going on from a cache; processors, stopping, streamers")
def goes_on(make: Make) -> None:
    from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

    class Enough(StoppingCriteria):
        def __call__(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((len(ids),), ids.shape[1] >= 13)

    model = make()
    cache = DynamicCache(config=model.config)
    mask = lambda ids: torch.ones_like(ids)
    first = model.generate(IDS, attention_mask=mask(IDS), past_key_values=cache, **GREEDY)
    longer = torch.cat([first, IDS[:, :3]], 1)
    on = model.generate(longer, attention_mask=mask(longer), past_key_values=cache, **GREEDY)
    assert torch.equal(on, model.generate(longer, attention_mask=mask(longer), **GREEDY)), "other tokens from the cache"
    stop = StoppingCriteriaList([Enough()])
    found = model.generate(IDS, attention_mask=mask(IDS), stopping_criteria=stop, repetition_penalty=1.5, **GREEDY)
    assert found.shape[1] == 13


@tool("generate(): forward compiled, static cache", seconds=500)
def compiled(make: Make) -> None:
    torch._dynamo.reset()
    model = make()
    options = {"attention_mask": torch.ones_like(IDS), **GREEDY}
    want = model.generate(IDS, **options)
    model.forward = torch.compile(model.forward, backend="aot_eager")
    found = model.generate(IDS, cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(want, found), "other tokens"


@tool("a first call under inference_mode, under no_grad; training after it")
def first_call(make: Make) -> None:
    for context in (torch.inference_mode, torch.no_grad):
        plain, start, moved, twin = make.plain(), make.cold(0.0), make.cold(), make()
        with context():
            hold_equal(plain(input_ids=LONGER).logits.clone(), start(input_ids=LONGER).logits.clone())
            found = moved(input_ids=LONGER).logits.clone()
        hold_equal(twin(input_ids=LONGER).logits, found, 1e-6)  # formulas without gradients are shorter
        hold_step(twin.train(), moved.train(), LONGER)
        hold_step(twin.eval(), moved.eval(), LONGER)


@tool("8 threads: known and unknown calls")
def threads(make: Make) -> None:
    model, twin = make.cold(), make()
    calls = [LONGER[:n, :length] for n in (1, 2, 3) for length in (1, 5, 12)] + [IDS]
    want = [logits(twin, ids) for ids in calls]
    wrong: list[str] = []

    def work(seed: int) -> None:
        order = torch.randperm(len(calls), generator=torch.Generator().manual_seed(seed)).tolist()
        for i in order + order:
            try:
                hold_equal(want[i], logits(model, calls[i]), 1e-5)
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert not wrong, f"{len(wrong)} of {16 * len(calls)} calls: {wrong[0]}"


@tool("copy.deepcopy, copy.copy")
def copies(make: Make) -> None:
    model = make()
    twin, shallow = copy.deepcopy(model), copy.copy(model)
    want = logits(model, LONGER)
    hold_equal(want, logits(shallow, LONGER))
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    hold_equal(want, logits(twin, LONGER))
    hold_equal(logits(model, LONGER), logits(shallow, LONGER))
    layer = copy.deepcopy(model.model.layers[0])
    assert layer is not model.model.layers[0]
    model.model.layers[0] = layer
    hold_equal(logits(twin) * 2, logits(model), 1e-6)


@tool("pickle, torch.save(model)")
def pickled(make: Make) -> None:
    model = make()
    held = io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    loaded = torch.load(held, weights_only=False)
    hold_equal(logits(model), logits(loaded))
    hold_step(model.train(), pickle.loads(pickle.dumps(model)))


def _elsewhere(make: Make, state: dict[str, torch.Tensor], answer: Any) -> None:
    model = make(0.0)
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = state[name]
    answer.put(logits(model).numpy())
    with torch.no_grad():
        model.lm_head.weight.mul_(2)


@tool("another process (spawn): share_memory(), its weights seen from there")
def processes(make: Make) -> None:
    context = torch.multiprocessing.get_context("spawn")
    model = make()
    model.share_memory()
    assert all(p.is_shared() for p in model.parameters())
    before = logits(model)
    answer = context.Queue()
    worker = context.Process(target=_elsewhere, args=(make, model.state_dict(), answer))
    worker.start()
    found = torch.from_numpy(answer.get(timeout=120))
    worker.join()
    assert worker.exitcode == 0
    hold_equal(before, found, 1e-6, "another process's")
    hold_equal(before * 2, logits(model), 1e-6)


@tool("a model sent to other processes (torch.multiprocessing.spawn), which write into its weights", seconds=400)
def sent(make: Make) -> None:
    model = make()
    before = logits(model)
    answer = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_doubles, (model, answer), nprocs=1)
    hold_equal(before, torch.from_numpy(answer.get()))
    hold_equal(before * 2, logits(model), 1e-6, "weights written elsewhere")


def _doubles(rank: int, model: Any, answer: Any) -> None:
    answer.put(logits(model).numpy())
    with torch.no_grad():
        model.lm_head.weight.mul_(2)


def _answers(model: Any, answer: Any) -> None:
    answer.put(logits(model).numpy())


@tool("a forked process that makes an unknown call")
def forked(make: Make) -> None:
    model, context = make.cold(), torch.multiprocessing.get_context("fork")
    answer = context.Queue()
    worker = context.Process(target=_answers, args=(model, answer))
    worker.start()
    found = torch.from_numpy(answer.get(timeout=120))
    worker.join()
    hold_equal(logits(model), found)


@tool("accelerate: cpu_offload, dispatch_model over devices, disk_offload", needs="accelerate")
def offload(make: Make) -> None:
    import accelerate

    want, longer = logits(make()), logits(make(), LONGER)
    with tempfile.TemporaryDirectory() as folder:
        for name, run in (
            ("cpu_offload", lambda m: accelerate.cpu_offload(m, execution_device=torch.device("cpu"))),
            ("disk_offload", lambda m: accelerate.disk_offload(m, folder, execution_device=torch.device("cpu"))),
            ("dispatch_model", lambda m: accelerate.dispatch_model(
                m, {n: "cpu" if n != "model.layers.1" else "disk" for n in _parts(m)}, main_device="cpu",
                offload_dir=folder)),
        ):  # fmt: skip
            model = run(make())
            hold_equal(want, logits(model), 1e-6, name)
            hold_equal(longer, logits(model, LONGER), 1e-6, name)


def _parts(model: Any) -> list[str]:
    """Names of modules that hold all parameters, blocks whole."""
    names = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    return names + (["resfx"] if hasattr(model, "resfx") else [])


@tool("accelerate: a hook on every module (align devices, layerwise casting)", needs="accelerate")
def accelerate_hooks(make: Make) -> None:
    from accelerate.big_modeling import attach_layerwise_casting_hooks
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Doubled(ModelHook):
        def post_forward(self, module: Any, output: Any) -> Any:
            return output * 2 if torch.is_tensor(output) else output

    plain, start = make.plain(), make.start()
    for model in (plain, start):
        add_hook_to_module(model.model.layers[0].mlp, Doubled())
        add_hook_to_module(model.model.layers[1], Doubled())
    for ids in (IDS, LONGER):
        hold_equal(logits(plain, ids), logits(start, ids), 1e-6)
    for model in (plain, start):
        remove_hook_from_module(model, recurse=True)
        attach_layerwise_casting_hooks(
            model, storage_dtype=torch.bfloat16, compute_dtype=torch.float32, skip_modules_pattern=["norm", "resfx"]
        )
    for ids in (IDS, LONGER):
        hold_equal(logits(plain, ids), logits(start, ids), 1e-6)


@tool("save_pretrained, state_dict, safetensors: weights out and in")
def saved(make: Make) -> str:
    import safetensors.torch
    import transformers

    model = make()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.save_pretrained(folder)
        again = make(0.0)
        safetensors.torch.load_model(again, f"{folder}/model.safetensors")
        hold_equal(logits(model), logits(again))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = transformers.LlamaForCausalLM.from_pretrained(folder)
        hold_equal(logits(make.plain()), logits(loaded), what="what from_pretrained builds")
    ours = [str(w.message) for w in said if "resfx" in str(w.message)]
    assert make.mode is None or ours, "save_pretrained says nothing"
    return "warns: " + ours[0].split(":")[0] if ours else ""


@tool("text of a pipeline", needs="tokenizers")
def pipeline(make: Make) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", padding_side="left")
    found = []
    for model in (make.plain(), make.start()):
        pipe = transformers.pipeline("text-generation", model=model, tokenizer=fast, device="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(pipe(["w5 w6 w7", "w9 w8"], batch_size=2, max_new_tokens=5, do_sample=False))
    assert found[0] == found[1], found


@tool("calls after calls leave nothing behind: memory, variants", seconds=200)
def leaks(make: Make) -> None:
    import gc

    model = make()
    logits(model, LONGER)
    step(model.train())
    model.eval().zero_grad()
    counts = []
    for _ in range(3):
        for _ in range(3):
            logits(model, LONGER)
            step(model.train())
            model.eval().zero_grad()
        gc.collect()
        counts.append(sum(torch.is_tensor(o) for o in gc.get_objects()))
    assert counts[-1] <= counts[0], f"tensors alive: {counts}"
