"""What a node has learned: its model, what its app keeps for itself, and their checkpoints.

Checkpoints are written beside the node's one task, one after the other in a thread of their own.
What others keep is packed and unpacked in another. A round waits for neither, and a checkpoint that
cannot be written is a warning: what the protocol promises is in the journal and in the models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from onefed.arrays import Arrays
from onefed.checkpoint.files import DamagedError
from onefed.errors import OnefedError, StorageError
from onefed.node.checkpoints import parcel as packing
from onefed.node.checkpoints.backlog import Backlog
from onefed.node.checkpoints.file import About, Checkpoint, Kind, as_remote
from onefed.node.checkpoints.folder import Folder
from onefed.node.codec import CodecError
from onefed.node.contact import family
from onefed.node.content import Content
from onefed.node.store import ROOT, Store
from onefed.node.training import Task, Trained
from onefed.node.transport import Transport
from onefed.node.work import Work
from onefed.node.world import NodeState, World
from onefed.peer.interface import Event, Pack, Packed
from onefed.peer.messages import Digest, Entry, NodeId, Parcel
from onefed.peer.settings import Saved
from onefed.telemetry import events

T = TypeVar("T")


@runtime_checkable
class Judge(Protocol):
    """An app that can tell how good a model is."""

    def evaluate(self, model: Arrays) -> Mapping[str, float]:
        """Its measures by name; empty: it has none."""
        ...


class Learner:
    """Of one node."""

    def __init__(
        self,
        name: NodeId,
        app: object,
        content: Content,
        store: Store,
        work: Work,
        world: World,
        checkpoints: Folder,
        state: Callable[[], NodeState],
        around: Callable[[], Mapping[str, Any]],
        put: Callable[[Event], None],
    ) -> None:
        """Make one.

        Args:
            app: judges models, where it is a ``Judge``.
            around: neighbours and settings, for ``round_finished``.
            put: takes events for the machine.
        """
        self.checkpoints = checkpoints
        self._name = name
        self._app = app
        self._content = content
        self._store = store
        self._work = work
        self._world = world
        self._state = state
        self._around = around
        self._put = put
        self._outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._saver = ThreadPoolExecutor(1, "checkpoints")
        self._packer = ThreadPoolExecutor(1, "parcels")
        self._backlog = Backlog()
        self._is_writing = False
        self._left_out = 0
        """Checkpoints that were not saved, for want of time."""
        self._packing: dict[Parcel, asyncio.Task[bytes | None]] = {}
        """Being packed; both who are to keep it get the same bytes."""
        self.model: Arrays | None = None
        """The newest that was installed or restored."""
        self._trained: Checkpoint | None = None
        """The newest ``local`` of this life."""
        self._kept: dict[NodeId, Parcel] = {}
        """What was taken last of each other node; it is on this disk."""

    @property
    def parameters(self) -> Arrays:
        """The newest model that was installed or restored; before both, the first. Read only."""
        return self._content.model(self._content.first()) if self.model is None else self.model

    def close(self) -> None:
        """Take no more work; a file that is being written is finished or has no name."""
        for each in (self._saver, self._packer):
            each.shutdown(wait=False, cancel_futures=True)

    # What people call

    async def restore(self, checkpoint: Checkpoint) -> None:
        """Take what a checkpoint holds; what the app keeps for itself, only where none is newer."""
        self.model = checkpoint.model
        await self._take_private(checkpoint)

    async def save(
        self, kind: Kind, round_number: int, state: NodeState, *, include_evaluation: bool = False
    ) -> Path:
        """Write a checkpoint of what the node has now; raises ``StorageError``."""
        model, metrics = self.parameters, {}
        if include_evaluation and isinstance(self._app, Judge):
            metrics = dict(await asyncio.to_thread(self._app.evaluate, model))
        about = self._about(kind, round_number, state, metrics=metrics)
        return await self._write(Checkpoint(about, model, self._work.private))

    # What the node calls

    async def trained(self, task: Task, base: Digest, made: Trained) -> None:
        """After training: ``local``."""
        about = self._about(Kind.LOCAL, task.round_number, self._state(), base=base)
        self._trained = Checkpoint(about, made.model, made.private)
        await self._save_in_turn(self._trained)

    async def accepted(self, entry: Entry) -> None:
        """After aggregation: ``aggregated``."""
        content = await self._work.model(entry.root)
        await self._save_in_turn(
            Checkpoint(self._of_entry(Kind.AGGREGATED, entry), self._content.model(content))
        )

    async def finished(self, entry: Entry, model: Arrays) -> None:
        """At the end of a round: ``round_finished``."""
        state = self._state()
        about = self._of_entry(
            Kind.ROUND_FINISHED,
            entry,
            {"rounds_total": state.rounds_total, "epochs": state.epochs, **self._around()},
        )
        await self._save_in_turn(Checkpoint(about, model, self._work.private))

    async def pack(self, action: Pack) -> None:
        """Have ready on this disk what others are to keep."""
        own = self._trained
        if own is None or own.about.round_number != action.round_number:
            # It gave no update to that round, or has started since.
            model = self._content.model(await self._work.model(action.base))
            about = self._about(Kind.LOCAL, action.round_number, self._state(), base=action.base)
            own = Checkpoint(about, model, self._work.private)
        self._trained = own
        self.checkpoints.promised = action.round_number
        if await self._save(own):
            self._put(Packed(action.round_number, action.base, own.digest))

    async def send(self, to: NodeId, parcel: Parcel, transport: Transport) -> None:
        """Give a parcel to a node that may have it."""
        if parcel.node != self._name and family(to) != family(parcel.node):
            return  # it is not to have it
        packing_now = self._packing.get(parcel)
        if packing_now is None:
            packing_now = asyncio.get_running_loop().create_task(self._parcel_bytes(parcel))
            self._packing[parcel] = packing_now
            packing_now.add_done_callback(lambda _: self._packing.pop(parcel, None))
        content = await asyncio.shield(packing_now)
        if content is not None:
            transport.carry(to, parcel, content)

    async def _parcel_bytes(self, parcel: Parcel) -> bytes | None:
        """Of this node's, or of one that is kept for another."""
        kind = Kind.LOCAL if parcel.node == self._name else Kind.REMOTE
        base = None
        try:
            found = await self._do(
                self._packer, self.checkpoints.read, parcel.node, parcel.round_number, kind
            )
            if parcel.base:
                base = self._content.model(await self._work.model(parcel.base))
        except StorageError as error:
            self._warn(error)
            return None
        return await self._do(self._packer, packing.pack, found, base)

    async def take(self, sender: NodeId, parcel: Parcel, content: bytes) -> bool:
        """Keep a parcel, durably; False: it cannot be kept here.

        Raises:
            CodecError: it is not what it says, or not the sender's to give.
        """
        if sender != parcel.node and family(self._name) != family(parcel.node):
            raise CodecError(f"A parcel of {parcel.node}.")
        if parcel.base and not ROOT.fullmatch(parcel.base):
            raise CodecError("A parcel that is the difference from no model.")
        if self._kept.get(parcel.node) == replace(parcel, base=""):
            return True  # the sender has not heard of it yet
        base = None
        if parcel.base:
            try:
                base = self._content.model(await self._work.model(parcel.base))
            except StorageError:
                return False  # it comes whole, the next time
        found = await self._do(self._packer, packing.unpack, content, self.parameters, base)
        about = found.about
        told = (about.node, about.round_number, found.digest)
        if told != (parcel.node, parcel.round_number, parcel.digest):
            raise CodecError(f"A parcel that is not the one of {parcel.node} that it is named.")
        if about.experiment != self.checkpoints.experiment:
            raise CodecError(f"A parcel of the experiment {about.experiment[:64]!r}.")
        if not await self._save(as_remote(found), self._packer):
            return False
        self._kept[parcel.node] = replace(parcel, base="")
        return True

    async def restore_parcel(self, parcel: Parcel) -> None:
        """Take for one's own what another node has kept; it is on this disk by now."""
        found = await asyncio.to_thread(
            self.checkpoints.read, parcel.node, parcel.round_number, Kind.REMOTE
        )
        await self.restore(found)
        self.restored(done=True)

    def restored(self, *, done: bool) -> None:
        """Whether what others have kept is here now; it is known once."""
        if not self._outcome.done():
            self._outcome.set_result(done)

    def failed(self, error: OnefedError) -> None:
        """The node has ended: whoever waits for what others have kept is told."""
        if not self._outcome.done():
            self._outcome.set_exception(error)
            self._outcome.exception()  # perhaps nobody waits

    async def was_restored(self) -> bool:
        """Wait until that is known.

        Raises:
            OnefedError: the node has failed before.
        """
        return await asyncio.shield(self._outcome)

    def with_parcels(self, saved: Saved, every: int) -> Saved:
        """What is on disk beside the journal and the models; reads all of it."""
        return replace(
            saved,
            parcels=tuple(self.checkpoints.parcels()),
            own_parcel=self._own_parcel(every, saved.commit.round_number),
        )

    def _own_parcel(self, every: int, up_to: int) -> Parcel | None:
        """The newest that others were to keep: of the round, or of one before."""
        for number in self.checkpoints.rounds(self._name, Kind.LOCAL):
            if every > 0 and number <= up_to and number % every == 0:
                try:
                    found = self.checkpoints.read(self._name, number, Kind.LOCAL)
                except DamagedError as error:
                    self._warn(error)
                    continue
                self.checkpoints.promised = number
                return Parcel(self._name, number, found.digest, "")
        return None

    async def _take_private(self, checkpoint: Checkpoint) -> None:
        if checkpoint.private is None or self._work.private is not None:
            return
        self._work.private = checkpoint.private
        number = checkpoint.about.round_number
        await asyncio.to_thread(self._store.write_private, number, checkpoint.private)

    async def _save_in_turn(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint after those that wait; where the disk is slower than the rounds, the
        older ones are left out."""
        left_out = self._backlog.put(checkpoint)
        if left_out and not self._left_out:
            about = left_out[0].about
            self._world.emit(
                events.Notice(
                    "WARNING",
                    f"The disk is slower than the rounds: {about.kind} of round "
                    f"{about.round_number} is not saved, nor will be others. The newest is.",
                )
            )
        self._left_out += len(left_out)
        if self._is_writing:
            return
        self._is_writing = True
        try:
            while (waiting := self._backlog.take()) is not None:
                await self._save(waiting)
        finally:
            self._is_writing = False

    async def _save(self, checkpoint: Checkpoint, by: ThreadPoolExecutor | None = None) -> bool:
        try:
            await self._write(checkpoint, by)
        except OnefedError as error:
            self._warn(error)
            return False
        return True

    async def _write(self, checkpoint: Checkpoint, by: ThreadPoolExecutor | None = None) -> Path:
        path = await self._do(by or self._saver, self.checkpoints.save, checkpoint)
        about = checkpoint.about
        self._world.emit(
            events.PeerNotice("checkpoint", f"{about.kind} of {about.node} saved: {path}")
        )
        return path

    async def _do(self, by: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(by, work, *arguments)

    def _about(
        self,
        kind: Kind,
        round_number: int,
        state: NodeState,
        *,
        base: Digest = "",
        metrics: Mapping[str, float] | None = None,
    ) -> About:
        return About(
            kind=kind,
            experiment=self.checkpoints.experiment,
            node=state.name,
            round_number=round_number,
            saved_at=self._now(),
            train_set=state.voters,
            base=base,
            metrics=metrics or {},
        )

    def _of_entry(self, kind: Kind, entry: Entry, state: Mapping[str, Any] | None = None) -> About:
        return About(
            kind=kind,
            experiment=self.checkpoints.experiment,
            node=self._name,
            round_number=entry.round_number,
            saved_at=self._now(),
            train_set=tuple(member.node for member in entry.roster),
            contributors=tuple(each.node for each in entry.contributors),
            base=entry.root,
            state=state or {},
        )

    def _now(self) -> str:
        return self._world.now().astimezone(UTC).isoformat(timespec="seconds")

    def _warn(self, error: OnefedError) -> None:
        self._world.emit(events.Notice("WARNING", str(error)))
