"""docs/boot.md, made from the steps.

``python -m onefed.appliance.reference > docs/boot.md`` writes it; a test fails when it is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from onefed.appliance import (
    activity,
    discovery,
    failures,
    health,
    peer,
    peer_state,
    peers,
    process,
    programs,
    superlink,
    supernode,
    units,
)
from onefed.appliance.steps import Step
from onefed.tls import authority


def _failures() -> str:
    rows = (
        f"| {each.what} | {each.step} | {each.exit_code.value if each.exit_code else '-'} "
        f"| {f'`{each.error}`' if each.error else '-'} | {each.remedy} |"
        for each in failures.CLASSES
    )
    return "\n".join(
        (
            "| What | Step | Exit code | `FL_ERROR` | What to do, or what follows |",
            "|---|---|---|---|---|",
            *rows,
        )
    )


INTRODUCTION = """\
<!-- Made by: python -m onefed.appliance.reference > docs/boot.md -->

# How a machine boots

A machine of a federation, a virtual one or a group of processes on a laptop, boots in fixed steps.
The ids are those of the appliance design: `SL` for the SuperLink's machine, `SN` for a node's.
`PE` is ours: a peer, which trains without a coordinator.
Every step looks at what is there and brings it to what should be there.
So a second boot changes nothing, and a boot that was cut off anywhere is completed by the next.

`configure` steps read the context and prepare files.
`bootstrap` steps start programs, wait for their health and publish.
`platform` steps are the cloud's own.
A laptop has no Docker and no systemd: the steps about them say "skipped" there, and why.
The outcome of every step is in `opt/flower/config/boot-status.json` below the machine's root.
"""

AFTERWARDS = f"""\
## Commands

`onefed appliance plan` prints the steps and changes nothing.
`configure` and `bootstrap` are the two stages, each a process of its own; `--dry-run` only checks.
`status` shows how far the last boot went; a failure names its step, the cause and what to look at.
`health` says quickly whether the machine is ready, and warns of certificates that end within \
{health.EXPIRY_WARNED_DAYS} days.
`drain` stops in order: no longer ready, programs end within their limits, then the node publishes \
`FL_CLIENT_STATUS=3`; a peer leaves its group first.
Steps and warnings are also written to `flower-configure.log` and `flower-bootstrap.log` in \
`/var/log/one-appliance`, as text or JSON (`FL_LOG_FORMAT`).

| Exit code | A boot ended with it because |
|---|---|
| 0 | the stage is through |
| 2 | the command line is wrong, or the docker runtime was asked for without systemd |
| 3 | variables or certificates are not valid; all are named |
| 5 | a port is in use, or another process keeps this machine |
| 7 | the disk refused |
| 8 | Docker, an image, a program, discovery or registration failed; the step is named |
| 9 | training data cannot be read |

## What can go wrong

A failure publishes `FL_READY=NO` (supernode: `FL_NODE_READY=NO`) and `FL_ERROR`; READY stays unset.
Where no exit code stands, the boot goes on with a warning, and the machine becomes ready.

{_failures()}

## Runtimes

A program is described once (`opt/flower/config/programs`).
With `process` its command line is started as it is, with `docker` in a container that has no
capabilities, a read-only root, user 49999, a reaper, log limits, the host's network and the folders
of its role under the same paths; the authority's private key is in none of them.
As in Flower's own images the data are at `/app/data`, the state at `/app/state`, certificates at \
`/app/certificates`, and the exports at `FL_CHECKPOINT_PATH`, which moves nothing outside.
Under systemd a unit starts a launcher with the name of a program, so no value of a context is ever
in a unit; systemd restarts it always, after {units.RESTART_S} s.
Its description also holds digests of the files that it reads as it starts; so a program that \
systemd had started before the boot wrote another context or certificate starts again.
A machine that is stopped, by `systemctl stop` or by a power-off, publishes what `drain` does, by \
units of their own; one that crashed or is restarted does not.
Without systemd (runtime `process` only) `bootstrap` leaves a process behind that keeps the machine.

## OneGate

One attribute per request, since several in one request are stored as one value.
A node's last three change while it runs: it is asked every {activity.LOOK_S:.0f} s, and what \
changed is published; without an answer for {activity.GONE_S:.0f} s it is disconnected.
Nothing whose name ends in `READY` is `YES` before the machine is healthy: the platform takes any
such attribute for the signal that opens its deployment gate.

| Attribute | Published by | Value |
|---|---|---|
| `FL_ROLE` | all | `superlink`, `supernode` or `peer` |
| `FL_VERSION` | all | version of Flower that runs |
| `FL_ENDPOINT` | superlink | `host:port` of the Fleet API |
| `FL_ISOLATION` | superlink | as in its context; a node with another one warns (ours) |
| `FL_TLS` | superlink | `YES` or `NO` |
| `FL_CA_CERT` | superlink | its CA certificate, base64 in one line |
| `FL_READY` | superlink, peer | `YES` last of all, `NO` when the machine failed |
| `FL_ERROR` | all | why the machine failed: a short code; gone once it is ready |
| `FL_NODE_KEY` | supernode | its public key, base64 in one line (ours) |
| `FL_PARTITION` | supernode, peer | number of the partition that it trains (ours) |
| `FL_NODE_REGISTERED` | the superlink, on the node | fingerprint of the registered key (ours) |
| `FL_FRAMEWORK` | supernode, peer | its `ML_FRAMEWORK`, where that is there |
| `FL_NODE_ID` | supernode | its VM id |
| `FL_GPU_AVAILABLE` | supernode | `YES` when training uses a GPU |
| `FL_CLIENT_STATUS` | supernode | `1` idle, `2` training, `3` disconnected: a number, so that \
expressions of OneFlow can average it |
| `FL_TRAINING_ACTIVE` | supernode | `YES` while it trains or evaluates |
| `FL_ROUND_NUMBER` | supernode | round of the last message that it got |
| `FL_NODE_READY` | supernode | `YES` once it runs, `NO` when the machine failed |
| `{peers.CONTACT_NAME}` | peer | its name in the group (ours) |
| `{peers.CONTACT_ADDRESS}` | peer | `host:port` at which the others reach it (ours) |
| `{peers.CONTACT_CERTIFICATE}` | peer | its certificate, DER in base64; comes last (ours) |
| `{peers.ROSTER}` | peer | who founds the group, base64; first said by the oldest (ours) |
| `READY` | the guest agent | `YES` once the boot is through |

## Discovery

A node with `FL_SUPERLINK_ADDRESS` uses it; every other one asks OneGate.
It takes the superlink that says `FL_READY=YES`, and asks again every \
{discovery.STANDARD_WAIT_S:.0f} s, {discovery.STANDARD_TRIES} times at most.
Where `FL_EDGE_BACKOFF` or `FL_EDGE_MAX_BACKOFF` is set, as the templates for the edge do, the \
waits double from {discovery.EDGE_WAIT_FIRST_S:.0f} s to that cap, and it never gives up; \
`fixed` is as without.

A node's partition is a claim, `FL_PARTITION`, which it keeps over reboots, unless \
`FL_NODE_CONFIG` says otherwise.
A new node takes the lowest partition that no other node claims: the platform removes the oldest \
nodes first when it scales down, and a mere position would give those that stay other data.
`num-partitions` is the number of nodes, and at least one more than the highest claim.
Of two nodes that took the same partition at the same moment the younger one moves when it sees it.
A service of more than {discovery.CLAIMS_READ_MAX} nodes takes positions.

## A group of peers

A peer makes its key and certificate, and publishes its contact before anybody is pinned.
The oldest machine of the role waits until `FL_PEER_FOUNDERS` contacts are there, and publishes \
who founds the group: the oldest machines that have told theirs.
Every other one takes this roster from whoever publishes it, pins it on its disk, and publishes it.
Nobody founds beside a roster, and one that cannot be read is not passed over.
So whatever the order of the boots there is one group, and its roster outlives the oldest machine.
Looks are {peers.WAIT_MAX_S:.0f} s apart at most, with jitter; after {peers.WAIT_LIMIT_S:.0f} s \
the boot fails.
A founder whose boot stops before it has told its contact is not waited for where enough others \
have; the oldest machine is, since it alone says who founds.

A machine that is not on the roster joins, and gets its vote with a committed round.
The members let in every peer that OneGate names in their own service, and nobody else.

Across sites there is no OneGate in common: `FL_PEERS` lists all peers, the same at each of them, \
and OneGate is not asked.
A peer that has an `FL_PEER_NAME` and no list says its entry in the error of PE-09 \
(`peers_not_found`): copy those of \
all sites into the list, with the addresses at which others reach them, and boot again.
The first `FL_PEER_FOUNDERS` of the list found the group; who is added at its end joins, once all \
sites have booted with the new list.

A reboot goes on with the same key, journal and roster.
A machine that lost its disk has forgotten its votes.
In a service it comes as another member, `r1-` before its name, asks the others for what they keep \
of its old one, and joins; in a list the operator gives it that name.
`drain` announces a leave, and waits until a round has committed it, \
{peer_state.LEAVE_LIMIT_S:.0f} s at most.
So does, under systemd, a machine that its service takes away: as it is powered off, OneGate says \
that its role wants fewer machines than it has, and OneFlow takes the oldest.
A machine that is only stopped, or powered off, announces none: when it stays away it loses its \
vote after `FL_PEER_EVICT_AFTER` rounds, and gets it back when it returns.
Healthy means that the node hears a leader, or has trained to the end.
With `docker` a peer runs in the image that a node of its `ML_FRAMEWORK` has, since it trains as \
a node does.
`ONEFED_HOME=/opt/flower/state onefed peer status --name machine` shows the group from inside.

## GPUs

With `FL_GPU_ENABLED` a node looks for the kernel module and asks `nvidia-smi`.
Without both it warns and trains on its CPU.
Apps find `CUDA_VISIBLE_DEVICES` (only for explicit ids), `FL_GPU_MEMORY_FRACTION` and
`TF_FORCE_GPU_ALLOW_GROWTH` in their environment; a container gets `--gpus all`.
`onefed gpu validate` says what is missing and how to repair it, with `--host` on the host that
passes GPUs to virtual machines; it ends with 1 when a check failed.

## Certificates

The coordinator's authority lasts {authority.CA_LIFETIME.days} days and its server certificate \
{authority.LIFETIME.days}.
Once a day, or by `onefed appliance renew`, a certificate that ends within \
{superlink.RENEW_BEFORE.days} days is made anew from the kept authority, and the programs that \
show it start again: no node has to trust anything new, and nothing is deployed again.

## Programs

Programs run until the machine stops.
One that dies after it did its work is started again after {process.RESTART_DELAY_WORKED_S} s, \
however often: the SuperLink took a connection, the executor and the supervisor had an answer of \
the SuperLink, the node had joined.
Any other is started again after {process.RESTART_DELAY_S:.0f} s, later each time, at most \
{process.RESTART_DELAY_MAX_S:.0f} s; one that dies {process.EARLY_DEATHS_MAX} times in a row \
within {process.EARLY_DEATH_S:.0f} s of its start is given up, and the machine with it.
With systemd the pause is {units.RESTART_S} s, and there is no limit.
A stock SuperNode has {programs.SUPERNODE_EARLY_DEATHS_MORE} starts more: after a crash its \
SuperLink refuses it for about a minute.
A program sees only the environment that the machine makes for it.
"""


def page() -> str:
    """The whole page."""
    return "\n".join(
        (
            INTRODUCTION,
            "## The SuperLink's machine\n",
            _table(superlink.STEPS),
            "## A node's machine\n",
            _table(supernode.STEPS),
            "## A peer's machine\n",
            _table(peer.STEPS),
            AFTERWARDS,
        )
    )


def _table(steps: Sequence[Step[Any]]) -> str:
    rows = [f"| {step.id} | {step.name} | {step.stage.value} | {step.effect} |" for step in steps]
    head = ["| Step | Name | Stage | Brings about |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
