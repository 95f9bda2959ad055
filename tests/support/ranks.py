"""Two ranks on the CPU, in processes that stay from test to test: it takes seconds to start them."""

import os
import pickle
import socket
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import distributed


class TwoRanks:
    """Calls functions in two processes that Lightning takes for those of ``torchrun``."""

    def __init__(self) -> None:
        self.processes: mp.ProcessContext | None = None
        self.pipes: list[Connection] = []

    def __call__(self, function: Callable[..., Any], *args: Any, limit: float = 600) -> list[Any]:
        """Call ``function(rank, *args)`` in both processes; a group that it or Lightning makes ends with the call.

        Args:
            function: A function of a module.
            args: Its arguments after the rank.
            limit: Seconds that it may take.

        Returns:
            What it returned, by rank.

        Raises:
            ProcessRaisedException: If it raised on a rank, with the traceback from there.
            TimeoutError: If a rank has not returned in time.
        """
        if self.processes is None:
            self.pipes, theirs = map(list, zip(Pipe(), Pipe(), strict=True))
            self.processes = mp.spawn(serve, (theirs,), nprocs=2, join=False)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        returned: dict[Connection, Any] = {}
        end = time.monotonic() + limit
        try:
            for pipe in self.pipes:
                pipe.send((function, args, port))
            while len(returned) < 2:
                self.processes.join(timeout=0)  # raises what a rank has raised
                if time.monotonic() > end:
                    raise TimeoutError(f"{function.__name__}: a rank has not returned after {limit} seconds")
                for pipe in self.pipes:
                    if pipe not in returned and pipe.poll(timeout=0.1):
                        returned[pipe] = pickle.loads(pipe.recv_bytes())
        except BaseException:
            self.stop()  # a rank may still wait for the other; the next call starts new ones
            raise
        return [returned[pipe] for pipe in self.pipes]

    def stop(self) -> None:
        """End the processes."""
        for process in self.processes.processes if self.processes else ():
            process.kill()
            process.join()
        self.processes = None


def serve(rank: int, pipes: list[Connection]) -> None:
    """Answer the calls of one rank."""
    os.environ |= {"MASTER_ADDR": "localhost", "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "tests"}
    torch.set_num_threads(1)
    while True:
        function, args, port = pipes[rank].recv()
        os.environ["MASTER_PORT"] = str(port)  # each group has its own
        returned = function(rank, *args)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        # as bytes: tensors would be sent as open files, of which a process may hold about a thousand
        pipes[rank].send_bytes(pickle.dumps(returned))
