"""The private names of flwr 1.41.0 around the Runtime API: tasks, and the grid of a ServerApp.

``tests/unit/flower/test_adapter_runtime.py`` is the contract with them.

Sources: flwr 1.41.0, ``supercore/superexec/run_superexec.py``,
``supercore/superexec/executor/subprocess_executor.py``, ``superlink/grid/http_grid.py``,
``superlink/cli/flwr_serverapp.py``.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.serverapp import Grid
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import TASK_TYPE_TO_APPIO_API_ADDRESS_ARG, TASK_TYPE_TO_COMMAND
from flwr.supercore.constant import TaskType as _TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.logger import update_console_handler
from flwr.supercore.runtime import RuntimeHttpClient

from onefed.flower.adapter import SuperLinkError

ACQUIRE_TASK = "/flwr.proto.Runtime/AcquireTask"
"""What the secret of a SuperExec signs."""

GRID_RETRY_FIRST_S = 0.1
GRID_RETRY_MAX_S = 1.0
"""Between two tries of a ServerApp whose SuperLink is away. Flower's own grow to 20 s, and a
SuperLink that is back would wait for its ServerApp."""


@dataclass(frozen=True)
class Task:
    """A run that waits for its ServerApp."""

    run_id: int
    task_id: int
    token: str
    """Worthless once the task has ended."""


class Runtime:
    """The SuperLink's Runtime API, as a SuperExec for ServerApps uses it."""

    def __init__(self, address: str, ca_certificate: Path | None, secret_file: Path) -> None:
        """``ca_certificate`` is a PEM file; None means plain HTTP."""
        self._address = address
        self._ca_certificate = ca_certificate
        self._secret_file = secret_file
        try:
            secret = load_superexec_auth_secret(secret_file=str(secret_file))
            if secret is None:
                raise ValueError(f"{secret_file} holds no secret")
            self._client = RuntimeHttpClient.from_server_address(
                server_address=address,
                insecure=ca_certificate is None,
                root_certificates=None if ca_certificate is None else ca_certificate.read_bytes(),
                interceptors=[
                    RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                    SuperExecAuthHttpInterceptor(
                        master_secret=secret,
                        protected_methods=frozenset({ACQUIRE_TASK}),
                    ),
                ],
            )
        except (OSError, ValueError) as error:
            raise SuperLinkError(
                f"The Runtime API at {address} cannot be used: {error}",
                hint="The boot makes the CA certificate and the secret: boot again.",
            ) from error

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    def acquire(self) -> Task | None:
        """Take a run that waits for its ServerApp; whoever took it has to start one.

        Raises:
            SuperLinkError: no answer, or a refusal.
        """
        request = AcquireTaskRequest(supported_task_types=[_TaskType.SERVER_APP])
        try:
            answer = self._client.AcquireTask(request)
        except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
            status = (
                error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
            )
            raise SuperLinkError(
                f"Could not ask for a task: {type(error).__name__}: {error}",
                hint="The SuperLink may be starting; its log says why."
                if status is None
                else f"Both sides need the same secret: {self._secret_file}",
                status=status,
            ) from error
        if not answer.HasField("task") or not answer.token:
            return None
        return Task(answer.task.run_id, answer.task.task_id, answer.token)

    def server_app_command(self, task: Task, *, parent: int) -> list[str]:
        """The program of a task, which ends itself when ``parent`` has died."""
        trust = (
            ["--insecure"]
            if self._ca_certificate is None
            else ["--root-certificates", str(self._ca_certificate)]
        )
        return [
            TASK_TYPE_TO_COMMAND[_TaskType.SERVER_APP],
            *(TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[_TaskType.SERVER_APP], self._address),
            *("--token", task.token),
            *trust,
            *("--parent-pid", str(parent)),
        ]


def preload_server_app() -> None:
    """Import all that ``run_server_app`` needs, and our own part of a ServerApp."""
    importlib.import_module("flwr.superlink.cli.flwr_serverapp")
    importlib.import_module("onefed.flower.server_app")


def run_server_app(argv: Sequence[str]) -> None:
    """Be the program of ``Runtime.server_app_command`` in this process; ends by SystemExit."""
    sys.argv = list(argv)
    importlib.import_module("flwr.superlink.cli.flwr_serverapp").flwr_serverapp()


def preload_superlink() -> None:
    """Import all that ``run_superlink`` needs."""
    importlib.import_module("flwr.superlink.cli")
    importlib.import_module("flwr.superlink.main")


def run_superlink(argv: Sequence[str]) -> int:
    """Be the program ``flower-superlink`` in this process, until it is told to stop."""
    sys.argv = list(argv)
    importlib.import_module("flwr.superlink.cli").flower_superlink()
    return 0


def log_as_told(environ: Mapping[str, str]) -> None:
    """What Flower does with ``FLWR_LOG_LEVEL`` when it is imported, done afterwards.

    Raises:
        ValueError: there is no such level; Flower logs at INFO.
    """
    level = environ.get("FLWR_LOG_LEVEL", "INFO").upper()
    update_console_handler(level=level, timestamps=level == "DEBUG", colored=True)


def hurry(grid: Grid) -> Callable[[], int]:
    """Have a ServerApp's grid look for a lost SuperLink at least every second.

    A grid of another kind, such as that of a test, has nothing to hurry.

    Returns:
        How often a request of this grid has failed so far and was tried again.
    """
    failed = 0

    def pauses() -> Iterator[float]:
        nonlocal failed
        for pause_s in itertools.chain(
            (GRID_RETRY_FIRST_S, 0.3), itertools.repeat(GRID_RETRY_MAX_S)
        ):
            failed += 1
            yield pause_s

    invoker = getattr(grid, "_retry_invoker", None)
    with contextlib.suppress(AttributeError):
        if invoker is not None:
            invoker.wait_gen_factory = pauses
    return lambda: failed
