"""What takes long is done beside a node's one task, and comes back to it as an event.

Training, the rule on a range, joining shards to a model, reading and writing models.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from onefed import aggregate, arrays
from onefed.checkpoint.files import DamagedError
from onefed.node import codec
from onefed.node.content import Content, ContentError, client_key
from onefed.node.items import Items, Update
from onefed.node.store import Store
from onefed.node.training import App, Task, Trained, TrainingError
from onefed.node.world import World
from onefed.peer.interface import (
    Assemble,
    Assembled,
    Combine,
    Combined,
    Declined,
    Event,
    Reduce,
    Reduced,
    Train,
)
from onefed.peer.interface import Trained as TrainedEvent
from onefed.peer.messages import Contribution, Digest, NodeId, Shard, Slice
from onefed.telemetry import events

TRAININGS_MAX = 3
"""Tries at one round before the others are told not to wait for an update."""
TRAINING_PAUSE_S = 0.5
DECLINED_PAUSE_S = 10.0
"""Between further tries, while the round is not agreed on: nobody else may have an update."""


class Work:
    """See the module."""

    def __init__(
        self,
        name: NodeId,
        app: App,
        content: Content,
        items: Items,
        store: Store,
        world: World,
        put: Callable[[Event], None],
    ) -> None:
        """``put`` takes the events."""
        self.epochs: int | None = None
        self.private: bytes | None = None
        """What the app left after the last round that was committed."""
        self.left_private: tuple[int, bytes | None] = (0, None)
        """Round, and what the app left after training it: kept once that is committed."""
        self.trained: Callable[[Task, Digest, Trained], None] = lambda *_: None
        """Told of every update that the app has made, with the model that it is made from."""
        self._name = name
        self._app = app
        self._content = content
        self._items = items
        self._store = store
        self._world = world
        self._put = put
        self._base: tuple[Digest, bytes] = ("", b"")
        """The model that was used last."""
        self._reading = asyncio.Lock()
        """Who wants the same model waits for it, instead of reading it once more."""
        self._trainer = ThreadPoolExecutor(1, "training")

    def close(self) -> None:
        """Take no more work."""
        self._trainer.shutdown(wait=False, cancel_futures=True)

    async def train(self, action: Train, cancelled: threading.Event) -> None:
        """Have the app train; an update that is of no use is tried again."""
        content = await self.model(action.base)
        task = Task(action.round_number, self.epochs, self._content.model(content), self.private)
        for count in itertools.count(1):
            try:
                trained = await asyncio.get_running_loop().run_in_executor(
                    self._trainer, self._app.train, task, cancelled
                )
                if cancelled.is_set():
                    return
                update = await asyncio.to_thread(self._checked, task, trained)
            except TrainingError as error:
                if cancelled.is_set():
                    return
                self._world.emit(
                    events.ClientFailure(
                        round=task.round_number,
                        node_id=self._name,
                        error_type="training",
                        client=client_key(self._name),
                        reason=error.message,
                    )
                )
                if count == TRAININGS_MAX:
                    self._put(Declined(action.round_number, action.base))
                await asyncio.sleep(TRAINING_PAUSE_S if count < TRAININGS_MAX else DECLINED_PAUSE_S)
                if cancelled.is_set():
                    return
                continue
            digest = await asyncio.to_thread(arrays.digest, update)
            self._items.updates[digest] = Update(task.round_number, update)
            self.left_private = (task.round_number, trained.private)
            self.trained(task, action.base, replace(trained, model=update))
            made = Contribution(self._name, trained.examples, digest, arrays.nbytes(update))
            self._put(TrainedEvent(task.round_number, action.base, made))
            return

    def _checked(self, task: Task, trained: Trained) -> arrays.Arrays:
        """The update as any rule may see it: the others trust its arithmetic, not its sense."""
        update = aggregate.Update(client_key(self._name), trained.examples, trained.model)
        checked = aggregate.check([update], task.model)
        if checked.rejected:
            raise TrainingError(f"The app's update cannot be used: {checked.rejected[0].reason}.")
        accepted = checked.accepted[0].arrays
        return {key: accepted[key] for key in task.model}

    async def reduce(self, action: Reduce) -> None:
        """The rule on one range."""
        plan, index, count = action.plan, action.index, action.plan.shard_count
        base = await self.model(plan.base)
        slices = [
            Slice(plan.round_number, each.node, each.digest, index, count)
            for each in plan.contributors
        ]
        parts = [part for each in slices if (part := self._items.get(each)) is not None]
        if len(parts) < len(slices):
            return  # the round was committed meanwhile, and its slices are gone
        shard = await asyncio.to_thread(
            self._content.reduce, base, parts, plan.contributors, index, count, plan.round_number
        )
        if self._items.keep(Shard(plan.round_number, plan.ballot, index), shard, own=True):
            self._put(Reduced(plan.ballot, index))

    async def assemble(self, action: Assemble) -> None:
        """Shards to a model on disk."""
        parts = [part for each in action.shards if (part := self._items.get(each)) is not None]
        if len(parts) < len(action.shards):
            return
        try:
            root, content = await asyncio.to_thread(self._join, parts)
        except ContentError as error:
            self._world.emit(
                events.PeerNotice("refused", f"a result does not fit: {error.message}")
            )
            return
        self._base = (root, content)  # it will be installed, and trained on
        self._put(Assembled(action.plan, root, len(content)))

    async def combine(self, action: Combine) -> None:
        """Pieces to a model on disk, if they make the one that was asked for."""
        parts = [part for each in action.pieces if (part := self._items.get(each)) is not None]
        if len(parts) < len(action.pieces):
            return  # a newer model was committed meanwhile, and they are gone
        content = await asyncio.to_thread(self._combined, action.root, parts)
        self._items.has_come(action.pieces[0])
        if content is not None:
            self._base = (action.root, content)
        else:
            told = f"the pieces of model {action.root[:12]} do not have its digest together"
            self._world.emit(events.PeerNotice("refused", f"{told}; it is fetched in one"))
        self._put(Combined(action.root, fits=content is not None))

    def _combined(self, root: Digest, parts: list[bytes]) -> bytes | None:
        content = b"".join(parts)
        if self._content.root(content) != root:
            return None
        self._store.write_model(root, content)
        return content

    def _join(self, parts: list[bytes]) -> tuple[Digest, bytes]:
        content = self._content.join(parts)
        root = self._content.root(content)
        self._store.write_model(root, content)
        return root, content

    def require_digest(self, item: Slice, content: bytes) -> None:
        found = arrays.digest(self._content.update(content))
        if found != item.digest:
            raise codec.CodecError(f"An update of {item.node} that does not have its digest.")

    async def model(self, root: Digest) -> bytes:
        """The content of a model on disk, compared with its digest, and kept for the next time."""
        async with self._reading:
            known, content = self._base
            if known != root:
                content = await asyncio.to_thread(self._read_model, root)
                self._base = (root, content)
            return content

    def _read_model(self, root: str) -> bytes:
        content = self._store.read_model(root, self._content.model_bytes)
        if self._content.root(content) != root:
            raise DamagedError(Path(root), "it does not have its digest")
        return content
