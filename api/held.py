"""Answers that are held back until there is news, or the client has gone."""

import asyncio
from collections.abc import Callable

from starlette.types import Receive

from api.services.live import Live


async def gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def held(
    live: Live, job_id: str, unchanged: Callable[[int], bool], seconds: float, receive: Receive
) -> bool:
    """Wait for another version of a job that was just seen; False if the client has left.

    It ends, too, when the job is deleted, when the time is over, and when the process is to end.
    """
    with live.watch(job_id) as watch:
        leaving = asyncio.create_task(gone(receive))
        leaving.add_done_callback(watch.nudge)
        try:
            async with asyncio.timeout(seconds):
                while (
                    not (live.stopping or leaving.done()) and (seen := watch.seen) and unchanged(seen.version)
                ):
                    await watch.news()
        except TimeoutError:
            pass
        finally:
            still_there = leaving.cancel()
        if not still_there:
            leaving.result()  # or what reading has raised
        return still_there
