"""Docker's command line, made of a program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from onefed.appliance import container
from onefed.appliance.paths import Paths
from onefed.appliance.process import Program
from onefed.context import Role

PATHS = Paths(Path("/"))
BINARIES = Path("/opt/onefed/venv/bin")


def program(**changed: object) -> Program:
    values = {
        "name": "superlink",
        "argv": (f"{BINARIES}/flower-superlink", "--database", "/opt/flower/state/state.db"),
        "environment": {"FLWR_LOG_LEVEL": "INFO", "PATH": "/venv", "HOME": "/root"},
        "folder": Path("/opt/flower/state"),
        "log": Path("/var/log/one-appliance/superlink.log"),
        "stop_timeout_s": 30.0,
    }
    return Program(**{**values, **changed})  # type: ignore[arg-type]


def argv(made: Program, role: Role = Role.SUPERLINK, **more: object) -> tuple[str, ...]:
    return container.description(
        made,
        role,
        image="onefed-superlink:1.41.0",
        mounted=container.mounts(role, PATHS, Path("/app/exports")),
        binaries=BINARIES,
        environment_file=Path("/opt/flower/config/superlink.env"),
        **more,  # type: ignore[arg-type]
    ).argv


def flags(words: tuple[str, ...], flag: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == flag]


def test_a_container_is_hardened_and_systemd_owns_its_life() -> None:
    words = argv(program())
    assert words[:4] == ("/usr/bin/docker", "run", "--rm", "--name")
    assert {"--init", "--read-only"} <= set(words)
    assert "--restart" not in words
    assert "--privileged" not in words
    assert "--detach" not in words
    assert flags(words, "--user") == ["49999:49999"]
    assert flags(words, "--cap-drop") == ["ALL"]
    assert flags(words, "--security-opt") == ["no-new-privileges"]
    assert flags(words, "--log-opt") == ["max-size=10m", "max-file=3"]
    assert flags(words, "--pids-limit") == ["4096"]
    assert flags(words, "--stop-timeout") == ["30"]


def test_the_program_is_the_images_own_with_the_same_arguments() -> None:
    words = argv(program())
    place = words.index("onefed-superlink:1.41.0")
    assert flags(words, "--entrypoint") == ["flower-superlink"]
    assert words[place + 1 :] == ("--database", "/opt/flower/state/state.db")


@pytest.mark.parametrize("role", Role)
def test_secrets_and_code_are_read_only_and_the_authoritys_key_is_not_there(role: Role) -> None:
    found = {mount.path: mount.writable for mount in container.mounts(role, PATHS, None)}
    assert found.get(PATHS.certificates, False) is False
    assert found[PATHS.config] is False
    assert PATHS.certificates.with_name("private") not in found
    assert not any(path in PATHS.certificates.with_name("private").parents for path in found)
    if role is Role.SUPERNODE:
        assert found[PATHS.data] is False
        assert PATHS.state not in found


def test_folders_are_where_flowers_images_have_them_too() -> None:
    """FL_CHECKPOINT_PATH is the container's side only: the machine's own folder never moves."""
    roles = (Role.SUPERLINK, Role.SUPERNODE, Role.PEER)
    link, node, peer = (flags(argv(program(), role), "--mount") for role in roles)
    for found, folder, inside, end in (
        (link, "state", "/app/state", ""),
        (link, "certs", "/app/certificates", ",readonly"),
        (link, "checkpoints", "/app/exports", ""),
        (node, "data", "/app/data", ",readonly"),
        (peer, "data", "/app/data", ",readonly"),
    ):
        assert f"type=bind,source=/opt/flower/{folder},target={inside}{end}" in found
    assert not any("/app/exports" in mount for mount in node)


@pytest.mark.parametrize(
    "hostile", ["--privileged", "$(id)", "a b;c", "-v/:/host", "`id`", "%h", "x\ty"]
)
def test_a_hostile_value_stays_one_argument_after_the_image(hostile: str) -> None:
    words = argv(program(argv=(f"{BINARIES}/flower-supernode", "--node-config", hostile)))
    place = words.index("onefed-superlink:1.41.0")
    assert words[place + 1 :] == ("--node-config", hostile)
    assert hostile not in words[:place]


def test_the_environment_is_a_file_without_what_is_the_images_own() -> None:
    assert container.environment(program()) == b"FLWR_LOG_LEVEL=INFO\n"
    assert not any("FLWR_LOG_LEVEL" in word for word in argv(program()))


def test_gpus_are_asked_for_when_there_are_some() -> None:
    assert "--gpus" not in argv(program())
    assert flags(argv(program(), gpus=container.Gpus("all")), "--gpus") == ["all"]
    assert "--env" not in argv(program(), gpus=container.Gpus("all"))
    chosen = argv(program(), gpus=container.Gpus("0,2"))
    assert flags(chosen, "--env") == ["CUDA_VISIBLE_DEVICES=0,2"]


def test_a_container_sees_no_processes_but_its_own_and_those_it_watches() -> None:
    assert "--pid" not in argv(program())
    watching = replace(program(), watches="superexec")
    assert flags(argv(watching), "--pid") == ["container:flower-superlink-superexec"]


@pytest.mark.parametrize("role", Role)
def test_every_program_of_a_role_can_be_put_into_a_container(programs_of, role: Role) -> None:
    names = [container.name(each, role) for each in programs_of(role)]
    assert names[0] == f"flower-{role}"
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("role", [Role.SUPERNODE, Role.PEER])
def test_who_trains_takes_the_image_of_its_framework(role: Role) -> None:
    assert container.image(role, "sklearn", "1.41.0") == "flower-supernode-sklearn:1.41.0"


def test_a_peers_container_has_what_its_node_writes_and_no_authority() -> None:
    found = {mount.path: mount.writable for mount in container.mounts(Role.PEER, PATHS, None)}
    assert found[PATHS.state] is True
    assert found[PATHS.checkpoints] is True
    assert found[PATHS.app.parent] is False
    assert PATHS.certificates not in found
