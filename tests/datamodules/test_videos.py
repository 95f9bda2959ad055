"""Videos as stored."""

import io
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.videos import FrameFolder, VideoFile, open_video
from tests.support.videos import encoded, frames_of, write_frames


@pytest.mark.parametrize(
    ("codec", "form"), [("libx264", "mp4"), ("mpeg4", "avi"), ("libx264", "matroska"), ("mpeg1video", "mpeg")]
)
def test_frames_of_a_file(codec: str, form: str, tmp_path: Path) -> None:
    """Frames in any order, with jumps over key frames and B frames, are those of decoding all."""
    content = encoded(frames_of(0, 30), codec, form, key_frames=8)
    with av.open(io.BytesIO(content)) as container:
        every = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    expected = torch.stack(every).permute(0, 3, 1, 2)
    (tmp_path / "video").write_bytes(content)
    for video in (VideoFile(content), open_video(tmp_path / "video")):
        assert len(video) == len(expected) == 30
        assert video.content() == content
        for indices in ([29], [3, 4, 21], [17, 2, 2, 9], [*range(30)]):
            assert torch.equal(video.read(indices), expected[indices])


def test_only_what_is_needed_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    video, decoded = VideoFile(encoded(frames_of(0, 40), key_frames=10)), []
    monkeypatch.setattr(video, "open", lambda opened=video.open: Watched(opened(), decoded))
    video.read([39])
    assert 1 <= len(decoded) <= 12


class Watched:
    """Container that lists what it decodes."""

    def __init__(self, container: "av.container.InputContainer", decoded: list[int]) -> None:
        self.container, self.decoded = container, decoded
        self.streams, self.demux, self.seek, self.format = (
            container.streams,
            container.demux,
            container.seek,
            container.format,
        )

    def decode(self, stream: "av.video.stream.VideoStream") -> "object":
        for frame in self.container.decode(stream):
            self.decoded.append(frame.pts)
            yield frame

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()


def test_folder_of_frames(tmp_path: Path) -> None:
    """The numbers of the names give the order, and other files do not count."""
    frames = frames_of(1, 11)
    write_frames(tmp_path / "clip", frames)
    (tmp_path / "clip/notes.txt").write_text("")
    (tmp_path / "clip/.5.png").write_text("")
    video = open_video(tmp_path / "clip")
    assert isinstance(video, FrameFolder)
    assert len(video) == 11
    assert np.array_equal(video.read([10, 2, 2]).permute(0, 2, 3, 1).numpy(), frames[[10, 2, 2]])
    Image.new("RGB", (5, 4)).save(tmp_path / "clip/4.png")
    with pytest.raises(OSError, match="its frames have the sizes 5 x 4, 32 x 24 pixels"):
        video.read([3, 4])


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="it is no video"):
        len(VideoFile(b"no video" * 100))
    content = bytearray(encoded(frames_of(0, 30)))
    start = content.index(b"mdat")
    content[start + 2000 : content.index(b"moov")] = bytes(content.index(b"moov") - start - 2000)
    video = VideoFile(bytes(content))
    assert len(video) == 30  # by the index of the file
    with pytest.raises(OSError, match="its frame 29 of 30 cannot be decoded"):
        video.read([0, 29])
    with pytest.raises(FileNotFoundError):
        open_video(tmp_path / "none.mp4")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[video\]"; folders with an image'):
        len(VideoFile(b""))
