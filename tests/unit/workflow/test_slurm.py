"""What SLURM is asked for, from the configuration's resources and the profile's site values."""

from __future__ import annotations

from typing import Any

import pytest

from drifting_core.config import Resources, load
from drifting_core.faults import Fault
from drifting_core.workflow.slurm import one_device, requested, requested_ranks

SITE = {"cpu_partition": "cpu", "gpu_type": "h100"}


def test_site_values_go_to_the_jobs_that_they_are_for() -> None:
    assert requested(Resources(), {}) == {"gpu": 0, "mem_mb": 4000, "runtime": 60}
    assert requested(Resources(), SITE)["slurm_partition"] == "cpu"
    on_gpu = requested(Resources(gpus=1), SITE)
    assert on_gpu["gpu_model"] == "h100"
    assert "slurm_partition" not in on_gpu


def test_several_ranks_are_tasks_of_a_job_without_a_step_of_the_plugin() -> None:
    assert requested_ranks(Resources(gpus=1), SITE) == requested(Resources(gpus=1), SITE)
    tasks = {"mpi": "srun", "nodes": 1, "tasks_per_node": 4, "cpus_per_task": 3}
    one_node = Resources(gpus=4, threads=3)
    assert requested_ranks(one_node, SITE) == requested(one_node, SITE) | tasks
    # Over several nodes a total could be divided unevenly; the plugin takes gpu and gres as each other's rivals.
    two_nodes = requested_ranks(Resources(gpus=4, threads=3, nodes=2), SITE)
    assert two_nodes == {"mem_mb": 4000, "runtime": 60, "gres": "gpu:h100:4"} | tasks | {"nodes": 2}
    assert requested_ranks(Resources(gpus=2, nodes=2), {})["gres"] == "gpu:2"
    on_cpus = requested_ranks(Resources(ranks=2, nodes=2), SITE)
    assert (on_cpus["gpu"], on_cpus["slurm_partition"], on_cpus["tasks_per_node"]) == (0, "cpu", 2)


def test_ranks_are_counted_over_nodes() -> None:
    section = Resources(gpus=8, nodes=2, threads=4)
    assert (section.processes, section.ranks_per_node, section.cores) == (16, 8, 32)
    beside = one_device(section)
    assert (beside.gpus, beside.nodes, beside.processes) == (1, 1, 1)


def test_only_trainings_and_sampling_have_several_processes(demo_values: dict[str, Any]) -> None:
    demo_values["evaluation"]["resources"] = {"gpus": 1, "nodes": 2}
    assert load(demo_values).evaluation.resources.processes == 2
    demo_values["evaluation"]["network"]["resources"] = {"gpus": 1, "nodes": 2}
    with pytest.raises(Fault, match="evaluation.network.resources: nodes 2, ranks 0; only trainings and sampling"):
        load(demo_values)


def test_ranks_of_all_nodes_must_divide_the_batch(demo_values: dict[str, Any]) -> None:
    demo_values["training"]["resources"] = {"gpus": 2, "nodes": 2}
    with pytest.raises(Fault, match="training.resources .its ranks.: 4 must divide 5, objective.classes_per_step"):
        load(demo_values)
