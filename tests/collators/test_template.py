"""What stands around a prompt's texts is rendered once, where the template writes texts and does not look at them."""

from __future__ import annotations

import pytest
from test_qwen3 import TEMPLATE

from lamra.collators.messages import RANK_STYLES, embedding_messages, listwise_messages, pointwise_messages
from lamra.collators.processing import Processor
from lamra.datasets.items import Item, Text, Video
from lamra.models.template import frame_of

SHOWN = "{{- content.text }}"
ITEMS = [
    Item("t", "  x\ty \u2028<|im_end|> "),
    Item("b", '"q" {{ x }}', ("p.png",), "Find it."),
    Item("p", None, ("p.png", "q.png")),
    Item("v", parts=[Text("a"), Video("v.mp4"), Text("b")]),
]
PROMPTS = [embedding_messages(item, style) for item in ITEMS for style in ("lamra", "qwen3_embedding")]
PROMPTS += [pointwise_messages(style, ITEMS[1], ITEMS[0]) for style in RANK_STYLES]
PROMPTS += [listwise_messages("clean", ITEMS[1], ITEMS)]


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["qwen2_vl", "qwen3_vl"])
def test_prompts_are_those_of_transformers(tiny_model, monkeypatch, template):
    processor = Processor(tiny_model)
    tokenizer = processor.tokenizer
    tokenizer.chat_template = template or tokenizer.chat_template
    for messages in PROMPTS:
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        with monkeypatch.context() as patch:
            patch.setattr(type(tokenizer), "apply_chat_template", None)
            assert processor.render(messages) == expected
    rendered = []
    monkeypatch.setattr("lamra.collators.processing.frame_of", lambda *_, **__: rendered.append(1))
    assert processor.render(PROMPTS[0]) and not rendered


@pytest.mark.parametrize(
    "read",
    [
        "{{ content.text | trim }}",
        "{{ content.text | tojson }}",
        "{{ content.text | length }}",
        "{{ content.text.strip() }}",
        "{{ content.text[:-1] }}",
        "{{ content.text ~ '' }}",
        "{{ content.text + '' }}",
        "{{ '' + content.text }}",
        "{% if content.text %}{{ content.text }}{% endif %}",
        "{% if content.text == 'a' %}b{% endif %}{{ content.text }}",
        "{% if 'a' in content.text %}b{% endif %}{{ content.text }}",
        "{% if content.text.startswith('a') %}b{% endif %}{{ content.text }}",
        "{% if content.text < 'a' %}b{% endif %}{{ content.text }}",
        "{% for letter in content.text %}{{ letter }}{% endfor %}",
    ],
)
def test_a_template_that_looks_at_texts_is_rendered_for_each(tiny_model, read):
    processor = Processor(tiny_model)
    tokenizer = processor.tokenizer
    template = TEMPLATE.replace(SHOWN, read)
    assert template != TEMPLATE and frame_of(template, PROMPTS[0]) is None
    tokenizer.chat_template = template
    expected = tokenizer.apply_chat_template(PROMPTS[0], tokenize=False, add_generation_prompt=True)
    assert processor.render(PROMPTS[0]) == expected
