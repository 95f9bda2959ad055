"""Instructions with their responses, as Alpaca has them."""

import json
import re
from pathlib import Path
from typing import Any

from datamodules.language_texts import LanguageTexts
from datamodules.text_files import TextFiles, texts_of
from datamodules.text_samples import Rows, Texts

WITH_INPUT, WITHOUT_INPUT = "prompt_input", "prompt_no_input"  # names in the published template files
DEFAULT = {
    WITH_INPUT: (
        "The instruction below asks for something about the input below. Write the response to it.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    ),
    WITHOUT_INPUT: (
        "The instruction below asks for something. Write the response to it.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    ),
}


class InstructionDataset(TextFiles, LanguageTexts):
    """Rows with an instruction, an input that may be empty, and an output; for ``--task language_modeling``.

    The text of a row is a prompt with its instruction and input, followed by its output. VeLoRA's recipe cuts it at 512
    tokens and has a loss on the prompt too.

    Args:
        template: JSON file with the wording of prompts: ``prompt_input`` with ``{instruction}`` and ``{input}``, and
            ``prompt_no_input`` with ``{instruction}`` for rows without an input. The template files of Alpaca have this
            form, which numbers of papers need. By default prompts have the same parts with other words.
        mask_prompt: Whether the tokens of prompts have no loss. By default they have, as in VeLoRA's recipe.
        val_rows: Training rows that are held out if there are no validation rows; 1,024 as in VeLoRA's recipe.
        instruction_column: Name of the column of instructions.
        input_column: Name of the column of inputs. The data may lack it.
        output_column: Name of the column of outputs.
    """

    def __init__(
        self,
        root: str,
        template: str | None = None,
        mask_prompt: bool = False,
        val_rows: int = 1024,
        instruction_column: str = "instruction",
        input_column: str = "input",
        output_column: str = "output",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        if val_rows < 0:
            raise ValueError(f"val_rows={val_rows}: expected a number of rows, or 0 to train without a validation")
        self.template = DEFAULT if template is None else read_template(Path(template).expanduser())
        self.mask_prompt, self.val_rows = mask_prompt, val_rows
        self.column_names = instruction_column, input_column, output_column

    def held_out(self, count: int) -> int:
        return self.val_rows

    def samples_of_rows(self, rows: Rows) -> Texts:
        instruction, given, output = self.column_names
        instructions = texts_of(rows, instruction, "instruction_column")
        inputs = texts_of(rows, given, "input_column", empty=True) if given in rows.columns else [""] * len(rows)
        outputs = texts_of(rows, output, "output_column")
        prompts = [self.prompt(*pair) for pair in zip(instructions, inputs, strict=True)]
        return Texts(rows, list(zip(prompts, outputs, strict=True)))

    def prompt(self, instruction: str, given: str) -> str:
        """Prompt of an instruction with an input, which may be empty."""
        values = {"instruction": instruction, "input": given}
        text = self.template[WITH_INPUT if given.strip() else WITHOUT_INPUT]
        # in one pass, because an instruction may hold the word {input} itself
        return re.sub(r"\{(instruction|input)\}", lambda match: values[match[1]], text)

    def description(self) -> dict[str, Any]:
        return super().description() | {"mask_prompt": self.mask_prompt}


def read_template(file: Path) -> dict[str, str]:
    """Wording of prompts with and without an input.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON, or a wording lacks the place of the instruction or of the input.
    """
    if not file.is_file():
        raise FileNotFoundError(f"data.template={str(file)!r}: no such file")
    try:
        template = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"data.template={str(file)!r} is no JSON: {error}") from error
    for name, words in {WITH_INPUT: ("instruction", "input"), WITHOUT_INPUT: ("instruction",)}.items():
        text = template.get(name) if isinstance(template, dict) else None
        missing = [word for word in words if not isinstance(text, str) or f"{{{word}}}" not in text]
        if missing:
            raise ValueError(f"data.template={str(file)!r}: expected {name!r}, a text with {{{missing[0]}}}")
    return {name: template[name] for name in DEFAULT}
