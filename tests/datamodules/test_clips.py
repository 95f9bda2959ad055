"""Videos of classes."""

from pathlib import Path

from datamodules.clips import ClipFiles
from tests.support.videos import encoded, frames_of, write_frames


def test_files_and_folders(tmp_path: Path) -> None:
    write_frames(tmp_path / "one", frames_of(0, 3))
    (tmp_path / "two.mp4").write_bytes(encoded(frames_of(1, 4)))
    clips = ClipFiles(tmp_path, ["one", "two.mp4"], [0, 1])
    assert [len(clips[index].video) for index in range(len(clips))] == [3, 4]
    assert [clips[index].target for index in range(2)] == [0, 1]
    assert clips.stored(1) == b"1 %d " % len(clips.content(1)) + (tmp_path / "two.mp4").read_bytes()
    assert clips.content(0) == b"".join((tmp_path / f"one/{number}.png").read_bytes() for number in range(3))
    kept = clips.keep([1])
    assert (kept.name(0), kept.target(0)) == (str(tmp_path / "two.mp4"), 1)
