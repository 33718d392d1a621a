"""An S3 server for tests, run as a process: `s3_server.py PORT [RECORDING]`.

It is moto's, which keeps all in memory. With a recording it writes every request down, and started
again it has the same objects, so that it can be killed and brought back. Two things that S3 keeps
to and moto doesn't are kept to here: a conditional PUT is atomic, so requests are served one after
the other; and a request whose sender was killed before its body was whole has no effect.

`/requests?delay=SECONDS` lets each request take so long from now on, as those to a store far away
do, and answers how many were under way at one time since it was asked last. `/log` answers all
requests since then, a line each.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PORT, RECORDING = int(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None
os.environ["MOTO_S3_DEFAULT_MAX_KEYS"] = "100"  # S3 itself lists 1000 on a page
if RECORDING is not None:
    os.environ |= {"MOTO_RECORDER_FILEPATH": str(RECORDING), "MOTO_ENABLE_RECORDING": "1"}

from moto.moto_api import recorder  # noqa: E402  # it reads the environment when it is loaded
from moto.moto_server.werkzeug_app import (  # noqa: E402
    DomainDispatcherApplication,
    create_backend_app,
)
from moto.server import ThreadedMotoServer  # noqa: E402
from werkzeug.serving import run_simple  # noqa: E402


class OneWholeRequestAtATime:
    """A WSGI application whose requests don't overlap, and have the body that they announce."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = threading.Lock()
        self._count = threading.Lock()
        self._delay_seconds = 0.0
        self._under_way = self._most = 0
        self._log: list[str] = []

    def __call__(
        self, environment: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        announced = int(environment.get("CONTENT_LENGTH") or 0)
        if announced:
            body = environment["wsgi.input"].read(announced)
            if len(body) < announced:
                start_response("400 Bad Request", [])
                return []
            environment["wsgi.input"] = io.BytesIO(body)
        if environment["PATH_INFO"] == "/requests":
            most, self._most = self._most, 0
            self._delay_seconds = float(environment["QUERY_STRING"].removeprefix("delay="))
            start_response("200 OK", [])
            return [str(most).encode()]
        if environment["PATH_INFO"] == "/log":
            lines, self._log = self._log, []
            start_response("200 OK", [])
            return ["\n".join(lines).encode()]
        self._log.append(
            " ".join(
                filter(
                    None,
                    (
                        environment["REQUEST_METHOD"],
                        environment["PATH_INFO"],
                        environment["QUERY_STRING"],
                    ),
                )
            )
        )
        with self._under_way_together():
            time.sleep(self._delay_seconds)
            with self._lock:
                return list(self._application(environment, start_response))

    @contextmanager
    def _under_way_together(self) -> Iterator[None]:
        with self._count:
            self._under_way += 1
            self._most = max(self._most, self._under_way)
        try:
            yield
        finally:
            with self._count:
                self._under_way -= 1


def restore(recording: Path) -> None:
    """Write once more all that was written, before anybody else can ask; a line that a kill cut off
    was never answered.
    """
    lines = recording.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    recording.write_text(
        "".join(line for line in whole if json.loads(line)["method"] not in ("GET", "HEAD"))
    )
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    recorder.replay_recording(target_host=f"http://{host}:{port}")
    server.stop()


if RECORDING is not None and RECORDING.exists():
    restore(RECORDING)
run_simple(
    "127.0.0.1",
    PORT,
    OneWholeRequestAtATime(DomainDispatcherApplication(create_backend_app)),
    threaded=True,
)
