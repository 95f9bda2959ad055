"""Plain texts."""

from pathlib import Path

from datamodules import TextDataset
from tests.support.texts import ready


def test_each_document_is_a_row(tmp_path: Path) -> None:
    """Documents are cut and never joined."""
    (tmp_path / "train.txt").write_text("the cat\nthe cat sat on the mat " + "cat " * 80 + "\n\nthe mat\n")
    (tmp_path / "val.txt").write_text("the mat\n")
    data = ready(TextDataset(str(tmp_path), max_length=16, batch_size=3, num_workers=0))
    (batch,) = data.train_dataloader()
    assert sorted(batch.inputs["attention_mask"].sum(1).tolist()) == [3, 3, 16]
    assert batch.inputs["input_ids"].shape == (3, 16)
    assert len(data.splits["val"]) == 1
