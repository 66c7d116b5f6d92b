"""What a checker raises."""

from __future__ import annotations


class Violation(Exception):  # noqa: N818 - the word of the field for what a checker finds
    """A promise was broken. Not an assertion: it is seen with assertions switched off, too."""

    def __init__(self, promise: str, detail: str) -> None:
        super().__init__(f"{promise}: {detail}")
        self.promise = promise
        """Short name of the checker."""
        self.detail = detail
