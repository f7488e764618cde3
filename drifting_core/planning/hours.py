"""How long the jobs of a plan take, and when all have ended on N GPUs: a list schedule over their dependencies. Light.

Assumed: a job of several GPUs is divided ideally over them, and takes fewer where there are fewer; CPU cores, memory and the
queue hold nothing up; jobs without a figure in config/rates.yaml (tables, bundle, start-up of an interpreter) take no time.
A slice that was begun counts whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any, NamedTuple

from drifting_core.config import Configuration
from drifting_core.costs import data_preparation, estimates
from drifting_core.planning.jobs import Job
from drifting_core.workflow.layout import Layout

GPUS = (1, 8, 16, 64)


class Task(NamedTuple):
    """One job as the schedule sees it."""

    rule: str
    stage: str
    gpu_hours: float
    devices: int  # GPUs that it asks for, of all its nodes
    hours: float  # that it takes at least: what the CPU does, or all where it asks for no GPU
    needs: tuple[int, ...]  # tasks before it, by their place

    def lasts(self, gpus: int) -> float:
        """Hours of wall-clock."""
        return max(self.gpu_hours / min(self.devices, gpus), self.hours) if self.devices else self.hours


class Schedule(NamedTuple):
    """The hours until all jobs have ended, by the stage that the end waits for: the critical path."""

    gpus: int
    waits: Mapping[str, float]

    @property
    def hours(self) -> float:
        return sum(self.waits.values())


def tasks(config: Configuration, jobs: Sequence[Job], devices: Mapping[str, int], rates: dict[str, Any]) -> list[Task]:
    """The jobs that would run, with their hours; `devices` by rule. In their order."""
    maker = {path: place for place, job in enumerate(jobs) for path in job.outputs}
    found = []
    for job in jobs:
        needs = tuple(sorted({maker[path] for path in job.inputs if path in maker}))
        macs, hours = _operations(config, job, rates)
        gpu_hours = estimates.hours_of(macs, rates) if devices.get(job.rule) else 0.0
        found.append(Task(job.rule, job.stage, gpu_hours, devices.get(job.rule, 0), hours, needs))
    return found


def _operations(config: Configuration, job: Job, rates: dict[str, Any]) -> tuple[dict[str, float], float]:
    """(multiply-adds by the key of effective_tflops, hours of the CPU) of one job."""
    output, expected = job.outputs[0], config.data.expected
    pixels = (config.data.image_size / 256) ** 2
    encode, decode = (rates["tokenizer_gmac"][way]["value"] * 1e9 * pixels for way in ("encode", "decode"))
    vision, inception = rates["vision_transformer_gmac"]["value"] * 1e9, rates["inception_gmac"]["value"] * 1e9
    samples, report = config.evaluation.selection.samples, config.evaluation.report.samples
    images = expected.train_images + expected.val_images
    jpegs = 3600 * rates["data"]["jpegs_per_second_and_thread"]["value"]  # that a thread decodes in an hour
    match job.rule:
        case "encode_latents":
            store = re.findall(r"latents/(\w+)/", output)[0]
            latents, split = config.data.latents, expected.val_images if store == "val" else expected.train_images
            share = split / latents.shards_of(store)
            encoded = share * latents.views_of(store) * encode
            return {estimates.encoding_rate(latents.precision): encoded}, share / (latents.resources.threads * jpegs)
        case "make_reference":
            further = Layout(config).folder("reference") not in output
            threads = config.evaluation.network.resources.threads
            return {"features": images * (vision if further else inception)}, images / (threads * jpegs)
        case "train_encoder":
            return _encoder_operations(config, output, encode, jpegs)
        case "audit_encoder":
            return {"features": estimates.audit_macs(config)}, 0.0
        case "train_generator":
            step = int(re.findall(r"step_(\d+)/", output)[0])
            return {"generator": estimates.step_macs(config) * (config.training.milestone_every if step else 0)}, 0.0
        case "sample" | "sample_claim":
            return {"generator": estimates.generator_macs(config) * (samples if job.rule == "sample" else report)}, 0.0
        case "evaluate" | "evaluate_claim":
            count = samples if job.rule == "evaluate" else report
            return {"decode": count * decode, "features": count * inception}, 0.0
        case "evaluate_claim_in_space":
            return {"decode": report * decode, "features": report * vision}, 0.0
        case "check_archives" | "index_archives" | "verify_latents":
            return {}, data_preparation.cpu_hours(config, job.rule, output, rates)
    return {}, 0.0


def _encoder_operations(config: Configuration, output: str, encode: float, jpegs: float) -> tuple[dict[str, float], float]:
    """Of the encoder's training, or of the one before its fine-tune: crops in the loop are decoded by all its threads.

    `encode`: multiply-adds of a crop; `jpegs`: those that a thread decodes in an hour.
    """
    encoder = config.encoder
    tuned = encoder.finetune is not None and f"/{encoder.folder_name}-" in output
    recipe = encoder.recipe if tuned else encoder.training
    seen, threads = recipe.batch * recipe.steps, encoder.resources.threads * encoder.resources.processes
    crops = seen if encoder.augmentation == "online" else 0
    trained = 3 * seen * (estimates.encoder_macs(config) + estimates.decoder_macs(config))
    return {"encoder": trained, estimates.encoding_rate(recipe.precision): crops * encode}, crops / (jpegs * threads)


def schedule(jobs: Sequence[Task], gpus: int) -> Schedule:
    """The shortest of the list schedules on that many GPUs and on fewer (halved until one is left).

    More GPUs may make a list schedule longer; leaving some idle is always allowed.
    """
    counts = [gpus >> halved for halved in range(gpus.bit_length())]
    return min((_list_schedule(jobs, count) for count in counts), key=lambda made: made.hours)._replace(gpus=gpus)


def _list_schedule(jobs: Sequence[Task], gpus: int) -> Schedule:
    """Whenever GPUs are free, of the jobs whose inputs are there the one with the longest way to the end."""
    order = list(TopologicalSorter({place: job.needs for place, job in enumerate(jobs)}).static_order())
    lasts = [job.lasts(gpus) for job in jobs]
    way = list(lasts)
    for place in reversed(order):
        for before in jobs[place].needs:
            way[before] = max(way[before], lasts[before] + way[place])
    begun: dict[int, float] = {}
    ended: dict[int, float] = {}
    running: set[int] = set()
    now, free = 0.0, gpus
    while len(ended) < len(jobs):
        ready = [i for i in order if i not in begun and all(before in ended for before in jobs[i].needs)]
        for place in sorted(ready, key=lambda i: -way[i]):
            wanted = min(jobs[place].devices, gpus)
            if wanted <= free:
                begun[place], free = now, free - wanted
                running.add(place)
        now = min(begun[i] + lasts[i] for i in running)
        for place in [i for i in running if begun[i] + lasts[i] <= now]:
            ended[place], free = now, free + min(jobs[place].devices, gpus)
            running.remove(place)
    return Schedule(gpus, _critical_path(jobs, begun, ended))


def _critical_path(jobs: Sequence[Task], begun: Mapping[int, float], ended: Mapping[int, float]) -> dict[str, float]:
    """Hours by stage, back from the last end: each job began when one that it needs ended, or one that had its GPUs."""
    waits = dict.fromkeys((job.stage for job in jobs), 0.0)
    place = max(ended, key=lambda i: ended[i], default=None)
    while place is not None:
        waits[jobs[place].stage] += ended[place] - begun[place]
        start = begun[place]
        needed = [i for i in jobs[place].needs if ended[i] == start]
        freed = [i for i in ended if ended[i] == start and begun[i] < start]
        place = max(needed or freed, key=lambda i: ended[i] - begun[i], default=None)
    return waits
