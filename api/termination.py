"""Lets those who hold an answer back know that the process is to end, while they can still give it."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_termination(call: Callable[[], None]) -> Iterator[None]:
    """In this time, SIGTERM and SIGINT first have `call` run in the event loop, then do what they did before.

    Only thus is it in time: uvicorn ends the lifespan after the last connection, which would be one that waits.
    Without effect off the main thread, where no server has handlers either.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(call)
        then = before[signal.Signals(number)]
        if callable(then):
            then(number, frame)

    servers = {number: handler for number, handler in before.items() if callable(handler)}
    for number in servers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in servers.items():
            signal.signal(number, handler)
