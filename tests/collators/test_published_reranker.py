"""From a published reranker: Qwen3-VL-Reranker's prompts and answers, from evaluation to training on.

The folder is the miniature of Qwen3-VL with random weights and the marks of sentence-transformers' CrossEncoder.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import call
from PIL import Image

from lamra.collators.messages import YES_NO, listwise_messages
from lamra.collators.processing import Processor
from lamra.collators.rerank import RankPrompts
from lamra.datasets.items import Item
from lamra.eval.flags import RetrieverArguments
from lamra.eval.rerank.judge import load_judge
from lamra.models.published import is_published_embedder, is_published_reranker
from lamra.models.settings import Settings, default_settings, settings_to_rerank
from lamra.train import train_rerank

STYLE = "qwen3_reranker"
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".'
)
PICTURE = "<|vision_start|>" + 4 * "<|image_pad|>" + "<|vision_end|>"
RED = Image.new("RGB", (64, 64), "red")
CASES = [  # query, candidate, what stands in the prompt for each
    (("a dog", 0, "Find it"), ("a cat", 1, None), "Find it", "a dog", f"{PICTURE}a cat"),
    (("a dog", 1, None), (None, 1, "not shown"), None, f"{PICTURE}a dog", PICTURE),
    (("", 0, None), (" ", 0, None), None, "NULL", " "),
]


@pytest.fixture(scope="module")
def reranker(tiny_qwen3, tmp_path_factory):
    folder = shutil.copytree(tiny_qwen3, tmp_path_factory.mktemp("published") / "reranker")
    (folder / "modules.json").write_text("[]")
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    return folder


def item(identifier, text, pictures, instruction):
    return Item(identifier, text, [RED] * pictures, instruction)


def the_makers(instruction, query, document):
    """What the maker's script and the published template make of a pair, written anew."""
    told = instruction or "Given a search query, retrieve relevant candidates that answer the query."
    user = f"<Instruct>: {told}<Query>:{query}\n<Document>:{document}"
    turns = (("system", SYSTEM), ("user", user))
    return "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns) + "<|im_start|>assistant\n"


@pytest.mark.parametrize(("query", "candidate", "instruction", "asked", "shown"), CASES)
def test_the_prompt_is_the_makers(reranker, query, candidate, instruction, asked, shown):
    prompts = RankPrompts(Processor(reranker), STYLE)
    pair = [prompts.prepare(item(name, *of)) for name, of in (("q", query), ("c", candidate))]
    found = prompts.pointwise(*pair)["input_ids"]
    assert prompts.processor.tokenizer.decode(found) == the_makers(instruction, asked, shown)
    taught = prompts.pointwise(*pair, YES_NO[STYLE][0])
    turn = prompts.processor.tokenizer.decode(taught["input_ids"][-taught["labels"] :])
    assert turn == "<|im_start|>assistant\nyes<|im_end|>\n"


def test_a_cut_leaves_the_instruction(reranker):
    prompts = RankPrompts(Processor(reranker, text_max_tokens=2), STYLE)
    pair = [prompts.prepare(item(*of)) for of in (("q", "a b c d", 0, "Find it now"), ("c", "e f g h", 0, None))]
    words = prompts.processor.tokenizer.decode(prompts.pointwise(*pair)["input_ids"])
    assert "<Instruct>: Find it now<Query>:a" in words and "d" not in words.partition("<Query>:")[2][:4]


def test_the_score_is_the_makers(reranker):
    """sigmoid((W_yes - W_no) h), of the last token's hidden state in the stock model."""
    from transformers import Qwen3VLForConditionalGeneration

    judge = load_judge(RetrieverArguments(model_id=str(reranker), bf16=False, num_workers=0))
    assert judge.settings.rank_style == STYLE
    stock = Qwen3VLForConditionalGeneration.from_pretrained(reranker, dtype=torch.float32).eval()
    tokenizer = judge.processor.tokenizer
    common, (yes, no) = judge.yes_no
    assert not common and [yes, no] == [tokenizer(answer)["input_ids"][0] for answer in ("yes", "no")]
    query, candidates = Item("q", "a dog", (), "Find it"), [Item("0", "a cat"), Item("1", "no dog"), Item("2", "")]
    found = judge.rerank(query, candidates)
    for score, candidate in zip(found.tolist(), candidates, strict=True):
        prompt = the_makers("Find it", "a dog", candidate.text or "NULL")
        with torch.no_grad():
            hidden = stock.model(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0, -1]
        weights = stock.lm_head.weight.detach()
        assert score == pytest.approx(float(torch.sigmoid((weights[yes] - weights[no]) @ hidden)), abs=1e-6)


def test_qwens_tokenizer_has_the_makers_answers(shared):
    prompts = RankPrompts(Processor(shared / "data" / "qwen2vl_processor"), STYLE)
    assert prompts.choices(YES_NO[STYLE]) == ([], [9693, 2152])  # as in the maker's 1_LogitScore/config.json


def test_what_a_published_folder_is(reranker, tiny_qwen3, tmp_path):
    assert is_published_reranker(reranker) and not is_published_embedder(reranker)
    assert not is_published_reranker(tiny_qwen3)
    assert default_settings(reranker, "reranker").rank_style == STYLE
    assert default_settings(tiny_qwen3, "reranker").rank_style == "released"
    assert default_settings(reranker).prompt_style == "lamra"  # a base model like any other
    script = tmp_path / "scripts"
    script.mkdir()
    (script / "qwen3_vl_reranker.py").touch()
    assert is_published_reranker(tmp_path)


def test_training_goes_on_from_it(reranker, mbeir, mined, tmp_path):
    """In its own prompts; a list, which its maker has none of, is asked for in LamRA's words."""
    common = dict(model_id="qwen3-vl-2b", init=reranker, data_path=mbeir, mined=mined / "mined.jsonl", max_steps=1)
    common |= dict(per_device_train_batch_size=2, lora_r=4, lora_alpha=8, report_to="none", save_strategy="no")
    call(train_rerank.main, **common, dataloader_num_workers=0, output_dir=tmp_path / "run")
    settings = Settings.read(tmp_path / "run")
    assert (settings.role, settings.rank_style) == ("reranker", STYLE)
    options = dict(position_ids=None, train_position_ids=None, text_max_tokens=None)
    assert settings_to_rerank(reranker, rank_style="clean", **options).rank_style == "clean"
    query, others = Item("q", "a dog"), [Item("0", "a cat"), Item("1", "a dog")]
    assert listwise_messages(STYLE, query, others) == listwise_messages("clean", query, others)
