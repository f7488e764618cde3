"""--sdm conda and --sdm apptainer with stand-ins for both programs: what Snakemake gives them, and whose code jobs run.

The interpreter behind both has every package but this one: it is found where pip was told to put it, or by PYTHONPATH.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from drifting_core.config import load_file
from tests.workflow.conftest import ROOT, Site

pytestmark = pytest.mark.workflow

# -S: no editable installation is looked at.
PYTHON = f"""#!/bin/bash
if [ "$1 $2" = "-m pip" ]; then
    echo "$@" >>{{folder}}/pip
    [ "$6" = --editable ] && echo "$7" >{{folder}}/editable
    exit
fi
[ -f {{folder}}/editable ] && PYTHONPATH=$(cat {{folder}}/editable)
export PYTHONPATH="$PYTHONPATH:{sysconfig.get_path("purelib")}"
exec {sys.executable} -S "$@"
"""
CONDA = """#!/bin/bash
case "$*" in
"info --json") echo '{{"conda_prefix": "{folder}/base", "platform": "linux-64"}}' ;;
"--version") echo conda 24.11.0 ;;
"config --get channel_priority --json") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
"env create "*)
    while [ $# -gt 0 ]; do
        [ "$1" = --file ] && cp "$2" {folder}/asked.yaml
        [ "$1" = --prefix ] && mkdir -p "$2/bin" && cp {folder}/python "$2/bin/python"
        shift
    done ;;
"clean "*) ;;
*) echo "unexpected: conda $*" >&2; exit 1 ;;
esac
"""
APPTAINER = """#!/bin/bash
[ "$1" = --version ] && echo apptainer version 1.3.4 && exit
echo "$@" >>{folder}/asked
while [ "$1" != bash ]; do shift; done
PATH={folder}/image:$PATH exec "$@"
"""


def program(path: Path, text: str, folder: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(folder=folder))
    path.chmod(0o755)


def run_in(tmp_path: Path, *arguments: str) -> None:
    """One small job, with the stand-ins in front of everything."""
    site = Site(tmp_path)
    record = f"results/runs/{load_file(site.configure()).key('run')}/config.json"
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": ""}
    command = site.command(record, *arguments)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    assert (tmp_path / record).is_file()


def test_conda_makes_the_environment_and_jobs_run_the_checkout_in_it(tmp_path: Path) -> None:
    program(tmp_path / "bin/conda", CONDA, tmp_path)
    program(tmp_path / "python", PYTHON, tmp_path)
    program(tmp_path / "base/bin/activate", 'export PATH="$1/bin:$PATH"\n', tmp_path)
    run_in(tmp_path, "--sdm", "conda")
    assert (tmp_path / "asked.yaml").read_text() == (ROOT / "envs/drifting.yaml").read_text()
    scripts = ROOT / "workflow_scripts"
    asked = f"-m pip install --constraint {scripts}/../envs/constraints.txt --editable {scripts}/..\n"
    assert (tmp_path / "pip").read_text() == asked


def test_apptainer_gets_the_image_and_jobs_run_the_checkout_in_it(tmp_path: Path) -> None:
    program(tmp_path / "bin/apptainer", APPTAINER, tmp_path)
    program(tmp_path / "image/python", PYTHON, tmp_path)
    run_in(tmp_path, "--sdm", "apptainer", "--apptainer-args=--nv")
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith(f"exec --home {tmp_path} --nv")
    assert f" {ROOT}/envs/drifting.sif bash -c " in asked
