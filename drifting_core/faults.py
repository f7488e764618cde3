"""The two ways in which a job ends without having finished."""

from __future__ import annotations

CALL_AGAIN = 75  # EX_TEMPFAIL: state is committed, the same command continues it (docs/decisions/13)


class Fault(Exception):
    """Something that the user can mend: the message says what was found, what was expected and what to do."""


class Stopped(Exception):
    """The job was asked to stop and has committed its state; it exits with `CALL_AGAIN`."""
