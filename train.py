"""Train, evaluate, merge and compare PEFT methods.

python train.py fit --method ssf --config configs/data/fashion_mnist_1k.yaml
python train.py score --method gps --config configs/data/fashion_mnist_1k.yaml
python train.py fit --recipe vtab/ssf --data.root DIR --data.task cifar
python train.py test --ckpt_path runs/.../checkpoints/best.ckpt --config configs/data/fashion_mnist_1k.yaml
python train.py COMMAND --help
"""

import ast
import gc
import importlib
import os
import signal
import sys
from pathlib import Path

import commands
from commands.lightning.errors import EXPECTED, own_error, shortened

LIGHTNING = {
    "fit": "fine-tune with a method, on a task, on your data",
    "score": "score weights or channels as the fit of a method would, and draw what it would choose",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
    "predict": "write the predictions of a checkpoint for the test split",
}


def main(args: list[str]) -> None:
    """Run one command line.

    Args:
        args: Arguments of ``train.py``.

    Raises:
        SystemExit: With code 2 for a command line that cannot be read and 1 for a run that cannot start or go on.
    """
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # lightning uses old names of jsonargparse
    # torch reads it when it is imported: threads that spin for long make a step several times slower on a busy machine
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    command = args[0] if args else "--help"
    try:
        if command in ("-h", "--help"):
            print(overview())
        elif command in commands.NAMES:
            run_own(command, args[1:])
        elif command in LIGHTNING:
            gc.disable()  # because imports make no garbage, and looking for it takes a second
            from commands.lightning.cli import GraftCLI

            gc.enable()
            GraftCLI.run(args)
        else:
            known = ", ".join([*LIGHTNING, *commands.NAMES])
            sys.stderr.write(f"error: unknown command {command!r}; expected {known}\n")
            sys.exit(2)
    except EXPECTED as error:
        message = own_error(error)
        if os.environ.get("GRAFT_DEBUG") or message is None:
            raise
        sys.stderr.write(f"error: {shortened(str(message))}\n(GRAFT_DEBUG=1 shows where)\n")
        sys.exit(1)


def run_own(command: str, args: list[str]) -> None:
    """Run a command of this project: its ``main`` on the words behind it, or its function on its parsed options."""
    from jsonargparse import ArgumentParser, auto_cli

    from commands.lightning import strict_yaml
    from commands.lightning.short_errors import ShortErrors

    strict_yaml.use()
    module = importlib.import_module(f"commands.{command}")
    if hasattr(module, "main"):
        module.main(args)
    else:
        parser = type("OwnParser", (ShortErrors, ArgumentParser), {})
        parser_name = f"train.py {command}"
        auto_cli(getattr(module, command), args=args, as_positional=False, parser_class=parser, prog=parser_name)


def overview() -> str:
    """Help of ``train.py`` itself, from the sources alone, so that it needs no heavy import."""
    lines = [str(__doc__), "commands:"]
    lines += [f"  {name:<12} {text}" for name, text in LIGHTNING.items()]
    for name in commands.NAMES:
        place = Path(commands.__path__[0], name)
        source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        summary = (ast.get_docstring(ast.parse(source.read_text())) or "").partition("\n")[0]
        lines.append(f"  {name:<12} {summary.rstrip('.')}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SystemExit as stop:
        if type(stop) is not SystemExit:  # Lightning's, of SIGTERM
            sys.exit(128 + signal.SIGTERM)
        if stop.code:
            raise
        # help or a config was printed and nothing runs: taking all modules apart would be another second
        sys.stdout.flush()
        os._exit(0)
