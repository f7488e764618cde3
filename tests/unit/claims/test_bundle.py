"""The bundle: whole or refused, self-contained, and consistent with what it was made from."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest

from drifting_core import artifacts, config
from drifting_core.artifacts.identity import digest, operations
from drifting_core.claims.bundle import make_bundle
from drifting_core.claims.verifying import point_to, summary, verify_bundle
from drifting_core.evaluation.tables import make_table
from drifting_core.faults import Fault
from tests.unit.evaluation.samples import MADE, PUBLISHED, forge, write_claim, write_metrics

RUN = "demo-00000000"


@pytest.fixture(scope="module")
def claim(tmp_path_factory):
    """A results folder with a claim and its bundle."""
    results = tmp_path_factory.mktemp("claim") / "results"
    given = write_claim(results)
    bundle(results, given)
    return results


@pytest.fixture
def folder(claim, tmp_path):
    """A copy of the bundle, free to be damaged."""
    return shutil.copytree(claim / "bundles" / RUN, tmp_path / "bundles" / RUN)


def bundle(results, given):
    for name, last in (("a_job", "exit code 0 after 0:02, peak memory 300 MB"), ("killed", "a line")):
        log = results / f"logs/{RUN}/{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"python workflow_scripts/{name}.py --output {results}/runs/{RUN}/{name}.json\n{last}\n")
    values = json.loads(
        json.dumps({"data": {"image_size": 4}, "generator": GENERATOR, "training": TRAINING, "evaluation": EVALUATION})
    )
    typed = {name: Values(own) for name, own in values.items()}
    make_bundle(results / "bundles" / RUN, RUN, given, typed=typed, configuration="0" * 64)


GENERATOR = {"depth": 1, "hidden_size": 32, "patch_size": 4}
TRAINING = {"learning_rate": 1e-3, "ema": 0.9, "steps": 1000}

EVALUATION = {"selection": {"samples": 500, "seeds": [1], "last_k": 3, "alpha": 1.5, "alphas": [1.0]}}


class Values:
    """Stands for a section of the configuration."""

    def __init__(self, values):
        self.values = values

    def model_dump(self, mode):
        return self.values


def test_a_bundle_is_whole_and_repeats_byte_for_byte(claim, tmp_path):
    first = claim / "bundles" / RUN
    listed = verify_bundle(first).files
    assert {"CLAIM.md", "report.html", "configuration.json", "provenance.json", "tables/claim.json"} <= listed.keys()
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    bundle(claim, write_claim(claim))
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


def test_published_statistics_are_said_to_be_such(tmp_path):
    given = write_claim(tmp_path / "results")
    path = dict(given)["reference"]
    record = artifacts.ReferenceStatistics.read(path)
    record.imported = artifacts.ImportedStatistics(name="adm.npz", sha256="e" * 64, own_images=2999, distance_to_own=0.0123)
    record.write(path)
    bundle(tmp_path / "results", given)
    claim = (tmp_path / "results/bundles" / RUN / "CLAIM.md").read_text()
    assert "not computed here: adm.npz (SHA-256 eeeeeeeeeeeeeeee…), said to be of 3,000 training images" in claim
    assert "0.0123" in claim


def test_one_flipped_byte_in_any_file_is_found_and_named(folder):
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            damaged = bytearray(content)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(Fault, match=re.escape(path.name)):
                verify_bundle(folder)
        path.write_bytes(content)
    verify_bundle(folder)


def test_every_job_stands_with_the_exit_code_that_it_had(claim):
    folder = claim / "bundles" / RUN
    rows = [line for line in (folder / "RUN.md").read_text().splitlines() if f"logs/{RUN}" in line]
    assert [row.split(" | ")[2:5] for row in rows] == [
        ["0", "0:02", "300"],
        ["none recorded (killed, or made by an older version)", "-", "-"],
    ]
    assert (
        "# logs/demo-00000000/a_job.log: exit code 0\npython workflow_scripts/a_job.py"
        in (folder / "commands.txt").read_text()
    )


def test_an_edited_number_is_found_where_every_hash_was_made_to_fit(folder):
    """A table, a recommendation: neither says anything but what follows from the evaluations beside it."""
    for name, edit in (
        ("claim.json", ('"distance": 10.1', '"distance": 1.54')),
        ("recommendation.json", ('"step": 1000', '"step": 500')),
    ):
        path = folder / "tables" / name
        whole = path.read_text()
        assert edit[0] in whole
        path.write_text(whole.replace(*edit))
        forge(folder)
        with pytest.raises(Fault, match=name.partition(".")[0]):
            verify_bundle(folder)
        path.write_text(whole)
        forge(folder)
        verify_bundle(folder)


def test_the_claim_in_a_further_space_is_taken_in_and_follows_from_its_evaluations(tmp_path):
    results = tmp_path / "results"
    run, given = results / "runs" / RUN, write_claim(results)
    metrics = write_metrics(run / "claim/spaces/clip/metrics.json", 1000, 1.5, 1000, 31.5, network="clip", samples=1000)
    table = run / "tables/claim_clip.json"
    make_table("claim_clip", [metrics]).write(table)
    bundle(results, [*given, ("space", metrics), ("space_table", table)])
    folder = results / "bundles" / RUN
    verify_bundle(folder)
    held = folder / f"artifacts/runs/{RUN}/tables/claim_clip.json"
    assert artifacts.MetricsTable.read(held).distance_name == "FD-CLIP"
    held.write_text(held.read_text().replace('"distance": 31.5', '"distance": 3.15'))
    forge(folder)
    with pytest.raises(Fault, match="claim_clip.json: does not follow from what it was made from: rows differ"):
        verify_bundle(folder)


def test_missing_and_added_files_are_named(folder):
    (folder / "figures/extra.png").write_bytes(b"")
    with pytest.raises(Fault, match=r"extra\.png: not listed"):
        verify_bundle(folder)
    (folder / "figures/extra.png").unlink()
    (folder / "CLAIM.md").unlink()
    with pytest.raises(Fault, match=r"CLAIM\.md: missing"):
        verify_bundle(folder)
    (folder / "claim_bundle.done").unlink()
    with pytest.raises(Fault, match=r"claim_bundle\.done: missing"):
        verify_bundle(folder)


def test_every_link_of_the_claim_leads_to_a_listed_file(claim):
    folder = claim / "bundles" / RUN
    listed = set(verify_bundle(folder).files) | {"manifest.json"}
    links = set(re.findall(r"\]\(([^)]+)\)", (folder / "CLAIM.md").read_text()))
    assert links
    assert links <= listed
    report = (folder / "report.html").read_text()
    assert set(re.findall(r'href="([^"]+)"', report)) <= listed
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]+)"', report))
    assert "http" not in re.sub(r'src="[^"]+"', "", report)


def test_numbers_of_a_small_network_are_never_called_fid(claim):
    folder = claim / "bundles" / RUN
    text = (folder / "CLAIM.md").read_text()
    assert "FD and DS, not FID and IS" in text
    assert not re.search(r"\| (FID|IS) \|", text)
    assert all("FID" not in path.read_text() for path in folder.rglob("*.json"))


def test_provenance_names_what_each_artifact_was_made_from(claim):
    graph = json.loads((claim / "bundles" / RUN / "provenance.json").read_text())
    table = next(node for node in graph if node["artifact"] == "tables/claim.json")
    assert table["made_from"] == {"step_1000/alpha_1.5/seed_1000": f"artifacts/runs/{RUN}/claim/metrics.json"}


def test_the_pointer_and_the_summary(claim):
    point_to(claim / "bundles" / RUN / "claim_bundle.done", claim / "claim_bundle.done")
    lines = summary(claim / "claim_bundle.done")
    header, row = lines[1:3]
    assert header.split()[:5] == ["step", "alpha", "seed", "images", "FD"]
    assert "10.1 ± 0.1" in row
    assert len(header) == len(row)
    assert lines[3].startswith("under contract ")
    assert any(line.endswith(f"bundles/{RUN}/report.html") for line in lines)


def test_a_damaged_bundle_is_not_pointed_to(folder):
    (folder / "CLAIM.md").write_text("better")
    with pytest.raises(Fault, match=r"CLAIM\.md"):
        point_to(folder / "claim_bundle.done", folder.parent / "claim_bundle.done")
    assert not (folder.parent / "claim_bundle.done").exists()


def test_a_table_row_without_its_metrics_is_refused(tmp_path):
    given = write_claim(tmp_path)
    lacking = [(role, path) for role, path in given if "alpha_2.5" not in path.as_posix()]
    with pytest.raises(Fault, match=r"'alpha_sweep' has a row for step 1000, alpha 2\.5"):
        bundle(tmp_path, lacking)


def test_an_edited_number_is_refused(tmp_path):
    given = dict(reversed(write_claim(tmp_path)))
    text = given["claim"].read_text()
    given["claim"].write_text(text.replace('"distance": 10.1', '"distance": 1.1'))
    with pytest.raises(Fault, match=r"'claim' and .* differ in \['distance'\]"):
        bundle(tmp_path, write_claim_again(tmp_path, given))


def write_claim_again(results, single):
    """The inputs of a claim that is there already."""
    metrics = [("metrics", path) for path in sorted(results.glob("runs/*/**/metrics.json"))]
    return metrics + [(role, path) for role, path in single.items() if role != "metrics"]


def test_a_claim_at_another_choice_or_on_a_selection_seed_is_refused(tmp_path):
    run = tmp_path / "runs" / RUN
    for seed, step, message in ((1000, 500, "recommendation says step 1000"), (1, 1000, "took part in the selection")):
        given = dict(reversed(write_claim(tmp_path)))
        write_metrics(run / "claim/metrics.json", step, 1.5, seed, 10.1, samples=1000)
        make_table("claim", [run / "claim/metrics.json"]).write(run / "tables/claim.json")
        with pytest.raises(Fault, match=message):
            bundle(tmp_path, write_claim_again(tmp_path, given))


def test_a_swapped_grid_is_refused(tmp_path):
    given = write_claim(tmp_path)
    (tmp_path / "runs" / RUN / "claim/grid.png").write_bytes(b"another")
    with pytest.raises(Fault, match=r"grid\.png"):
        bundle(tmp_path, given)


def test_roles_are_complete(tmp_path):
    given = write_claim(tmp_path)
    with pytest.raises(Fault, match="0 inputs have the role 'neighbours'"):
        bundle(tmp_path, [(role, path) for role, path in given if role != "neighbours"])


def test_what_an_earlier_bundle_left_is_removed(tmp_path):
    given = write_claim(tmp_path)
    stale = tmp_path / "bundles" / RUN / "figures/old.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    bundle(tmp_path, given)
    assert not stale.exists()
    verify_bundle(tmp_path / "bundles" / RUN)


def test_tables_refuse_unlike_contracts_and_repeated_rows(tmp_path):
    one = write_metrics(tmp_path / "one/metrics.json", 1, 1.0, 1, 5.0)
    two = write_metrics(tmp_path / "two/metrics.json", 2, 1.0, 1, 5.0, uint8="round")
    with pytest.raises(Fault, match="uint8: 'truncate' against 'round'"):
        make_table("t", [one, two])
    again = write_metrics(tmp_path / "again/metrics.json", 1, 1.0, 1, 5.0)
    with pytest.raises(Fault, match="same evaluation"):
        make_table("t", [one, again])


def test_the_real_configuration_makes_a_card(tmp_path, demo_values):
    made = config.load(demo_values)
    whole = made.stage_slice("bundle")
    typed = config.sections(whole, operations(made))
    make_bundle(tmp_path / "bundles" / RUN, RUN, write_claim(tmp_path), typed=typed, configuration=digest(whole))
    written = json.loads((tmp_path / "bundles" / RUN / "configuration.json").read_text())
    again = config.load(written)
    assert again.stage_slice("bundle") == whole
    assert isinstance(verify_bundle(tmp_path / "bundles" / RUN), artifacts.Bundle)


def test_tables_need_no_torch():
    import subprocess

    code = (
        "import sys, drifting_core.evaluation.recommend, drifting_core.claims.verifying; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def imported(results, source, **changes):
    """A bundle of weights from `source`, its text and the header of its claim's table."""
    given = [(role, path) for role, path in write_claim(results, **changes) if role != "curve"]
    contract = artifacts.LatentContract(
        tokenizer_sha256="b" * 64, scaling_factor=0.18215, posterior="sample", views=["image"], dtype="float16",
        precision="float32", pre_encode_transforms=[],
    )  # fmt: skip
    export = results / f"runs/{RUN}/exports/step_1000/metadata.json"
    artifacts.Export(
        **MADE, network="generator", step=1000, ema_decay=0.999, architecture={}, parameters=1, latents=contract,
        imported=artifacts.Imported(source=source, step=200_000, weights_sha256="e" * 64),
    ).write(export)  # fmt: skip
    bundle(results, [*given, ("exports", export)])
    text = (results / "bundles" / RUN / "CLAIM.md").read_text()
    return text, text[text.index("## The claim") :].split("\n\n")[1]


def beside(text):
    """Rows of the table of published numbers."""
    return text[text.index("### Beside published numbers") :].split("\n\n")[1].splitlines()[2:]


def test_reported_numbers_stand_beside_ours_where_both_are_fid(tmp_path):
    text, _ = imported(tmp_path / "results", "released:latent_L_sota", **PUBLISHED)
    ours, paper, release = beside(text)
    assert ours.startswith("| this claim | 1.5 | 1,000 | [FID 10.1 ± 0.1](")
    assert paper.startswith("| reported in the paper | 1 | 50,000 | FID 1.54 | IS 258.9 | made under their own contract")
    assert release.startswith("| reported for these weights | 1 | 50,000 | FID 1.53 | IS 260.1 | made under")
    assert len({line.count("|") for line in (ours, paper, release)}) == 1
    assert "the recommendation chooses the guidance strength only" in text
    assert "called step 200,000" in text


def test_reported_numbers_beside_something_else_are_marked_as_not_comparable(tmp_path):
    text, _ = imported(tmp_path / "results", "released:ablation@0123abcd")
    ours, paper, release = beside(text)
    assert ours.startswith("| this claim | 1.5 | 1,000 | [FD 10.1 ± 0.1](")
    assert paper.endswith("| FID 8.46 | - | not comparable: ours is seen through another network (classifier) |")
    assert release.endswith("| FID 8.49 | IS 144 | not comparable: ours is seen through another network (classifier) |")


def test_nothing_is_reported_for_weights_of_a_folder(tmp_path):
    text, table = imported(tmp_path / "results", "somewhere/weights", **PUBLISHED)
    assert len(table.splitlines()) == 3
    assert "Beside published numbers" not in text
