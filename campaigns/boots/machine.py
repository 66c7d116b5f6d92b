"""One appliance: an overlay on the common tree, its context, and systemd as its process 1."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from onefed import __version__
from onefed.appliance import lifecycle
from onefed.appliance.description import Runtime
from onefed.appliance.paths import Paths
from onefed.context import Role
from onefed.local.cloud import context_document
from onefed.local.service import VmRecord

from . import cgroups, engine, network, tree

POLL_S = 0.1
UP_LIMIT_S = 60.0
OFF_LIMIT_S = 60.0
COMMAND_LIMIT_S = 120.0

T = TypeVar("T")

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "COLUMNS": "200"}
"""Of programs inside, and of systemd-nspawn."""


@dataclass
class Machine:
    """A machine whose disk outlives its power."""

    name: str
    role: Role
    record: VmRecord
    folder: Path
    """Disk, context folder and console."""
    runtime: Runtime
    baked: Path | None = None
    """With Docker: what ``engine.bake`` made."""
    process: subprocess.Popen[bytes] | None = None
    carries: str = engine.VERSION
    """Version of Flower of the images on its disk, with Docker."""
    engine_flags: Sequence[str] = ()

    @property
    def disk(self) -> Path:
        """Its root, as this process sees it."""
        return self.folder / "root"

    @property
    def paths(self) -> Paths:
        return Paths(self.disk)

    @property
    def seen_inside(self) -> Path:
        """Its root as its own processes see it, with what is in memory only."""
        return Path(f"/proc/{self._init()}/root")

    def build(self) -> None:
        """A fresh disk, with the scripts of its role, as the image would have them."""
        for name in ("root", "upper", "work", "context"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir={tree.TREE},upperdir={self.folder}/upper,workdir={self.folder}/work"
        _run("mount", "-t", "overlay", "-o", layers, "overlay", str(self.disk))
        for kind, place in (
            (lifecycle.Script.LIFECYCLE, "etc/one-appliance/service.d/appliance.sh"),
            (lifecycle.Script.HEALTH, "opt/flower/scripts/health-check.sh"),
        ):
            text = lifecycle.script(kind, self.role, self.runtime.value, __version__)
            path = self.disk / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        if self.baked is not None:
            engine.enable(self.disk, self.carries)
            given = engine.give(self.baked, self.folder / "docker", self.carries)
            self.engine_flags = (*engine.FLAGS, *given)

    def replace_disk(self) -> None:
        """A fresh disk in the place of one that is lost; the machine is off."""
        assert self.process is None, "its disk is in use"
        _run("umount", str(self.disk))
        for name in ("root", "upper", "work", "docker"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.build()

    def tell(self, variables: Mapping[str, str]) -> None:
        """Its context folder: what a platform's context disk holds."""
        folder = self.folder / "context"
        (folder / "context.sh").write_bytes(context_document(variables))
        (folder / "token.txt").write_text(self.record.token)

    def power_on(self) -> None:
        """systemd begins; its units do the rest."""
        assert self.process is None, "it is on already"
        with (self.folder / "console.log").open("ab") as console:
            self.process = subprocess.Popen(
                [
                    *cgroups.entering(self.name),
                    *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.disk}"),
                    *("--register=no", "--keep-unit", "--link-journal=no", "--timezone=off"),
                    *(f"--network-bridge={network.BRIDGE}", f"--machine={self.name}"),
                    *("--console=read-only", "--resolv-conf=off"),
                    *(f"--bind-ro={self.folder}/context:/context", *self.engine_flags),
                ],
                stdin=subprocess.DEVNULL,
                env={**ENVIRONMENT, **(engine.ENVIRONMENT if self.engine_flags else {})},
                stdout=console,
                stderr=console,
            )

    def power_off(self) -> None:
        """As the platform does it: systemd stops its units and ends."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(OFF_LIMIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.process = None

    def cut_power(self) -> None:
        """Nothing inside gets to do anything more."""
        assert self.process is not None, f"{self.name} is off"
        os.kill(self._init(), signal.SIGKILL)
        self.process.wait(OFF_LIMIT_S)
        self.process = None

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program inside, as root."""
        return subprocess.run(
            [
                *("nsenter", "--target", str(self._init()), "--mount", "--uts", "--ipc", "--net"),
                *("--pid", "--", "env", "-i", *(f"{k}={v}" for k, v in ENVIRONMENT.items())),
                *argv,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )

    def output(self, *argv: str) -> str:
        """What a program says that has to succeed."""
        ended = self.run(*argv)
        assert ended.returncode == 0, f"{argv}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def _init(self) -> int:
        """The machine's process 1, as this process sees it."""
        assert self.process is not None, f"{self.name} is off"
        pid = self.process.pid

        def child() -> int:
            found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return int(found[0]) if len(found) == 1 else 0

        return wait_for(child, UP_LIMIT_S, f"process 1 of {self.name}")


def wait_for(look: Callable[[], T], limit_s: float, what: str) -> T:
    """Look until something true is seen."""
    limit = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < limit, f"not within {limit_s:.0f} s: {what}"
        time.sleep(POLL_S)
    return found


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=COMMAND_LIMIT_S)
