"""Sources, aliases, unknown names, and what a report shows."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from onefed.context import (
    ContextError,
    Resolution,
    Role,
    Severity,
    Source,
    Value,
    parse_context_file,
    resolve,
    superlink_settings,
)
from onefed.context.resolve import UNKNOWN_FINDINGS_MAX

if TYPE_CHECKING:
    from conftest import Material


def in_file(text: str) -> Resolution:
    return resolve(Role.SUPERLINK, context_file=parse_context_file(text.encode()))


def test_nothing_given_gives_defaults_without_findings() -> None:
    for role in Role:
        resolution = resolve(role)
        assert resolution.findings == ()
        assert all(not value.is_set for value in resolution.values.values())
        assert all(value.source is Source.DEFAULT for value in resolution.values.values())


def test_stronger_sources_win() -> None:
    environment = {"FL_SEED": "1", "FL_NUM_ROUNDS": "1", "FL_MIN_FIT_CLIENTS": "1"}
    file = parse_context_file(b"FL_SEED='2'\nFL_NUM_ROUNDS='2'\n")
    explicit = {"FL_SEED": "3"}
    resolution = resolve(
        Role.SUPERLINK, explicit=explicit, context_file=file, environment=environment
    )
    assert resolution.findings == ()
    assert resolution.values["FL_SEED"] == Value("3", Source.EXPLICIT, is_set=True)
    assert resolution.values["FL_NUM_ROUNDS"] == Value("2", Source.FILE, is_set=True)
    assert resolution.values["FL_MIN_FIT_CLIENTS"] == Value("1", Source.ENVIRONMENT, is_set=True)


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_empty_is_not_set_in_any_source(empty: str) -> None:
    """OneFlow passes inputs that it does not expose as empty strings."""
    given = {"FL_NUM_ROUNDS": empty, "FL_SEED": empty}
    file = parse_context_file(f"FL_NUM_ROUNDS='{empty}'\nFL_SEED='5'\n".encode())
    resolution = resolve(Role.SUPERLINK, explicit=given, context_file=file, environment=given)
    assert resolution.values["FL_NUM_ROUNDS"] == Value("3", Source.DEFAULT, is_set=False)
    assert resolution.values["FL_SEED"] == Value("5", Source.FILE, is_set=True)


def test_values_are_trimmed_and_booleans_written_one_way() -> None:
    resolution = resolve(Role.SUPERLINK, explicit={"FL_TLS_ENABLED": " no\n", "FL_SEED": "\t4 "})
    assert resolution.errors == ()
    assert resolution.values["FL_TLS_ENABLED"].text == "NO"
    assert resolution.values["FL_SEED"].text == "4"


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("ONEAPP_FL_STRATEGY", "FL_STRATEGY"),
        ("oneapp_fl_strategy", "FL_STRATEGY"),
        ("OneApp_Fl_Strategy", "FL_STRATEGY"),
        ("ONEAPP_FL_AGG_STRATEGY", "FL_STRATEGY"),
        ("ONEAPP_FLOWER_VERSION", "FLOWER_VERSION"),
        ("FL_FEDPROX_MU", "FL_PROXIMAL_MU"),
        ("FL_BYZANTINE_CLIENTS", "FL_NUM_MALICIOUS"),
        ("FL_TRIM_RATIO", "FL_TRIM_BETA"),
        ("ONEAPP_FL_SEED", "FL_SEED"),
    ],
)
def test_aliases_set_the_canonical_variable(given: str, canonical: str) -> None:
    values = resolve(Role.SUPERLINK, environment={given: "bad value"}).findings
    assert canonical in {finding.name for finding in values if finding.rule}


@pytest.mark.parametrize(
    "given",
    ["ONEAPP_FL_FRAMEWORK", "FL_FRAMEWORK", "ONEAPP_FL_ML_FRAMEWORK", "ONEAPP_ML_FRAMEWORK"],
)
def test_aliases_of_the_framework(given: str) -> None:
    resolution = resolve(Role.SUPERNODE, environment={given: "sklearn"})
    assert resolution.values["ML_FRAMEWORK"].text == "sklearn"


def test_canonical_name_wins_over_an_alias_with_a_warning_where_they_differ() -> None:
    resolution = in_file("ONEAPP_FL_SEED='1'\nFL_SEED='2'\n")
    assert resolution.values["FL_SEED"].text == "2"
    [finding] = resolution.findings
    assert finding.severity is Severity.WARNING
    assert "FL_SEED counts" in finding.message
    assert in_file("ONEAPP_FL_SEED='2'\nFL_SEED='2'\n").findings == ()
    assert in_file("ONEAPP_FL_SEED='2'\nFL_SEED=''\n").values["FL_SEED"].text == "2"


def test_an_alias_in_a_stronger_source_wins() -> None:
    resolution = resolve(
        Role.SUPERLINK, explicit={"ONEAPP_FL_SEED": "1"}, environment={"FL_SEED": "2"}
    )
    assert resolution.values["FL_SEED"].text == "1"
    assert resolution.findings == ()


@pytest.mark.parametrize(
    "name", ["FL_NUM_ROUND", "ONEAPP_FL_ROUNDS", "fl_num_rounds", "FL_RESUME_ROUND"]
)
def test_unknown_name_is_a_warning_that_names_the_nearest(name: str) -> None:
    [finding] = in_file(f"{name}='5'\n").findings
    assert finding.severity is Severity.WARNING
    assert "did you mean FL_NUM_ROUNDS?" in finding.message


def test_unknown_explicit_name_is_an_error_whatever_it_is() -> None:
    explicit = {"FL_NUM_ROUND": "5", "TLS_CERT": "x", "QQQ": "1"}
    first, second, third = resolve(Role.SUPERLINK, explicit=explicit).errors
    assert "FL_NUM_ROUNDS" in first.message
    assert "FL_SSL_CERTFILE" in second.message
    assert "docs/context.md" in third.message


def test_names_of_others_are_ignored() -> None:
    assert in_file("ETH0_IP='10.0.0.1'\nONEAPP_VROUTER_ETH0='x'\n").findings == ()
    others = {"PATH": "/bin", "BASH_ENV": "x", "LD_PRELOAD": "y", "TLS_ENABLED": "maybe"}
    assert resolve(Role.SUPERLINK, environment=others).findings == ()


def test_many_unknown_names_give_a_bounded_report() -> None:
    resolution = in_file("".join(f"FL_{'Q' * 500}{index}='1'\n" for index in range(5000)))
    assert len(resolution.findings) == UNKNOWN_FINDINGS_MAX + 1
    assert "4980 further unknown variables" in resolution.findings[-1].message
    assert sum(len(str(finding)) for finding in resolution.findings) < 10_000


def test_value_of_an_unknown_name_is_not_shown() -> None:
    """A misspelt FL_SSL_KEYFILE holds a key."""
    findings = in_file("FL_SSL_KEYFIEL='c2VjcmV0'\n").findings
    assert "c2VjcmV0" not in "".join(map(str, findings))


def test_variable_of_the_other_appliance_is_ignored_with_an_info() -> None:
    resolution = resolve(Role.SUPERNODE, explicit={"FL_NUM_ROUNDS": "not checked"})
    [finding] = resolution.findings
    assert (finding.severity, finding.name) == (Severity.INFO, "FL_NUM_ROUNDS")
    assert "FL_NUM_ROUNDS" not in resolution.values


def test_platform_variables_are_not_taken_from_the_environment() -> None:
    """On a laptop ``TOKEN`` is somebody else's, and secret."""
    resolution = resolve(Role.SUPERNODE, environment={"TOKEN": "ghp_x", "NETWORK": "host"})
    assert resolution.findings == ()
    assert not resolution.values["TOKEN"].is_set
    assert in_file("TOKEN='no'\n").values["TOKEN"] == Value("NO", Source.FILE, is_set=True)


def test_all_errors_are_reported_at_once(material: Material) -> None:
    file = parse_context_file(
        b"FL_NUM_ROUNDS='$(touch x)'\nFL_STRATEGY='Krum\nExecStartPre=id'\n"
        b"FL_DATABASE='\xff'\nFL_LOG_FORMAT='xml\n"
    )
    resolution = resolve(
        Role.SUPERLINK,
        explicit={"FL_SEEED": "1", "FL_TLS_ENABLED": "on", "FL_RUN_CONFIG": "seed=1"},
        context_file=file,
        environment={"FL_FLEET_API_ADDRESS": "9092", "FL_SSL_CERTFILE": material.certificate},
    )
    with pytest.raises(ContextError) as caught:
        superlink_settings(resolution)
    error = caught.value
    assert error.exit_code == 3
    assert [finding.name for finding in error.findings] == [
        "FL_DATABASE",
        "FL_LOG_FORMAT",
        "FL_SEEED",
        "FL_NUM_ROUNDS",
        "FL_STRATEGY",
        "FL_FLEET_API_ADDRESS",
        "FL_TLS_ENABLED",
        "FL_RUN_CONFIG",
    ]
    lines = error.message.splitlines()
    assert lines[:-1] == [str(finding) for finding in error.findings]
    assert lines[-1] == "8 configuration errors."
    assert lines[3] == (
        "Invalid FL_NUM_ROUNDS: '$(touch x)' (from context file, line 1). "
        "It must be a positive integer (decimal digits only). Example: FL_NUM_ROUNDS=10"
    )


def test_alias_and_line_of_a_bad_value_are_named() -> None:
    [error] = in_file("\nONEAPP_FL_SEED='x'\n").errors
    assert "(from context file, line 2, as ONEAPP_FL_SEED)" in error.message


def test_escapes_are_visible_and_long_values_cut() -> None:
    [error] = resolve(Role.SUPERLINK, explicit={"FL_STRATEGY": "\x1b[31mKrum\n" + "x" * 900}).errors
    assert error.shown.startswith("'\\x1b[31mKrum\\nxxx")
    assert error.shown.endswith("... (910 characters)")
    assert len(error.shown) < 100


def test_secrets_and_files_are_never_shown(material: Material) -> None:
    pem = base64.b64decode(material.key)
    given = {
        "FL_SSL_KEYFILE": material.key[:-8],
        "FL_SSL_CA_CERTFILE": material.key,
        "FL_SSL_CERTFILE": pem.decode(),
        "TOKEN": "ghp_planted",
    }
    resolution = resolve(Role.SUPERLINK, explicit=given)
    assert {error.name for error in resolution.errors} == given.keys()
    error = ContextError(resolution.errors)
    report = f"{error} {error!r} {resolution.findings}"
    for secret in (material.key[40:80], pem.decode().splitlines()[1], "ghp_planted"):
        assert secret not in report
    assert all(finding.shown == "<hidden>" for finding in resolution.errors)


@pytest.mark.parametrize("value", ["1\n2", "1\0", "1\u202e", "1\x7f", "\udcff"])
def test_control_and_invisible_characters_are_refused(value: str) -> None:
    for name in ("FL_NODE_CONFIG", "FL_SUPERLINK_ADDRESS"):
        [error] = resolve(Role.SUPERNODE, explicit={name: value}).errors
        assert "no line breaks, control or invisible characters" in error.message
        assert error.message.isprintable()
