"""FID, IS, KID, precision and recall beside torch-fidelity's, from the same images and (random) Inception weights.

`make parity` runs it: it makes .venv-parity, where torch-fidelity and the torchvision that it imports live apart from the
project, writes images and weights to a scratch folder, has torch-fidelity measure them there, and prints both results with
their relative differences; it fails where one is beyond its tolerance. Some minutes on 2 cores, and no part of `make test`.

The Fréchet distance is compared at Inception's layers of 64 and 192 features, where 200 images make covariances of full
rank. At 2,048 features theirs have rank 199, and the eigenvalues of the product of two such matrices (torch-fidelity) or its
matrix square root (scipy) are mostly roots of rounding errors. There both sides are held against what needs no root of a
covariance: tr (S_a S_b)^(1/2) is the sum of the singular values of A B^T / (n - 1), A and B being the centred features.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import scipy.linalg
import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "torch-fidelity==0.4.0", "scipy")
IMAGES, BATCH, NEIGHBOURS = 200, 20, 3
KID = "KID, one subset of all images"
NAMES = {
    "frechet_64": "FID, layer of 64 features",
    "frechet_192": "FID, layer of 192 features",
    "inception_score_mean": "IS",
    "inception_score_std": "standard deviation of IS",
    "kernel_inception_distance_mean": KID,
    "precision": "precision",
    "recall": "recall",
}
# KID is a difference of means that are nearly equal, and theirs are sums in float32: it is compared relative to such a mean.
# Precision and recall count images: theirs are distances in float32, where a near tie may fall to the other side. A standard
# deviation over ten splits magnifies what float32 features, summed in another order, differ by.
TOLERANCE = {"standard deviation of IS": 1e-5, "precision": 1.5 / IMAGES, "recall": 1.5 / IMAGES}
STRICT = 1e-6
# torch-fidelity's names of Inception's layers, by ours.
LAYERS = {"64": "64", "192": "192", "features": "2048", "logits": "logits_unbiased"}


# --- torch-fidelity's side, in its own environment ------------------------------------------------------------------


class Images(torch.utils.data.Dataset):
    """uint8 (3, H, W), as torch-fidelity takes them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def measured_by_torch_fidelity(folder: Path) -> None:
    """theirs.json and theirs.npz (features) from images.npz and inception.pth."""
    stubs = torch.library.Library("torchvision", "DEF")  # torchvision has CUDA builds only: on a CPU it lacks these
    for name in ("nms", "qnms"):
        stubs.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torch_fidelity import FeatureExtractorInceptionV3, calculate_metrics
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    weights = str(folder / "inception.pth")
    with np.load(folder / "images.npz") as held:
        sets = {name: Images(held[name]) for name in ("generated", "real")}
    metrics = calculate_metrics(
        input1=sets["generated"], input2=sets["real"], batch_size=BATCH, cuda=False, verbose=False, save_cpu_ram=True,
        isc=True, fid=True, kid=True, prc=True, kid_subsets=1, kid_subset_size=IMAGES, prc_neighborhood=NEIGHBOURS,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=weights, cache=False,
    )  # fmt: skip
    extract = FeatureExtractorInceptionV3("inception-v3-compat", list(LAYERS.values()), weights)
    found = {}
    for name, images in sets.items():
        parts = [extract(part) for part in images.images.split(BATCH)]
        for index, what in enumerate(LAYERS):
            found[f"{name}_{what}"] = torch.cat([part[index] for part in parts]).numpy()
    np.savez(folder / "theirs.npz", **found)
    for size in (64, 192):
        both = [fid_features_to_statistics(torch.from_numpy(found[f"{name}_{size}"])) for name in ("generated", "real")]
        [metrics[f"frechet_{size}"]] = fid_statistics_to_metric(*both, False).values()
    (folder / "theirs.json").write_text(json.dumps(metrics))


# --- ours -----------------------------------------------------------------------------------------------------------


def write_inputs(folder: Path) -> None:
    """Photos: generated ones are training photos with less contrast, real ones are held out; and random weights."""
    from drifting_core.data.photos import photos
    from tests.unit.evaluation.networks.test_inception import random_state

    # All classes in turn.
    train, val = (photos(split).swapaxes(0, 1).reshape(-1, 32, 32, 3)[:IMAGES] for split in ("train", "val"))
    generated, real = (
        (images * factor).astype(np.uint8).transpose(0, 3, 1, 2) for images, factor in ((train, 0.8), (val, 1))
    )
    np.savez(folder / "images.npz", generated=np.ascontiguousarray(generated), real=np.ascontiguousarray(real))
    torch.save(random_state(), folder / "inception.pth")


def our_features(folder: Path) -> dict[str, np.ndarray]:
    from drifting_core.evaluation.networks.inception import InceptionV3

    network, found = InceptionV3(folder / "inception.pth"), {}
    with np.load(folder / "images.npz") as held, torch.inference_mode():
        for name in ("generated", "real"):
            parts = [network(part, taps=True) for part in torch.from_numpy(held[name]).split(BATCH)]
            found[f"{name}_64"] = torch.cat([part.features_64 for part in parts]).numpy()
            found[f"{name}_192"] = torch.cat([part.features_192 for part in parts]).numpy()
            found[f"{name}_features"] = torch.cat([part.features for part in parts]).numpy()
            found[f"{name}_logits"] = torch.cat([part.logits_unbiased for part in parts]).numpy()
    return found


def our_metrics(found: dict[str, np.ndarray]) -> dict[str, float]:
    """By the names of NAMES."""
    from drifting_core.evaluation import statistics

    generated, real = found["generated_features"], found["real_features"]
    score, score_std = statistics.inception_score(found["generated_logits"])
    precision, recall = statistics.precision_recall(real, generated, NEIGHBOURS)
    values = (
        our_distance(found, "64"), our_distance(found, "192"), score, score_std,
        statistics.kernel_distance(real, generated).mean, precision, recall,
    )  # fmt: skip
    return dict(zip(NAMES.values(), values, strict=True))


def our_distance(found: dict[str, np.ndarray], layer: str) -> float:
    from drifting_core.evaluation import statistics

    first, second = (statistics.moments_of(found[f"{name}_{layer}"]) for name in ("real", "generated"))
    return statistics.frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def mean_kernel(found: dict[str, np.ndarray]) -> float:
    """Of all pairs of real images: what KID is a difference of."""
    real = found["real_features"].astype(np.float64)
    return float(((real @ real.T / real.shape[1] + 1) ** 3).mean())


def exact_distance(found: dict[str, np.ndarray], layer: str) -> float:
    """By singular values of the product of the centred features: no root of a covariance, no eigenvalue of a product."""
    first, second = (found[f"{name}_{layer}"].astype(np.float64) for name in ("real", "generated"))
    a, b = first - first.mean(0), second - second.mean(0)
    shift = first.mean(0) - second.mean(0)
    traces = (a * a).sum() / (len(a) - 1) + (b * b).sum() / (len(b) - 1)
    return float(shift @ shift + traces - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum() / (len(a) - 1))


def scipys_distance(found: dict[str, np.ndarray], layer: str) -> float:
    from drifting_core.evaluation import statistics

    first, second = (statistics.moments_of(found[f"{name}_{layer}"]) for name in ("real", "generated"))
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
    shift = first.mean - second.mean
    return float(shift @ shift + np.trace(first.covariance + second.covariance - 2 * root))


def table(folder: Path) -> tuple[str, bool]:
    """Markdown, and whether everything is within its tolerance."""
    given = json.loads((folder / "theirs.json").read_text())
    theirs = {name: float(given[key]) for key, name in NAMES.items()}
    with np.load(folder / "theirs.npz") as held:
        their_features = dict(held)
    own_features = our_features(folder)
    own, same = our_metrics(own_features), our_metrics(their_features)
    lines = [
        "| | torch-fidelity | ours, from its features | relative | ours, from our own | relative |",
        "|---|---|---|---|---|---|",
    ]
    good = True
    rows = [(name, theirs[name], same[name], own[name]) for name in NAMES.values()]
    for size in ("64", "192"):
        name = f"FID, layer of {size} features"
        rows.append((f"{name}: scipy's sqrtm", scipys_distance(their_features, size), same[name], own[name]))
    ours = our_distance(their_features, "features"), our_distance(own_features, "features")
    exact = exact_distance(their_features, "features")
    rows.append(("FID, 2,048 features: by singular values", exact, *ours))
    for name, peer, from_same, from_own in rows:
        unit = mean_kernel(their_features) if name == KID else abs(peer)
        differences = [abs(value - peer) / unit for value in (from_same, from_own)]
        good &= max(differences) <= TOLERANCE.get(name, STRICT)
        cells = [f"{peer:.9g}", f"{from_same:.9g}", f"{differences[0]:.1e}", f"{from_own:.9g}", f"{differences[1]:.1e}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    largest = max(
        float(np.abs(own_features[name] - values).max() / np.abs(values).max()) for name, values in their_features.items()
    )
    lines += ["", f"Largest difference of features and logits, relative to the largest of them: {largest:.1e}."]
    peers = {
        "torch-fidelity's": float(given["frechet_inception_distance"]),
        "scipy's sqrtm": scipys_distance(their_features, "features"),
        "ours": ours[0],
    }
    apart = ", ".join(f"{name} {value:.9g} ({abs(value - exact) / exact:.1e})" for name, value in peers.items())
    lines.append(f"At 2,048 features (rank {IMAGES - 1}) the singular values give {exact:.9g}; from it: {apart}.")
    return "\n".join(lines), good


def peer(environment: Path) -> Path:
    """The interpreter of torch-fidelity's environment, which is made if it is not there."""
    python = environment / "bin/python"
    ready = environment / ".ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        install = ["-m", "pip", "install", "--quiet", "--constraint", ROOT / "envs/constraints.txt", *PACKAGES]
        subprocess.run([python, *install], check=True)
        ready.touch()
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-parity", help="torch-fidelity's; made if missing")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)  # torch-fidelity's side of this program
    arguments = parser.parse_args()
    if arguments.peer:
        measured_by_torch_fidelity(arguments.peer)
        return 0
    python = peer(arguments.environment)
    with tempfile.TemporaryDirectory() as scratch:
        write_inputs(Path(scratch))
        subprocess.run([python, __file__, "--peer", scratch], check=True)
        text, good = table(Path(scratch))
    print(text)
    if not good:
        print("\na difference is beyond its tolerance", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
