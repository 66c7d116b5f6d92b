"""The disk that every machine begins with: Debian, our dependencies, our package, the guest agent.

``python -m campaigns.boots.tree [FOLDER]``; needs root, mmdebstrap and package registries.
What takes minutes is kept in FOLDER as tar files, each under a digest of all that it was made from.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from onefed.appliance import units
from onefed.appliance.ownership import GID, UID

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "build/boots/tree"
"""What ``main`` makes; machines put overlays on it and never change it."""

VENV = "/opt/onefed"
"""In the appliance."""

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "iproute2", "logrotate", "ca-certificates", "curl"),
    *("python3", "python3-venv", "nginx-light", "docker.io", "iptables", "nftables"),
    "docker-registry",  # what an engine pulls another version of Flower from
)
MIRRORS = {
    "{suite}": "http://deb.debian.org/debian",
    "{suite}-security": "http://deb.debian.org/debian-security",
}
FORMAT = 1
"""Raised when the recipes below change, so that what was kept is made anew."""

STEP_LIMIT_S = 600.0

_CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}


def main() -> int:
    """Bring ``TREE`` to what the sources are now."""
    kept = Path(sys.argv[1]) if sys.argv[1:] else TREE.parent
    for folder in (kept, TREE.parent):
        folder.mkdir(parents=True, exist_ok=True)
    suite = _suite()
    base = _kept(
        kept, "base", [suite, *PACKAGES, *MIRRORS.values()], functools.partial(_base, suite)
    )
    pins = (ROOT / "constraints.txt").read_text()
    whole = _kept(
        kept, "whole", [base.name, pins, _dependencies()], functools.partial(_whole, base, pins)
    )
    with tempfile.TemporaryDirectory(dir=TREE.parent) as name:
        wheel = _wheel(Path(name))
        agent = Path(__file__).with_name("guest-agent").read_bytes()
        stamp = f"{whole.name} {_digest([wheel.read_bytes().hex(), agent.hex()])}\n"
        mark = TREE.with_name("tree.stamp")
        held = mark.read_text() if mark.is_file() and TREE.is_dir() else ""
        if held == stamp:
            _say("the tree is there")
            return 0
        mark.unlink(missing_ok=True)
        if held.split()[:1] != [whole.name]:
            _say(f"unpacking {whole.name}")
            shutil.rmtree(TREE, ignore_errors=True)
            _unpack(whole, TREE)
        _say(f"installing {wheel.name}")
        _pip_install(TREE, wheel.parent, "--no-deps", "--force-reinstall", "onefed")
        _finish(TREE, agent)
    mark.write_text(stamp)
    return 0


def _suite() -> str:
    """Debian as on this machine: then wheels that were built here run there."""
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian" or os.geteuid() != 0:
        raise SystemExit("boots: this needs Debian, and root: machines are made by systemd-nspawn")
    return release["VERSION_CODENAME"]


def _kept(folder: Path, name: str, inputs: Sequence[str], make: Callable[[Path], None]) -> Path:
    """A tar file that is made once for the same inputs; earlier ones of its name go."""
    place = folder / f"{name}-{_digest([str(FORMAT), *inputs])}.tar"
    if place.exists():
        return place
    for old in folder.glob(f"{name}-*.tar*"):
        old.unlink()
    _say(f"making {place.name}")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        make(Path(work) / "tree")
        part = place.with_suffix(".tar.part")
        _run("tar", "-C", str(Path(work) / "tree"), "-cf", str(part), ".")
    part.replace(place)
    return place


def _base(suite: str, tree: Path) -> None:
    sources = [f"deb {url} {name.format(suite=suite)} main" for name, url in MIRRORS.items()]
    include = f"--include={','.join(PACKAGES)}"
    thin = ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]
    _run(
        *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", *thin, include),
        *(suite, str(tree), *sources),
    )


def _whole(base: Path, pins: str, tree: Path) -> None:
    _unpack(base, tree)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pins.txt").write_text(pins)
        _run(
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
            *("--constraint", str(folder / "pins.txt"), "--wheel-dir", str(folder / "wheels")),
            *json.loads(_dependencies()),
        )
        _chroot(tree, "python3", "-m", "venv", VENV)
        _pip_install(tree, folder / "wheels", *json.loads(_dependencies()))


def _dependencies() -> str:
    """What our package needs, as JSON: a text, because it is an input of what is kept."""
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        return json.dumps(tomllib.load(file)["project"]["dependencies"])


def _wheel(folder: Path) -> Path:
    """Our package from a copy of its sources: a build in place would take old files along."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "src",
        source / "src",
        ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"),
    )
    _run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "wheels"), str(source)),
    )
    (made,) = (folder / "wheels").iterdir()
    return made


def _pip_install(tree: Path, wheels: Path, *what: str) -> None:
    """In the tree, without any registry; byte-compiled, since programs may not write there."""
    inside = tree / "wheels"
    shutil.copytree(wheels, inside)
    try:
        _chroot(
            tree,
            *(f"{VENV}/bin/pip", "install", "--quiet", "--no-index", "--find-links", "/wheels"),
            *("--root-user-action", "ignore", *what),
        )
    finally:
        shutil.rmtree(inside)


def _finish(tree: Path, agent: bytes) -> None:
    """What an image recipe does beyond packages; once more changes nothing."""
    _link(tree / "usr/local/bin/onefed", f"{VENV}/bin/onefed")
    for file, line in (
        ("passwd", f"{units.USER}:x:{UID}:{GID}::/opt/flower:/usr/sbin/nologin\n"),
        ("group", f"{units.USER}:x:{GID}:\n"),
    ):
        place = tree / "etc" / file
        if line not in place.read_text():
            place.write_text(place.read_text() + line)
    # nginx serves a page of Debian's on port 80: ours is started by a unit of its own. The engine
    # and its registry are enabled where they are used.
    engine = ("docker.service", "containerd.service", "docker.socket", "docker-registry.service")
    for wants in (tree / "etc/systemd/system").glob("*.wants"):
        for name in ("nginx.service", *engine):
            # Its target may be there in the tree only, so nobody asks whether it exists.
            (wants / name).unlink(missing_ok=True)
    place = tree / "usr/sbin/guest-agent"
    place.write_bytes(agent)
    place.chmod(0o755)
    folder = tree / "etc/systemd/system"
    (folder / "guest-agent.service").write_text(AGENT_UNIT)
    _link(folder / "multi-user.target.wants/guest-agent.service", "../guest-agent.service")


def _link(place: Path, target: str) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(target)


AGENT_UNIT = """\
[Unit]
Description=Contextualization

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/guest-agent

[Install]
WantedBy=multi-user.target
"""
"""As OpenNebula's own: nothing is ordered after it, so units that are enabled start beside it."""


def _chroot(tree: Path, *argv: str) -> None:
    _run("chroot", str(tree), *argv, environment=_CLEAN)


def _unpack(tar: Path, tree: Path) -> None:
    tree.mkdir(parents=True)
    _run("tar", "-C", str(tree), "-xf", str(tar))


def _run(*argv: str, environment: dict[str, str] | None = None) -> None:
    ended = subprocess.run(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=STEP_LIMIT_S,
        check=False,
    )
    if ended.returncode:
        sys.stderr.write(ended.stdout[-2000:] + ended.stderr[-4000:])
        raise SystemExit(f"boots: {' '.join(argv[:4])}... ended with {ended.returncode}")


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:16]


def _say(what: str) -> None:
    sys.stderr.write(f"boots: {what}\n")


if __name__ == "__main__":
    raise SystemExit(main())
