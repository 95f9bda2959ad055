"""Messages of the parsers, in one line."""

import pytest

from commands.lightning.short_errors import ShortErrors, short

UNION = """Parser key "compile":
  Does not validate against any of the Union subtypes
  Subtypes: [typing.Literal['default', 'max-autotune'], <class 'NoneType'>]
  Errors:
    - Expected a typing.Literal['default', 'max-autotune']
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: defualt"""
NESTED = """Parser key "data":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'datamodules.ImageDataset':
        Parser key "batch_size":
          Expected a <class 'int'>. Got value: x
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='batch_size', val='x')"""
LACKING = """Parser key "trainer.logger":
  Errors:
    - Problem with given class_path 'lightning.pytorch.loggers.TensorBoardLogger':
        the following arguments are required: save_dir
    - Expected a <class 'bool'>
  Given value: Namespace(class_path='lightning.pytorch.loggers.TensorBoardLogger')"""
UNKNOWN = """Parser key "model":
  Errors:
    - Problem with given class_path 'methods.SSFClassification':
        Option 'lrr' is not accepted
    - Expected a <class 'NoneType'>"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (UNION, "compile='defualt': expected default, max-autotune or null; did you mean default?"),
        (NESTED, "data.batch_size='x': expected a whole number"),
        (LACKING, "required: --trainer.logger.save_dir"),
        (UNKNOWN, "unknown option --model.lrr; did you mean --model.lr?"),
        ("unrecognized arguments: --lr=3 --b 2", "unknown option --lr; did you mean --model.lr?"),
        (
            "unrecognized arguments: --data 1",
            "--data is an option of another --method, --task or --data: leave it out, or change those",
        ),
        ("unrecognized arguments: --nothing.like.it 2", "unknown option --nothing.like.it"),
        ("unrecognized arguments: stray", "stray: expected an option, such as --option"),
        ("Subcommand 'fit' does not accept option 'modell.lr'", "unknown option --modell.lr; did you mean --model.lr?"),
        ("the following arguments are required: fit.data, RUNS", "required: --data, RUNS"),
        ('Parser key "data":\n  a reason\n  in two lines', 'Parser key "data": a reason in two lines'),
    ],
)
def test_messages_of_the_library(message: str, expected: str) -> None:
    assert short(message, {"model.lr": "model.lr", "lr": "model.lr", "data": "data"}) == expected


def test_message_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ShortErrors("train.py report", allow_abbrev=False)
    parser.add_argument("--title")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--titel", "x"])
    assert stop.value.code == 2
    expected = "error: unknown option --titel; did you mean --title?\n(train.py report --help explains each option)\n"
    assert capsys.readouterr().err == expected
