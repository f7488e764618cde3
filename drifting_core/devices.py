"""Devices are given, not looked for (architecture.md, decision 12).

Light: torch is imported by the function that needs it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from drifting_core.faults import Fault

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def device(gpus: int, threads: int) -> torch.device:
    """The device that the plan gave this job: the CPU when it asked for no GPU, else the first granted GPU.

    Raises Fault when a GPU was planned and CUDA cannot use one: the CPU never stands in for it silently.
    """
    import torch

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Fault(
            f"the plan gives this job {gpus} GPU(s), but torch {torch.__version__} finds none that works here; run it "
            "where a GPU is granted (profiles/slurm), or set the stage's resources.gpus to 0 to compute on the CPU"
        )
    log.info("on %s", torch.cuda.get_device_name(0))
    return torch.device("cuda", 0)
