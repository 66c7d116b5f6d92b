"""What people may ask a running supervisor for, by the files of ``mailbox``.

========== ============================== ======================================================
kind       needs                          answer
========== ============================== ======================================================
nodes      nothing                        ``nodes``: a list of all keys
revoke     ``node``                       ``fingerprint``, ``client``
replace    ``node``, ``public_key`` or "" ``fingerprint``, ``client`` of the new key
token      ``sha256``, ``lifetime_s``,    ``expires_at``
           ``client`` or ""
enrol      ``sha256``, ``public_key``     ``fingerprint``, ``client``
runs       nothing                        ``runs``: a list, the newest first
stop       nothing                        ``run``
submit     ``file`` in the mailbox,       ``run``
           ``run_config``
========== ============================== ======================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from onefed.checkpoint import files
from onefed.errors import ExitCode, NotFoundError, OnefedError
from onefed.flower import adapter, bundle, mailbox
from onefed.flower.instructions import Instructions
from onefed.flower.registration import Registrar
from onefed.flower.roster import Member, Roster
from onefed.flower.run_watch import ENDED, RunWatch
from onefed.tls import enrolment, node_keys

FAB_BYTES_MAX = 16 * 2**20

_FILE = re.compile(r"[0-9a-f]{32}\.fab")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BadRequestError(OnefedError):
    """A request is not what its kind needs."""

    exit_code = ExitCode.USAGE


class Desk:
    """Does what was asked for; ``look`` is called again and again."""

    def __init__(
        self,
        told: Instructions,
        roster: Roster,
        nodes: Registrar,
        run: RunWatch,
        *,
        control: adapter.Control,
        now: Callable[[], datetime],
    ) -> None:
        """
        Args:
            now: aware; tokens expire by it.
        """
        self._told = told
        self._roster = roster
        self._nodes = nodes
        self._run = run
        self._control = control
        self._now = now
        self._handlers: Mapping[str, mailbox.Handler] = {
            "nodes": self._list_nodes,
            "revoke": self._revoke,
            "replace": self._replace,
            "token": self._token,
            "enrol": self._enrol,
            "runs": self._list_runs,
            "stop": self._stop,
            "submit": self._submit,
        }

    def look(self) -> None:
        """Do what was asked for since the last look."""
        mailbox.serve(self._told.requests, self._handlers)

    def _list_nodes(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"nodes": [self._row(member) for member in self._roster.members()]}

    def _row(self, member: Member) -> dict[str, str]:
        node = self._nodes.node(member.fingerprint)
        state = member.standing if node is None or member.standing != "admitted" else node.status
        return {
            "client": member.client,
            "fingerprint": member.fingerprint,
            "source": member.source,
            "state": state,
            "seen_at": "" if node is None else node.seen_at,
        }

    def _revoke(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        member = self._roster.find(_text(request, "node"))
        self._roster.revoke(member)
        return _named(member)

    def _replace(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        member = self._roster.find(_text(request, "node"))
        given = _text(request, "public_key")
        if given:
            key = node_keys.normal(given.encode(), source="the new key")
        else:
            published = self._nodes.pending_of(member)
            if published is None:
                raise NotFoundError(
                    f"The machine of node {member.client} publishes no other key.",
                    hint="Give the new public key with --key FILE.",
                )
            key = published
        return _named(self._roster.replace(member, key))

    def _token(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._told.enrolment_socket is None:
            raise NotFoundError(
                "This federation has no gateway, so no node can show a token.",
                hint="Start it with --set FL_GATEWAY=always, or on an address that others reach.",
            )
        lifetime_s = request.get("lifetime_s")
        if not isinstance(lifetime_s, int) or not 0 < lifetime_s <= enrolment.LIFETIME_S_MAX:
            raise BadRequestError(f"A token lives for 1 to {enrolment.LIFETIME_S_MAX} seconds.")
        expires_at = self._now() + timedelta(seconds=lifetime_s)
        client = _text(request, "client")
        if not re.fullmatch(r"[0-9]{0,9}", client):
            raise BadRequestError("A partition is a number.")
        self._roster.add_token(_sha256(request), expires_at=expires_at, client=client)
        return {"expires_at": expires_at.isoformat(timespec="seconds")}

    def _enrol(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        key = node_keys.normal(_text(request, "public_key").encode(), source="the node's key")
        return _named(self._roster.enrol(_sha256(request), key))

    def _list_runs(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "run": self._run.run,
            "status": self._run.status,
            "runs": [
                {
                    "run_id": str(run_id),
                    "submitted_at": submitted_at,
                    "status": status.sub_status or status.status,
                    "details": status.details,
                }
                for run_id, submitted_at, status in self._control.runs()
            ],
        }

    def _stop(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._run.status in ENDED or self._run.is_idle:
            raise NotFoundError("No run is under way.", hint="See: onefed runs")
        self._told.stop_request.touch()
        return {"run": self._run.run}

    def _submit(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        name, asked = _text(request, "file"), request.get("run_config")
        if not _FILE.fullmatch(name) or not isinstance(asked, dict):
            raise BadRequestError("An app is submitted as a file in the mailbox.")
        with files.open_regular(self._told.requests / name) as stream:
            fab = stream.read(FAB_BYTES_MAX + 1)
        packed = bundle.unpack(fab)
        unknown = sorted(asked.keys() - packed.run_config.keys())
        if unknown:
            raise BadRequestError(f"The app has no setting {', '.join(unknown)}.")
        return {"run": self._run.submit(fab, asked)}


def _named(member: Member) -> dict[str, str]:
    return {"fingerprint": member.fingerprint, "client": member.client}


def _text(request: Mapping[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise BadRequestError(f"The request needs {name}, a text.")
    return value


def _sha256(request: Mapping[str, Any]) -> str:
    value = _text(request, "sha256")
    if not _SHA256.fullmatch(value):
        raise BadRequestError("A token is given by its SHA-256.")
    return value
