"""Plain texts, one document a row."""

from typing import Any

from datamodules.language_texts import LanguageTexts
from datamodules.text_files import TextFiles, texts_of
from datamodules.text_samples import Rows, Texts


class TextDataset(TextFiles, LanguageTexts):
    """Documents for ``--task language_modeling``: rows with a column ``text``, or the lines of a ``.txt`` file.

    Each document is cut to ``max_length`` tokens and padded; none is joined with another, as in GaLore's protocol.

    Args:
        text_column: Name of the column of documents.
        val_rows: Training documents that are held out if there are no validation documents.
    """

    def __init__(self, root: str, text_column: str = "text", val_rows: int = 1024, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        if val_rows < 0:
            raise ValueError(f"val_rows={val_rows}: expected a number of rows, or 0 to train without a validation")
        self.text_column, self.val_rows = text_column, val_rows

    def held_out(self, count: int) -> int:
        return self.val_rows

    def samples_of_rows(self, rows: Rows) -> Texts:
        return Texts(rows, [("", text) for text in texts_of(rows, self.text_column, "text_column")])
