"""What a boot needs of the machine beyond files: units, the container engine, the version.

``Processes`` is a machine made of processes (a laptop); ``Systemd`` one with systemd, whose
programs run as processes or in containers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onefed.appliance import commands, container, description, firewall, ownership, units
from onefed.appliance.description import Description, Runtime
from onefed.appliance.failures import KnownFailureError
from onefed.appliance.paths import Paths
from onefed.appliance.process import EARLY_DEATHS_MAX, Program
from onefed.appliance.steps import Outcome, done, skipped, unchanged
from onefed.appliance.units import Unit
from onefed.checkpoint import files
from onefed.context import Role

SIDECAR_PULL_TIMEOUT_S = 300.0
"""The machine is READY only afterwards, and nothing of training waits for it."""

ENGINE_POLL_S = 1.0
ENGINE_LIMIT_S = 60.0

SYSTEMD_RUNS = "run/systemd/system"
"""There exactly when systemd is process 1 (sd_booted(3))."""

MEANING = {
    126: "126: not permitted, see who owns its files",
    137: "137: killed, often for memory",
}
"""Of exit codes that operators ask about."""

LOGROTATE = """\
{logs}/*.log {{
  size 10M
  rotate 3
  copytruncate
  missingok
  notifempty
}}
"""


class EngineError(KnownFailureError):
    """The container engine does not answer."""

    code = "docker_not_ready"


class ImageError(KnownFailureError):
    """The container engine lacks an image, and cannot get it."""

    code = "image_missing"


class UnitError(KnownFailureError):
    """systemd did not do what it was told."""

    code = "systemd_refused"


class FirewallError(KnownFailureError):
    """The machine lets in more than it should."""

    code = "firewall_failed"


class Platform(Protocol):
    """The machine, as the boot steps see it."""

    @property
    def has_agent(self) -> bool:
        """The platform's guest agent reports READY, once the boot is through."""
        ...

    @property
    def in_containers(self) -> bool:
        """Programs run in containers."""
        ...

    def units(self, programs: Sequence[Program]) -> Outcome:
        """Steps SL-08 and SN-06: what starts these programs is in place."""
        ...

    def firewall(self, rules: str | None) -> Outcome:
        """Steps SL-08a and SN-06a: nothing is let in but what the rules say; None: no rules.

        Raises:
            FirewallError: there are none now; no reason to fail a boot.
        """
        ...

    def engine(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> Outcome:
        """Steps SL-09, SN-08 and PE-10a: the container engine answers."""
        ...

    def version(self, wanted: str, warn: Callable[[str], None]) -> str:
        """The version of Flower that will run: the wanted one, or the baked one."""
        ...

    def current(self, program: Program) -> bool:
        """Whether what runs under the name of a program is this program."""
        ...

    def sidecar(self, unit: Unit, image: str) -> Outcome:
        """Step SN-14a: a program beside ours runs, from an image that is pulled if it has to be.

        Raises:
            ImageError, UnitError: it cannot be started; no reason to fail a boot.
        """
        ...

    def activity(self) -> Outcome:
        """Step SN-13a: OneGate hears what the node does.

        Raises:
            UnitError: it does not; no reason to fail a boot.
        """
        ...

    def retire(self, name: str) -> bool:
        """What an earlier context asked for is stopped and gone; True when there was something."""
        ...

    def why(self, name: str) -> str:
        """What is known about the death of a program; empty: nothing."""
        ...


class Processes:
    """No systemd, no Docker and no guest agent."""

    has_agent = False
    in_containers = False

    def units(self, programs: Sequence[Program]) -> Outcome:
        """Nothing to write."""
        assert programs, "a machine has programs"
        return skipped("no systemd: the machine keeps its programs running itself")

    def firewall(self, rules: str | None) -> Outcome:
        """What a laptop lets in is its owner's."""
        del rules
        return skipped("no systemd: the firewall of this computer is its owner's")

    def engine(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> Outcome:
        """Nothing to wait for."""
        del clock, sleep
        return skipped("no Docker: programs run as processes of this machine")

    def version(self, wanted: str, warn: Callable[[str], None]) -> str:
        """The table accepts no version but the one that is installed."""
        del warn
        return wanted

    def current(self, program: Program) -> bool:
        """A machine that was told something else starts anew as a whole."""
        del program
        return True

    def sidecar(self, unit: Unit, image: str) -> Outcome:
        """Sidecars are containers."""
        del image
        return skipped(f"no Docker: {unit.name} is a container")

    def activity(self) -> Outcome:
        """No unit."""
        return skipped("no systemd: whoever keeps this machine tells it")

    def retire(self, name: str) -> bool:
        """A machine that was told something else starts anew as a whole."""
        del name
        return False

    def why(self, name: str) -> str:
        """Its log says it."""
        del name
        return ""


@dataclass(frozen=True)
class Systemd:
    """A machine whose programs are units of systemd."""

    role: Role
    runtime: Runtime
    paths: Paths
    framework: str
    """ML_FRAMEWORK; which image a node needs."""
    checkpoint_path: Path | None
    """FL_CHECKPOINT_PATH: where a SuperLink's container sees the exports."""
    gpus: Callable[[], container.Gpus | None]
    """Known once step SN-09 is through."""
    running_version: Callable[[], str]
    """Known once ``version`` was called."""
    run: commands.Run = commands.run
    has_agent: bool = True

    @property
    def in_containers(self) -> bool:
        """Those of docker."""
        return self.runtime is Runtime.DOCKER

    def units(self, programs: Sequence[Program]) -> Outcome:
        """Write those units that differ, and have systemd read them."""
        wanted = units.of(programs, self.role, self.runtime, self.paths, python=sys.executable)
        if self.role is Role.SUPERLINK:
            wanted += units.renewal()
        files.make_folder(self.paths.units)
        written = [
            unit.name
            for unit in wanted
            if _write(self.paths.units / unit.name, unit.text.encode(), mode=0o644)
        ]
        rotate = self.paths.root / "etc/logrotate.d/onefed"
        files.make_folder(rotate.parent)
        _write(rotate, LOGROTATE.format(logs=self.paths.logs).encode(), mode=0o644)
        if not written:
            return unchanged("all units are there")
        self._must("systemctl", "daemon-reload")
        return done("wrote " + ", ".join(written))

    def firewall(self, rules: str | None) -> Outcome:
        """Have a unit load the rules now, and before the network at every boot."""
        unit = units.firewall(self.paths)
        if rules is None:
            if not (self.paths.units / unit.name).exists():
                return skipped("FL_FIREWALL is NO: everything is let in")
            self._must("systemctl", "disable", "--now", unit.name, error=FirewallError)
            (self.paths.units / unit.name).unlink()
            return done("everything is let in from now on")
        files.make_folder(self.paths.config)
        written = _write(self.paths.firewall, rules.encode(), mode=0o600)
        checked = self.run((firewall.NFT, "--check", "--file", str(self.paths.firewall)))
        if not checked.ok:
            raise FirewallError(
                f"nft does not take the rules: {checked.last_line}",
                hint=f"Look at {self.paths.firewall}, and that nftables is installed.",
            )
        files.make_folder(self.paths.units)
        if _write(self.paths.units / unit.name, unit.text.encode(), mode=0o644):
            self._must("systemctl", "daemon-reload", error=FirewallError)
            written = True
        active = self.run(("systemctl", "is-active", "--quiet", unit.name)).ok
        if active and not written:
            return unchanged("the rules are in force")
        self._must("systemctl", "enable", unit.name, error=FirewallError)
        # A reload replaces all rules at once; between stop and start there would be none.
        self._must("systemctl", "reload-or-restart", unit.name, error=FirewallError)
        return done("the rules are in force")

    def engine(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> Outcome:
        """Ask ``docker info`` until it answers."""
        if self.runtime is Runtime.PROCESS:
            return skipped("no Docker: programs are units of systemd")
        started = clock()
        while not (answer := self.run((container.DOCKER, "info"))).ok:
            if clock() - started > ENGINE_LIMIT_S:
                raise EngineError(
                    f"Docker did not answer in {ENGINE_LIMIT_S:.0f} s: {answer.last_line}",
                    hint="Look at: systemctl status docker",
                )
            sleep(ENGINE_POLL_S)
        return unchanged("Docker answers")

    def version(self, wanted: str, warn: Callable[[str], None]) -> str:
        """Pull another version than the baked one; if that fails, the baked one runs.

        Raises:
            ImageError: there is no image of either.
        """
        if self.runtime is Runtime.PROCESS:
            return wanted
        if self._has(wanted):
            return wanted
        baked = _first_line(self.paths.prebaked)
        name = container.image(self.role, self.framework, wanted)
        pulled = self.run((container.DOCKER, "pull", name), timeout_s=commands.PULL_TIMEOUT_S)
        if pulled.ok:
            return wanted
        if baked and baked != wanted and self._has(baked):
            warn(f"{name} could not be pulled ({pulled.last_line}): Flower {baked} runs instead.")
            return baked
        raise ImageError(
            f"The image {name} is neither here nor to be had: {pulled.last_line}",
            hint="Use an appliance image that carries this framework; no other one is tried.",
        )

    def current(self, program: Program) -> bool:
        """Whether its description says what it should."""
        return description.is_written(self.paths.programs, self._description(program))

    def sidecar(self, unit: Unit, image: str) -> Outcome:
        """Write its unit and start it, where there is Docker."""
        if self.runtime is Runtime.PROCESS:
            return skipped(f"no Docker: {unit.name} is a container")
        if not self.run((container.DOCKER, "image", "inspect", image)).ok:
            pulled = self.run((container.DOCKER, "pull", image), timeout_s=SIDECAR_PULL_TIMEOUT_S)
            if not pulled.ok:
                raise ImageError(
                    f"The image {image} is neither here nor to be had: {pulled.last_line}",
                    hint="Give the machine a way to its registry, or load it: docker load",
                )
        files.make_folder(self.paths.units)
        if _write(self.paths.units / unit.name, unit.text.encode(), mode=0o644):
            self._must("systemctl", "daemon-reload")
        self._must("systemctl", "enable", "--now", unit.name)
        return done(f"{unit.name} runs")

    def activity(self) -> Outcome:
        """Start the unit that ``units`` wrote; it goes with the node's from then on."""
        if self.run(("systemctl", "is-active", "--quiet", units.ACTIVITY)).ok:
            return unchanged(f"{units.ACTIVITY} runs")
        self._must("systemctl", "start", units.ACTIVITY)
        return done(f"{units.ACTIVITY} runs")

    def retire(self, name: str) -> bool:
        """Stop its unit and remove it, with its description."""
        unit = units.name(name, self.role)
        place = self.paths.units / unit
        if not place.exists():
            return False
        self._must("systemctl", "disable", "--now", unit)
        place.unlink()
        description.path(self.paths.programs, name).unlink(missing_ok=True)
        return True

    def why(self, name: str) -> str:
        """The exit code of its main process, and what that means."""
        unit = units.name(name, self.role)
        shown = self.run(("systemctl", "show", "--value", "-p", "ExecMainStatus", unit)).last_line
        code = int(shown) if shown.isdecimal() else 0
        return MEANING.get(code, f"exit code {code}" if code else "")

    def start(self, program: Program) -> None:
        """Describe a program, and have systemd run it from now on and after every boot."""
        files.make_folder(self.paths.logs)
        files.make_folder(self.paths.programs)
        if self.in_containers and not program.is_beside:
            for mount in self._mounts():  # a bind mount needs something to bind
                if not mount.path.exists():
                    files.make_folder(mount.path)
            files.write_bytes(
                self._environment_file(program), container.environment(program), mode=0o640
            )
        description.write(self.paths.programs, self._description(program))
        ownership.give(self.paths)
        unit = units.name(program.name, self.role)
        self._must("systemctl", "enable", unit)
        self._must("systemctl", "restart", unit)
        if program.name == Role.SUPERLINK:
            self._must("systemctl", "enable", "--now", units.RENEWAL_TIMER)

    def running(self, name: str) -> bool:
        """Whether systemd says that it is active."""
        return self.run(("systemctl", "is-active", "--quiet", units.name(name, self.role))).ok

    def given_up(self, name: str) -> bool:
        """systemd never gives up; the boot does, after as many starts as on a laptop."""
        unit = units.name(name, self.role)
        shown = self.run(("systemctl", "show", "--value", "-p", "NRestarts", unit)).last_line
        return shown.isdecimal() and int(shown) >= EARLY_DEATHS_MAX

    def restart(self, programs: Sequence[Program]) -> None:
        """Start units again that are active, and remember what they read now."""
        for program in programs:
            if not description.path(self.paths.programs, program.name).exists():
                continue
            description.write(self.paths.programs, self._description(program))
            ownership.give(self.paths, [])
            self._must("systemctl", "try-restart", units.name(program.name, self.role))

    def stop(self, names: Sequence[str]) -> None:
        """Stop programs, the last started first; each has its limit in its unit."""
        for name in reversed(names):
            self._must("systemctl", "stop", units.name(name, self.role))

    def _description(self, program: Program) -> Description:
        if self.runtime is Runtime.PROCESS or program.is_beside:
            return description.of(program)
        return container.description(
            program,
            self.role,
            image=container.image(self.role, self.framework, self.running_version()),
            mounted=self._mounts(),
            binaries=Path(sys.executable).parent,
            environment_file=self._environment_file(program),
            gpus=self.gpus(),
        )

    def _mounts(self) -> Sequence[container.Mount]:
        return container.mounts(self.role, self.paths, self.checkpoint_path)

    def _environment_file(self, program: Program) -> Path:
        return self.paths.config / f"{program.name}.env"

    def _has(self, version: str) -> bool:
        image = container.image(self.role, self.framework, version)
        return self.run((container.DOCKER, "image", "inspect", image)).ok

    def _must(self, *argv: str, error: type[KnownFailureError] = UnitError) -> None:
        ended = self.run(argv)
        if not ended.ok:
            raise error(
                f"{' '.join(argv)} failed: {ended.last_line}",
                hint=f"Look at: systemctl status {argv[-1]}",
            )


def has_systemd(root: Path) -> bool:
    """Whether the machine below a root is one that systemd runs."""
    return root == Path("/") and (root / SYSTEMD_RUNS).is_dir()


def _write(path: Path, content: bytes, *, mode: int) -> bool:
    try:
        if path.read_bytes() == content:
            return False
    except OSError:
        pass
    files.write_bytes(path, content, mode=mode)
    return True


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""
