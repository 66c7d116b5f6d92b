"""What a node's server shows and whom it trusts, as gRPC asks for it at every connection.

gRPC asks from its own threads, one at a time, before it has heard a byte. Whatever it is told anew
replaces what it has, and it frees that although another thread may just begin a handshake with it
(1.85, ``SslServerSecurityConnector``): told anew at every connection, two at once end the process.
So it is told only what has changed, and only once those that were told before have begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from onefed.node.contact import Contact
from onefed.peer.messages import NodeId
from onefed.tls.member_identity import MemberIdentity

SETTLE_S = 0.1
"""From being told that nothing has changed, a handshake has begun within microseconds. Other
connections wait as long, once for each change of the roster."""


class Pins:
    """See the module."""

    def __init__(
        self,
        identity: MemberIdentity,
        contacts: Callable[[], Mapping[NodeId, Contact]],
        pause: Callable[[float], object] | None = None,
    ) -> None:
        """
        Args:
            contacts: asked in any thread.
            pause: None: not ``time.sleep``, which libfaketime breaks; the campaigns step clocks so.
        """
        self._identity = identity
        self._contacts = contacts
        self._pause = pause or threading.Event().wait
        self._told = self._trusted()

    def credentials(self) -> Any:
        """Of a server that asks for a certificate, and takes none but these."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), self.changed, require_client_authentication=True
        )

    def changed(self) -> Any:
        """What gRPC has to know; None: what it was told still holds."""
        trusted = self._trusted()
        if trusted == self._told:
            return None
        self._pause(SETTLE_S)
        self._told = trusted
        return self._configuration()

    def _trusted(self) -> bytes:
        certificates = [contact.certificate for contact in self._contacts().values()]
        # Without any the handshake would trust the system's authorities.
        return b"".join(certificates) or self._identity.certificate

    def _configuration(self) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(self._identity.private_key, self._identity.certificate)], self._told
        )
