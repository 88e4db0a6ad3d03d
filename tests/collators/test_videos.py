"""Videos: which frames, how large, and the embedding input; a clip of equal frames is its picture."""

from __future__ import annotations

import os
import struct
import weakref

import pytest
import torch
from clips import drawn, noise, write_clip
from PIL import Image

from lamra.collators.messages import embedding_messages
from lamra.collators.processing import Processor
from lamra.collators.videos import Clip, clip_of, frames_of
from lamra.collators.visuals import Visuals
from lamra.common.errors import ItemError, PictureError, TooLongError, UserError
from lamra.datasets.items import Item, Picture, Text, Video
from lamra.eval.encode import encode
from lamra.models.loading import load_embedder


@pytest.fixture(scope="module")
def processor(tiny_model):
    return Processor(tiny_model, max_length=8192)


# As Qwen2-VL's qwen_vl_utils chooses: n = frames / rate * fps, from 4 to 768 and the frames, then linspace, rounded.
CHOSEN = {
    (10, 25.0, None): [0, 3, 6, 9],
    (120, 30000 / 1001, None): [0, 17, 34, 51, 68, 85, 102, 119],
    (132, 25.0, None): [0, 15, 29, 44, 58, 73, 87, 102, 116, 131],
    (250, 25.0, None): [0, 13, 26, 39, 52, 66, 79, 92, 105, 118, 131, 144, 157, 170, 183, 197, 210, 223, 236, 249],
    (132, 25.0, 12): [0, 12, 24, 36, 48, 60, 71, 83, 95, 107, 119, 131],
    (132, 25.0, 8): [0, 19, 37, 56, 75, 94, 112, 131],
    (9, 25.0, 12): [0, 1, 2, 3, 5, 6, 7, 8],
    (3, 25.0, 12): [0, 2],
    (3, 25.0, None): [0, 2],
    (1, 25.0, None): [0],
    (1, 25.0, 8): [0],
}


@pytest.mark.parametrize(("of", "rows"), CHOSEN.items(), ids=map(str, CHOSEN))
def test_frames(of, rows):
    frames, rate, nframes = of
    assert Clip(frames, rate, 240, 320).rows(Video("", nframes)) == rows


def test_another_rate():
    assert Clip(132, 25.0, 240, 320).rows(Video("", fps=1.0)) == [0, 26, 52, 79, 105, 131]  # 5.28 to an even number


def test_long_clips_are_shown_as_768_frames_and_smaller():
    long = Clip(100_000, 25.0, 480, 640)
    assert len(long.rows(Video(""))) == 768
    sides = [long.size(count, 28) for count in (2, 64, 128, 768)]
    assert [height * width // 28**2 for height, width in sides] == [391, 391, 352, 130]
    assert [Clip(9, 25.0, 1080, 1920).size(count, 28) for count in (64, 96)] == [(560, 1008), (448, 840)]


@pytest.mark.parametrize(
    ("width", "height", "resized", "tokens"),
    [(320, 240, (280, 392), 140), (480, 360, (364, 476), 221), (640, 480, (476, 644), 391)],
)
def test_grids(tmp_path, processor, width, height, resized, tokens):
    video = Video(write_clip(tmp_path / "clip.mp4", drawn(10, width, height)))
    item = Item("v", parts=[video])
    inputs = processor.encode(item)
    assert inputs["image_grid_thw"].tolist() == [[2, resized[0] // 14, resized[1] // 14]]
    assert inputs["pixel_values"].shape == (2 * 4 * tokens, 3 * 2 * 14 * 14)
    assert inputs["pixel_values"].dtype == torch.uint8
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert inputs["input_ids"].count(image) == 2 * tokens and processor.length(item) == len(inputs["input_ids"])


def test_a_clip_that_is_too_long(tmp_path, tiny_model):
    item = Item("v", parts=[Video(write_clip(tmp_path / "clip.mp4", drawn(50)))])
    with pytest.raises(TooLongError, match="'v' needs more than 256 tokens .* or cut its videos shorter"):
        Processor(tiny_model, max_length=256).encode(item)


def test_two_frames_stand_in_one_temporal_patch(tmp_path, processor):
    """Frame i is 5 i in red: frames 0, 3, 6, 9 of 10 make two temporal patches."""
    video = Video(write_clip(tmp_path / "clip.mkv", drawn(10, 140, 112), codec="ffv1"))
    inputs = processor.encode(Item("v", parts=[video]))
    steps, height, width = inputs["image_grid_thw"][0].tolist()
    pixels = processor.visuals.floats(inputs["pixel_values"]).view(steps, height * width, 3, 2, 14 * 14)
    red = [(5 * row / 255 - 0.48145466) / 0.26862954 for row in (0, 3, 6, 9)]
    for step, place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        torch.testing.assert_close(pixels[step, :, 0, place], torch.full((height * width, 196), red[2 * step + place]))
    alone = processor.encode(Item("v", parts=[Video(video.path, nframes=2)]))["pixel_values"]
    assert torch.equal(
        processor.visuals.floats(alone).view(-1, 3, 2, 196)[:, :, 1], pixels[1, :, :, 1]
    )  # frames 0 and 9


def test_a_clip_of_equal_frames_is_its_picture(tmp_path, tiny_model, processor):
    """Of the size that both rules leave alone: pixels, grid, ids, and with them the embedding."""
    picture = noise(476, 364)
    frames = {"one": 1, "two": 2, "many": 9}
    clips = [write_clip(tmp_path / f"{name}.mkv", [picture] * count, codec="ffv1") for name, count in frames.items()]
    still = processor.encode(Item("p", images=(picture,)))
    floats = processor.visuals.floats(still["pixel_values"])
    for clip in clips:
        moving = processor.encode(Item("v", parts=[Video(clip, nframes=2)]))
        assert torch.equal(processor.visuals.floats(moving["pixel_values"]), floats)
        assert torch.equal(moving["image_grid_thw"], still["image_grid_thw"])
        as_text = processor.tokenizer.decode(moving["input_ids"])
        assert as_text.replace("above video in", "above image in") == processor.tokenizer.decode(still["input_ids"])
    embedder, _ = load_embedder(tiny_model, dtype=torch.float32, position_ids="sequential")
    embedder.pixels_from_bytes = processor.visuals.floats
    asks_for_an_image = moving | {"input_ids": still["input_ids"]}
    assert torch.equal(embedder(**processor.pad([asks_for_an_image])), embedder(**processor.pad([still])))
    four = processor.encode(Item("v", parts=[Video(clips[2])]))
    assert torch.equal(processor.visuals.floats(four["pixel_values"]), floats.repeat(2, 1))


def test_prompts(tmp_path, processor, tiny_model):
    clip = Video(write_clip(tmp_path / "clip.mp4", drawn(4)), nframes=2)
    picture = Image.new("RGB", (28, 28))
    for parts, prompt in (
        ([clip], "[video]\nSummarize above video in one word: "),
        ([clip, Text("a")], "[video]a\nSummarize above video and sentence in one word: "),
        ([Picture(picture), clip], "[image][video]\nSummarize above video in one word: "),
    ):
        (turn,) = embedding_messages(Item("v", parts=parts))
        assert "".join(part.get("text", f"[{part['type']}]") for part in turn["content"]) == prompt
    mixed = Item("m", parts=[Text("a"), clip, Text("b"), Picture(picture), Text("c")])
    inputs = processor.encode(mixed)
    counts = [int(grid.prod()) // 4 for grid in inputs["image_grid_thw"]]
    pads = ["<|vision_start|>" + count * "<|image_pad|>" + "<|vision_end|>" for count in counts]
    whole = processor.tokenizer.decode(inputs["input_ids"])
    assert f"user\na{pads[0]}b{pads[1]}c\nSummarize above video and" in whole and counts[0] > counts[1]
    assert processor.length(mixed) == len(inputs["input_ids"])


def test_a_text_that_spells_the_token(tmp_path, tiny_model, processor):
    clip = Video(write_clip(tmp_path / "clip.mp4", drawn(4)), nframes=2)
    token = processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert processor.encode(Item("t", "a <|video_pad|>"))["input_ids"].count(token) == 1  # as ever
    spelt = Item("t", parts=[clip, Text("a <|video_pad|>")])
    with pytest.raises(
        ItemError, match=r"item 't' contains <\|image_pad\|> or <\|video_pad\|>, which stands for pixels"
    ):
        processor.encode(spelt)
    plain = Processor(tiny_model, special_tokens_in_text="plain")
    ids = plain.encode(spelt)["input_ids"]
    assert token not in ids and len(ids) == plain.length(spelt)
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert ids.count(image) == processor.encode(Item("v", parts=[clip]))["input_ids"].count(image)


def test_a_template_without_videos(tmp_path, tiny_model):
    clip = Video(write_clip(tmp_path / "clip.mp4", drawn(4)))
    for kind in ("special", "plain"):
        processor = Processor(tiny_model, special_tokens_in_text=kind)
        processor.tokenizer.chat_template = processor.tokenizer.chat_template.replace("<|video_pad|>", "")
        with pytest.raises(UserError, match="the chat template draws no video"):
            processor.encode(Item("v", parts=[clip, Text("<|im_end|>")]))


def lying(path, frames: int, says: int):
    """An avi whose headers state another number of frames."""
    write_clip(path, drawn(frames))
    content = bytearray(path.read_bytes())
    for place in (content.index(b"avih") + 8 + 16, content.index(b"strh") + 8 + 32):  # dwTotalFrames, dwLength
        assert struct.unpack_from("<I", content, place)[0] == frames
        struct.pack_into("<I", content, place, says)
    path.write_bytes(content)
    return Video(path)


@pytest.mark.parametrize("says", [0, 3, 1_000_000])
def test_a_header_that_lies_is_not_believed(tmp_path, processor, says):
    video = lying(tmp_path / "clip.avi", 26, says)
    clip = clip_of(video, "clip")
    assert (clip.frames, clip.rate) == (26, 25.0)
    assert clip.rows(video) == [0, 8, 17, 25]
    reds = [frame.getpixel((9, 9))[0] for frame in frames_of(video, [0, 8, 17, 25], "clip")]
    assert reds == pytest.approx([0, 40, 85, 125], abs=8)
    assert processor.encode(Item("v", parts=[video]))["image_grid_thw"][0, 0] == 2


def test_one_frame_is_held_at_a_time(tmp_path, processor, monkeypatch):
    frames: list[weakref.ref] = []
    alive: list[int] = []
    stock = Visuals._patches

    def patches(self, frame):
        frames.append(weakref.ref(frame))
        alive.append(sum(of() is not None for of in frames))
        return stock(self, frame)

    monkeypatch.setattr(Visuals, "_patches", patches)
    processor.visuals.pixels(Item("v", parts=[Video(write_clip(tmp_path / "clip.mp4", drawn(20)), nframes=12)]))
    assert len(frames) == 12 and max(alive) <= 2


def test_a_file_is_counted_once_and_again_when_it_changes(tmp_path, monkeypatch):
    video = Video(write_clip(tmp_path / "clip.mp4", drawn(6)))
    assert clip_of(video, "clip").frames == 6
    with monkeypatch.context() as patch:
        patch.setattr("lamra.collators.videos._decoded", lambda *_: pytest.fail("decoded again"))
        assert clip_of(video, "clip").frames == 6
    write_clip(video.path, drawn(8))
    os.utime(video.path, ns=(1, 1))
    assert clip_of(video, "clip").frames == 8
    with pytest.raises(PictureError, match="clip cannot be read .it has fewer frames than a moment ago"):
        list(frames_of(video, [0, 8], "clip"))


def test_what_is_no_video(tmp_path, processor, monkeypatch):
    whole = write_clip(tmp_path / "whole.mp4", drawn(30)).read_bytes()
    playlist = "#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    for name, content, sentence in (
        ("missing.mp4", None, "does not exist"),
        ("empty.mp4", b"", "cannot be read"),
        ("text.mp4", b"hello", "cannot be read"),
        ("cut.mp4", whole[: len(whole) // 2], "cannot be read"),
        ("list.m3u8", playlist.encode(), "read are mov"),
        ("picture.mp4", (tmp_path / "picture.png").read_bytes(), "read are mov"),
        ("sound.mp4", sound(tmp_path), "it has no pictures"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        for look in (processor.encode, processor.length):
            with pytest.raises(PictureError) as error:
                look(Item("7", parts=[Video(path)]))
            assert f"video {path} of item '7' " in str(error.value) and sentence in str(error.value)
            assert "\n" not in str(error.value)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(PictureError, match="it is no file"):
        processor.encode(Item("7", parts=[Video(tmp_path / "pipe.mp4")]))
    monkeypatch.setenv("LAMRA_MAX_PICTURE_PIXELS", "3000")
    with pytest.raises(PictureError, match=r"64 x 48 pixels, more than 3000\): make it smaller"):
        processor.encode(Item("7", parts=[Video(tmp_path / "whole.mp4")]))


def sound(folder) -> bytes:
    import av
    import numpy as np

    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return (folder / "sound.mp4").read_bytes()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_videos_are_embedded_beside_pictures_and_texts(tmp_path, tiny_model, processor, num_workers):
    clips = [write_clip(tmp_path / f"{i}.mp4", drawn(10 + 9 * i)[i:]) for i in range(2)]
    items = [
        Item("a", "a dog"),
        *(Item(clip.name, parts=[Video(clip)]) for clip in clips),
        Item("i", images=(noise(56, 56),)),
    ]
    items.append(Item("b", parts=[Text("see"), Video(clips[0]), Picture(noise(84, 56)), Text("here")]))
    for position_ids in ("sequential", "mrope"):
        embedder, _ = load_embedder(tiny_model, dtype=torch.float32, position_ids=position_ids)
        found = encode(embedder, processor, items, max_tokens_per_batch=700, num_workers=num_workers, description=None)
        for item, embedding in zip(items, found):
            torch.testing.assert_close(embedder(**processor([item]))[0], embedding, atol=1e-5, rtol=0)
        assert (found @ found.T).fill_diagonal_(0).max() < 0.99999
