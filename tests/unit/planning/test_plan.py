"""The plan's arithmetic against the figures of protocol 2.1, 3 and 4.3."""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from drifting_core.artifacts.provenance import ROOT
from drifting_core.config import Configuration, EncoderFinetune, load_file
from drifting_core.config import Space as SpaceSection
from drifting_core.costs import data_preparation, estimates, table8
from drifting_core.data import tars
from drifting_core.doctor.profile import asks, read_profile
from drifting_core.doctor.storage import Room
from drifting_core.faults import Fault
from drifting_core.jobs.subprocesses import Answer
from drifting_core.planning.disk import Amount, Usage, usage
from drifting_core.planning.hours import Task, schedule, tasks
from drifting_core.planning.jobs import ask_snakemake, dry_run_jobs
from drifting_core.planning.limits import Limits, limits
from drifting_core.planning.report import make_plan, page
from drifting_core.workflow.layout import Layout


def preset(root: Path, name: str, **training: int) -> Configuration:
    loaded = load_file(root / "config" / f"{name}.yaml")
    return loaded.model_copy(update={"training": loaded.training.model_copy(update=training)})


def test_multiply_adds_are_those_of_the_protocol(root: Path) -> None:
    ablation, b2, l2 = (preset(root, name, micro_batches=1) for name in ("ablation", "b2", "l2"))
    assert estimates.generator_macs(b2) == pytest.approx(24.5e9, rel=5e-3)
    assert estimates.generator_macs(l2) == pytest.approx(86.4e9, rel=5e-3)
    assert estimates.encoder_macs(ablation) == pytest.approx(18.5e9, rel=5e-3)
    assert estimates.encoder_macs(b2) == pytest.approx(115.8e9, rel=5e-3)
    assert estimates.decoder_macs(ablation) == pytest.approx(9.7e9, rel=5e-3)
    assert estimates.step_macs(ablation) == pytest.approx(0.55e15, rel=1e-2)
    assert estimates.step_macs(b2) == pytest.approx(3.9e15, rel=2e-2)
    assert estimates.generator_parameters(b2) == pytest.approx(132_708_880, rel=1e-2)


def test_the_data_road_is_cut_over_gpus_and_ends_where_shards_do(root: Path) -> None:
    """21.8 GB of latents (protocol: 8 kB each, image and mirror); encoding is shared out until every shard has a GPU."""
    ablation, rates = preset(root, "ablation"), estimates.read_rates()
    assert data_preparation.latent_bytes(ablation) == pytest.approx(1_331_167 * 2 * 8192)
    [encode] = [
        stage for stage in data_preparation.stages(ablation, rates, (1, 8, 32, 64)) if stage.name.startswith("encode")
    ]
    assert encode.hours[0] == pytest.approx(1_331_167 * 2 * 2 * 136.4e9 / 22.78e12 / 3600, rel=1e-3)
    assert encode.hours[1] == pytest.approx(encode.hours[0] / 8, rel=0.05)
    assert encode.hours[3] == pytest.approx(encode.hours[0] / 34, rel=0.1)
    more = ablation.model_copy(
        update={
            "data": ablation.data.model_copy(
                update={"latents": ablation.data.latents.model_copy(update={"shards_train": 64})}
            )
        }
    )
    [faster] = [stage for stage in data_preparation.stages(more, rates, (64,)) if stage.name.startswith("encode")]
    assert faster.hours[0] < 0.6 * encode.hours[3]
    assert data_preparation.files(more) > data_preparation.files(ablation)


def test_the_data_road_says_which_rates_are_measured(root: Path) -> None:
    """A sum is as good as all its parts."""
    ablation, rates = preset(root, "ablation"), estimates.read_rates()
    lines = data_preparation.table(ablation, rates).splitlines()
    [encode] = [line for line in lines if line.startswith("| encode")]
    assert (encode.split(" | ")[0], encode.split(" | ")[-1]) == ("| encode, 32 + 2 jobs, NVIDIA H200", "measured |")
    assert [line.split(" | ")[-1] for line in lines if line.startswith("| all")] == ["measured |"], "all of them are"

    rates["effective_tflops"]["encode_float32"] = {"value": 40, "source": "assumed"}
    lines = data_preparation.table(ablation, rates).splitlines()
    assert [line.split(" | ")[-1] for line in lines if line.startswith("| all")] == ["assumed, measured |"]

    rates["effective_tflops"]["encode_float32"] = {"value": 1e6, "source": "assumed"}
    assert "| JPEG decoding | measured |" in data_preparation.table(ablation, rates), "of the JPEGs, which decide then"


def test_a_slow_file_system_costs_what_the_table_says(root: Path) -> None:
    ablation, rates = preset(root, "ablation"), estimates.read_rates()
    index = data_preparation.stages(ablation, rates)[1]
    rates["data"]["seconds_per_page"]["value"] += 1e-3
    slower = data_preparation.stages(ablation, rates)[1]
    assert f"each ms that the file system takes longer: {slower.hours[0] - index.hours[0]:.2f}" in index.limit


def test_the_data_road_speaks_of_imagenet_only(root: Path) -> None:
    with pytest.raises(Fault, match="3,500 images; .* known for ImageNet's 1,331,167 only"):
        data_preparation.table(preset(root, "demo"), estimates.read_rates())
    assert data_preparation.READERS == tars._READERS


def test_micro_batches_cost_a_second_forward_pass(root: Path) -> None:
    whole, parts = (estimates.step_macs(preset(root, "ablation", micro_batches=n)) for n in (1, 8))
    assert 1.2 < parts / whole < 1.4


def test_twice_the_horizon_is_twice_the_generator(root: Path) -> None:
    rates = estimates.read_rates()
    once, twice = (
        {cost.stage: estimates.gpu_hours(cost, rates) for cost in estimates.costs(preset(root, "l2", steps=steps), rates)}
        for steps in (200_000, 400_000)
    )
    assert twice["generator"] == pytest.approx(2 * once["generator"])
    assert twice["latent-MAE"] == once["latent-MAE"]


def test_a_finetune_costs_its_own_steps_and_its_own_export(root: Path) -> None:
    plain, rates = preset(root, "b2"), estimates.read_rates()
    training = plain.encoder.training
    stage = EncoderFinetune(steps=training.steps // 4, batch=training.batch, learning_rate=1e-3, ema=0.999)
    tuned = plain.model_copy(update={"encoder": plain.encoder.model_copy(update={"finetune": stage})})
    imported = tuned.model_copy(update={"encoder": tuned.encoder.model_copy(update={"source": "released:mae_latent_640"})})
    hours = [
        {cost.stage: estimates.gpu_hours(cost, rates) for cost in estimates.costs(each, rates)}
        for each in (plain, tuned, imported)
    ]
    assert [each["latent-MAE: fine-tune"] for each in hours] == [0.0, *(2 * [hours[0]["latent-MAE"] / 4])]
    assert [each["latent-MAE"] for each in hours] == [hours[0]["latent-MAE"]] * 2 + [0.0]
    assert hours[0]["audit of the encoder"] < 0.01 * hours[0]["latent-MAE"]
    sizes = [
        next(s.bytes for s in estimates.disk(each) if s.what.startswith("latent-MAE")) for each in (plain, tuned, imported)
    ]
    assert sizes[1] == 2 * sizes[0] > sizes[2] > sizes[0]


def test_features_of_generated_images_are_counted(root: Path) -> None:
    """12 kB each with Inception: 2,048 features and 1,008 logits, float32."""
    space = {each.what: each.bytes for each in estimates.disk(preset(root, "ablation"))}
    images = estimates.evaluations(preset(root, "ablation"))[1]
    assert space["features of generated images"] == pytest.approx(images * 12_240)
    assert space["generated latents"] == images * 8192


def test_further_spaces_cost_a_cache_and_a_pass_each(root: Path) -> None:
    plain, rates = preset(root, "ablation"), estimates.read_rates()
    spaces = tuple(SpaceSection(kind=kind, weights="x") for kind in ("dinov2", "clip"))
    more = plain.model_copy(update={"evaluation": plain.evaluation.model_copy(update={"spaces": spaces})})
    macs = {cost.stage: sum(cost.macs.values()) for cost in estimates.costs(more, rates)}
    disk = {space.what: space.bytes for space in estimates.disk(more)}
    assert disk["further feature spaces"] == (1_281_167 + 50_000) * (1024 + 768) * 4
    assert macs["further feature spaces"] == pytest.approx(2 * (1_381_167 * 81e9 + 50_000 * 311.1e9))
    assert sum(estimates.costs(plain, rates)[-1].macs.values()) == estimates.disk(plain)[-1].bytes == 0


def test_crops_in_the_loop_are_encoded_in_the_trainings_format_and_decoded_beside_it(root: Path) -> None:
    """8,192 crops a step: bfloat16 on the GPUs, JPEGs on all threads of all ranks; the slower of both decides."""
    text = "rule train_encoder:\n    output: results/encoders/mae_w256-00000000/trained.json\n"
    rates = estimates.read_rates()

    def job(**changes: Any) -> Task:
        config = load_file(root / "config/ablation.yaml", [f"encoder={changes}"])
        [found] = tasks(config, dry_run_jobs(text), {"train_encoder": 8}, rates)
        return found

    plain, seen = job(), 30_000 * 8192
    assert plain.hours == pytest.approx(seen / (150 * 64) / 3600)
    assert plain.lasts(8) == plain.gpu_hours / 8 > plain.hours
    exact = job(training={"precision": "float32"})
    assert exact.gpu_hours - plain.gpu_hours == pytest.approx(2 * seen * 136.4e9 * (1 / 22.78e12 - 1 / 201.8e12) / 3600)
    starved = job(resources={"threads": 1})
    assert starved.lasts(8) == starved.hours == 8 * plain.hours > plain.lasts(8)
    assert job(augmentation="none").hours == 0


def test_a_reference_takes_as_long_as_its_jpegs_where_they_are_slower(root: Path) -> None:
    """1.33 million by eight threads, 0.31 h; Inception's 0.19 h on the GPU are beside it."""
    config = load_file(root / "config/ablation.yaml", ["evaluation={network: {resources: {threads: 8}}}"])
    text = f"rule make_reference:\n    output: {Layout(config).folder('reference')}/moments.json\n"
    [job] = tasks(config, dry_run_jobs(text), {"make_reference": 1}, estimates.read_rates())
    assert job.lasts(1) == job.hours == pytest.approx(1_331_167 / (8 * 150) / 3600)
    assert 0 < job.gpu_hours < job.hours


# --- the whole plan of l2 with nothing there -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def l2(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As JSON has it, for a folder that does not exist."""
    folder = tmp_path_factory.mktemp("bare")
    preset = root / "config/l2.yaml"
    return json.loads(json.dumps(make_plan(preset, [], folder, (1, 8, 64), "slurm", 2880)))


@functools.cache
def tasks_of(name: str) -> tuple[Configuration, list[Task]]:
    """The configuration of a preset, and its jobs where nothing is there."""
    path, profile = ROOT / f"config/{name}.yaml", read_profile("slurm")
    config = load_file(path)
    with tempfile.TemporaryDirectory() as folder:
        jobs = ask_snakemake(config, path, [], profile.path.parent, Path(folder)).jobs
    devices = {each.rule: each.gpus * each.nodes for each in asks(config, profile)}
    return config, tasks(config, jobs, devices, estimates.read_rates())


def test_l2_is_within_the_figures_of_the_protocol(l2: dict[str, Any]) -> None:
    """B/2 is 3.9 PMAC a step and 1.6e21 FLOP (45 days at 400 TFLOP/s); L/2's generator makes that 4.5 PMAC.

    The plan recomputes the forward pass for micro-batches, which the protocol does not.
    """
    generator = l2["gpu_hours"]["rows"]["generator"]["hours"]
    forward = 8192 * (86.4e9 + 115.8e9)
    step = 8192 * (3 * 86.4e9 + 2 * 115.8e9) + 128 * 96 * 115.8e9
    assert generator == pytest.approx(200_000 * 2 * (step + forward) / 102.8e12 / 3600, rel=5e-3)
    assert l2["gpu_hours"]["whole"] == pytest.approx(9_993, rel=1e-3)


def test_jobs_cost_together_what_the_stages_cost() -> None:
    """Two ways to count: job by job from the dry run, and by stage from the configuration."""
    for name in ("ablation", "released_l2"):
        config, jobs = tasks_of(name)
        rates = estimates.read_rates()
        whole = sum(estimates.gpu_hours(cost, rates) for cost in estimates.costs(config, rates))
        one_step = estimates.step_macs(config) * 2 / 102.8e12 / 3600
        assert sum(job.gpu_hours for job in jobs) == pytest.approx(whole, rel=1e-6, abs=one_step)


def test_every_job_counts_once_and_says_why(l2: dict[str, Any]) -> None:
    assert sum(stage["to_run"] for stage in l2["jobs"].values()) == 143
    assert all(sum(stage["rules"].values()) == sum(stage["why"].values()) for stage in l2["jobs"].values())
    assert l2["jobs"]["data"]["rules"]["encode_latents"] == 34
    assert {reason for stage in l2["jobs"].values() for reason in stage["why"]} == {"missing output"}
    assert all(stage["there"] == 0 for stage in l2["jobs"].values())


def test_every_figure_names_rates_that_are_in_the_file(l2: dict[str, Any], root: Path) -> None:
    written = yaml.safe_load((root / "config/rates.yaml").read_text())
    used = l2["rates"]["used"]
    assert l2["rates"]["hardware"] == written["device"]
    for key, rate in used.items():
        assert rate == estimates.rate_of(written, key)
        assert rate["source"]
    for part, row in l2["gpu_hours"]["rows"].items():
        assert (row["hours"] == 0) or set(row["rates"]) <= set(used), part


def test_wall_clock_falls_with_gpus_and_never_below_the_work() -> None:
    _, jobs = tasks_of("ablation")
    made = [schedule(jobs, gpus) for gpus in (1, 2, 3, 8, 9, 16, 64)]
    work = sum(job.gpu_hours for job in jobs)
    path = max(job.lasts(64) for job in jobs)
    for each, more in itertools.pairwise(made):
        assert more.hours <= each.hours
    for each in made:
        assert each.hours >= max(work / each.gpus, path) * (1 - 1e-9)
    slices = sum(job.lasts(64) for job in jobs if job.rule in ("train_encoder", "audit_encoder", "train_generator"))
    assert made[-1].waits["encoder"] + made[-1].waits["generator"] == pytest.approx(slices, rel=1e-3)


@given(data=st.data())
def test_a_schedule_keeps_the_order_and_the_gpus(data: st.DataObject) -> None:
    """Of any jobs: what their stages wait for adds up to the end, which more GPUs never delay."""
    count = data.draw(st.integers(1, 8))
    hours = st.integers(0, 5).map(float)
    jobs = [
        Task(
            "rule", f"stage{data.draw(st.integers(0, 2))}", data.draw(hours), data.draw(st.integers(0, 4)), data.draw(hours),
            tuple(sorted(data.draw(st.sets(st.integers(0, place - 1), max_size=3)))) if place else (),
        )
        for place in range(count)
    ]  # fmt: skip
    one, two, four = (schedule(jobs, gpus).hours for gpus in (1, 2, 4))
    assert four <= two <= one
    ends: list[float] = []
    for job in jobs:
        ends.append(max((ends[before] for before in job.needs), default=0.0) + job.lasts(4))
    work = sum(job.gpu_hours for job in jobs if job.devices)
    assert four >= max(*ends, work / 4) - 1e-9
    assert one <= sum(job.lasts(1) for job in jobs) + 1e-9


def test_more_gpus_are_left_idle_where_they_would_delay_the_end() -> None:
    """Four jobs whose list schedule takes 9 h on two GPUs, and 9.25 h on four."""
    jobs = [
        Task("rule", "stage", hours, devices, 0.0, needs)
        for hours, devices, needs in ((3.0, 3, ()), (5.0, 1, ()), (5.0, 4, ()), (3.0, 1, (2,)))
    ]
    assert [schedule(jobs, gpus).hours for gpus in (2, 4)] == [9.0, 9.0]


def test_finished_jobs_cost_nothing() -> None:
    config, jobs = tasks_of("ablation")
    text = "".join(
        f"rule {rule}:\n    input: {needs}\n    output: {output}\n    reason: Missing output files: {output}\n"
        for rule, needs, output in (
            ("sample", "e/step_30000/metadata.json", "s/manifest.json"),
            ("evaluate", "s/manifest.json", "m/metrics.json"),
        )
    )
    rest = tasks(config, dry_run_jobs(text), {"sample": 1, "evaluate": 1}, estimates.read_rates())
    assert [job.needs for job in rest] == [(), (0,)]
    assert 0 < sum(job.gpu_hours for job in rest) < 1e-3 * sum(job.gpu_hours for job in jobs)
    [short] = [schedule(rest, 8)]
    assert short.hours == pytest.approx(sum(job.gpu_hours for job in rest))
    assert set(short.waits) == {"evaluation"}
    assert schedule([], 8).hours == 0


def test_reasons_are_snakemakes_own() -> None:
    said = {
        "Missing output files: a.json; Input files updated by another job: b.json": (
            "missing output",
            "after a job that runs",
        ),
        "Updated input files: ; Input files updated by another job: b.json": ("after a job that runs",),
        "Params have changed since last execution: <nothing exclusive>": ("params changed",),
        "Set of input files has changed since last execution": ("other set of inputs",),
        "Incomplete output files: a.json": ("incomplete output",),
        "The moon is full": ("another reason",),
    }
    for text, names in said.items():
        [job] = dry_run_jobs(f"rule evaluate:\n    output: a.json\n    reason: {text}\n")
        assert (job.reasons, job.stage) == (names, "evaluation")


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusals(root: Path, tmp_path: Path, *changes: str, minutes: float = 2880, **usage: Any) -> tuple[list[str], list[str]]:
    """(refusals, warnings) of the ablation's training alone, changed, on a disk with room unless `usage` says otherwise."""
    config = load_file(root / "config/ablation.yaml", changes)
    profile = read_profile("slurm")
    asked = asks(config, profile)
    devices = {each.rule: each.gpus * each.nodes for each in asked}
    text = "rule train_encoder:\n    output: results/encoders/mae_w256-00000000/trained.json\n"
    text += f"rule train_generator:\n    output: exports/step_{config.training.steps}/metadata.json\n"
    jobs = tasks(config, dry_run_jobs(text), devices, estimates.read_rates())
    disk = Usage(str(tmp_path), ("results",), 1e15, Room(1e15, None), Amount(0, 0), Amount(6e10, 602), 9e10)
    found = limits(config, asked, jobs, [disk._replace(**usage)], profile, minutes)
    return found.refusals, found.warnings


def test_a_plan_that_can_work_is_not_refused(root: Path, tmp_path: Path) -> None:
    """The ablation's encoder takes 16.6 h: in jobs of 15 h it goes on once."""
    assert refusals(root, tmp_path) == ([], [])
    refused, [warning] = refusals(root, tmp_path, "encoder={resources: {runtime_minutes: 900}}")
    assert refused == []
    assert "train_encoder: a job of 16.6 h, by the rates on 8 GPU(s), needs 2 attempts of" in warning


def test_a_slice_longer_than_the_partition_is_refused(root: Path, tmp_path: Path) -> None:
    [encoder, generator] = refusals(root, tmp_path, minutes=1440)[0]
    assert "training.resources.runtime_minutes: 2880, but the partition ends jobs after 1440 minutes" in generator
    assert "--partition-limit 1440" in encoder


def test_a_slice_that_retries_do_not_bring_to_its_end_is_refused(root: Path, tmp_path: Path) -> None:
    short = "training={steps: 600000, milestone_every: 60000, resources: {runtime_minutes: 30}}"
    [refusal] = refusals(root, tmp_path, short)[0]
    assert "train_generator: a job of 29.4 h, by the rates on 8 GPU(s), needs 59 attempts of" in refusal
    assert "training.resources.runtime_minutes (30)" in refusal
    assert "allows 11 (retries: 10); change training.milestone_every" in refusal


@pytest.mark.parametrize(
    ("usage", "said"),
    [
        ({"free": Room(8e10, None)}, "80.00 GB are free, at its peak the plan needs 90.00 GB"),
        ({"free": Room(1e15, 601)}, "601 inodes are free, the plan adds about 602 files"),
    ],
)
def test_too_small_a_disk_is_refused(root: Path, tmp_path: Path, usage: dict[str, Any], said: str) -> None:
    [refusal] = refusals(root, tmp_path, **usage)[0]
    assert refusal == f"{tmp_path}: {said}; make room, or set results to another disk"


def test_too_little_memory_for_a_state_is_refused(root: Path, tmp_path: Path) -> None:
    """A state is four float32 numbers a weight, copied to host memory: 2.1 GB for B/2; the latents are 21.8 GB a rank."""
    [refusal] = refusals(root, tmp_path, "training={resources: {memory_mb: 2000}}")[0]
    assert "training.resources.memory_mb: 2000, but the state's copy in host memory alone takes 2,1" in refusal
    held = refusals(root, tmp_path, "data={latents: {residency: ram}}", "training={resources: {memory_mb: 150000}}")[0]
    assert ["training.resources.memory_mb: 150000" in each and "residency: ram" in each for each in held] == [True]


def test_partitions_are_what_sinfo_says(root: Path) -> None:
    config, profile = load_file(root / "config/ablation.yaml"), read_profile("slurm")
    asked = asks(config, profile)
    devices = {each.rule: each.gpus * each.nodes for each in asked}
    jobs = tasks(config, dry_run_jobs("rule train_encoder:\n    output: a/trained.json\n"), devices, estimates.read_rates())

    def said(line: str) -> Limits:
        return limits(config, asked, jobs, [], profile, Answer(0, line))

    assert said("gpu*|up|2-00:00:00|gpu:h200:8|128|512000|1|idle").refusals == []
    found = said("gpu*|up|1-00:00:00|gpu:h200:4|128|512000|1|idle")
    [refusal] = found.refusals
    assert "encoder.resources: gpu has at most 1440 minutes, not 2880, at most 4 GPUs a node, not 8" in refusal
    assert found.source == "sinfo: gpu 1440 minutes"
    assert "no partition gpu" in said("cpu*|up|infinite|(null)|8|32000|1|idle").refusals[0]
    absent = limits(config, asked, jobs, [], profile, Answer(None, error="sinfo is not on PATH"))
    assert absent.refusals == []
    assert "not known (sinfo: sinfo is not on PATH)" in absent.source
    assert "give --partition-limit MINUTES" in absent.warnings[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training={micro_batches: 7}", "training.micro_batches: 7 must divide 128, objective.classes_per_step"),
        ("training={resources: {gpus: 3}}", "training.resources (its ranks): 3 must divide 128, objective.classes_per_step"),
        ("encoder={training: {batch: 100}}", "encoder.resources (its ranks): 8 must divide 100, encoder.training.batch"),
        ("data={latents: {compute_batch: 48}}", "data.latents.compute_batch: 48 must divide 128, a chunk's images"),
        ("training={milestone_every: 30000}", "steps (200000) must be a multiple of milestone_every (30000)"),
        (
            "evaluation={report: {samples: 50500}}",
            "data.expected.classes: 1000 must divide 50500, evaluation.report.samples",
        ),
        ("generator={num_heads: 24}", "generator.num_heads: 24 must divide 1024, generator.hidden_size"),
        ("objective={bank: {pushes_per_step: 64}}", "objective.bank.pushes_per_step: 64 must be at least"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_its_numbers(root: Path, change: str, said: str) -> None:
    with pytest.raises(Fault) as raised:
        load_file(root / "config/l2.yaml", [change])
    assert said in str(raised.value)


# --- disk, Table 8, the page -----------------------------------------------------------------------------------------


def test_the_peak_holds_a_third_state_and_the_caches(l2: dict[str, Any]) -> None:
    [first, *_] = l2["disk"]["systems"]
    assert first["folders"][0] == "results"
    added, peak = first["adds"]["bytes"], first["peak"]
    assert added == pytest.approx(sum(l2["disk"]["rows"].values()) * 1e9)
    third = 4 * 4 * 0.4629e9  # of the generator: that of the encoder, and the journals of latents, came before it
    assert peak - added == pytest.approx(third + 10.5e9 + 50_000 * (8192 + 12_240), rel=1e-2)


def test_what_is_there_is_not_added_again(root: Path, tmp_path: Path) -> None:
    config = load_file(root / "config/ablation.yaml")
    encoder = Layout(config).folder("encoder")
    jobs = dry_run_jobs(f"rule train_encoder:\n    output: {encoder}/trained.json\n")
    [before, *_] = usage(config, jobs, tmp_path)
    (tmp_path / encoder).mkdir(parents=True)
    (tmp_path / encoder / "state").write_bytes(b"0" * 1_000_000)
    [after, *_] = usage(config, jobs, tmp_path)
    assert before.adds.bytes - after.adds.bytes == 1_000_000 == after.there.bytes
    assert before.adds.files - after.adds.files == 1 == after.there.files
    assert before.adds.bytes == pytest.approx(16.81e9, rel=1e-3)
    [nothing, *_] = usage(config, [], tmp_path)
    assert (nothing.adds, nothing.peak) == ((0, 0), 0)


def test_presets_depart_from_table_8_where_the_protocol_says(root: Path) -> None:
    """Protocol 7.1: blocks (9), queue (12), codebooks (13) in all columns; N_pos of B/2 (10), EMA of both (11)."""
    always = {"style codebook", "encoder: kind of block", "queue: pushes per step, of all hosts"}
    more: dict[str, set[str]] = {"ablation": set(), "b2": {"N_pos, real per class", "EMA"}, "l2": {"EMA"}}
    for column, (name, rows) in enumerate(more.items()):
        config = load_file(root / f"config/{name}.yaml")
        assert table8.nearest(config) == column
        found = table8.departures(config, column)
        assert {each.row for each in found} == always | rows
        assert all(each.here == each.release for each in found)  # presets are the release's
    [changed] = [
        each
        for each in table8.departures(load_file(root / "config/l2.yaml", ["training={seed: 7}"]), 2)
        if each.row == "seed"
    ]
    assert changed == ("seed", "42", "42", "7")
    as_printed = load_file(root / "config/b2.yaml", ["objective={positives_per_class: 128}"])
    assert ("N_pos, real per class", "128", "64", "128") in table8.departures(as_printed, 1)


def test_the_page_fits_and_says_what_json_says(l2: dict[str, Any]) -> None:
    text = page(l2)
    place = l2["disk"]["systems"][0]["place"]
    lines = [line.replace(place, "results") for line in text.splitlines() if "snakemake -n" not in line]
    assert max(map(len, lines)) <= 120
    for said in ("9,992.60", "32 of 36 rows agree", "effective_tflops.generator", "measured: NVIDIA H200, torch"):
        assert said in text
    assert f"{l2['wall_clock'][1]['hours']:,.2f}" in text


def test_the_demo_takes_no_gpu_and_is_no_column_of_table_8(root: Path, tmp_path: Path) -> None:
    found = make_plan(root / "config/demo.yaml", [], tmp_path, (1, 8), "local", None)
    text = page(found)
    assert "asks for no GPU" in text
    assert "none of its columns is meant" in text
    assert "hours of wall-clock" not in text
    assert found["refusals"] == []
