"""One line per check, and all checks side by side within a time limit. Light."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

ANSWER_SECONDS = 4.0  # that another program has; a check asks twice at most
SECONDS = 9.5  # until a check that has not ended is given up


class Finding(NamedTuple):
    """The outcome of one check: what was found, and what to do about it."""

    level: Literal["ok", "warn", "FAIL"]
    check: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:<6}{self.check:<15}{self.found}{f'; {self.remedy}' if self.remedy else ''}"


Check = Callable[[], Iterator[Finding]]


def gather(checks: Mapping[str, Check], seconds: float = SECONDS) -> Iterator[Finding]:
    """The findings of all checks, in their order; what a check raises is raised. One that hangs (a dead disk) is left."""
    ended: dict[str, list[Finding] | BaseException] = {}

    def examine(name: str, check: Check) -> None:
        try:
            ended[name] = list(check())
        except BaseException as error:  # noqa: BLE001  raised again below
            ended[name] = error

    end = time.monotonic() + seconds
    threads = {name: threading.Thread(target=examine, args=(name, check), daemon=True) for name, check in checks.items()}
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(end - time.monotonic(), 0))
        outcome = ended.get(name)
        if isinstance(outcome, BaseException):
            raise outcome
        yield from [Finding("FAIL", name, f"no answer within {seconds:g} s")] if outcome is None else outcome
