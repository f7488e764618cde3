"""Write what is generated (`make docs`): config/schema.json, docs/configuration.md, the costs in docs/imagenet.md, and
the graph of imports in docs/architecture.md with its picture.

Example: python workflow_scripts/write_configuration_reference.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core import module_graph
from drifting_core.artifacts import publish_text
from drifting_core.configuration_reference import architecture_page, imagenet_page, page, schema
from drifting_core.jobs.job import parser, run, start


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the repository (default: this one)"
    )
    arguments = start(made, argv)

    publish_text(arguments.root / "config/schema.json", schema())
    publish_text(arguments.root / "docs/configuration.md", page())
    imagenet = arguments.root / "docs/imagenet.md"
    publish_text(imagenet, imagenet_page(imagenet.read_text(), arguments.root / "config/ablation.yaml"))
    architecture = arguments.root / "docs/architecture.md"
    publish_text(architecture, architecture_page(architecture.read_text(), arguments.root))
    module_graph.draw(arguments.root, arguments.root / "docs/pictures/modules.png")


if __name__ == "__main__":
    raise SystemExit(run(main))
