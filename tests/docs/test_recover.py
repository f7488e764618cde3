"""docs/recover.md against the code: its messages are real and end with what to do; common ones are made to happen."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from drifting_core import artifacts, config
from drifting_core.faults import Fault
from tests.docs.messages import Message, messages
from tests.docs.pages import ROOT, names_of_tests

PAGE = (ROOT / "docs/recover.md").read_text()
# Words of a row are the code span that its first cell is made of.
WORDS = [words for ticks, words in re.findall(r"^\| (``?)(.+?)\1 \| ", PAGE, re.MULTILINE)]
MESSAGES = messages()

# Faults that are made to happen, with the test that does it.
HAPPENS = {
    "Snakemake already runs in this folder":
        "slurm/test_head.py::test_a_second_head_is_refused_and_jobs_are_cancelled_on_request",
    "is locked by a Snakemake that run_workflow.py did not start":
        "unit/workflow/test_heads.py::test_the_lock_of_a_dead_head_is_removed_and_one_of_an_unknown_is_not",
    "has a controller already: job …":
        "unit/workflow/test_heads.py::test_a_controller_is_submitted_where_the_profile_says_and_only_once",
    "is writing here, and what started it … is alive":
        "unit/training/test_survival.py::test_two_jobs_on_one_run_are_one_too_many",
    "no known configuration has the … '…'":
        "workflow/test_walk.py::test_a_run_that_nobody_made_is_a_clear_message",
    "seeds: empty, so there is nothing to compare":
        "workflow/test_seeds.py::test_no_seeds_is_one_message",
    "is not what the configuration describes":
        "unit/models/test_importing.py::test_what_is_not_described_is_refused",
    "not the audited encoder that the configuration describes":
        "unit/models/test_audit.py::test_the_training_script_refuses_before_any_state",
    "cannot start from this export":
        "unit/models/test_warm_start.py::test_an_export_that_does_not_fit_is_refused_with_every_difference",
    "put or link them there, or set these keys to where they are":
        "workflow/test_dry_run.py::test_a_missing_archive_is_said_by_the_first_job",
    "no tar header at byte":
        "unit/data/test_archives.py::test_a_training_archive_that_is_not_whole",
    "changed since it was checked; remove … to check it again":
        "unit/data/test_archives.py::test_an_archive_that_changed_after_its_check",
    "unreadable image(s), data.max_rejects is":
        "workflow/test_own_images.py::test_a_file_that_is_no_image_is_named",
    "its latent is not finite":
        "unit/data/test_latents.py::test_a_latent_beyond_the_number_format_is_named",
    "is not here and cannot be downloaded":
        "workflow/test_released.py::test_without_internet_the_fetch_says_what_to_do_and_loses_nothing",
    "the state of step … could not be written":
        "unit/training/test_survival.py::test_a_full_disk_keeps_the_states_before",
    "finished pieces are kept: free space and call again":
        "unit/data/test_encoding_faults.py::test_a_disk_that_fills_up_while_encoding_keeps_what_is_finished",
    "lower the learning rate, or look into":
        "unit/training/test_survival.py::test_a_number_that_is_not_finite_stops_before_the_update_and_leaves_what_is_needed_to_look",
    "and the others were stopped; the last committed state stays":
        "unit/training/test_survival.py::test_one_of_two_ranks_killed_ends_the_other_and_loses_nothing",
    "made under configuration …, this one is":
        "unit/training/test_training.py::test_a_state_of_another_configuration_is_refused_and_kept",
    "no whole state is left, but … holds steps":
        "workflow/test_lost_files.py::test_a_run_without_its_state_is_not_trained_over",
    "cannot be made again; nothing was changed":
        "workflow/test_lost_files.py::test_an_export_behind_the_kept_states_cannot_be_made_again",
    "tensorboard: true, but TensorBoard cannot be imported":
        "unit/training/test_events.py::test_a_missing_tensorboard_is_said_before_anything_is_trained",
    "GPUs are asked for, but this machine has":
        "workflow/test_pool.py::test_more_gpus_than_there_are_is_said_before_anything_runs",
    "several nodes need SLURM":
        "unit/jobs/test_devices.py::test_several_nodes_need_slurm",
    "world size …, but the plan":
        "unit/jobs/test_devices.py::test_another_number_of_ranks_than_planned_is_refused",
    "were made under unlike evaluation contracts":
        "unit/evaluation/test_seeds.py::test_unlike_contracts_are_refused",
    "batches were not sampled":
        "unit/evaluation/test_sampler.py::test_a_file_is_not_put_together_without_all_batches",
    "is another file than the one in":
        "workflow/test_bundle.py::test_a_bundle_is_verified_deeply_and_what_was_changed_is_found",
    "took part in the selection; report on a fresh one":
        "unit/claims/test_bundle.py::test_a_claim_at_another_choice_or_on_a_selection_seed_is_refused",
}  # fmt: skip


def matching(words: str) -> list[Message]:
    """Messages in which the parts between … stand in this order."""
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in words.split("…")), re.DOTALL)
    return [message for message in MESSAGES if pattern.search(message.text)]


@pytest.mark.parametrize("words", WORDS)
def test_a_message_of_the_page_is_one_of_the_code(words: str) -> None:
    assert matching(words), f"no message of the code reads `{words}`"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.place)
def test_every_message_ends_with_what_to_do(message: Message) -> None:
    assert message.remedy, f"{message.place}: `{message.text}` does not say what to do (a clause that begins with a verb)"


def test_most_messages_were_found() -> None:
    assert len(MESSAGES) > 200
    assert len(WORDS) > 60


@pytest.mark.parametrize("words", HAPPENS)
def test_a_common_fault_has_its_row_and_the_test_that_makes_it_happen(words: str) -> None:
    assert words in WORDS, f"docs/recover.md has no row `{words}`"
    file, name = HAPPENS[words].split("::")
    assert name in names_of_tests(file), HAPPENS[words]


def config_file(text: str) -> Callable[[Path], object]:
    """Reads the demo's preset with `text` in place of the generator's depth."""

    def read(folder: Path) -> object:
        demo = (ROOT / "config/demo.yaml").read_text()
        (folder / "config.yaml").write_text(re.sub(r"(\n  depth: )\d+", rf"\1{text}", demo))
        return config.load_file(folder / "config.yaml")

    return read


def edited_artifact(folder: Path) -> object:
    """Reads a record whose file has one byte more than it was recorded with."""
    (folder / "weights").write_bytes(b"123")
    record = artifacts.FileRecord.of(folder / "weights")
    (folder / "weights").write_bytes(b"1234")
    return artifacts.check_file(folder / "weights", record)


# Faults that take no time to make.
AT_ONCE: dict[str, Callable[[Path], object]] = {
    "has … problem(s)": config_file("deep"),
    "cannot be read as YAML": config_file("{"),
    "--config …: no value": lambda folder: config.load_file(ROOT / "config/demo.yaml", ["training"]),
    "it was cut or changed: restore it from a copy": edited_artifact,
    "missing, but its manifest lists it; remove the manifest to make both again": lambda folder: artifacts.check_file(
        folder / "gone", artifacts.FileRecord(bytes=1, sha256="0" * 64)
    ),
}


@pytest.mark.parametrize("words", AT_ONCE)
def test_a_fault_says_what_its_row_quotes(words: str, tmp_path: Path) -> None:
    assert words in WORDS, f"docs/recover.md has no row `{words}`"
    with pytest.raises(Fault) as raised:
        AT_ONCE[words](tmp_path)
    assert re.search(".*".join(re.escape(part.strip()) for part in words.split("…")), str(raised.value), re.DOTALL)
