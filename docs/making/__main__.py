"""Write what is generated (`make docs`): config/schema.json, docs/configuration.md, docs/modules.md, the costs in
docs/imagenet.md, and the picture of the rooms.

Example: python -m docs.making
"""

from __future__ import annotations

from docs.making import rooms
from docs.making.configuration_reference import imagenet_page, page, schema
from drifting_core.artifacts import publish_text
from drifting_core.artifacts.provenance import ROOT


def main() -> None:
    publish_text(ROOT / "config/schema.json", schema())
    publish_text(ROOT / "docs/configuration.md", page())
    imagenet = ROOT / "docs/imagenet.md"
    publish_text(imagenet, imagenet_page(imagenet.read_text(), ROOT / "config/ablation.yaml"))
    among = rooms.rooms((ROOT / "docs/architecture.md").read_text())
    publish_text(ROOT / "docs/modules.md", rooms.listing(ROOT, among))
    rooms.draw(ROOT, among, ROOT / "docs/pictures/rooms.png")


if __name__ == "__main__":
    main()
