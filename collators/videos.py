"""Video files to frames: how many there are, which of them are shown, and how large.

As upstream reads them (qwen_vl_utils of Qwen2-VL), but frames are counted by decoding the file, since the counts that
files state may be absent or wrong, and one frame is held at a time, not the whole clip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from lamra.collators.pictures import check_shape, found_file, max_pixels, named_faults
from lamra.datasets.items import Video

# FFmpeg's names. It knows three hundred more, of which some read other files, or addresses in a network.
FORMATS = ("mov", "mp4", "avi", "matroska", "webm", "mpegts", "mpeg", "flv", "asf", "ogg")
TOGETHER = 2  # frames of a temporal patch
MIN_FRAMES, MAX_FRAMES = 4, 768
MIN_TOKENS, MAX_TOKENS = 128, 768  # of a frame; whatever caps the pixels of pictures
TOTAL_TOKENS = 24576  # of a clip


@dataclass(frozen=True)
class Clip:
    """What a file holds.

    Attributes:
        frames: so many can be decoded, at least one.
        rate: frames a second, as the file states it.
        height, width: of its first frame, in pixels.
    """

    frames: int
    rate: float
    height: int
    width: int

    def rows(self, video: Video) -> list[int]:
        """The frames that are shown, evenly spaced from the first to the last: an even number, or one of one."""
        wanted = video.nframes or min(max(self.frames / self.rate * video.fps, MIN_FRAMES), MAX_FRAMES)
        count = max(min(round(wanted / TOGETHER), self.frames // TOGETHER) * TOGETHER, min(self.frames, TOGETHER))
        return torch.linspace(0, self.frames - 1, count).round().long().tolist()

    def size(self, count: int, side: int) -> tuple[int, int]:
        """Height and width in pixels at which `count` frames are shown, multiples of a token's `side`."""
        least, most, total = (tokens * side**2 for tokens in (MIN_TOKENS, MAX_TOKENS, TOTAL_TOKENS))
        largest = max(min(most, total / count * TOGETHER), int(1.05 * least))
        return smart_resize(self.height, self.width, side, least, largest)


def clip_of(video: Video, name: str) -> Clip:
    """Decode a file once and count; remembered for the process, and for the workers that are forked from it.

    Args:
        name: what to call it.

    Raises:
        PictureError: the file is missing, none of FORMATS, damaged, too large or too thin; names it.
    """
    with named_faults(name, max_pixels()) as most:
        path = found_file(video.path)
        status = path.stat()
        return _counted(path, status.st_size, status.st_mtime_ns, most)


def frames_of(video: Video, rows: list[int], name: str) -> Iterator[Image.Image]:
    """The frames `rows` of a file, in RGB; raises as `clip_of`."""
    left = Counter(rows)
    with named_faults(name, max_pixels()) as most:
        for row, frame in enumerate(_decoded(found_file(video.path), most)):
            for _ in range(left.pop(row, 0)):
                yield frame.to_image()
            if not left:
                return
        raise ValueError("it has fewer frames than a moment ago")


@cache
def _counted(path: Path, _size: int, _changed: int, most: int) -> Clip:
    frames = 0
    for frame in _decoded(path, most):
        if not frames:
            height, width = frame.height, frame.width
        frames += 1
    if not frames:
        raise ValueError("no frame of it can be decoded")
    with _opened(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise ValueError("it states no frame rate")
    return Clip(frames, float(rate), height, width)


def _opened(path: Path) -> av.container.InputContainer:
    # "file:" and the lists keep FFmpeg from what is no local file, whatever the name or the content says.
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    return av.open(f"file:{path.absolute()}", options=options, metadata_errors="ignore")


def _decoded(path: Path, most: int) -> Iterator[av.VideoFrame]:
    try:
        with _opened(path) as container:
            if not container.streams.video:
                raise ValueError("it has no pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if stream.width * stream.height > most:
                check_shape(stream.width, stream.height, most)  # before memory is taken for it
            for frame in container.decode(stream):
                check_shape(frame.width, frame.height, most)
                yield frame
    except FileNotFoundError:
        raise
    except av.FFmpegError as error:
        raise ValueError(f"{error.strerror}; read are {', '.join(FORMATS)}") from None
