"""Command lines and environments: what each program of a machine is told, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from onefed import context
from onefed.appliance import process, programs
from onefed.appliance.paths import Paths
from onefed.appliance.process import Program

PATHS = Paths(Path("/srv/fed"))
CERTIFICATES = PATHS.certificates
ENDPOINT = "10.0.0.5:9092"
KEY = PATHS.node_key / "node.key"

FLOWER_ENVIRONMENT = {
    "FLWR_HOME": "/srv/fed/app/.flwr",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}


def settings(role: context.Role, **variables: str) -> Any:
    resolution = context.resolve(role, explicit=variables)
    if role is context.Role.SUPERLINK:
        return context.superlink_settings(resolution)
    return context.supernode_settings(resolution)


def superlink(**variables: str) -> dict[str, Program]:
    chosen = settings(context.Role.SUPERLINK, **variables)
    return {each.name: each for each in programs.superlink(chosen, PATHS, {"BASE": "1"})}


def supernode(variables: dict[str, str] | None = None, **changed: Any) -> dict[str, Program]:
    chosen = settings(context.Role.SUPERNODE, **(variables or {}))
    told = {
        "endpoint": ENDPOINT,
        "tls": True,
        "private_key": KEY,
        "node_config": "partition-id=1 num-partitions=3",
        "runtime_port": 9094,
    } | changed
    made = programs.supernode(chosen, PATHS, {"BASE": "1"}, **told)
    return {each.name: each for each in made}


def value_of(program: Program, flag: str) -> str | None:
    """What follows a flag that comes at most once."""
    places = [place for place, word in enumerate(program.argv) if word == flag]
    assert len(places) <= 1, f"{flag} comes {len(places)} times"
    return program.argv[places[0] + 1] if places else None


# --- superlink -----------------------------------------------------------------------------------


def test_superlink_with_tls_shows_its_certificate_and_wants_node_keys() -> None:
    link = superlink()["superlink"]
    assert value_of(link, "--ssl-ca-certfile") == str(CERTIFICATES / "ca.crt")
    assert value_of(link, "--ssl-certfile") == str(CERTIFICATES / "server.pem")
    assert value_of(link, "--ssl-keyfile") == str(CERTIFICATES / "server.key")
    assert "--enable-supernode-auth" in link.argv
    assert "--insecure" not in link.argv


def test_superlink_without_tls_has_neither_certificates_nor_keys() -> None:
    started = superlink(FL_TLS_ENABLED="NO")
    link, execution = started["superlink"], started["superexec"]
    assert "--insecure" in link.argv
    assert not [word for word in link.argv if word.startswith("--ssl") or "auth-" in word[:9]]
    assert "--enable-supernode-auth" not in link.argv
    assert "--insecure" in execution.argv
    assert "--root-certificates" not in execution.argv


def test_superlink_in_processes_has_a_superexec_that_shares_its_secret() -> None:
    started = superlink()
    assert list(started) == ["superlink", "superexec", "supervisor", "gateway"]
    link, execution, *_ = started.values()
    assert value_of(link, "--isolation") == "process"
    secrets = {value_of(each, "--superexec-auth-secret-file") for each in (link, execution)}
    assert secrets == {str(PATHS.superexec_secret)}
    assert value_of(execution, "--root-certificates") == str(CERTIFICATES / "ca.crt")


def test_superlink_in_subprocesses_starts_its_apps_itself() -> None:
    started = superlink(FL_ISOLATION="subprocess")
    assert list(started) == ["superlink", "supervisor", "gateway"]
    assert value_of(started["superlink"], "--isolation") == "subprocess"
    assert value_of(started["superlink"], "--superexec-auth-secret-file") is None


@pytest.mark.parametrize("address", ["0.0.0.0:9192", "127.0.0.1:9192", "10.0.0.5:9192"])
def test_superlink_listens_on_loopback_whatever_the_fleet_address(address: str) -> None:
    """Behind a gateway it has a port of its own, since the gateway has that of the address."""
    started = superlink(FL_FLEET_API_ADDRESS=address, FL_SUPERLINK_PORT="9191")
    link = started["superlink"]
    port = "9192" if address.startswith("127.") else "9191"
    assert ("gateway" in started) == (port == "9191")
    assert (value_of(link, "--host"), value_of(link, "--port")) == ("127.0.0.1", port)
    assert value_of(started["superexec"], "--runtime-api-address") == f"127.0.0.1:{port}"


def test_the_gateway_runs_from_its_configuration_and_is_told_nothing_else() -> None:
    started = superlink(FL_FLEET_API_ADDRESS="127.0.0.1:9192", FL_GATEWAY="always")
    front = started["gateway"]
    assert front.argv[0].endswith("nginx")
    assert value_of(front, "-c") == str(PATHS.gateway_configuration)
    assert value_of(front, "-p") == str(PATHS.gateway)
    assert value_of(front, "-e") == "stderr"
    assert front.environment == {}


@pytest.mark.parametrize(
    ("database", "path"),
    [
        ("state/state.db", "opt/flower/state/state.db"),
        ("state/federation/1.db", "opt/flower/state/federation/1.db"),
        ("federation.db", "opt/flower/state/federation.db"),
        ("data/state.db", "opt/flower/state/data/state.db"),
        ("./state/state.db", "opt/flower/state/state.db"),
        ("state//etc/state.db", "opt/flower/state/etc/state.db"),
        ("state", "opt/flower/state/state"),
    ],
)
def test_the_database_lies_below_the_state_folder(database: str, path: str) -> None:
    link = superlink(FL_DATABASE=database)["superlink"]
    assert value_of(link, "--database") == f"/srv/fed/{path}"


def test_the_supervisor_is_told_a_file_and_imports_nothing_from_where_it_runs() -> None:
    supervisor = superlink()["supervisor"]
    assert supervisor.argv[1:] == ("-P", "-m", "onefed.flower.supervisor", str(PATHS.supervisor))
    assert supervisor.environment["ONEFED_RECOVERY_DIR"] == str(PATHS.recovery)
    assert supervisor.environment["ONEFED_STOP_FILE"] == str(PATHS.stop_request)


# --- supernode -----------------------------------------------------------------------------------


def stock(**changed: Any) -> Program:
    """A node that runs Flower's own SuperNode."""
    [node] = supernode({"FL_ISOLATION": "subprocess"}, **changed).values()
    return node


def test_supernode_with_tls_checks_the_coordinator_and_shows_its_key() -> None:
    [node] = supernode().values()
    for each in (node, stock()):
        assert value_of(each, "--root-certificates") == str(CERTIFICATES / "ca.crt")
        assert value_of(each, "--superlink") == ENDPOINT
        assert "--insecure" not in each.argv
    assert value_of(node, "--identity") == str(PATHS.node_key)
    assert value_of(stock(), "--auth-supernode-private-key") == str(KEY)


def test_supernode_without_tls_checks_nothing_and_shows_no_registered_key() -> None:
    [node] = supernode(tls=False, private_key=None).values()
    for each in (node, stock(tls=False, private_key=None)):
        assert "--insecure" in each.argv
        assert value_of(each, "--root-certificates") is None
        assert value_of(each, "--auth-supernode-private-key") is None


def test_supernode_in_processes_is_one_program_of_ours_that_answers_on_loopback() -> None:
    started = supernode()
    assert list(started) == ["supernode"]
    node = started["supernode"]
    assert node.argv[1:4] == ("-P", "-m", "onefed.flower.node")
    assert (value_of(node, "--host"), value_of(node, "--port")) == ("127.0.0.1", "9094")


def test_supernode_in_subprocesses_is_flowers_own_and_starts_its_apps_itself() -> None:
    node = stock()
    assert node.argv[0].endswith("/flower-supernode")
    assert value_of(node, "--isolation") == "subprocess"
    assert value_of(node, "--superexec-auth-secret-file") is None
    assert (value_of(node, "--host"), value_of(node, "--port")) == ("127.0.0.1", "9094")


@pytest.mark.parametrize(
    ("variable", "flag"),
    [("FL_MAX_RETRIES", "--max-retries"), ("FL_MAX_WAIT_TIME", "--max-wait-time")],
)
def test_no_limit_leaves_the_flag_out(variable: str, flag: str) -> None:
    """Flower reads 0 as one try."""
    assert value_of(supernode()["supernode"], flag) is None
    assert value_of(supernode({variable: "0"})["supernode"], flag) is None
    assert value_of(supernode({variable: "7"})["supernode"], flag) == "7"


def test_the_node_config_is_one_argument() -> None:
    node = supernode(node_config='partition-id=1 site="north"')["supernode"]
    assert value_of(node, "--node-config") == 'partition-id=1 site="north"'
    assert "--node-config" not in supernode(node_config="")["supernode"].argv


# --- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("started", [superlink(), supernode()], ids=["superlink", "supernode"])
def test_every_program_has_a_log_a_name_and_a_limit_for_its_end(
    started: dict[str, Program],
) -> None:
    logs = [program.log for program in started.values()]
    assert logs == [PATHS.logs / f"{name}.log" for name in started]
    assert all(program.folder == PATHS.root for program in started.values())
    assert all(0 < program.stop_timeout_s <= 30 for program in started.values())
    ours = [program for name, program in started.items() if name != "gateway"]
    assert all(program.environment["BASE"] == "1" for program in ours)


def test_hostile_values_stay_single_arguments() -> None:
    """The table refuses such values; if one came through, it would still be one argument."""
    hostile = "x; touch /tmp/x $(id) `id` | & \n --insecure"
    link = dataclasses.replace(
        settings(context.Role.SUPERLINK), database=hostile, isolation=hostile, log_level=hostile
    )
    [program, *_] = programs.superlink(link, PATHS, {})
    assert value_of(program, "--isolation") == hostile
    database = value_of(program, "--database")
    assert database is not None
    assert database.endswith("--insecure")
    assert "--insecure" not in program.argv
    [node, *_] = supernode(endpoint=hostile, node_config=hostile).values()
    assert value_of(node, "--superlink") == hostile
    assert value_of(node, "--node-config") == hostile
    assert "--insecure" not in node.argv
    assert {"sh", "bash", "-c"}.isdisjoint({*program.argv, *node.argv})


def test_no_secret_is_in_an_argument_or_an_environment() -> None:
    key = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAw\n-----END PRIVATE KEY-----\n"
    chosen = dataclasses.replace(
        settings(context.Role.SUPERLINK),
        ssl_ca_pem=b"ca",
        ssl_certificate_pem=b"certificate",
        ssl_key_pem=key,
    )
    for program in (*programs.superlink(chosen, PATHS, {}), *supernode().values()):
        told = [*program.argv, *program.environment.values()]
        assert not [word for word in told if "PRIVATE" in word or "MC4CAQAw" in word]


def test_the_environment_is_made_and_not_inherited() -> None:
    planted = {
        "LD_PRELOAD": "/tmp/evil.so",
        "BASH_ENV": "/tmp/evil.sh",
        "PYTHONPATH": "/tmp/evil",
        "PYTHONSTARTUP": "/tmp/evil.py",
        "PATH": "/tmp/evil",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "ONE_AUTH": "oneadmin:secret",
        "FLWR_HOME": "/tmp/evil",
        "HTTPS_PROXY": "http://evil",
        "SSL_CERT_FILE": "/tmp/evil.pem",
    }
    made = programs.environment(
        PATHS,
        {**planted, "HOME": "/home/me", "TZ": "UTC"},
        state_folder=Path("/srv"),
        events=Path("/srv/events.jsonl"),
    )
    assert made["HOME"] == "/home/me"
    assert made["TZ"] == "UTC"
    assert not set(made.values()) & set(planted.values())
    assert set(made) & set(planted) == {"PATH", "FLWR_HOME"}
    assert made.items() >= FLOWER_ENVIRONMENT.items()
    assert (made["ONEFED_STATE_DIR"], made["ONEFED_EVENTS"]) == ("/srv", "/srv/events.jsonl")


def test_a_stock_supernode_outlives_the_minute_in_which_its_superlink_refuses_it() -> None:
    """Flower keeps a killed node's key for about 60 s; the pauses alone are longer than that.
    A node of ours is back at once."""
    assert supernode()["supernode"].early_deaths_more == 0
    assert stock().early_deaths_more == programs.SUPERNODE_EARLY_DEATHS_MORE
    early = process.EARLY_DEATHS_MAX + programs.SUPERNODE_EARLY_DEATHS_MORE
    pauses_s = [
        min(process.RESTART_DELAY_S * 2**number, process.RESTART_DELAY_MAX_S)
        for number in range(early - 1)
    ]
    assert sum(pauses_s) > 60


def test_whoever_keeps_a_program_learns_when_it_works_but_for_one_that_cannot_say() -> None:
    ours = superlink()
    assert ours["superlink"].worked_port == int(value_of(ours["superlink"], "--port") or 0)
    for program in (ours["superexec"], ours["supervisor"], supernode()["supernode"]):
        assert program.worked_file is not None
        assert program.environment["ONEFED_WORKED_FILE"] == str(program.worked_file)
    assert (stock().worked_file, stock().worked_port) == (None, None)
