"""Qwen3-VL's inputs: patches of 16 pixels, frames of a video apart with their times, its chat template's constructs."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from clips import drawn, noise, write_clip
from PIL import Image

from lamra.collators.messages import embedding_messages
from lamra.collators.processing import Processor
from lamra.collators.videos import clip_of, frames_of
from lamra.datasets.items import Item, Picture, Text, Video
from lamra.eval.encode import encode
from lamra.eval.rerank.answers import divided, joined
from lamra.eval.rerank.judge import Judge
from lamra.models.loading import load_embedder, load_reranker
from lamra.models.settings import default_settings
from lamra.models.template import template_fault

# As the published folders say it (seen as text in several repositories; the files themselves were not loaded here).
PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    **dict(patch_size=16, temporal_patch_size=2, merge_size=2, image_mean=3 * [0.5], image_std=3 * [0.5]),
    **dict(processor_class="Qwen3VLProcessor", image_processor_type="Qwen2VLImageProcessorFast"),
}
# The constructs of the published template, in short: tools, counters, neighbours of a message, calls as json.
TEMPLATE = """{%- if tools %}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{%- endif %}
{%- set image_count = namespace(value=0) %}
{%- for message in messages %}
    {%- if message.role == "tool" and messages[loop.index0 - 1].role != "tool" %}{{- 'tool' }}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for content in message.content %}
        {%- if content.type == 'image' or 'image' in content %}
            {%- set image_count.value = image_count.value + 1 %}
            {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}
            <|vision_start|><|image_pad|><|vision_end|>
        {%- elif content.type == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>
        {%- elif 'text' in content %}{{- content.text }}{% endif %}
    {%- endfor %}
    {%- for tool_call in message.tool_calls %}
        {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
        {{- tool_call.arguments | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


@pytest.fixture(scope="module")
def folder(tiny_qwen3, tmp_path_factory):
    folder = shutil.copytree(tiny_qwen3, tmp_path_factory.mktemp("published") / "model")
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def processor(folder):
    settings = default_settings(folder)
    assert (settings.position_ids, settings.min_pixels, settings.max_pixels) == ("mrope", 4096, 307200)
    return Processor(folder, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels, max_length=4096)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """30 frames at 25 a second, of which 4 are shown: 0, 10, 19, 29."""
    return Video(write_clip(tmp_path_factory.mktemp("clip") / "clip.mkv", drawn(30, 320, 192), codec="ffv1"))


def test_the_constructs_of_the_published_template():
    assert template_fault(TEMPLATE) is None
    assert "'tojson'" in template_fault("{{ messages | tojson | tojson }}" + TEMPLATE)
    assert "'tojson'" in template_fault("{% set x = messages %}{% set x = x | tojson %}" + TEMPLATE)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((640, 480), (1, 30, 40)),  # 300 tokens: 480 x 640 is the cap
        ((2000, 1500), (1, 30, 40)),  # above the cap
        ((20, 20), (1, 4, 4)),  # below the least
        ((33, 700), (1, 44, 2)),
    ],
)
def test_sizes(processor, size, grid):
    item = Item("p", images=[noise(*size)])
    found = processor.encode(item)
    assert found["image_grid_thw"].tolist() == [list(grid)]
    pixels = processor.visuals.floats(found["pixel_values"])
    assert pixels.shape == (grid[1] * grid[2], 3 * 2 * 16 * 16)
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert found["input_ids"].count(image) == grid[1] * grid[2] // 4
    assert processor.length(item) == len(found["input_ids"])
    library = processor.visuals.image_processor([item.images[0]])
    assert np.array_equal(library["pixel_values"], pixels.numpy())
    assert pixels.min() >= -1 and pixels.max() <= 1  # by 0.5, as the folder says


@pytest.mark.parametrize("special_tokens_in_text", ["special", "plain"])
def test_a_video_stands_as_times_and_frames(folder, clip, special_tokens_in_text):
    processor = Processor(folder, max_length=4096, special_tokens_in_text=special_tokens_in_text)
    last = "b<|im_end|>" if special_tokens_in_text == "plain" else "b"
    parts = [Text("a "), clip, Picture(noise(64, 64)), Text(last)]
    item = Item("v", parts=parts)
    found = processor.encode(item)
    rows = found["image_grid_thw"].tolist()
    assert rows[0] == rows[1] and len(rows) == 3 and {row[0] for row in rows} == {1}
    assert rows[0][1] * rows[0][2] // 4 >= 128  # the least of a frame
    prompt = processor.tokenizer.decode(found["input_ids"])
    shown = re.sub(r"(<\|image_pad\|>)+", "*", prompt)
    assert "user\na <0.2 seconds><|vision_start|>*<|vision_end|><1.0 seconds><|vision_start|>*<|vision_end|>" in shown
    assert "<|vision_end|><|vision_start|>*<|vision_end|>b" in shown and "<|video_pad|>" not in prompt
    assert processor.length(item) == len(found["input_ids"])
    patches = [h * w for _, h, w in rows]
    pixels = processor.visuals.floats(found["pixel_values"])
    assert len(pixels) == sum(patches)
    frames = list(frames_of(clip, [0, 10, 19, 29], "clip"))
    for number, pair in enumerate((frames[:2], frames[2:])):  # each temporal patch holds two frames
        size = rows[number][2] * 16, rows[number][1] * 16
        block = pixels[number * patches[0] : (number + 1) * patches[0]].view(-1, 3, 2, 256)
        for i, frame in enumerate(pair):
            red = np.asarray(frame.resize(size, Image.Resampling.BICUBIC))[..., 0].mean() / 127.5 - 1
            assert block[:, 0, i].mean().item() == pytest.approx(red, abs=1e-3)


def test_a_time_between_two_tenths_is_rounded_as_the_library_does(processor, tmp_path):
    video = Video(write_clip(tmp_path / "clip.mkv", drawn(17), rate=30, codec="ffv1"))
    assert clip_of(video, "clip").rows(video)[2:] == [11, 16]
    assert [f"{time:.1f}" for time in processor.visuals.times(video)] == ["0.1", "0.4"]  # (11 + 16) / 2 / 30 gives 0.5


def test_times_of_an_odd_number_of_frames(processor, tmp_path):
    one = Video(write_clip(tmp_path / "one.mkv", drawn(1), codec="ffv1"))
    assert processor.visuals.times(one) == [0.0]
    assert clip_of(one, "one").rows(one) == [0]
    assert processor.encode(Item("one", parts=[one]))["image_grid_thw"].shape == (1, 3)


def test_equal_to_the_stock_processor(processor, clip):
    """Same ids, grids and pixels; since 5.12 the library leaves a video's own vision tokens around its frames."""
    pytest.importorskip("torchvision", reason="the stock processor needs torchvision: its ids are not compared")
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    stock = Qwen3VLProcessor(
        processor.visuals.image_processor, processor.tokenizer, Qwen3VLVideoProcessor(), chat_template=TEMPLATE
    )
    pictures = [noise(*size) for size in ((640, 480), (90, 300), (33, 70))]
    item = Item("i", parts=[Picture(pictures[0]), Text("a red circle "), *map(Picture, pictures[1:]), Text("b")])
    found = processor.encode(item)
    expected = stock(text=[processor.render(embedding_messages(item))], images=pictures, return_tensors="pt")
    assert found["input_ids"] == expected["input_ids"][0].tolist()
    assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])
    assert torch.equal(processor.visuals.floats(found["pixel_values"]), expected["pixel_values"])

    item = Item("v", parts=[Text("a "), clip, Text("b")])
    found = processor.encode(item)
    _, rows, columns = found["image_grid_thw"][0].tolist()
    frames = [np.asarray(frame.resize((16 * columns, 16 * rows))) for frame in frames_of(clip, [0, 10, 19, 29], "clip")]
    expected = stock(
        text=[processor.render(embedding_messages(item))],
        videos=[np.stack(frames).transpose(0, 3, 1, 2)],
        video_metadata=[VideoMetadata(total_num_frames=30, fps=25.0, frames_indices=[0, 10, 19, 29])],
        **dict(do_sample_frames=False, do_resize=False, return_tensors="pt"),
    )
    assert expected["video_grid_thw"].tolist() == [[2, rows, columns]]
    start, end, video, image = processor.tokenizer.convert_tokens_to_ids(
        ["<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>"]
    )
    ids = [image if token == video else token for token in expected["input_ids"][0].tolist()]
    first, last = ids.index(start), len(ids) - 1 - ids[::-1].index(end)
    assert found["input_ids"] == ids[:first] + ids[first + 1 : last] + ids[last + 1 :]
    pixels = processor.visuals.floats(found["pixel_values"])
    assert (pixels - expected["pixel_values_videos"]).abs().max() < 1e-5


@torch.no_grad()
def test_embedded_and_judged_in_any_company(folder, processor, clip):
    """Packed, padded, alone or together; a reranker's features, computed once, with those of DeepStack in them."""
    items = [
        Item("text", "a red circle"),
        Item("picture", images=[noise(100, 60)]),
        Item("video", parts=[clip]),
        Item("both", parts=[Text("before "), clip, Picture(noise(40, 40)), Text("after")]),
    ]
    packed, _ = load_embedder(folder, dtype=torch.float32)
    padded, _ = load_embedder(folder, dtype=torch.float32, padding_free=False)
    together = encode(packed, processor, items, max_tokens_per_batch=10_000, description=None)
    alone = torch.cat([encode(padded, processor, [item], max_tokens_per_batch=99, description=None) for item in items])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)

    judges = []
    for padding_free in (True, False):
        model, settings = load_reranker(folder, dtype=torch.float32, padding_free=padding_free)
        judges.append(Judge(model, processor, settings, 4096, 0, padding_free, 1.0))
    shown = divided(joined([judges[0].prompts.prepare(item) for item in items]))  # as workers hand them over
    assert [0 if of.image_grid_thw is None else len(of.image_grid_thw) for of in shown] == [0, 1, 2, 3]
    for query in shown:
        alone = [judges[1].pointwise(query, [candidate])[0] for candidate in shown]
        assert judges[0].pointwise(query, shown) == pytest.approx(alone, abs=1e-5)
        assert sorted(judges[0].listwise(query, shown)) == [0, 1, 2, 3]
