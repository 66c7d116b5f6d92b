"""Shards of seeds, and the file in which their results add up: one JSON line a shard."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed gave."""

    states: int
    violations: tuple[str, ...]


def main(
    campaign: str,
    about: str,
    run: Callable[[int], Outcome],
    *,
    option: str,
    count: int,
    shard: int,
) -> None:
    """Run a campaign from its command line; exit 1 where there is a violation.

    Args:
        run: what to do with one seed; the same seed does the same.
        option: name of the option that says how many seeds.
        count: how many without it.
        shard: seeds in one line of the results; an interrupt loses no more.
    """
    parser = argparse.ArgumentParser(prog=f"python -m campaigns.{campaign}", description=about)
    parser.add_argument(f"--{option}", dest="count", type=int, default=count)
    parser.add_argument("--first", type=int, default=0, help="first seed; shards may run apart")
    parser.add_argument(
        "--results", type=Path, default=ROOT / f"campaigns/results/{campaign}.jsonl"
    )
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    sources, violations = commit(), 0
    for first, last in _shards(options.first, options.count, shard):
        if _is_done(options.results, campaign, sources, first, last):
            continue
        started, states, found = time.monotonic(), 0, []
        for seed in range(first, last):
            outcome = run(seed)
            states += outcome.states
            found += [f"seed {seed}: {violation}" for violation in outcome.violations]
        violations += len(found)
        line = {
            "campaign": campaign,
            "first_seed": first,
            "seeds": last - first,
            "states": states,
            "violations": len(found),
            "first_violations": found[:3],
            "seconds": round(time.monotonic() - started, 1),
            "date": datetime.now(UTC).date().isoformat(),
            "commit": sources,
        }
        with options.results.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        sys.stderr.write(f"{campaign}: seeds {first} to {last - 1}, {states} states, ")
        sys.stderr.write(f"{len(found)} violations\n" + "".join(f"  {v}\n" for v in found[:3]))
    sys.exit(1 if violations else 0)


def _shards(first: int, count: int, shard: int) -> Iterator[tuple[int, int]]:
    for start in range(first, first + count, shard):
        yield start, min(start + shard, first + count)


def _is_done(results: Path, campaign: str, commit: str, first: int, last: int) -> bool:
    """Whether a run that was interrupted has this shard already, for the same sources."""
    if not results.exists() or commit.endswith("+"):
        return False
    lines = map(json.loads, results.read_text().splitlines())
    return any(
        (line["campaign"], line["commit"]) == (campaign, commit)
        and line["first_seed"] <= first
        and last <= line["first_seed"] + line["seeds"]
        for line in lines
    )


class Lines:
    """A file of results with a JSON line for each, as one campaign reads it and adds to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commit = commit()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def of_these_sources(self) -> list[dict[str, Any]]:
        """What was found for the sources as they are; none where they were changed since."""
        if self.commit.endswith("+"):
            return []
        return [line for line in self.lines if line["commit"] == self.commit]

    def add(self, line: Mapping[str, Any]) -> None:
        """Note when it was, and of which sources."""
        whole = {**line, "date": datetime.now(UTC).date().isoformat(), "commit": self.commit}
        self.lines.append(whole)
        with self.path.open("a") as stream:
            stream.write(json.dumps(whole) + "\n")


def commit() -> str:
    """The commit of the sources, with ``+`` where they were changed since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "src/onefed", "campaigns/*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
