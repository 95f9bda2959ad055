"""Train, evaluate, merge and compare PEFT methods.

python train.py fit --method ssf --config configs/data/fashion_mnist_1k.yaml
python train.py score --method gps --config configs/data/fashion_mnist_1k.yaml
python train.py fit --recipe vtab/ssf --data.root DIR --data.task cifar
python train.py test --ckpt_path runs/.../checkpoints/best.ckpt --config configs/data/fashion_mnist_1k.yaml
python train.py COMMAND --help
"""

import gc
import importlib
import os
import signal
import sys
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import commands

LIGHTNING = {
    "fit": "fine-tune with a method, on a task, on your data",
    "score": "score weights or channels as the fit of a method would, and draw what it would choose",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
    "predict": "write the predictions of a checkpoint for the test split",
}
# what a user can cause; everything else is a defect and shows its traceback
EXPECTED = (ValueError, TypeError, OSError, FloatingPointError)


def main(args: list[str]) -> None:
    """Run one command line.

    Args:
        args: What stands behind ``train.py`` on the command line.

    Raises:
        SystemExit: With code 2 for a command line that cannot be read and 1 for a run that cannot start or go on.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # lightning calls what jsonargparse has renamed
    command = args[0] if args else "--help"
    try:
        if command in ("-h", "--help"):
            print(overview())
        elif command in commands.NAMES:
            from jsonargparse import auto_cli

            function = getattr(importlib.import_module(f"commands.{command}"), command)
            if list(signature(function).parameters) == ["args"]:  # it hands options on to others
                function(args[1:])
            else:
                auto_cli(function, args=args[1:], as_positional=False)
        elif command in LIGHTNING:
            gc.disable()  # none of the objects that imports make is garbage: to look for some takes a second
            from commands.lightning import GraftCLI

            gc.enable()
            GraftCLI.run(args)
        else:
            sys.stderr.write(
                f"error: unknown command {command!r}; expected {', '.join([*LIGHTNING, *commands.NAMES])}\n"
            )
            sys.exit(2)
    except EXPECTED as error:
        message = ours(error)
        if os.environ.get("GRAFT_DEBUG") or message is None:
            raise
        sys.stderr.write(f"error: {message}\n(GRAFT_DEBUG=1 shows where)\n")
        sys.exit(1)


def ours(error: BaseException | None) -> BaseException | None:
    """The error of the chain that this project raised on purpose, and that libraries may have wrapped."""
    root = Path(__file__).resolve().parent
    while error is not None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        file = Path(trace.tb_frame.f_code.co_filename).resolve() if trace is not None else Path()
        if isinstance(error, EXPECTED) and file.is_relative_to(root) and ".venv" not in file.relative_to(root).parts:
            return error
        error = error.__cause__
    return None


def overview() -> str:
    """The help of ``train.py`` itself; it needs no heavy import."""
    lines = [str(__doc__), "commands:"]
    lines += [f"  {name:<12} {text}" for name, text in LIGHTNING.items()]
    for name in commands.NAMES:
        spec = find_spec(f"commands.{name}")
        assert spec is not None
        source = Path(str(spec.origin)).read_text()
        lines.append(
            f"  {name:<12} {source.removeprefix(chr(34) * 3).partition(chr(10))[0].strip(chr(34)).rstrip('.')}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SystemExit as stop:
        if type(stop) is not SystemExit:  # Lightning's, of SIGTERM
            sys.exit(128 + signal.SIGTERM)
        if stop.code:
            raise
        # help or a config was printed and nothing runs: to take all modules apart would be another second
        sys.stdout.flush()
        os._exit(0)
