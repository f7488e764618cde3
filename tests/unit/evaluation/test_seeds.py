"""Training seeds side by side: one contract, the spread of every number, names that promise nothing."""

from __future__ import annotations

import pytest

from drifting_core.artifacts import SeedsTable
from drifting_core.evaluation.seeds import compare_seeds, page, write_seeds_table
from drifting_core.evaluation.tables import make_table
from drifting_core.faults import Fault
from tests.unit.evaluation.samples import PUBLISHED, write_metrics

DISTANCES = {7: (9.0, 11.0), 0: (6.0, 6.5), 3: (8.0, 8.0)}  # training seed: distance at two sampling seeds


def claim(folder, distances, step=1000, seeds=(1000, 1001), **changes):
    paths = [
        write_metrics(folder / f"claim/seed_{seed}/metrics.json", step, 1.5, seed, distance, **changes)
        for seed, distance in zip(seeds, distances, strict=True)
    ]
    return make_table("claim", paths)


@pytest.fixture
def claims(tmp_path):
    return {seed: claim(tmp_path / str(seed), both) for seed, both in DISTANCES.items()}


def test_mean_smallest_and_largest_are_over_training_seeds(claims):
    table = compare_seeds(claims)
    assert table.seeds == 3
    assert [row["training_seed"] for row in table.rows] == [0, 3, 7]
    assert [row["distance"] for row in table.rows] == [6.25, 8.0, 10.0]  # means over the sampling seeds
    spread = table.spread["distance"]
    assert (spread.mean, spread.smallest, spread.largest) == (pytest.approx(24.25 / 3), 6.25, 10.0)
    for name, spread in table.spread.items():
        values = [row[name] for row in table.rows]
        assert min(values) == spread.smallest <= spread.mean <= spread.largest == max(values), name


def test_the_order_of_the_claims_changes_nothing(claims):
    assert compare_seeds(dict(reversed(claims.items()))) == compare_seeds(claims)


def test_each_run_keeps_the_step_that_it_chose(tmp_path):
    chosen = {seed: claim(tmp_path / str(seed), (7.0, 7.0), step=500 * (seed + 1)) for seed in (0, 1)}
    assert [row["step"] for row in compare_seeds(chosen).rows] == [500, 1000]


def test_unlike_contracts_are_refused(claims, tmp_path):
    claims[9] = claim(tmp_path / "9", (1.0, 2.0), bootstrap=21)
    with pytest.raises(Fault, match=r"seed 7 and training seed 9 were made under unlike.*\n  bootstrap: 20 against"):
        compare_seeds(claims)


def test_unlike_sampling_seeds_are_refused(claims, tmp_path):
    claims[9] = claim(tmp_path / "9", (1.0, 2.0), seeds=(1000, 1002))
    with pytest.raises(Fault, match=r"unlike sampling seeds.*1002.*training seed 9"):
        compare_seeds(claims)


def test_a_number_that_the_network_does_not_have_has_no_spread(claims):
    for table in claims.values():
        for row in table.rows:
            row["label_accuracy"] = None
    made = compare_seeds(claims)
    assert "label_accuracy" not in made.spread
    assert "label accuracy" not in page(made)


def test_names_follow_the_contract(claims, tmp_path):
    small = page(compare_seeds(claims))
    assert "| FD | DS |" in small
    assert "not FID and IS" in small
    published = {seed: claim(tmp_path / f"fid{seed}", (2.0, 2.1), **PUBLISHED) for seed in (0, 1)}
    assert "| FID | IS |" in page(compare_seeds(published))


def test_the_table_and_its_page_repeat_byte_for_byte(claims, tmp_path):
    paths = {seed: tmp_path / f"{seed}.json" for seed in claims}
    for seed, table in claims.items():
        table.write(paths[seed])
    made = []
    for name in ("one", "two"):
        output = tmp_path / name / "table.json"
        write_seeds_table(output, paths)
        made.append((output.read_bytes(), (output.parent / "table.md").read_bytes()))
    assert made[0] == made[1]
    record = SeedsTable.read(tmp_path / "one/table.json")
    record.verify(tmp_path / "one")
    assert set(record.files) == {"table.md"}
    assert set(record.inputs) == {"seed_0", "seed_3", "seed_7"}
    assert "| mean |  |  | 8.083 |" in made[0][1].decode()
