"""The scorer process: `python -m worker.scorer` listens on KLEASH_SCORER_URL (`unix:/path` or `http://host:port`)."""

import os

from jobs.lifeline import die_with_parent

die_with_parent()  # before the slow imports: an orphan must not keep the GPU
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # an idle scorer leaves the cores to others

import logging  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from collections.abc import Callable, MutableMapping  # noqa: E402
from types import FrameType  # noqa: E402
from urllib.parse import urlsplit  # noqa: E402

import torch  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402

from jobs.errors import ScoringRefused  # noqa: E402
from jobs.settings import LOOPBACK, Settings, settings_or_exit  # noqa: E402
from rlhf_core.errors import RLHFError  # noqa: E402
from rlhf_core.kernels import scores as kernels  # noqa: E402
from rlhf_core.models import Body, ModelPair, WeightSource, load_pair  # noqa: E402
from worker.scorer.app import create_app  # noqa: E402
from worker.scorer.batcher import Batcher  # noqa: E402
from worker.scorer.memory import take_share  # noqa: E402
from worker.scorer.pairs import PairCache  # noqa: E402
from worker.scorer.sources import AllowedSources, default_pair  # noqa: E402

KEEP_ALIVE_S = 75  # longer than any client keeps an idle connection, so none is closed under a request
WRITE_OUT_S = 2  # for the last answers, once all are computed
log = logging.getLogger("worker.scorer")


class DrainingServer(uvicorn.Server):
    """On the first signal it drains: it still answers, refuses new requests and finishes those it has."""

    def __init__(self, config: uvicorn.Config, batcher: Batcher, *, grace_s: float) -> None:
        super().__init__(config)
        self._batcher, self._grace_s = batcher, grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The models' thread ends the server when the queue is empty; the timer does when the grace is over."""
        if self._batcher.closed:
            super().handle_exit(sig, frame)
            return
        self._captured_signals.append(sig)
        self._batcher.close()
        timer = threading.Timer(self._grace_s, self._end_of_grace)
        timer.daemon = True
        timer.start()

    def _end_of_grace(self) -> None:
        self._batcher.give_up()
        self.should_exit = True


def main() -> int:
    """Serve until told to stop; 1 if the default pair cannot be loaded or the models' thread crashes."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = settings_or_exit()
    token_for(settings)  # before anything is loaded
    sources = AllowedSources(settings)
    batcher = Batcher(
        PairCache(_load, memory_bytes=take_share(settings)),
        max_batch_tokens=settings.max_batch_tokens,
        max_queued_tokens=settings.max_queued_tokens,
        max_queued_requests=settings.max_queued_requests,
    )
    ready = threading.Event()
    app = create_app(
        batcher, sources, ready, max_timeout_s=settings.score_timeout_s, token=token_for(settings)
    )
    server = DrainingServer(_serving(app, settings), batcher, grace_s=settings.stop_grace_s)

    def own_the_models() -> int:
        try:
            if (status := kernels.status()).startswith("torch"):  # compiled here if it has to be
                log.warning("exact KL will be several times slower than it can be: %s", status)
            if pair := default_pair(settings.registry):
                batcher.preload((sources.weights(pair[0]), sources.weights(pair[1])))
        except (RLHFError, ScoringRefused) as error:
            log.error("the default pair cannot be loaded: %s", error)
            return 1
        threading.Thread(target=batcher.tokenize_ahead, name="tokenizer", daemon=True).start()
        ready.set()
        batcher.run()
        return 0

    return serve(server, batcher, own_the_models)


def serve(server: uvicorn.Server, batcher: Batcher, own_the_models: Callable[[], int]) -> int:
    """Answer while the models' thread runs; returns what it returns, or 1 if it raises."""
    code = 1

    def watched() -> None:
        nonlocal code
        try:
            code = own_the_models()
        except Exception:
            log.exception("the models' thread has crashed")
            batcher.close()
            batcher.give_up()
        finally:
            server.should_exit = True

    thread = threading.Thread(target=watched, name="batcher")
    thread.start()
    try:
        server.run()
    except KeyboardInterrupt:
        pass  # uvicorn has shut down in order and raises the signal again
    finally:
        batcher.close()
        thread.join()
    return code


def token_for(settings: Settings) -> str | None:
    """The token to ask for. Raises SystemExit where strangers could reach the scorer and there is none."""
    (address,) = settings.scorer_urls  # several are for the API
    if settings.scorer_token is not None:
        return settings.scorer_token.get_secret_value()
    if not address.startswith("unix:") and (urlsplit(address).hostname or "127.0.0.1") not in LOOPBACK:
        raise SystemExit(
            f"a scorer on {address} needs KLEASH_SCORER_TOKEN (or _FILE), which APIs and workers must have too"
        )
    return None


def _serving(app: FastAPI, settings: Settings) -> uvicorn.Config:
    (address,) = settings.scorer_urls
    url = urlsplit(address)
    return uvicorn.Config(
        app,
        uds=address.removeprefix("unix:") if address.startswith("unix:") else None,
        host=url.hostname or "127.0.0.1",
        port=url.port or 80,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=WRITE_OUT_S,
    )


def _load(policy: WeightSource, reference: WeightSource, *, bodies: MutableMapping[str, Body]) -> ModelPair:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_pair(policy, reference, device=device, bodies=bodies)


if __name__ == "__main__":
    sys.exit(main())
