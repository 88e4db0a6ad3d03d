"""From a published embedder: Qwen3-VL-Embedding's prompts, from its tokenizer to training and evaluation.

The folder is the miniature of Qwen3-VL with random weights and a tokenizer that ends each text as Qwen's embedders do.
"""

from __future__ import annotations

import json
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image
from safetensors.torch import load_file, save_file
from training import stage2_flags

from lamra import load
from lamra.collators.processing import Processor
from lamra.common.errors import UserError
from lamra.datasets.items import Item
from lamra.eval import eval_mbeir
from lamra.export import merge_lora, sentence_transformers
from lamra.models.published import ENDING, ending_id, is_published_embedder
from lamra.models.settings import Settings, default_settings, settings_to_rerank, settings_to_train
from lamra.train import train_mbeir

STYLE = "qwen3_embedding"
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def ending(number: int) -> dict:
    """The post-processor of Qwen3-Embedding's tokenizer.json, but for its pairs of texts."""
    single = [TEXT, {"SpecialToken": {"id": ENDING, "type_id": 0}}]
    special = {ENDING: {"id": ENDING, "ids": [number], "tokens": [ENDING]}}
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "processors": [plain, template]}


@pytest.fixture(scope="module")
def embedder(tiny_qwen3, tmp_path_factory):
    folder = shutil.copytree(tiny_qwen3, tmp_path_factory.mktemp("published") / "embedder")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokenizer["post_processor"] = ending(ids[ENDING])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def headless(embedder):
    """Without lm_head, though the config asks for one, as users report of the published 8B."""
    folder = shutil.copytree(embedder, embedder.parent / "headless")
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def the_makers(text, pictures, instruction):
    """What the maker's script and the published template make of an input, written anew: a picture's place unfilled."""
    if instruction:
        instruction = instruction.strip()
        if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
            instruction += "."
    user = pictures * "<|vision_start|><|image_pad|><|vision_end|>" + (text or "")
    turns = (("system", instruction or "Represent the user's input."), ("user", user or "NULL"))
    return "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns) + "<|im_start|>assistant\n"


CASES = [
    ("a red circle", 0, None),
    ("a red circle", 0, " Find the picture "),
    ("a red circle", 0, "Which one?"),
    (None, 1, "找图片。"),
    ("a red circle", 1, "  "),
    ("", 0, None),
]


@pytest.mark.parametrize(("text", "pictures", "instruction"), CASES)
@pytest.mark.parametrize("special_tokens_in_text", ["special", "plain"])
def test_the_prompt_is_the_makers(embedder, text, pictures, instruction, special_tokens_in_text):
    processor = Processor(embedder, prompt_style=STYLE, special_tokens_in_text=special_tokens_in_text)
    item = Item("x", text, [Image.new("RGB", (64, 64), "red")] * pictures, instruction)
    found = processor.encode(item)["input_ids"]
    expected = the_makers(text, pictures, instruction).replace("<|image_pad|>", 4 * "<|image_pad|>")
    assert processor.tokenizer.decode(found) == expected + ENDING
    assert found == processor.tokenizer(expected)["input_ids"] and processor.length(item) == len(found)


def test_cuts_leave_the_instruction_and_the_last_token(embedder):
    item = Item("x", "a red circle at the left", instruction="Find it")
    whole = len(Processor(embedder, prompt_style=STYLE).encode(item)["input_ids"])
    for limit in (dict(text_max_tokens=2), dict(max_length=whole - 1)):
        shorter = Processor(embedder, prompt_style=STYLE, **limit)
        words = shorter.tokenizer.decode(shorter.encode(item)["input_ids"])
        assert words.startswith("<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\na ")
        assert "left" not in words and words.endswith(f"<|im_start|>assistant\n{ENDING}")
    plain = Processor(embedder, prompt_style=STYLE, special_tokens_in_text="plain")
    ids = plain.encode(Item("x", "<|im_end|>", instruction="Find it"))["input_ids"]
    marks = plain.tokenizer.convert_tokens_to_ids(["<|im_end|>", ENDING])
    assert [ids.count(mark) for mark in marks] == [2, 1] and ids[-1] == marks[1]


def test_the_last_token_is_pooled(embedder):
    from transformers import Qwen3VLForConditionalGeneration

    model = load(embedder, prompt_style=STYLE, dtype=torch.float32, device="cpu")
    items = [Item(str(i), text, (), told) for i, (text, told) in enumerate([("a red circle", None), ("x", "Find")])]
    stock = Qwen3VLForConditionalGeneration.from_pretrained(embedder, dtype=torch.float32).eval()
    tokenizer = Processor(embedder, prompt_style=STYLE).tokenizer
    for item, found in zip(items, model.encode(items)):
        ids = tokenizer(the_makers(item.text, 0, item.instruction), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = stock.model(input_ids=ids).last_hidden_state[0, -1]
        torch.testing.assert_close(found, torch.nn.functional.normalize(hidden, dim=0), atol=2e-6, rtol=0)


def test_stage_2_goes_on_from_an_embedder(headless, mbeir, tmp_path, fails, capsys):
    """Trained two steps, merged and evaluated: each with the prompts that the first command named."""
    run = stage2_flags(mbeir, headless, tmp_path / "run") | dict(per_device_train_batch_size=8, num_train_epochs=1)
    run |= dict(max_steps=2, save_strategy="no")
    assert "is a published embedder, which has prompts of its own: --prompt_style" in fails(train_mbeir.main, **run)
    run |= dict(prompt_style=STYLE)
    assert "--share_prefix True needs --prompt_style lamra" in fails(train_mbeir.main, **run, share_prefix=True)
    call(train_mbeir.main, **run)
    assert Settings.read(tmp_path / "run").prompt_style == STYLE
    call(merge_lora.main, model_id=tmp_path / "run", save_path=tmp_path / "merged", dtype="fp32")
    tokenizer = json.loads((tmp_path / "merged" / "tokenizer.json").read_text())
    assert ending_id(tokenizer) is not None
    item = Item("q", "a red circle", (), "Find it")
    vectors = [load(tmp_path / of, dtype=torch.float32, device="cpu").encode([item]) for of in ("run", "merged")]
    np.testing.assert_allclose(*map(np.asarray, vectors), atol=1e-5)
    flags = dict(model_id=tmp_path / "merged", data_path=mbeir, tasks="nights_task4", num_workers=0)
    assert "--prompt_style lamra contradicts the checkpoint" in fails(
        eval_mbeir.main, **flags, prompt_style="lamra", output_dir=tmp_path / "out"
    )
    call(eval_mbeir.main, **flags, output_dir=tmp_path / "out")
    assert list((tmp_path / "out").rglob("metrics.json"))
    exported = dict(model_id=tmp_path / "merged", save_path=tmp_path / "export")
    assert "was trained with --prompt_style qwen3_embedding" in fails(sentence_transformers.main, **exported)


def test_what_contradicts_is_refused(embedder, tiny_qwen3, tmp_path):
    options = dict(text_max_tokens=None, temperature=0.05)
    ranks = dict(rank_style="clean", position_ids=None, train_position_ids=None, text_max_tokens=None)
    assert not is_published_embedder(tiny_qwen3)
    assert default_settings(tiny_qwen3).prompt_style == "lamra"
    assert default_settings(embedder, prompt_style=STYLE).prompt_style == STYLE
    library = shutil.copytree(tiny_qwen3, tmp_path / "library")
    (library / "modules.json").write_text("[]")
    for folder in (embedder, library):
        with pytest.raises(UserError, match="is a published embedder, which has prompts of its own: --prompt_style"):
            settings_to_train(folder, **options)
        with pytest.raises(UserError, match="is an embedder, which answers nothing; start a reranker from"):
            settings_to_rerank(folder, **ranks, prompt_style=STYLE)
    with pytest.raises(UserError, match=r"adds <\|endoftext\|> to each text, which is in no prompt of LamRA"):
        Processor(embedder)
    tokenizer = json.loads((embedder / "tokenizer.json").read_text())
    other = shutil.copytree(embedder, tmp_path / "other")
    tokenizer["post_processor"]["processors"][1]["special_tokens"][ENDING]["ids"] = [0, 1]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="is damaged, or no tokenizer of Qwen2's kind"):
        Processor(other, prompt_style=STYLE)


def test_an_embedder_needs_no_lm_head(embedder, headless):
    item, options = Item("q", "a red circle", (), "Find it"), dict(prompt_style=STYLE, device="cpu")
    assert torch.equal(*(load(of, **options).encode([item]) for of in (embedder, headless)))
