"""Check that everything which the workflow promises for a configuration is there and whole: one line per artifact, with
the time at which it was made, then the bundle's own verification. Exit 1 naming what is missing. Reads only.

Example: python workflow_scripts/smoke.py --configfile config/demo.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drifting_core.claims.verifying import verify_bundle
from drifting_core.config import load_file
from drifting_core.faults import Fault
from drifting_core.jobs.job import parser, run, start, takes_configuration
from drifting_core.workflow.layout import Layout
from drifting_core.workflow.promises import page


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    takes_configuration(made)
    arguments = start(made, argv)

    config = load_file(arguments.configfile, arguments.config)
    lines, wrong = page(config)
    print("\n".join(lines))
    if wrong:
        raise Fault(
            "not kept:\n"
            + "\n".join(f"  {line}" for line in wrong)
            + "\nrun the drill again, and look into the logs of these jobs"
        )
    bundle = Path(Layout(config).folder("bundle"))
    print(f"bundle whole: {len(verify_bundle(bundle).files)} files; tables follow from their evaluations")


if __name__ == "__main__":
    raise SystemExit(run(main))
