"""A rewritten model's own ``save_pretrained``, and its folder back by one call: how it is written, what goes wrong."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from hosts import tokens
from hosts.made import randomise, rewritten
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

import resfx
from resfx.errors import OptionError, SaveError


class OwnLlama(LlamaForCausalLM):
    """A class that transformers does not know."""


def small(cls=LlamaForCausalLM, **options):
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=101, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, **options)  # fmt: skip
    return cls(config).eval()


@pytest.fixture(scope="module")
def new():
    made = resfx.rewrite(small(), "ddl", args=(tokens(2, 7),))
    randomise(made)
    return made


@pytest.fixture
def saved(new, tmp_path):
    save(new, tmp_path / "s")
    return tmp_path / "s"


def save(model, folder, words="is the rewritten model again", **options):
    with pytest.warns(UserWarning, match=words):
        model.save_pretrained(folder, **options)


def same(one, other, **inputs):
    inputs = inputs or {"input_ids": tokens(3, 9)}
    with torch.no_grad():
        return torch.equal(one(**inputs)[0], other(**inputs)[0])


@pytest.mark.every(2)
@pytest.mark.parametrize("name", ["gpt2", "t5"])  # a tied head; one table for encoder, decoder and head
def test_ties_and_the_generation_config_come_back(name, tmp_path):
    model, shared, inputs = rewritten(name)
    made = copy.deepcopy(shared)
    randomise(made)
    made.generation_config.max_new_tokens = 17
    save(made, tmp_path)
    again = resfx.load(tmp_path)
    assert same(again, made, **inputs) and not same(again, model, **inputs)
    assert type(again).__name__ == type(model).__name__ and isinstance(again, type(model))
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert again.generation_config.max_new_tokens == 17
    assert set(again.state_dict()) == set(made.state_dict())


@pytest.mark.every(2)
@pytest.mark.parametrize(
    "options", [{"max_shard_size": "3KB"}, {"variant": "half"}, {"state_dict": ...}, {"is_main_process": True}], ids=str
)
def test_every_way_of_writing(new, options, tmp_path):
    if "state_dict" in options:  # what Trainer and accelerate gather
        options = {"state_dict": {n: v.clone() for n, v in new.state_dict().items()}}
    save(new, tmp_path, **options)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == ("max_shard_size" in options)
    again = resfx.load(tmp_path, **{k: v for k, v in options.items() if k == "variant"})
    assert same(again, new)


def test_another_process_writes_nothing(new, tmp_path):
    new.save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "recipe.json").exists()


@pytest.mark.matrix
def test_methods_compose_and_states_in_a_cache_work(tmp_path):
    made = resfx.rewrite(small(), ["short_swa", "mhc"], args=(tokens(2, 7),))
    randomise(made)
    save(made, tmp_path)
    again = resfx.load(tmp_path)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert same(again, made) and torch.equal(
        again.generate(tokens(2, 7), **options), made.generate(tokens(2, 7), **options)
    )


@pytest.mark.every(2)
@pytest.mark.parametrize("cast", ["before", "after"])
def test_bfloat16_comes_back_as_it_was_and_in_another_type_where_asked(cast, tmp_path):
    model = small().bfloat16() if cast == "before" else small()
    made = resfx.rewrite(model, "ddl", args=(tokens(2, 7),))
    randomise(made)
    made = made if cast == "before" else made.bfloat16()
    save(made, tmp_path)
    again = resfx.load(tmp_path)
    assert {n: p.dtype for n, p in again.named_parameters()} == {n: p.dtype for n, p in made.named_parameters()}
    assert same(again, made), "its rotary table, cast with the model and in no file, too"
    wide = resfx.load(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    torch.testing.assert_close(wide(tokens(3, 9))[0], made(tokens(3, 9))[0].float(), rtol=0.05, atol=0.02)


def test_it_can_go_on_being_trained_and_saved(new, saved):
    again = resfx.load(saved)
    again(tokens(2, 7), labels=tokens(2, 7)).loss.backward()
    assert all(p.grad is not None for p in again.parameters())
    randomise(again, 0.3)
    save(again, saved)
    assert same(resfx.load(saved), again) and not same(again, new)


def test_a_plain_from_pretrained_of_it_reports_what_it_leaves_out(saved, monkeypatch):
    told = []
    monkeypatch.setattr(logging.getLogger("transformers.modeling_utils"), "warning", lambda *a, **k: told.append(a[0]))
    plain = AutoModelForCausalLM.from_pretrained(saved)
    assert "resfx." in told[0] and "UNEXPECTED" in told[0]
    assert not any(n.startswith("resfx") for n, _ in plain.named_parameters())
    resfx.load(saved)
    assert len(told) == 1, "what is loaded is not reported as left out"


def test_a_class_that_transformers_does_not_know(tmp_path):
    made = resfx.rewrite(small(OwnLlama), "ddl", args=(tokens(2, 7),))
    randomise(made)
    save(made, tmp_path)
    with pytest.raises(SaveError, match=r"no model OwnLlama[\s\S]*cls="):
        resfx.load(tmp_path)
    again = resfx.load(tmp_path, cls=OwnLlama)
    assert isinstance(again, OwnLlama) and same(again, made)


@pytest.mark.parametrize("named", [["Trainer"], [], [3], None])
def test_what_a_config_may_name_is_a_model(saved, named):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "architectures": named}))
    with pytest.raises(SaveError, match="transformers has no model"):
        resfx.load(saved)


def test_another_class_is_refused(saved):
    with pytest.raises(SaveError, match="does not belong to this LlamaModel"):
        resfx.load(saved, cls=LlamaModel)


def test_arguments_of_the_other_kind_of_save(new, saved, tmp_path):
    with pytest.raises(SaveError, match=r"the whole model[\s\S]*resfx\.load\(folder\)"):
        resfx.load(saved, small())
    resfx.save(new, tmp_path / "own")
    with pytest.raises(SaveError, match=r"new weights alone[\s\S]*resfx\.load\(folder, model\)"):
        resfx.load(tmp_path / "own")
    with pytest.raises(OptionError, match="takes no cls, dtype beside a model"):
        resfx.load(tmp_path / "own", small(), cls=LlamaForCausalLM, dtype=torch.float16)
    with pytest.raises(SaveError, match=r"it holds a save by resfx\.save"):
        new.save_pretrained(tmp_path / "own")
    with pytest.raises(SaveError, match="it holds a save by save_pretrained"):
        resfx.save(new, saved)


def test_a_plain_folder_is_for_its_own_from_pretrained(tmp_path):
    small().save_pretrained(tmp_path)
    with pytest.raises(SaveError, match=r"no recipe\.json[\s\S]*from_pretrained"):
        resfx.load(tmp_path)


def test_a_strangers_recipe_stops_it_before_anything_is_written(new, tmp_path):
    (tmp_path / "recipe.json").write_text('{"learning_rate": 1}')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SaveError, match="this library did not write"):
        new.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.json", "tokenizer.json"]


def test_files_beside_it_stay_and_do_not_matter(new, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "training_args.bin").write_text("pickle")
    save(new, tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "{}" and same(resfx.load(tmp_path), new)


def test_a_plain_model_saved_over_it_is_noticed(saved):
    small().save_pretrained(saved)
    with pytest.raises(SaveError, match="another model saved over this one"):
        resfx.load(saved)


def test_another_recipe_replaces_the_last(saved):
    made = resfx.rewrite(small(), "short_conv", args=(tokens(2, 7),))
    randomise(made)
    save(made, saved, max_shard_size="3KB")
    (saved / "model.safetensors").unlink()  # transformers leaves it, and prefers it to shards
    assert same(resfx.load(saved), made)


def test_weights_written_by_something_else_are_told(new, saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="something else wrote there since"):
        again = resfx.load(saved)
    assert torch.equal(again.model.norm.weight, 2 * new.model.norm.weight)


def test_a_recipe_with_other_weights_and_the_other_way_round(saved, tmp_path):
    made = resfx.rewrite(small(), "short_conv", args=(tokens(2, 7),))
    save(made, tmp_path / "t")
    shutil.copy(tmp_path / "t" / "recipe.json", saved / "recipe.json")
    with pytest.warns(UserWarning, match="wrote there since"), pytest.raises(SaveError, match="do not fit the recipe"):
        resfx.load(saved)


def test_missing_weights_are_named(saved):
    tensors = load_file(saved / "model.safetensors")
    new = next(n for n in tensors if n.startswith("resfx."))
    for lost, words in ((new, f"do not fit the recipe: {new}"), ("model.norm.weight", r"lack weights .* model\.norm")):
        save_file({n: v for n, v in tensors.items() if n != lost}, saved / "model.safetensors", {"format": "pt"})
        with warnings.catch_warnings(), pytest.raises(SaveError, match=words):
            warnings.simplefilter("ignore")  # the digest is another
            resfx.load(saved)


@pytest.mark.parametrize("harm", ["gone", "cut", "outside", "index", "moved"])
def test_shards_that_are_missing_or_damaged(new, harm, tmp_path):
    save(new, tmp_path, max_shard_size="3KB")
    shard, index = sorted(tmp_path.glob("model-*.safetensors"))[1], tmp_path / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    if harm == "gone":
        shard.unlink()
    elif harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-9])
    elif harm == "index":
        index.write_text("[]")
    else:
        name = next(iter(entries["weight_map"]))
        files = sorted(set(entries["weight_map"].values()))
        other = next(f for f in files if f != entries["weight_map"][name])
        entries["weight_map"][name] = "../elsewhere.safetensors" if harm == "outside" else other
        index.write_text(json.dumps(entries))
    words = {"outside": "outside of the folder", "index": "is damaged", "moved": "does not hold"}
    with pytest.raises(SaveError, match=words.get(harm, f"{shard.name} is missing or damaged")):
        resfx.load(tmp_path)


def edit(folder, **changes):
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps({**recipe, **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"buffers": {"model.rotary_emb.inv_freq": ["float33", "0" * 64]}}, "no type 'float33'"),
        ({"buffers": {"model.rotary_emb.inv_freq": ["float32"]}}, "buffers.model.rotary_emb.inv_freq"),
        ({"buffers": []}, "buffers"), ({"weights": "some"}, "new or all or pretrained"), ({"extra": 1}, "it has extra"),
    ],
)  # fmt: skip
def test_an_edited_recipe_is_refused_by_its_field(saved, changes, words):
    edit(saved, **changes)
    with pytest.raises(SaveError, match=words):
        resfx.load(saved)


def test_other_buffers_than_when_it_was_saved_are_told(saved):
    edit(saved, buffers={"model.rotary_emb.inv_freq": ["float32", "0" * 64]})
    with pytest.warns(UserWarning, match=r"other buffers, not in any state_dict \(model\.rotary_emb"):
        resfx.load(saved)


def test_a_state_dict_without_the_new_weights_makes_no_recipe(new, tmp_path):
    rest = {n: v for n, v in new.state_dict().items() if not n.startswith("resfx.")}
    save(new, tmp_path, "cannot be loaded again .* none or not all of the new weights", state_dict=rest)
    assert not (tmp_path / "recipe.json").exists()


def test_trainer_save_model(new, tmp_path):
    from transformers import Trainer, TrainingArguments

    pytest.importorskip("accelerate")
    trainer = Trainer(new, TrainingArguments(str(tmp_path / "run"), report_to=[], use_cpu=True))
    with pytest.warns(UserWarning, match="is the rewritten model again"):
        trainer.save_model(tmp_path / "s")
    assert same(resfx.load(tmp_path / "s"), new)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_with_adapters(new, tmp_path):
    peft = pytest.importorskip("peft")
    made = copy.deepcopy(new)
    wrapped = peft.get_peft_model(made, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "adapter")  # alone, as ever
    assert not (tmp_path / "adapter" / "recipe.json").exists()
    merged = wrapped.merge_and_unload()
    save(merged, tmp_path / "s")
    assert same(resfx.load(tmp_path / "s"), merged) and not same(merged, new)

    save(new, tmp_path / "base")
    again = peft.PeftModel.from_pretrained(resfx.load(tmp_path / "base"), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(tokens(3, 9))[0], merged(tokens(3, 9))[0])
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", tmp_path / "base")
    with pytest.raises(SaveError, match="an adapter lies beside the model"):
        resfx.load(tmp_path / "base")


def test_importing_resfx_does_not_import_transformers():
    code = "import sys, resfx; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
