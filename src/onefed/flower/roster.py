"""Who may connect: every node key the coordinator has admitted or refused, on disk.

Flower's database is not enough: it may be made anew, it never says no to a key for good, and it
knows nothing of tokens. What the roster says holds over restarts and resumes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from onefed.checkpoint import files
from onefed.errors import ExitCode, OnefedError
from onefed.tls import node_keys

FORMAT = 1

MEMBERS_MAX = 10_000
TOKENS_MAX = 1_000
"""Those that have expired make room."""

FINGERPRINT_SHOWN = 16
"""Hex digits of a key's fingerprint that make the client key of a node without a partition."""

PREFIX_MIN = 8
"""Hex digits of a fingerprint that name a key."""

Source = Literal["service", "operator", "token"]
Standing = Literal["admitted", "replaced", "revoked"]


class RefusedKeyError(OnefedError):
    """A key may not connect."""

    exit_code = ExitCode.CONFIG

    def __init__(self, message: str, *, hint: str | None = None, for_good: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.for_good = for_good
        """Waiting does not help: the operator has to do something."""


class UnknownMemberError(OnefedError):
    """No node of that name."""

    exit_code = ExitCode.NOT_FOUND


@dataclass(frozen=True)
class Member:
    """A node key and what was decided about it."""

    fingerprint: str
    public_key: str
    """OpenSSH text."""
    client: str
    """Client key of its node: the partition, else the beginning of the fingerprint."""
    source: Source
    """Why it was admitted: a machine of the service, the operator's list, a token."""
    vm_id: str = ""
    """Of the machine, for those of the service."""
    standing: Standing = "admitted"


@dataclass(frozen=True)
class Token:
    """An enrolment token, without the token."""

    sha256: str
    expires_at: str
    """ISO 8601."""
    client: str = ""
    """Client key that its node will have; empty: by its own key."""
    used_by: str = ""
    """Fingerprint of the key that came with it."""


class Roster:
    """The roster of one coordinator; on disk after every change."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        """
        Args:
            now: aware; tokens expire by it.

        Raises:
            StorageError: the file is damaged. An empty roster in its place would forget who is
                refused.
        """
        self._path = path
        self._now = now
        self._members: dict[str, Member] = {}
        self._tokens: dict[str, Token] = {}
        if path.exists():
            self._read()

    def members(self) -> tuple[Member, ...]:
        """Every key, in the order in which they came."""
        return tuple(self._members.values())

    def get(self, fingerprint: str) -> Member | None:
        return self._members.get(fingerprint)

    def find(self, name: str) -> Member:
        """The member that a person means: by client key, or by the beginning of a fingerprint.

        Raises:
            UnknownMemberError: nobody is, or several are.
        """
        found = [each for each in self._members.values() if each.client == name]
        # A client has one key at a time; those before it are history.
        found = [each for each in found if each.standing == "admitted"] or found[-1:]
        if not found and len(name) >= PREFIX_MIN:
            found = [each for each in self._members.values() if each.fingerprint.startswith(name)]
        if len(found) != 1:
            raise UnknownMemberError(
                f"{'No node' if not found else 'More than one node'} is called {name!r}.",
                hint="Name a client key, or the beginning of a fingerprint: onefed nodes list",
            )
        return found[0]

    def admit(
        self, public_key: bytes, *, source: Source, partition: str = "", vm_id: str = ""
    ) -> Member:
        """Admit a key, unless something speaks against it; the same key again changes nothing.

        Args:
            public_key: OpenSSH text.

        Raises:
            RefusedKeyError: it was revoked, or its machine was.
        """
        fingerprint = node_keys.fingerprint(public_key)
        known = self._members.get(fingerprint)
        if known is not None:
            if known.standing != "admitted":
                raise RefusedKeyError(
                    f"the key {fingerprint[:FINGERPRINT_SHOWN]} was {known.standing}",
                    hint="Give the node a new key: onefed nodes replace",
                    for_good=known.standing == "revoked",
                )
            return known
        if vm_id:
            for each in self._members.values():
                if each.vm_id == vm_id and each.standing == "revoked":
                    raise RefusedKeyError(
                        f"its node {each.client} was revoked",
                        hint=f"Admit its new key: onefed nodes replace {each.client}",
                        for_good=True,
                    )
        if len(self._members) >= MEMBERS_MAX:
            raise RefusedKeyError(f"there are {MEMBERS_MAX} node keys already")
        member = Member(
            fingerprint=fingerprint,
            public_key=public_key.decode("ascii"),
            client=partition or fingerprint[:FINGERPRINT_SHOWN],
            source=source,
            vm_id=vm_id,
        )
        self._members[fingerprint] = member
        self._save()
        return member

    def admitted_of(self, vm_id: str) -> Member | None:
        """The key that a machine of the service has now."""
        found = [m for m in self._members.values() if m.vm_id == vm_id and m.standing == "admitted"]
        return found[-1] if found else None

    def revoke(self, member: Member) -> None:
        """Refuse a key from now on, and any other of the same machine."""
        self._members[member.fingerprint] = replace(member, standing="revoked")
        self._save()

    def replace(self, member: Member, public_key: bytes) -> Member:
        """Give a node another key: it stays the same client.

        Raises:
            RefusedKeyError: the key is another node's, or was refused before.
        """
        fingerprint = node_keys.fingerprint(public_key)
        if fingerprint in self._members:
            raise RefusedKeyError(
                f"The key {fingerprint[:FINGERPRINT_SHOWN]} is known already.",
                hint="A key belongs to one node, for good: make a new one.",
            )
        made = replace(
            member,
            fingerprint=fingerprint,
            public_key=public_key.decode("ascii"),
            standing="admitted",
        )
        self._members[member.fingerprint] = replace(member, standing="replaced")
        for key, each in self._members.items():
            if member.vm_id and each.vm_id == member.vm_id and each.standing == "revoked":
                self._members[key] = replace(each, standing="replaced")
        self._members[fingerprint] = made
        self._save()
        return made

    def add_token(self, sha256: str, *, expires_at: datetime, client: str) -> None:
        """Remember a token by its digest."""
        kept = {k: t for k, t in self._tokens.items() if self._is_valid(t)}
        if len(kept) >= TOKENS_MAX:
            raise RefusedKeyError(
                f"There are {TOKENS_MAX} tokens that have not expired.", hint="Wait, or use them."
            )
        self._tokens = {**kept, sha256: Token(sha256, expires_at.isoformat(), client)}
        self._save()

    def enrol(self, token_sha256: str, public_key: bytes) -> Member:
        """Admit a key for a token, once; the same key again is an answer that was lost.

        Raises:
            RefusedKeyError: no such token, expired, used by another key, or the key is refused.
        """
        found = self._tokens.get(token_sha256)
        fingerprint = node_keys.fingerprint(public_key)
        if found is None or not self._is_valid(found):
            raise RefusedKeyError("the token is unknown or has expired")
        if found.used_by not in ("", fingerprint):
            raise RefusedKeyError("the token was used by another key")
        member = self.admit(public_key, source="token", partition=found.client)
        if not found.used_by:
            self._tokens[found.sha256] = replace(found, used_by=fingerprint)
            self._save()
        return member

    def _is_valid(self, token: Token) -> bool:
        return self._now() < datetime.fromisoformat(token.expires_at).astimezone(UTC)

    def _save(self) -> None:
        document = {
            "format": FORMAT,
            "members": [asdict(each) for each in self._members.values()],
            "tokens": [asdict(each) for each in self._tokens.values()],
        }
        files.write_json(self._path, document, mode=0o600)

    def _read(self) -> None:
        document = files.read_json(self._path)
        try:
            if not isinstance(document, dict) or document["format"] != FORMAT:
                raise ValueError("it is not a roster that this version reads")
            members = [Member(**_texts(each, Member)) for each in document["members"]]  # type: ignore[arg-type]
            tokens = [Token(**_texts(each, Token)) for each in document["tokens"]]
        except (KeyError, TypeError, ValueError) as error:
            raise files.DamagedError(self._path, f"it is not a roster: {error}") from error
        self._members = {each.fingerprint: each for each in members}
        self._tokens = {each.sha256: each for each in tokens}


def _texts(document: dict[str, object], kind: type) -> dict[str, str]:
    """The fields of a record; all are text."""
    known = {entry.name for entry in fields(kind)}
    if not all(isinstance(value, str) for value in document.values()):
        raise ValueError("a field is not text")
    return {name: str(value) for name, value in document.items() if name in known}
