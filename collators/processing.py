"""Items to model inputs: chat rendering, image tokens, pixels. One processor for every machine.

This one is the tokenizer and collators.visuals, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from itertools import chain, takewhile, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchEncoding

from lamra.collators.messages import embedding_messages, instructed_texts
from lamra.collators.texts import CUT_PROMPT, CUT_TEXT, LONG, SPECIAL, digest_of
from lamra.collators.visuals import Visuals, in_order
from lamra.common.errors import ItemError, TooLongError, UserError
from lamra.datasets.items import Item, Video
from lamra.models.families import family_of
from lamra.models.inspect import inspect_processor
from lamra.models.template import frame_of

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
VISION = "<|vision_start|>{}<|vision_end|>"
MARK = "\ufdd0"  # stands for a text while the chat template is rendered; no letter, and in no template


class Processor:
    """Renders items with the checkpoint's chat template, tokenizes them and prepares their pixels.

    Pictures and videos are one stream, in the order of the prompt: a picture is a clip of one temporal patch. In the
    ids both are image tokens. What the vision tower makes of them replaces either's embedding, and a video token in the
    ids is then always a text that spells it. In families that show frames apart, a video stands in the prompt as the
    time of each temporal patch in words, followed by the patch as if it were a picture.

    Args:
        folder: a model or checkpoint folder with tokenizer, chat template and preprocessor_config.json.
        min_pixels, max_pixels: a picture is resized to an area between these, sides multiples of a token's (28 or 32).
        max_length: longest prompt in tokens; a longer one loses the end of its text, never its image or its frame.
        text_max_tokens: instruction and text together are cut after so many tokens, in training; None does not cut.
        special_tokens_in_text: how a text that spells a special token, such as <|im_end|>, is read: "special", as that
            token, or "plain", as the letters that it is spelt with.
        exif_rotation: turn pictures as their EXIF says.
        prompt_style: see messages.embedding_messages. Where the folder's tokenizer ends each text with <|endoftext|>,
            as Qwen3-VL-Embedding's does, that token follows the generation prompt and is the last.

    Raises:
        UserError: a file of the folder is missing, cannot be read, or contradicts itself; or its tokenizer adds a token
            that the prompts of LamRA do not have.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        min_pixels: int = 4 * 28 * 28,
        max_pixels: int = 300 * 28 * 28,
        max_length: int = 1024,
        text_max_tokens: int | None = None,
        special_tokens_in_text: str = "special",
        exif_rotation: bool = False,
        prompt_style: str = "lamra",
    ):
        folder = Path(folder)
        template = inspect_processor(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.tokenizer.chat_template = template
        self._frames: dict[tuple, list[str] | None] = {}
        self.visuals = Visuals(
            folder,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            exif_rotation=exif_rotation,
            frames_apart=(folder / "config.json").is_file() and family_of(folder).frames_apart,
        )
        self.max_length, self.text_max_tokens = max_length, text_max_tokens
        self.special_tokens_in_text, self.prompt_style = special_tokens_in_text, prompt_style
        self.end_ids: list[int] = self.tokenizer("")["input_ids"]  # what the tokenizer adds to each text
        if self.end_ids and prompt_style == "lamra":
            raise UserError(
                f"the tokenizer in {folder} adds {self.tokenizer.decode(self.end_ids)} to each text, which is in no "
                "prompt of LamRA's: take that of the base model, or --prompt_style qwen3_embedding for an embedder"
            )

    def for_evaluation(self, max_length: int) -> Processor:
        """The same without cuts, but for the model's own limit of `max_length` tokens, as upstream evaluates."""
        uncut = copy(self)
        uncut.max_length, uncut.text_max_tokens = max_length, None
        return uncut

    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything that `Processor(folder)` reads."""
        self.tokenizer.save_pretrained(folder)
        self.visuals.image_processor.save_pretrained(folder)

    def render(self, messages: list[dict]) -> str:
        """The chat template's text, ending with the generation prompt.

        What stands around the texts is rendered once for all prompts of the same roles and kinds of parts.
        """
        template = self.tokenizer.chat_template
        kinds = template, *((message["role"], *(part["type"] for part in message["content"])) for message in messages)
        if kinds not in self._frames:
            self._frames[kinds] = frame_of(template, messages, **self.tokenizer.special_tokens_map)
        frame = self._frames[kinds]
        if frame is None:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return "".join(chain.from_iterable(zip_longest(frame, _texts(messages), fillvalue="")))

    def encode(self, item: Item) -> dict:
        """One item to {"input_ids": list[int], "pixel_values": (P, C) or None, "image_grid_thw": (rows, 3) or None}.

        The pixels are bytes, see Visuals. Beside them "notes": what befell its text, see collators.texts.

        Raises:
            ItemError: a picture or video cannot be read, or the prompt is longer than max_length even without its text.
        """
        whole, pixels = item, self.visuals.pixels(item)
        item = kept = self.cut(whole, self.text_max_tokens)
        grids, befell = pixels["image_grid_thw"], [CUT_TEXT] * (item is not whole)
        ids = self.token_ids(embedding_messages(item, self.prompt_style), grids, item.id)
        excess = len(ids) - self.max_length
        while len(ids) > self.max_length:  # more than once where the cut leaves a letter of several tokens whole
            kept = self._shortened(item, excess)
            ids = self.token_ids(embedding_messages(kept, self.prompt_style), grids, item.id)
            excess += 1
        befell += [CUT_PROMPT] * (kept is not item) + [LONG] * (len(ids) > self.max_length - 16)
        befell += [SPECIAL] * self.reads_special_tokens_in(kept.texts)
        seen = (digest_of(ids, *map(str, item.visuals)), digest_of(whole.content)) if befell else (0, 0)
        return {"input_ids": ids, **pixels, "notes": dict.fromkeys(befell, seen)}

    def length(self, item: Item) -> int:
        """Tokens that `encode` makes of an item, from the headers of its pictures and the frames of its videos."""
        tokens = self.visuals.tokens(item)
        messages = embedding_messages(self.cut(item, self.text_max_tokens), self.prompt_style)
        ids = self._token_ids(messages, [1] * len(tokens), item.id)
        return min(len(ids) + sum(tokens) - len(tokens), self.max_length)

    @cached_property
    def prefix_ids(self) -> list[int]:
        """The tokens that every prompt begins with: system turn and head of the user turn."""
        first, second = (self.encode(Item("", text))["input_ids"] for text in ("a", "7"))
        return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second))]

    def __call__(self, items: list[Item]) -> dict[str, Tensor]:
        """Items to one batch of keyword arguments for Embedder, pixels as the vision tower reads them."""
        batch = self.pad([self.encode(item) for item in items])
        if "pixel_values" in batch:
            batch["pixel_values"] = self.visuals.floats(batch["pixel_values"])
        return batch

    def pad(self, encoded: list[dict]) -> dict[str, Tensor]:
        """Batch what `encode` returned: ids padded on the right to (B, L), pixels and grids concatenated.

        The pixels are bytes: a model turns them into numbers where it has `pixels_from_bytes` (models.backbone).
        """
        rows = [torch.tensor(prompt["input_ids"]) for prompt in encoded]
        pad_id = self.tokenizer.pad_token_id
        batch = {
            "input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id),  # (B, L)
            "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        }
        for name in ("pixel_values", "image_grid_thw"):
            parts = in_order([prompt[name] for prompt in encoded])
            if parts is not None:
                batch[name] = parts
        return batch

    def token_ids(self, messages: list[dict], image_grid_thw: Tensor | None, name: str) -> list[int]:
        """The rendered messages with as many image tokens as the grids of their pictures and videos ask for.

        Raises:
            ItemError: a text contains the image token, where it is read as such; `name` says whose.
        """
        rows = [] if image_grid_thw is None else image_grid_thw.tolist()
        return self._token_ids(messages, [self.visuals.tokens_of(*row) for row in rows], name)

    def _token_ids(self, messages: list[dict], image_tokens: Sequence[int], name: str) -> list[int]:
        """Args: image_tokens: of each row of the grid."""
        if self.special_tokens_in_text == "plain" and self._special_tokens.search("".join(_texts(messages))):
            return self._ids_with_plain_texts(messages, image_tokens)
        parts = self._drawn(messages).split(IMAGE_TOKEN)
        if len(parts) != len(image_tokens) + 1:
            token = f"{IMAGE_TOKEN} or {VIDEO_TOKEN}" if VIDEO_TOKEN in self.render(messages) else IMAGE_TOKEN
            raise ItemError(
                f"the text of item {name!r} contains {token}, which stands for pixels: remove it, or read it as "
                "plain text with --special_tokens_in_text plain"
            )
        text = parts[0]
        for count, part in zip(image_tokens, parts[1:]):
            text += IMAGE_TOKEN * count + part
        return self.tokenizer(text)["input_ids"]

    def _drawn(self, messages: list[dict]) -> str:
        """The rendered messages, an image token for each row of the grid.

        Where frames are apart, a video's place is taken by each time in words and a picture's place for the frames, as
        the first processor of Qwen3-VL did, in transformers 4.57; 5.12 to 5.23 leave the video's vision tokens around.

        Raises:
            UserError: the chat template has nothing for videos.
        """
        text = self.render(messages)
        videos = [part["video"] for message in messages for part in message["content"] if part["type"] == "video"]
        if text.count(VIDEO_TOKEN) < len(videos):
            raise UserError(f"the chat template draws no video ({VIDEO_TOKEN}): take that of the base model")
        if self.visuals.frames_apart:
            for video in videos:
                frames = (f"<{time:.1f} seconds>{VISION.format(IMAGE_TOKEN)}" for time in self.visuals.times(video))
                text = text.replace(VISION.format(VIDEO_TOKEN), "".join(frames), 1)
        return text.replace(VIDEO_TOKEN, IMAGE_TOKEN) if videos else text

    def _ids_with_plain_texts(self, messages: list[dict], image_tokens: Sequence[int]) -> list[int]:
        """The same where a text spells special tokens: only the chat template's are special.

        The template is rendered around a mark for each text. Between two special tokens nothing looks beyond them, so
        that each such piece has the tokens that it has in the whole.
        """
        texts: list[str] = []
        frame = []
        for message in messages:
            content = []
            for part in message["content"]:
                if part["type"] == "text":
                    texts.append(part["text"])
                    part = {"type": "text", "text": f"{MARK}{len(texts) - 1}{MARK}"}
                content.append(part)
            frame.append({**message, "content": content})
        counts, ids = iter(image_tokens), []
        for piece in self._special_tokens.split(self._drawn(frame)):
            if self._special_tokens.fullmatch(piece):
                ids += [self.tokenizer.convert_tokens_to_ids(piece)] * (next(counts) if piece == IMAGE_TOKEN else 1)
            else:
                whole = re.sub(f"{MARK}([0-9]+){MARK}", lambda mark: texts[int(mark[1])], piece)
                ids += self._text_ids(whole)["input_ids"]
        return ids + self.end_ids

    @cached_property
    def _special_tokens(self) -> re.Pattern[str]:
        """One group: a special token."""
        tokens = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return re.compile(f"({'|'.join(map(re.escape, sorted({*tokens, IMAGE_TOKEN}, key=len, reverse=True)))})")

    def reads_special_tokens_in(self, texts: Sequence[str]) -> bool:
        """Whether a text spells a special token and is not read as plain text."""
        return self.special_tokens_in_text == "special" and bool(self._special_tokens.search("\n".join(texts)))

    def _text_ids(self, text: str, **options: Any) -> BatchEncoding:
        """What the tokenizer makes of a text outside of the chat template."""
        plain = self.special_tokens_in_text == "plain"
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain, **options)

    def cut(
        self, item: Item, most: int | None, *, whole_characters: bool = False, instruction_apart: bool = False
    ) -> Item:
        """`item` with at most so many tokens of instruction and text, which are its text then; None does not cut.

        Encoded, cut and decoded, as the published checkpoints were trained: a character of several tokens that the cut
        splits leaves U+FFFD. `whole_characters` drops it. An instruction that does not stand in the text, as that of a
        system turn, is neither counted nor cut.

        Raises:
            ItemError: a text has half of a letter (a lone surrogate), which is no text.
        """
        texts = instructed_texts(item)
        try:
            size = len("".join(texts).encode())
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise ItemError(f"the text of item {item.id!r} has {half}, half of a letter: write it whole") from None
        if most is None or size <= most:
            return item  # a token is a byte or more
        left, kept, apart = most, [], None
        if instruction_apart or self.prompt_style == "qwen3_embedding":
            texts, apart = list(item.texts), item.instruction
        for text in texts:
            ids = self._text_ids(text)["input_ids"]
            if len(ids) > left:
                text = self.tokenizer.decode(ids[:left], clean_up_tokenization_spaces=False)
                kept.append(text.rstrip("\ufffd") if whole_characters else text)
                return item.with_texts(kept, apart)
            left -= len(ids)
            kept.append(text)
        return item

    def _shortened(self, item: Item, excess: int) -> Item:
        """`item` without the last tokens of its texts, `excess` or a few more: cutting may split a merged token."""
        texts = list(item.texts)
        while texts:
            text = texts.pop()
            offsets = self._text_ids(text, return_offsets_mapping=True)["offset_mapping"]
            keep = len(offsets) - excess - 2
            if keep > 0:
                return item.with_texts([*texts, text[: offsets[keep - 1][1]]], item.instruction)
            excess -= len(offsets)
        fewer = (
            "cut its videos shorter" if any(isinstance(part, Video) for part in item.parts) else "lower --max_pixels"
        )
        raise TooLongError(
            f"item {item.id!r} needs more than {self.max_length} tokens without its text: raise --model_max_length, or "
            f"{fewer}"
        )


def _texts(messages: list[dict]) -> list[str]:
    """The texts of a prompt's parts, in order."""
    return [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
