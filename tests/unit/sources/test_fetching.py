"""Fetching: files that are there are taken, others asked for once, and no internet is said with what to do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from drifting_core.artifacts import Fetched
from drifting_core.faults import Fault
from drifting_core.sources import published
from drifting_core.sources.fetching import fetched_folder, write_fetched

WANTED = published.download("mae_latent_640")
FILES = ["models/mae/jax/mae_latent_640/metadata.json", "models/mae/jax/mae_latent_640/ema_params.msgpack"]


def fill(folder: Path) -> None:
    for file in FILES:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)


def test_published_names_are_pinned() -> None:
    assert WANTED.key == f"mae_latent_640-{published.REVISION[:8]}"
    assert published.download("ablation", "abcdef012345").revision == "abcdef012345"
    tokenizer = published.tokenizer_download("stabilityai/sd-vae-ft-mse", "31f26fdeee1355a5c34592e401dd41e45d25a493")
    assert tokenizer.key == "sd-vae-ft-mse-31f26fde"


def test_what_is_missing_is_downloaded_below_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def hub(repository: str, file: str, **options: Any) -> str:
        asked.append({"repository": repository, "file": file, **options})
        fill(Path(options["local_dir"]))
        return str(options["local_dir"] / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    write_fetched(WANTED, tmp_path / "manifest.json", "0" * 64)
    common = {"repository": "Goodeat/drifting", "revision": published.REVISION, "local_dir": tmp_path}
    assert asked == [{"file": file, **common} for file in FILES]
    assert sorted(Fetched.read(tmp_path / "manifest.json").files) == sorted(FILES)
    assert fetched_folder(tmp_path / "manifest.json") == tmp_path / "models/mae/jax/mae_latent_640"
    write_fetched(WANTED, tmp_path / "manifest.json", "0" * 64)
    assert len(asked) == 2


def test_without_internet_files_put_there_by_hand_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repository: str, file: str, **options: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(Fault) as caught:
        write_fetched(WANTED, tmp_path / "manifest.json", "0" * 64)
    said = f"hf download Goodeat/drifting {' '.join(FILES)} --revision {published.REVISION} --local-dir {tmp_path}"
    assert said in str(caught.value)
    assert f"{tmp_path}/models/mae/jax/mae_latent_640" in str(caught.value)
    assert not (tmp_path / "manifest.json").exists()
    fill(tmp_path)
    write_fetched(WANTED, tmp_path / "manifest.json", "0" * 64)
    assert (tmp_path / "manifest.json").exists()


def test_only_fetch_asks_the_hub_and_it_runs_where_the_head_runs(root: Path) -> None:
    rules = {path.name: path.read_text() for path in (root / "rules").glob("*.smk")}
    assert [name for name, text in rules.items() if "HF_HUB_OFFLINE=0" in text] == ["sources.smk"]
    local, fetch = (
        re.search(r"^localrules:\n((?:    .*\n)+)", rules["sources.smk"], re.MULTILINE),
        "HF_HUB_OFFLINE=0 exec python",
    )
    assert local
    assert "fetch," in local[1]
    assert f"{fetch} $WORKFLOW_SCRIPTS/fetch.py" in rules["sources.smk"]
    code = "from pathlib import Path\nfrom drifting_core.config import load_file\n"
    code += "from drifting_core.workflow.layout import Layout\n"
    code += "Layout(load_file(Path('config/demo.yaml'))).set_environment('.')\n"
    code += "from huggingface_hub import constants; print(constants.HF_HUB_OFFLINE)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
