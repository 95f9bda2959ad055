"""Prompts of instructions, and rows that are no instructions."""

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules import InstructionDataset
from tests.support.texts import write_jsonl

ROWS: list[dict[str, Any]] = [
    {"instruction": "Add the numbers.", "input": "1 and {instruction}", "output": "2"},
    {"instruction": "What is {input}?", "input": "", "output": "A word."},
    {"instruction": "Say hello.", "output": "Hello."},
]


def prompts(folder: Path, **options: Any) -> list[tuple[str, str]]:
    samples = InstructionDataset(str(folder), **{"val": "none"} | options).samples("train")
    assert samples is not None
    return [(samples[index].first, samples[index].second) for index in range(len(samples))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    return tmp_path


def test_prompts(folder: Path) -> None:
    found = prompts(folder)
    assert [output for _, output in found] == ["2", "A word.", "Hello."]
    ends = [
        "\n\n### Instruction:\nAdd the numbers.\n\n### Input:\n1 and {instruction}\n\n### Response:\n",
        "\n\n### Instruction:\nWhat is {input}?\n\n### Response:\n",
        "\n\n### Instruction:\nSay hello.\n\n### Response:\n",
    ]
    assert all(prompt.endswith(end) for (prompt, _), end in zip(found, ends, strict=True))
    assert found[0][0].partition("\n\n")[0] != found[1][0].partition("\n\n")[0]


def test_own_wording(folder: Path) -> None:
    file = folder / "mine.txt"
    wording = {"description": "x", "prompt_input": "{instruction} ({input}): ", "prompt_no_input": "{instruction}: "}
    file.write_text(json.dumps(wording))
    first, second, _ = prompts(folder, template=str(file))
    assert first[0] == "Add the numbers. (1 and {instruction}): "
    assert second[0] == "What is {input}?: "


def test_names_of_columns(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"question": "Why?", "context": "It is.", "answer": "So."}])
    names = {"instruction_column": "question", "input_column": "context", "output_column": "answer"}
    ((prompt, output),) = prompts(tmp_path, **names)
    assert "Why?" in prompt
    assert "It is." in prompt
    assert output == "So."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "", "output": "x"}, "line 2: instruction is empty"),
        ({"instruction": "x", "output": " \n"}, "line 2: output is empty"),
        ({"instruction": "x", "input": "y"}, "line 2: output is empty"),
        ({"instruction": "x", "input": 3, "output": "y"}, "line 2: input is '3'; expected a text"),
    ],
)
def test_rows_that_are_no_instructions(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [ROWS[0], row])
    with pytest.raises(ValueError, match=message):
        prompts(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no such file"),
        ("{", r"is no JSON"),
        ("[]", r"expected 'prompt_input', a text with \{instruction\}"),
        ('{"prompt_input": "{instruction}"}', r"expected 'prompt_input', a text with \{input\}"),
        ('{"prompt_input": "{instruction}{input}", "prompt_no_input": 3}', r"expected 'prompt_no_input', a text with"),
    ],
)
def test_wordings_that_are_none(content: str | None, message: str, folder: Path) -> None:
    file = folder / "mine.template"
    if content is not None:
        file.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"data.template='\S+mine.template'.*{message}"):
        prompts(folder, template=str(file))


def test_held_out_rows_by_default(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [ROWS[0]] * 1030)
    data = InstructionDataset(str(tmp_path))
    train, val = data.samples("train"), data.samples("val")
    assert train is not None
    assert val is not None
    assert (len(train), len(val)) == (6, 1024)
