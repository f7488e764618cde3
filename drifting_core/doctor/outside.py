"""What comes from outside: images, downloads and own files, there and as they should be. Light."""

from __future__ import annotations

import os
import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from drifting_core.artifacts import sha256_file
from drifting_core.config import Configuration
from drifting_core.doctor.findings import Finding
from drifting_core.doctor.staging import Need, needs
from drifting_core.jobs.subprocesses import ask
from drifting_core.workflow.layout import Layout

_LIST = "workflow_scripts/fetch.py --list says what belongs where"
_CONNECT_SECONDS = 2.0


def check_images(config: Configuration) -> Iterator[Finding]:
    """Archives (or folders), with the size that they were published with."""
    found = [need for need in needs(config) if need.key.startswith("data.")]
    wrong = [need for need in found if need.problem]
    checked = Path(Layout(config).folder("data")) / "archives.json"
    if not wrong:
        yield Finding(
            "ok", "images", ", ".join(str(need.place) for need in found) or f"made here (pack: {config.data.pack})"
        )
    elif checked.is_file() and all(need.problem == "missing" for need in wrong):
        yield Finding(
            "warn", "images", f"{_problems(wrong)}", f"{checked} says they were here: put them back for what reads them"
        )
    else:
        yield Finding("FAIL", "images", _problems(wrong), _LIST)


def check_downloads(config: Configuration) -> Iterator[Finding]:
    """What comes from the Hugging Face hub: here, or within reach from here."""
    found = [need for need in needs(config) if need.command]
    missing = [need for need in found if need.problem]
    offline = no_internet()
    reach = f"no internet here ({offline})" if offline else "internet here"
    if not missing:
        yield Finding("ok", "downloads", f"{len(found)} files of the hub needed, all here; {reach}, and nothing needs it")
    elif any(need.problem != "missing" for need in missing):
        yield Finding("FAIL", "downloads", _problems(missing), f"remove what is wrong; {_LIST}")
    elif offline:
        yield Finding("FAIL", "downloads", f"{_problems(missing)}; {reach}", _LIST)
    else:
        yield Finding("ok", "downloads", f"the rule fetch will bring {len(missing)} of {len(found)} files; {reach}")


def check_own_files(config: Configuration) -> Iterator[Finding]:
    """Weights and statistics that the configuration names, by their hashes."""
    found = [need for need in needs(config) if not need.command and not need.key.startswith("data.")]
    problems = [f"{need.place} ({need.key}): {problem}" for need in found if (problem := need.problem or other_hash(need))]
    if problems:
        yield Finding("FAIL", "own files", ", ".join(problems), _LIST)
    else:
        yield Finding("ok", "own files", ", ".join(str(need.place) for need in found) or "none needed")


def other_hash(need: Need) -> str:
    """How the SHA-256 differs from what is known, or from the digits in the file's name; empty where it does not."""
    named = re.search(r"-([0-9a-f]{8})\.\w+$", need.place.name)
    expected = named[1] if named else need.file.sha256
    if need.folder or not expected:
        return ""
    found = sha256_file(need.place)
    return "" if found.startswith(expected) else f"SHA-256 begins with {found[:8]}, expected {expected[:8]}"


def no_internet() -> str:
    """Why the hub is out of reach; empty where a connection to it, or to the proxy on the way, can be opened."""
    address = urllib.request.getproxies().get("https") or os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    parts = urlsplit(address if "//" in address else f"//{address}")
    host, port = parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)
    # In a process of its own: resolving a name has no time limit.
    connect = f"import socket; socket.create_connection(({host!r}, {port}), {_CONNECT_SECONDS})"
    answer = ask([sys.executable, "-S", "-c", connect], _CONNECT_SECONDS + 0.5)
    reason = (answer.error.strip().splitlines() or [""])[-1]  # of a traceback, TimeoutError: timed out
    return "" if answer.code == 0 else f"{host}:{port}: {reason.partition('rror: ')[2] or reason}"


def _problems(found: list[Need]) -> str:
    return ", ".join(f"{need.place} ({need.key}): {need.problem}" for need in found if need.problem)
