"""LamRA-Rank's prompts byte for byte, its labels, and what is cut of a long prompt."""

from __future__ import annotations

import pytest
import torch
from mbeir_pairs import pairs_of

from lamra.collators.messages import listwise_messages, pointwise_messages
from lamra.collators.processing import Processor
from lamra.collators.rerank import IGNORED, RankPrompts, RerankCollator
from lamra.datasets.items import Item
from lamra.datasets.rerank import RerankExamples
from lamra.datasets.usable import UsablePairs

POINTWISE = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate                        "
    "meets the requirements of the query. If it does, respond with 'Yes'; if it doesn't, responed with 'No'."
)


LISTWISE = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, etc. Each "
    "candidate is independent of the others.                         Evaluate each candidate against the query, and "
    "respond with the number corresponding to the candidate that best meets the requirements of the query."
)


BOTH = Item("q", "Change it.", ("q.png",), "Find a picture.")


TEXT, PICTURE = Item("t", "A dog."), Item("p", None, ("p.png",))


IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def rendered(processor: Processor, messages) -> str:
    start, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    text = processor.render(messages)
    assert text.endswith(end)
    return text[text.index(start) + len(start) : -len(end)]


def test_prompts_byte_for_byte(tiny_model):
    processor = Processor(tiny_model)
    for style, point, each in (
        ("released", POINTWISE, LISTWISE),
        ("clean", POINTWISE.replace(24 * " ", " ").replace("responed", "respond"), LISTWISE.replace(25 * " ", " ")),
    ):
        found = rendered(processor, pointwise_messages(style, BOTH, TEXT))
        assert found == f"{point}Query:{IMAGE}Find a picture. Change it.Candidate:A dog."
        found = rendered(processor, listwise_messages(style, TEXT, [PICTURE, BOTH, TEXT]))
        pictures = f"(1) {IMAGE}(2) {IMAGE}Find a picture. Change it."
        assert found == f"{each}Query:A dog.Candidates:{pictures}(3) A dog."
    assert POINTWISE.count(" " * 24) == 1 and POINTWISE.count(" " * 25) == 0 and LISTWISE.count(" " * 25) == 1


@pytest.mark.parametrize("real", [False, True])
def test_labels_are_the_assistants_whole_turn(request, mbeir, mined, tiny_model, real):
    folder = request.getfixturevalue("shared") / "data" / "qwen2vl_processor" if real else tiny_model
    processor = Processor(folder, max_length=2048, text_max_tokens=256)
    examples = RerankExamples(pairs_of(mbeir), [mined / "mined.jsonl"])
    collator = RerankCollator(processor, "clean")
    rows = list(range(5))  # one of each task
    batch = collator(UsablePairs(examples, collator.encode, most_faults=0).__getitems__(rows))
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    for i, row in enumerate(rows):
        example, decode = examples[row], processor.tokenizer.decode
        answers = ["Yes", "No", f"Ans: ({example.position + 1})"]
        for j, answer in enumerate(answers):
            ids, labels = (batch[name][3 * i + j] for name in ("input_ids", "labels"))
            ids = ids[: batch["attention_mask"][3 * i + j].sum()]
            counted = labels != IGNORED
            assert decode(labels[counted]) == f"<|im_start|>assistant\n{answer}<|im_end|>\n"
            assert torch.equal(labels[counted], ids[-counted.sum() :])
        if example.positive.text:  # and it stands where the answer says
            found = decode(batch["input_ids"][3 * i + 2])
            assert f"({example.position + 1}) {example.positive.text}" in found
    assert batch["ids"] == [examples[row].query.id for row in rows]


def test_a_long_prompt_loses_text_alike_and_no_picture(tiny_model, mbeir):
    picture = mbeir / "mbeir_images/train/0.png"
    long = [Item(str(i), f"{word} " * 400, (picture,)) for i, word in enumerate(("red", "blue", "green"))]
    prompts = RankPrompts(Processor(tiny_model, max_length=700, text_max_tokens=256), "clean")
    encoded = prompts.listwise(prompts.prepare(long[0]), [prompts.prepare(item) for item in long[1:]], "Ans: (2)")
    text = prompts.processor.tokenizer.decode(encoded["input_ids"])
    assert len(encoded["input_ids"]) <= 700 and text.endswith("Ans: (2)<|im_end|>\n")
    assert text.count(" red") == text.count(" blue") == text.count(" green") >= 16
    assert text.count("<|vision_start|>") == 3 == len(encoded["image_grid_thw"])
    prompts.processor.max_length = 300
    with pytest.raises(
        ValueError, match="the query '0' with 2 candidates needs more than 300 tokens without its texts"
    ):
        prompts.listwise(prompts.prepare(long[0]), [prompts.prepare(item) for item in long[1:]])
