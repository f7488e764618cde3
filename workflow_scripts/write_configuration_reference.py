"""Write config/schema.json and docs/configuration.md from the models of drifting_core/config.py (`make docs`).

Example: python workflow_scripts/write_configuration_reference.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.artifacts import publish_text
from drifting_core.configuration_reference import page, schema
from drifting_core.jobs import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the repository")
    arguments = start(made, argv)

    publish_text(arguments.root / "config/schema.json", schema())
    publish_text(arguments.root / "docs/configuration.md", page())


if __name__ == "__main__":
    raise SystemExit(run(main))
