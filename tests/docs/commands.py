"""How each documented command is tested: a table, to which a new command's line is added where no pattern covers it.

A pattern is a regular expression for the whole command. Each command matches exactly one, and each pattern some command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.docs.pages import Command

# Of the tiny site (tests/workflow/conftest.py) in place of the demo's: results in commands are those that are there.
STEP = 60


@dataclass(frozen=True)
class Treatment:
    """What is done with the commands that `pattern` matches.

    run: as they stand, in a copy of a finished site whose config/demo.yaml is the tiny configuration; the exit code is
        one of `codes`, and what is printed holds `says`.
    plan: the same with `-n` behind: Snakemake must find a job for every file.
    repeat: not run; the log is there, and its first line is a command that its script takes.
    covered: by the tests named in `tests` (below tests/).
    elsewhere: not here, because of `why`; they are words that bash can parse.
    Whatever it is, scripts of workflow_scripts must exist and take the options, and files that are named must be there.
    """

    how: str
    pattern: str
    why: str = ""
    tests: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)
    says: str = ""


def run(pattern: str, says: str = "", codes: tuple[int, ...] = (0,)) -> Treatment:
    return Treatment("run", pattern, says=says, codes=codes)


def plan(pattern: str, *tests: str) -> Treatment:
    """`tests`: those that do it for real."""
    return Treatment("plan", pattern, tests=tests)


def covered(pattern: str, *tests: str) -> Treatment:
    return Treatment("covered", pattern, tests=tests)


def elsewhere(pattern: str, why: str) -> Treatment:
    return Treatment("elsewhere", pattern, why=why)


SCRIPTS = "python workflow_scripts"
_WALK, _BUNDLE, _HEAD = "workflow/test_walk.py", "workflow/test_bundle.py", "slurm/test_head.py"

# Jobs that take a moment; all repeat what is there.
_QUICK = r"(?:claim_bundle|\S+/(?:check_archives|record_run|recommend|tabulate_last_k))"

TREATMENTS = (
    # --- Snakemake -----------------------------------------------------------------------------------------------------
    plan(rf"(?:GPU=.*; )?{SCRIPTS}/run_workflow\.py .*", f"{_WALK}::test_kills_at_random_moments_end_in_the_same_bundle"),
    plan(r"snakemake -n(?: .*)?"),
    plan(
        r"snakemake (?:--profile \S+ )?results/claim_bundle\.done(?! --report).*",
        f"{_WALK}::test_kills_at_random_moments_end_in_the_same_bundle",
        "slurm/test_claim.py::test_the_demo_reaches_its_claim_on_a_cluster",
    ),
    plan(
        r"snakemake .*results/(?:runs|data|encoders)/.*",
        f"{_WALK}::test_generated_images_are_exported_by_name_from_a_run_that_is_there",
        f"{_WALK}::test_an_image_folder_is_made_by_name_and_removed_when_told_so",
        f"{_WALK}::test_an_evaluation_of_an_existing_run_is_had_by_name_from_another_configuration",
    ),
    covered(
        r"snakemake .*--sdm apptainer .*",
        "workflow/test_environments.py::test_apptainer_gets_the_image_and_jobs_run_the_checkout_in_it",
    ),
    plan(
        r"snakemake --profile local seeds .*",
        "workflow/test_seeds.py::test_the_table_of_a_finished_run_is_made_without_training",
    ),
    plan(
        r"snakemake (?:--profile local )?encoders(?: .*)?",
        "workflow/test_encoders.py::test_stages_and_widths_are_made_and_audited",
    ),
    plan(r"snakemake (?:--profile local )?model", f"{_BUNDLE}::test_a_model_makes_the_claims_pictures_without_this_project"),
    covered(r"snakemake seeds", "workflow/test_seeds.py::test_the_table_of_a_finished_run_is_made_without_training"),
    covered(
        r"snakemake (?:\S+ )?--report.*",
        f"{_BUNDLE}::test_the_report_is_one_file_with_the_bundles_pictures_tables_and_captions",
    ),
    run(r"snakemake --unlock"),
    # --- jobs again, by the first line of their logs ---------------------------------------------------------------------
    run(rf"bash <\(head -n 1 results/logs/{_QUICK}\.log\)"),
    Treatment("repeat", rf"bash <\(head -n 1 results/logs/(?!{_QUICK}).*\.log\)"),
    # --- scripts by hand -----------------------------------------------------------------------------------------------
    run(rf"{SCRIPTS}/verify_bundle\.py .*", says="bundle whole|numbers recomputed"),
    run(rf"{SCRIPTS}/draw_progress\.py .*", says=r"\.png"),
    run(rf"{SCRIPTS}/(?:status|prune|runs)\.py(?!.* --yes).*"),
    # 1: this machine has no room for the plan.
    run(rf"{SCRIPTS}/plan\.py(?!.* --rates ).*", says="hours", codes=(0, 1)),
    covered(
        rf"{SCRIPTS}/(?:plan\.py .*--rates|measure_rates\.py) .*",
        "unit/evaluation/test_rates.py::test_measured_rates_stand_in_the_shipped_ones_places",
    ),
    run(rf"{SCRIPTS}/show_claim\.py .*", says="FD"),
    run(rf"{SCRIPTS}/show_encoders\.py .*", says="reconstruction"),
    run(rf"{SCRIPTS}/fetch\.py --list(?: .*)?"),
    run(rf"{SCRIPTS}/doctor\.py .*--configfile config/ablation\.yaml", codes=(1,), says="FAIL"),
    run(rf"{SCRIPTS}/doctor\.py --profile local"),
    covered(rf"{SCRIPTS}/doctor\.py --profile slurm", "slurm/test_doctor.py::test_a_run_that_fits_is_let_through"),
    covered(
        rf"{SCRIPTS}/submit_controller\.py .*",
        f"{_HEAD}::test_a_controller_that_is_interrupted_comes_back_to_its_jobs",
    ),
    covered(
        rf"{SCRIPTS}/describe_images\.py.*",
        "workflow/test_own_images.py::test_wrong_counts_are_said_and_what_is_printed_makes_them_right",
    ),
    covered(rf"{SCRIPTS}/remove_sources\.py .*", f"{_WALK}::test_an_image_folder_is_made_by_name_and_removed_when_told_so"),
    run(rf"{SCRIPTS}/write_virtual_dataset\.py --latents .*"),
    covered(
        rf"{SCRIPTS}/write_virtual_dataset\.py",
        "unit/data/test_latents.py::test_a_virtual_dataset_shows_other_readers_the_whole_split",
    ),
    covered(rf"{SCRIPTS}/run_toy\.py .*", "unit/toy/test_toy.py::test_report_is_written_whole"),
    covered(rf"{SCRIPTS}/smoke\.py .*", "workflow/test_smoke.py::test_everything_promised_is_found_and_the_bundle_verified"),
    covered(
        rf"{SCRIPTS}/prune\.py .*--yes.*", "workflow/test_pruning.py::test_it_frees_what_it_says_and_the_claim_stays_whole"
    ),
    elsewhere(rf"{SCRIPTS}/make_photos\.py .*", "needs an npm package that is not part of the project"),
    # --- make: each target is also looked at with `make -n` --------------------------------------------------------------
    covered(r"make demo", f"{_WALK}::test_kills_at_random_moments_end_in_the_same_bundle"),
    covered(r"OMP_WAIT_POLICY=passive make demo", f"{_WALK}::test_kills_at_random_moments_end_in_the_same_bundle"),
    covered(r"make smoke", "workflow/test_smoke.py::test_everything_promised_is_found_and_the_bundle_verified"),
    covered(
        r"make stub .*|snakemake .* --config stub=true",
        "workflow/test_stubs.py::test_the_jobs_are_those_of_the_real_run",
        "slurm/test_stubs.py::test_the_whole_l2_goes_through_a_cluster_as_stubs",
    ),
    covered(r"make toy", "unit/toy/test_toy.py::test_runs_in_processes_are_the_runs"),
    covered(r"make encoders", "workflow/test_encoders.py::test_stages_and_widths_are_made_and_audited"),
    covered(r"make docs", "test_architecture.py::test_generated_pages_are_in_step"),
    run(r"make (?:runs|prune)"),
    run(r"make plan(?!.* RATES=)(?: .*)?", says="GPU-hours", codes=(0, 2)),  # the same: make says 2
    covered(r"make plan .*RATES=.*", "unit/evaluation/test_rates.py::test_measured_rates_stand_in_the_shipped_ones_places"),
    covered(
        r"(?:srun .*)?make rates(?: .*)?",
        "unit/evaluation/test_rates.py::test_measured_rates_stand_in_the_shipped_ones_places",
    ),
    elsewhere(r"(?:SLURM_REQUIRED=1 )?make test(?:-all|-fast)?", "these tests themselves"),
    elsewhere(r"make setup(?: && source \.venv/bin/activate)?", "the tests run in what it makes"),
    elsewhere(r"make (?:benchmark[a-z-]*|parity)(?: .*)?", "minutes of measurements, which assert nothing"),
    # --- other programs --------------------------------------------------------------------------------------------------
    run(r"source \.venv/bin/activate"),
    elsewhere(r"python -m tests\.slurm\.cluster", "the tests of tests/slurm start the same cluster by its function"),
    elsewhere(r"python -m tests\.benchmarks\..*", "minutes of measurements, which assert nothing"),
    elsewhere(r"(?:uv|pip|git|hf|apt-get)\b.*", "needs the internet, or a checkout"),
    elsewhere(r"(?:apptainer|module) .*", "programs of other machines"),
    elsewhere(r"(?:sinfo|sacctmgr|scontrol|scancel|squeue) .*", "asks or tells a site's own SLURM"),
    elsewhere(r"tensorboard .*", "a server that does not end"),
)  # fmt: skip

# Python that a page shows is run in the site too, but for blocks with these words.
PYTHON = {
    "released=": elsewhere("", "needs published weights"),
    "from pipeline import": covered("", f"{_BUNDLE}::test_a_model_makes_the_claims_pictures_without_this_project"),
}


def of(command: Command) -> list[Treatment]:
    """The treatments whose pattern matches; there should be one."""
    return [treatment for treatment in TREATMENTS if re.fullmatch(treatment.pattern, command.text)]


def here(text: str, names: dict[str, str]) -> str:
    """The command with the demo's names replaced by those of the site: `names` by placeholder (run, encoder, data)."""
    for placeholder, found in {"preset": "l2", "file": "l2", "other run": names["run"], **names}.items():
        text = text.replace(f"<{placeholder}>", found)
    text = re.sub(r"\b(runs|bundles|logs)/demo-(?:[0-9a-f]{8}|\*)", rf"\1/{names['run']}", text)
    text = re.sub(r"\b(data|logs)/photos-(?:[0-9a-f]{8}|\*)", rf"\1/{names['data']}", text)
    text = re.sub(r"\b(step|train_generator)_[1-9]\d*\b", rf"\1_{STEP}", text)
    return re.sub(r"<[^<>]+>", "PLACE", text)
