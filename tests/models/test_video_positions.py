"""Videos in the stream of pictures: the stock forward with videos of their own gives the same, in both families."""

from __future__ import annotations

import copy

import pytest
import torch
from test_packing import END, IMAGE, START
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from lamra.models.embedder import Embedder

VIDEO = 508
FAMILIES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration, dict(embed_dim=32, hidden_size=64)),
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        dict(hidden_size=32, intermediate_size=48, out_hidden_size=64, fullatt_block_indexes=[1], tokens_per_second=2),
    ),
}
# Each row is a list of parts: a number of text tokens, a picture's patches (height, width), or a clip's (steps, h, w).
ROWS = [[9], [6, (3, 4, 6), 3], [6, (4, 6), 2, (2, 4, 2), (1, 4, 4), 5, (2, 2), 1], [6, 20, (5, 2, 2), 2]]


@pytest.fixture(scope="module", params=FAMILIES)
def stock(request, golden_config):
    config_class, model_class, vision = FAMILIES[request.param]
    values = golden_config.to_dict()
    vision = dict(depth=2, num_heads=2, mlp_ratio=2, patch_size=14, **vision)
    tokens = {name: values[name] for name in values if name.endswith("_token_id")}
    torch.manual_seed(0)
    return model_class(config_class(text_config=values["text_config"], vision_config=vision, **tokens)).eval()


def inputs_of(rows):
    """The stock model's inputs, and all patches and grids in order."""
    torch.manual_seed(1)
    ids, kinds, grids = [], [], []
    for row in rows:
        of_row = []
        for part in row:
            if isinstance(part, int):
                of_row += torch.randint(3, 500, (part,)).tolist()
                continue
            kinds.append(len(part) == 3)
            grids.append((1, *part)[-3:])
            count = grids[-1][0] * grids[-1][1] * grids[-1][2] // 4
            of_row += [START, *[VIDEO if kinds[-1] else IMAGE] * count, END]
        of_row[: rows[0][0] - 3] = range(10, 7 + rows[0][0])  # what all begin with
        ids.append(torch.tensor(of_row))
    kinds, grids = torch.tensor(kinds), torch.tensor(grids)
    patches = torch.randn(int(grids.prod(dim=1).sum()), 1176).split(grids.prod(dim=1).tolist())
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad(ids, batch_first=True)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
        "mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int(),
        "image_grid_thw": grids[~kinds],
        "video_grid_thw": grids[kinds],
        "pixel_values": torch.cat([of for of, is_clip in zip(patches, kinds) if not is_clip]),
        "pixel_values_videos": torch.cat([of for of, is_clip in zip(patches, kinds) if is_clip]),
    }
    return inputs, torch.cat(patches), grids


@pytest.mark.parametrize("position_ids", ["sequential", "mrope"])
@torch.no_grad()
def test_equal_to_the_stock_forward(stock, position_ids):
    inputs, pixel_values, grids = inputs_of(ROWS)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = torch.arange(ids.shape[1]).expand(3, *ids.shape)
    if position_ids == "mrope":
        names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
        positions, _ = stock.model.get_rope_index(ids, **{name: inputs[name] for name in names})
    hidden = stock.model(**inputs, position_ids=positions).last_hidden_state
    expected = torch.nn.functional.normalize(hidden[torch.arange(len(ids)), mask.sum(dim=1) - 1], dim=-1)
    ours = {
        "input_ids": ids.masked_fill(ids == VIDEO, IMAGE),
        "attention_mask": mask,
        "pixel_values": pixel_values,
        "image_grid_thw": grids,
    }
    for padding_free in (False, True):
        embedder = Embedder(copy.deepcopy(stock), position_ids, padding_free=padding_free).eval()
        torch.testing.assert_close(
            embedder._position_ids(ours["input_ids"], mask, grids).masked_fill(mask == 0, 0),
            positions.masked_fill(mask == 0, 0),
        )
        torch.testing.assert_close(embedder(**ours), expected, atol=1e-5, rtol=0)
    prefix = embedder.prefix_of(torch.arange(10, 16))
    torch.testing.assert_close(embedder(**ours, prefix=prefix), expected, atol=1e-5, rtol=0)
    assert (expected @ expected.T).fill_diagonal_(0).max() < 0.999
