"""Classifier-free guidance by mixing: the law of alpha and the weight of the unconditional samples.

Training with weight w on N_unc unconditional real images beside N_neg generated ones makes the generated density
q(.|c) = alpha p(.|c) - (alpha - 1) p(.): paper section 4 and appendix A.7, Table 8; alpha is drawn once per label.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_alpha(uniform: Tensor, *, low: float, high: float, power: float, point_mass: float) -> Tensor:
    """alpha, of the shape of `uniform` (values in (0, 1)), float64: one uniform per draw.

    With probability `point_mass` alpha is exactly `low` (= 1, no guidance); otherwise its density on [low, high] is
    proportional to alpha^-power, by the inverse distribution function of the uniform rescaled to what is left.
    Powers are rounded differently from device to device: draw on the CPU and move the result.
    Raises ValueError unless 0 < low <= high and 0 <= point_mass <= 1.
    """
    if not 0 < low <= high:
        raise ValueError(f"sample_alpha: need 0 < low <= high, found low={low}, high={high}")
    if not 0 <= point_mass <= 1:
        raise ValueError(f"sample_alpha: point_mass is a probability, found {point_mass}")
    u = uniform.to(torch.float64)
    if point_mass == 1:
        return torch.full_like(u, low)
    at_point = u < point_mass
    # u - point_mass is negative where the point is taken; any value in [0, 1] will do there.
    rest = torch.where(at_point, torch.zeros_like(u), (u - point_mass) / (1 - point_mass))
    if power == 1:
        alpha = low * (high / low) ** rest
    else:
        exponent = 1.0 - power
        alpha = low * (1.0 + rest * ((high / low) ** exponent - 1.0)) ** (1.0 / exponent)
    return torch.where(at_point, torch.full_like(alpha, low), alpha)


def unconditional_weight(alpha: Tensor, n_generated: int, n_unconditional: int) -> Tensor:
    """w = (alpha - 1)(N_neg - 1) / N_unc, the weight of each unconditional sample (appendix A.7; same shape as alpha).

    N_neg - 1, not N_neg: a generated sample does not repel itself. Raises ValueError without unconditional samples,
    or with fewer than two generated ones (w would be 0 for every alpha).
    """
    if n_generated < 2 or n_unconditional < 1:
        raise ValueError(
            "unconditional_weight: needs at least 2 generated and 1 unconditional sample per label, "
            f"found {n_generated} and {n_unconditional}"
        )
    return (alpha - 1.0) * ((n_generated - 1) / n_unconditional)
