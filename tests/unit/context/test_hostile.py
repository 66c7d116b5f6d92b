"""A corpus of hostile contexts, in both forms of file, and random ones (cases 1 to 5).

Each case is classified right, nothing of it runs, everything wrong is in one bounded report.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefed.context import (
    ContextError,
    Resolution,
    Role,
    parse_context_file,
    peer_settings,
    resolve,
    superlink_settings,
    supernode_settings,
)
from onefed.context.table import VARIABLES

REPORT_CHARS_MAX = 1024 * 1024

Write = Callable[[dict[str, bytes]], bytes]


def context_sh(values: dict[str, bytes]) -> bytes:
    """As OpenNebula writes it."""
    return b"".join(
        name.encode() + b"='" + value.replace(b"'", b"'\\''") + b"'\n"
        for name, value in values.items()
    )


def one_env(values: dict[str, bytes]) -> bytes:
    """As the guest agent writes it: nothing is escaped."""
    return b"".join(
        b"export " + name.encode() + b'="' + value + b'"\n' for name, value in values.items()
    )


FORMS = (context_sh, one_env)

HOSTILE_VALUES = {
    "substitution": b"$(touch %s)",
    "backticks": b"`touch %s`",
    "quotes": b"a'b\"c",
    "newline and unit": b"3\nExecStartPre=/bin/sh -c 'touch %s'",
    "specifier": b"%h/%i",
    "semicolon": b"3; touch %s",
    "flag": b"--insecure",
    "nul": b"3\0",
    "latin-1": b"\xe4\xf6",
    "escape sequence": b"\x1b[2J",
    "right to left": "\u202e3".encode(),
    "200 kilobytes": b"9" * 200_000,
    "mount": b"/app/c:/host:rw",
    "parent": b"../../etc",
    "comma": b"a,b",
}

FREE_TEXT = {"SSH_PUBLIC_KEY"}
"""Printable text of any form is a key to the guest agent, and nobody else reads it."""


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("case", HOSTILE_VALUES)
def test_a_hostile_value_is_refused_in_every_variable(
    case: str, write: Write, tmp_path: Path
) -> None:
    """All in one file: each of them is named in the one report, and nothing of it ran."""
    planted = tmp_path / "planted"
    value = HOSTILE_VALUES[case].replace(b"%s", str(planted).encode())
    for role in Role:
        rows = [row for row in VARIABLES.values() if role in row.appliances]
        names = {row.name for row in rows} - FREE_TEXT
        found = resolve(role, context_file=parse_context_file(write(dict.fromkeys(names, value))))
        report = "\n".join(str(finding) for finding in found.findings)
        refused = {finding.name for finding in found.errors}
        assert names <= refused or any("further problems" in str(e) for e in found.errors)
        assert len(report) < REPORT_CHARS_MAX
        assert all(line.isprintable() for line in report.splitlines())
    assert not planted.exists()


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_fifty_thousand_unknown_names_give_a_short_report(write: Write) -> None:
    flood = {f"FL_UNKNOWN_{index}": b"x" for index in range(50_000)}
    found = resolve(Role.SUPERLINK, context_file=parse_context_file(write(flood)))
    assert found.errors == ()
    assert len("\n".join(map(str, found.findings))) < REPORT_CHARS_MAX


@pytest.mark.parametrize("megabytes", [1, 10])
@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_megabytes_are_refused_and_the_rest_of_the_file_is_read(
    write: Write, megabytes: int
) -> None:
    found = resolve(
        Role.SUPERLINK,
        context_file=parse_context_file(
            write({"FL_RUN_CONFIG": b"x" * megabytes * 2**20, "FL_NUM_ROUNDS": b"7"})
        ),
    )
    assert found.values["FL_NUM_ROUNDS"].text == "7"
    assert [finding.severity.value for finding in found.errors] == ["ERROR"]


@pytest.mark.parametrize("name", ["BASH_ENV", "LD_PRELOAD", "PATH", "PYTHONPATH", "IFS"])
def test_names_that_steer_other_programs_are_nobodys(name: str) -> None:
    """They are read as data and reach no child: see ``programs.INHERITED``."""
    found = resolve(Role.SUPERLINK, context_file=parse_context_file(f"{name}='/evil'\n".encode()))
    assert found.findings == ()
    assert name not in found.values


NAMES = st.sampled_from([*VARIABLES, "ONEAPP_FL_NUM_ROUNDS", "fl_num_rounds", "FL_X", "PATH"])
NASTY = st.text(
    st.sampled_from(" '\"\\$`()\n\t;|&<>%={}#\0\x1b\u202e\udc80aAyYeEsSnNoO019.,:-/"), max_size=40
)


SETTINGS = {
    Role.SUPERLINK: superlink_settings,
    Role.SUPERNODE: supernode_settings,
    Role.PEER: peer_settings,
}


@pytest.mark.parametrize("role", Role)
@given(values=st.dictionaries(NAMES, NASTY, max_size=8), agent=st.booleans())
def test_any_context_ends_in_settings_or_in_one_complete_report(
    role: Role, values: dict[str, str], agent: bool
) -> None:
    raw = {name: text.encode("utf-8", "surrogateescape") for name, text in values.items()}
    given_file = parse_context_file((one_env if agent else context_sh)(raw))
    found = resolve(role, context_file=given_file)
    read: Callable[[Resolution], object] = SETTINGS[role]
    if found.errors:
        with pytest.raises(ContextError) as refused:
            read(found)
        assert refused.value.findings == found.errors
        assert all(line.isprintable() for line in str(refused.value).splitlines())
        return
    for text in vars(read(found)).values():
        assert not isinstance(text, str) or text.isprintable()
