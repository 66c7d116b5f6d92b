"""Who may connect to a node, and who may come onto the roster: pinned by certificate."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onefed.node import codec, contact
from onefed.node.contact import Contact
from onefed.peer.messages import Member, NodeId, Roster


class Members:
    """As one node knows them; itself is not among them."""

    def __init__(self, own: NodeId) -> None:
        self._own = own
        self._listed: dict[NodeId, Contact] = {}
        self._roster: dict[NodeId, Contact] = {}
        self._former: dict[NodeId, Contact] = {}
        """Of the roster before: who was taken off is told so."""
        self._usable: Roster = ()
        """The roster that was looked at last."""

    def list(self, member: Member) -> None:
        """The operator lets a member in: its certificate is pinned as it is given here."""
        if member.node != self._own:
            self._listed[member.node] = contact.of(member)

    def strike(self, name: NodeId) -> None:
        """The operator lets a member in no more, once it is on no roster."""
        self._listed.pop(name, None)

    def learn(self, roster: Roster) -> None:
        """A roster was committed."""
        self._former = self._roster
        self._roster = {each.node: contact.of(each) for each in roster if each.node != self._own}

    @property
    def listed(self) -> Mapping[NodeId, Contact]:
        """By the operator, on the roster or not."""
        return self._listed

    def contacts(self) -> Mapping[NodeId, Contact]:
        """Who may connect now. What is committed counts before what the operator has listed."""
        return {**self._former, **self._listed, **self._roster}

    def conditions(self, lost: Collection[NodeId]) -> Mapping[NodeId, str]:
        """Every other member and how it is, ``live`` or ``lost``."""
        return {name: "lost" if name in lost else "live" for name in sorted(self.contacts())}

    def require(self, sender: NodeId, *, over: bool = False) -> None:
        """Whatever the transport has let in; what comes over another member may be our own.

        Raises:
            CodecError: it is no member.
        """
        if sender not in self.contacts() and not (over and sender == self._own):
            raise codec.CodecError("It is no member.")

    def require_listed(self, member: Member) -> None:
        """Only whom the operator has listed, and as he did, may come onto the roster."""
        known = {**self._listed, **self._roster}.get(member.node)  # who was taken off is not
        if known is None or known.member(member.node) != member:
            raise codec.CodecError(f"{member.node} is not listed like that.")

    def require_usable(self, roster: Roster) -> None:
        """Only a roster whose members can be reached may be agreed on: it will be read back."""
        if roster == self._usable:
            return
        try:
            for each in roster:
                contact.of(each)
        except contact.ContactError as error:
            raise codec.CodecError(error.message) from error
        self._usable = roster
