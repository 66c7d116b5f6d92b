"""What goes wrong with certificates and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onefed.errors import ExitCode, OnefedError

if TYPE_CHECKING:
    from pathlib import Path


class TlsError(OnefedError):
    """A virtual machine cannot get the certificates or keys that it needs."""

    exit_code = ExitCode.BOOT


class TlsMaterialError(TlsError):
    """Certificates, keys or names that somebody gave us cannot be used."""

    exit_code = ExitCode.CONFIG


class CaChangedError(TlsError):
    """A node was offered another authority than the one it has trusted so far, and kept the old."""

    def __init__(self, path: Path, *, pinned: str, offered: str) -> None:
        super().__init__(
            f"The offered CA certificate is not of the authority pinned in {path}: "
            f"pinned key {pinned}, offered key {offered}. The pinned one was kept.",
            hint="If the coordinator was deployed anew on purpose, put its CA certificate into "
            f"FL_SSL_CA_CERTFILE or delete {path}; otherwise somebody may be in its place.",
        )
        self.path = path
        self.pinned = pinned
        """SHA-256, hex, of the public key that stays trusted."""
        self.offered = offered
        """SHA-256, hex, of the public key that was refused."""
