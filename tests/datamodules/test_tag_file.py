"""Tags of a CSV file."""

from pathlib import Path

import pytest

from datamodules.tag_file import TagFile
from tests.support.tables import write_tables


def test_one_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(tmp_path, {"train": ["dog|grass", ""], "test": ["sky"]}, "tags")
    data = TagFile(root=str(tmp_path), batch_size=1)
    assert (data.class_names, data.num_classes) == (["dog", "grass", "sky"], 3)
    samples = data.samples("train")
    assert samples is not None
    assert samples.labels.tolist() == [[1, 1, 0], [0, 0, 0]]
    data.check_samples("train", samples)
    assert "note: 1 of 3 tags have no training image" in capsys.readouterr().out
    assert data.target_key(samples) == samples.labels.tolist()


def test_a_column_for_each_tag(tmp_path: Path) -> None:
    write_tables(tmp_path, {"train": ["0,TRUE", "1,false"]}, "sky,dog")
    data = TagFile(root=str(tmp_path), label_columns=["sky", "dog"])
    samples = data.samples("train")
    assert samples is not None
    assert (data.class_names, samples.labels.tolist()) == (["sky", "dog"], [[0, 1], [1, 0]])


def test_mistakes(tmp_path: Path) -> None:
    write_tables(tmp_path, {"train": ["0,yes", "1,0"]}, "sky,dog")
    with pytest.raises(ValueError, match=r"line 2: found 'yes'; expected 0 or 1, false or true"):
        TagFile(root=str(tmp_path), label_columns=["sky", "dog"]).samples("train")
    with pytest.raises(ValueError, match=r"has no column 'tags': found path, sky, dog; pass --data.label_columns"):
        TagFile(root=str(tmp_path)).samples("train")
    with pytest.raises(ValueError, match="label_columns and separator"):
        TagFile(root=str(tmp_path), label_columns=[])
    write_tables(tmp_path, {"train": ["", " | "]}, "tags")
    with pytest.raises(ValueError, match="no image has a tag in 'tags'"):
        TagFile(root=str(tmp_path)).samples("train")
