"""A whole machine: boots, keeps its programs running, tells its cloud, and leaves nothing behind.

Some tests run the guest in this process, with tiny programs in place of Flower's; the others start
``python -m onefed.appliance.guest`` as a cloud does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from onefed import context
from onefed.appliance import guest, machine, process
from onefed.appliance.paths import Paths
from onefed.checkpoint import files
from onefed.errors import ExitCode
from onefed.telemetry import events, log

LIMIT_S = 40.0
"""What does not happen within this does not happen."""

POLL_S = 0.02

SUPERLINK = context.Role.SUPERLINK
SUPERNODE = context.Role.SUPERNODE

PAUSE = f"#!{sys.executable}\nimport signal\nsignal.pause()\n"

PAUSE_BUT_NO_METRICS = f"""#!{sys.executable}
import signal, sys
if "onefed.appliance.metrics" in sys.argv:
    raise SystemExit("no luck")
signal.pause()
"""

DIE = f"#!{sys.executable}\nraise SystemExit('no luck')\n"

HEALTH = f"""#!{sys.executable}
import http.server, ssl, sys

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

flags = dict(zip(sys.argv, sys.argv[1:]))
server = http.server.HTTPServer((flags["--host"], int(flags["--port"])), Health)
if "--ssl-certfile" in flags:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(flags["--ssl-certfile"], flags["--ssl-keyfile"])
    server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
"""Answers as Flower's programs do, and does nothing else."""

TRAINS = HEALTH.replace(
    "        self.end_headers()\n",
    """        self.end_headers()
        self.wfile.write(b'{"connected": true, "working": true, "messages": 9, "round": "7"}')
""",
)
"""The same of a node that trains its seventh round."""

DIE_WHEN_TOLD = f"""#!{sys.executable}
import pathlib, sys, time
while not pathlib.Path("die").exists():
    time.sleep(0.01)
"""


@dataclass
class Vm:
    """A machine of a service, before its power is on: its disk and its place in the cloud."""

    role: context.Role
    cloud: Any
    record: Any
    folder: Path
    """Of the federation; the machine's own is below."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def paths(self) -> Paths:
        return Paths(self.folder / "machine")

    @property
    def options(self) -> guest.Options:
        return guest.Options(self.role, self.paths.root, "vm-1", self.folder, self.events_file)

    @property
    def events_file(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "guest.log"

    def set(self, **variables: str) -> None:
        """Write the context, and the token, as the platform does."""
        platform = {
            "ETH0_IP": "127.0.0.1",
            "ONEGATE_ENDPOINT": self.cloud.endpoint,
            "VMID": self.record.vm_id,
        }
        if self.role is SUPERLINK:
            platform["FL_FLEET_API_ADDRESS"] = f"127.0.0.1:{machine.free_port()}"
        lines = "".join(f"{name}='{text}'\n" for name, text in {**platform, **variables}.items())
        files.make_folder(self.paths.context.parent)
        files.write_bytes(self.paths.context, lines.encode(), mode=0o600)
        files.write_bytes(self.paths.token, self.record.token.encode(), mode=0o600)

    def power_on(self) -> subprocess.Popen[bytes]:
        """Start the guest as a cloud does; the environment names the federation."""
        options = self.options
        with self.log.open("wb") as out:
            started = subprocess.Popen(
                [
                    *(sys.executable, "-m", "onefed.appliance.guest", "--role", options.role),
                    *("--root", options.root, "--name", options.name),
                    *("--state-folder", options.state_folder, "--events", options.events),
                ],
                env={"PATH": "/usr/bin:/bin", "ONEFED_STATE_DIR": str(self.folder)},
                cwd=options.root,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.processes.append(started)
        return started

    def told(self, kind: type[Any]) -> list[Any]:
        """The events of one kind so far."""
        if not self.events_file.exists():
            return []
        return [each.event for each in log.read(self.events_file) if isinstance(each.event, kind)]

    @property
    def states(self) -> list[str]:
        return [event.state for event in self.told(events.VmState)]

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.told(events.Notice)]

    @property
    def attributes(self) -> dict[str, str]:
        return dict(self.cloud.attributes(self.record))

    def alive(self) -> list[psutil.Process]:
        """Every process of this federation."""
        return [each for each in psutil.process_iter() if _carries(each, str(self.folder))]


def _carries(candidate: psutil.Process, folder: str) -> bool:
    try:
        return (
            candidate.pid != os.getpid()
            and candidate.status() != psutil.STATUS_ZOMBIE
            and candidate.environ().get("ONEFED_STATE_DIR") == folder
        )
    except psutil.Error:
        return False


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not happened():  # noqa: ASYNC110 - other processes have no event to set
            await asyncio.sleep(POLL_S)


@pytest.fixture
def create(cloud, tmp_path: Path) -> Iterator[Callable[..., Vm]]:
    """Create a machine with these variables in its context; in the end, none of it is left."""
    made: list[Vm] = []

    def create(role: context.Role, **variables: str) -> Vm:
        vm = Vm(role, cloud, cloud.add(role.value), tmp_path / "fed")
        files.make_folder(vm.paths.root, mode=0o700)
        vm.set(**variables)
        made.append(vm)
        return vm

    yield create
    for vm in made:
        for started in vm.processes:
            started.kill()
            started.wait()
        for each in vm.alive():
            each.kill()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put these programs where Flower's are looked for: beside the Python that runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setattr(process, "RESTART_DELAY_S", 0.01)
    monkeypatch.setattr(process, "EARLY_DEATHS_MAX", 3)

    def install(**sources: str) -> None:
        for name, source in sources.items():
            program = folder / name.replace("_", "-")
            program.write_text(source)
            program.chmod(0o755)

    return install


Scene = Callable[[], Coroutine[Any, Any, None]]


def live(vm: Vm, scene: Scene | None = None, options: guest.Options | None = None) -> int:
    """The whole life of a machine in this process, while a scene plays; gives its exit code."""

    async def life() -> int:
        power = asyncio.create_task(guest.Guest(options or vm.options, {"HOME": "/root"}).run())
        try:
            if scene is not None:
                await scene()
        except BaseException:
            told_to_stop()
            await power
            raise
        async with asyncio.timeout(LIMIT_S):
            return await power

    return asyncio.run(life())


def told_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# --- a life --------------------------------------------------------------------------------------


def test_a_coordinator_runs_until_it_is_told_to_stop(create, programs) -> None:
    programs(flower_superlink=HEALTH, flower_superexec=PAUSE, python=PAUSE)
    vm = create(SUPERLINK)

    async def scene() -> None:
        await until(lambda: vm.states[-1:] == ["running"])
        assert vm.attributes["READY"] == "YES"
        assert len(vm.alive()) == 3
        told_to_stop()

    assert live(vm, scene) == ExitCode.OK
    assert vm.states == ["booting", "running", "stopped"]
    assert vm.alive() == []
    assert "FL_ERROR" not in vm.attributes
    assert [event.step for event in vm.told(events.BootStep)][-1] == "SL-13"


def test_a_node_that_boots_twice_keeps_its_identity(create, programs, coordinator, cloud) -> None:
    programs(python=HEALTH)
    cloud.add("superlink", FL_READY="YES", FL_ENDPOINT="127.0.0.1:9092", FL_TLS="NO")
    vm = create(SUPERNODE, FL_TLS_ENABLED="NO")
    keys = []

    async def scene() -> None:
        await until(lambda: vm.states[-1:] == ["running"])
        keys.append((vm.paths.node_key / "node.key").read_bytes())
        told_to_stop()

    for _ in range(2):
        assert live(vm, scene) == ExitCode.OK
    assert keys[0] == keys[1]
    assert vm.states == ["booting", "running", "stopped"] * 2


@pytest.mark.usefixtures("coordinator")
def test_onegate_hears_that_a_node_trains_and_that_it_left(create, programs, cloud) -> None:
    programs(python=TRAINS)
    cloud.add("superlink", FL_READY="YES", FL_ENDPOINT="127.0.0.1:9092", FL_TLS="NO")
    vm = create(SUPERNODE, FL_TLS_ENABLED="NO")
    detached = dataclasses.replace(vm.options, detached=True)

    async def scene() -> None:
        await until(lambda: vm.attributes.get("FL_CLIENT_STATUS") == "2")
        told = vm.attributes
        assert (told["FL_TRAINING_ACTIVE"], told["FL_ROUND_NUMBER"]) == ("YES", "7")
        told_to_stop()

    assert live(vm, scene, detached) == ExitCode.OK
    assert (vm.attributes["FL_CLIENT_STATUS"], vm.attributes["FL_NODE_READY"]) == ("3", "NO")


def test_a_program_that_dies_is_started_again_and_told(create, programs) -> None:
    programs(flower_superlink=HEALTH, flower_superexec=PAUSE, python=PAUSE)
    vm = create(SUPERLINK)

    async def scene() -> None:
        await until(lambda: vm.states[-1:] == ["running"])
        before = vm.alive()
        victim = next(each for each in before if "onefed.flower.executor" in each.cmdline())
        victim.kill()
        await until(lambda: len(set(vm.alive()) - set(before)) == 1)
        told_to_stop()

    assert live(vm, scene) == ExitCode.OK
    [restart] = vm.told(events.ServiceRestart)
    assert (restart.vm, restart.service, restart.exit_code) == ("vm-1", "superexec", -9)


# --- failures ------------------------------------------------------------------------------------


def test_a_superlink_that_keeps_dying_fails_the_boot_with_its_last_words(create, programs) -> None:
    programs(flower_superlink=DIE, flower_superexec=PAUSE, python=PAUSE)
    vm = create(SUPERLINK)
    assert live(vm) == ExitCode.BOOT
    assert vm.states == ["booting", "failed"]
    [failure] = [event for event in vm.told(events.VmState) if event.state == "failed"]
    assert "SL-11" in failure.reason
    assert "no luck" in failure.reason
    assert vm.attributes["FL_ERROR"] == "health_check_timeout"
    assert vm.attributes["FL_READY"] == "NO"
    assert "READY" not in vm.attributes
    assert vm.alive() == []


def test_a_program_that_keeps_dying_later_ends_the_machine_and_it_is_ready_no_more(
    create, programs
) -> None:
    programs(flower_superlink=HEALTH, python=DIE_WHEN_TOLD)
    vm = create(SUPERLINK)

    async def scene() -> None:
        await until(lambda: vm.states[-1:] == ["running"])
        assert vm.attributes["FL_READY"] == "YES"
        (vm.paths.root / "die").touch()

    assert live(vm, scene) == ExitCode.BOOT
    assert vm.states == ["booting", "running", "failed"]
    assert "keeps dying" in vm.told(events.VmState)[-1].reason
    assert vm.attributes["FL_READY"] == "NO"
    assert vm.attributes["FL_ERROR"] == "program_died"
    assert vm.alive() == []


def test_an_exporter_that_keeps_dying_ends_nothing_but_itself(create, programs) -> None:
    programs(flower_superlink=HEALTH, python=PAUSE_BUT_NO_METRICS)
    vm = create(SUPERLINK, FL_METRICS_ENABLED="YES", FL_METRICS_PORT=str(machine.free_port()))

    async def scene() -> None:
        await until(lambda: vm.states[-1:] == ["running"])
        told_to_stop()

    assert live(vm, scene) == ExitCode.OK
    assert vm.states == ["booting", "running", "stopped"]
    said = [event.message for event in vm.told(events.Notice)]
    assert any("metrics keeps dying and was given up" in message for message in said)
    assert any("There are no metrics" in message for message in said)


def test_a_program_that_is_not_installed_fails_the_boot(create, programs) -> None:
    programs(flower_superlink=HEALTH)
    vm = create(SUPERLINK)
    assert live(vm) == ExitCode.BOOT
    reason = vm.told(events.VmState)[-1].reason
    assert "superexec cannot be started" in reason
    assert vm.attributes["FL_ERROR"] == "program_not_started"
    assert vm.alive() == []


@pytest.mark.parametrize("token", ["", "two words", "\x1b[31m"], ids=["empty", "two", "escape"])
def test_a_token_that_is_none_leaves_the_machine_without_onegate(create, token: str) -> None:
    """A static address would work all the same."""
    vm = create(SUPERNODE)
    vm.paths.token.write_text(token)
    assert live(vm) == ExitCode.BOOT
    assert "FL_SUPERLINK_ADDRESS" in vm.told(events.VmState)[-1].reason
    [warning] = [text for text in vm.warnings if "without OneGate" in text]
    assert warning.replace("\n", "").isprintable()
    assert not token or token not in warning


def test_of_a_token_file_without_end_little_is_read(create) -> None:
    vm = create(SUPERNODE)
    vm.paths.token.unlink()
    vm.paths.token.symlink_to("/dev/zero")
    assert live(vm) == ExitCode.BOOT


def test_a_machine_without_a_context_says_so(create) -> None:
    vm = create(SUPERNODE)
    vm.paths.context.unlink()
    assert live(vm) == ExitCode.BOOT
    assert any("one_env" in warning for warning in vm.warnings)


def test_a_context_that_cannot_be_read_fails_the_boot(create) -> None:
    vm = create(SUPERNODE)
    vm.paths.context.unlink()
    vm.paths.context.mkdir()
    assert live(vm) == ExitCode.STORAGE
    assert vm.states == ["booting", "failed"]
    assert "one_env cannot be read" in vm.told(events.VmState)[-1].reason


# --- the real process ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "ready"), [(SUPERLINK, "FL_READY"), (SUPERNODE, "FL_NODE_READY")], ids=str
)
def test_an_invalid_context_ends_the_guest_and_is_told_everywhere(
    create, role: context.Role, ready: str
) -> None:
    vm = create(role, FLOWER_VERSION="0.0.1", FL_TLS_ENABLED="$(touch evil)")
    assert vm.power_on().wait(LIMIT_S) == ExitCode.CONFIG
    assert vm.states == ["booting", "failed"]
    failed = [event for event in vm.told(events.BootStep) if event.status == "failed"]
    assert [event.name for event in failed] == ["Validate"]
    reason = vm.told(events.VmState)[-1].reason
    assert "Invalid FLOWER_VERSION" in reason
    assert "Invalid FL_TLS_ENABLED" in reason
    assert {name: vm.attributes.get(name) for name in (ready, "FL_ERROR", "READY")} == {
        ready: "NO",
        "FL_ERROR": "config_invalid",
        "READY": None,
    }
    assert vm.alive() == []
    assert vm.log.read_bytes() == b""
    assert not (vm.paths.root / "evil").exists()


def test_a_guest_that_is_told_to_stop_while_it_boots_has_not_failed(create) -> None:
    """It waits for a SuperLink that nobody deployed."""
    vm = create(SUPERNODE)
    started = vm.power_on()
    asyncio.run(until(lambda: any("Discovery, try 1" in text for text in vm.warnings)))
    started.terminate()
    assert started.wait(LIMIT_S) == ExitCode.OK
    assert vm.states == ["booting", "stopped"]
    assert not [event for event in vm.told(events.BootStep) if event.status == "failed"]
    assert {"FL_ERROR", "FL_NODE_READY", "READY"}.isdisjoint(vm.attributes)
    assert vm.alive() == []


def test_a_guest_ends_with_the_cloud_that_started_it(create, tmp_path: Path) -> None:
    vm = create(SUPERNODE)
    launch = "import subprocess, sys; subprocess.Popen(sys.argv[1:]);import signal; signal.pause()"
    options = vm.options
    cloud = subprocess.Popen(
        [
            *(sys.executable, "-c", launch, sys.executable, "-m", "onefed.appliance.guest"),
            *("--role", options.role, "--root", options.root, "--name", options.name),
            *("--state-folder", options.state_folder, "--events", options.events),
        ],
        env={"ONEFED_STATE_DIR": str(vm.folder)},
    )
    vm.processes.append(cloud)
    asyncio.run(until(lambda: any("Discovery, try 1" in text for text in vm.warnings)))
    cloud.kill()
    cloud.wait()
    asyncio.run(until(lambda: not vm.alive()))
    assert vm.states == ["booting", "stopped"]


@pytest.mark.flower
def test_a_real_superlink_comes_up_and_goes_without_a_trace(create) -> None:
    vm = create(SUPERLINK)
    started = vm.power_on()
    asyncio.run(until(lambda: bool(vm.states) and vm.states[-1] in ("running", "failed")))
    assert vm.states == ["booting", "running"], vm.told(events.VmState)[-1].reason
    assert vm.attributes["READY"] == vm.attributes["FL_READY"] == "YES"
    assert machine.healthy(vm.attributes["FL_ENDPOINT"], vm.paths.certificates / "ca.crt")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"https://{vm.attributes['FL_ENDPOINT']}/health", trust_env=False)
    assert len(vm.alive()) >= 4
    started.terminate()
    assert started.wait(LIMIT_S) == ExitCode.OK
    assert vm.states == ["booting", "running", "stopped"]
    assert vm.alive() == []
