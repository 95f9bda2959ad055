"""Ctrl-C a second time."""

import signal

from lightning import Callback, LightningModule, Trainer


class SecondInterrupt(Callback):
    """Lets a second Ctrl-C end the process at once.

    After the first one Lightning ends the run in order, and ignores all later ones. A logger that then waits for its
    server would hold the terminal.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
