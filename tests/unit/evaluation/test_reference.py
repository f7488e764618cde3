"""Reference statistics: streamed, resumed, imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from drifting_core.artifacts import FeatureNetwork, ReferenceStatistics, sha256_file
from drifting_core.config import PublishedStatistics, Reference
from drifting_core.data.images import centre_crop_of, centre_crops
from drifting_core.data.index import ImageReader
from drifting_core.data.journal import Journal
from drifting_core.evaluation import reference
from drifting_core.evaluation.reference import make_reference, read_cache, read_published, read_statistics, write_statistics
from drifting_core.evaluation.statistics import Moments
from drifting_core.faults import Fault
from tests.unit.data.samples import HASH, section

NETWORK = FeatureNetwork(
    configuration=HASH, code="test", network="inception", weights="none", weights_sha256="6" * 64, dimensions=12, classes=10,
    resize="none",
)  # fmt: skip


class Output(NamedTuple):
    features: Tensor
    logits: Tensor
    logits_unbiased: Tensor


class Means:
    """Features: the means over a 2 x 2 grid. `calls` counts batches; after `dies_at` of them the job ends."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.calls, self.dies_at = 0, dies_at

    def __call__(self, images: Tensor) -> Output:
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        features = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return Output(features, features[:, :10], features[:, :10])


def make(
    packed: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    network: Means | None = None,
    **how: Any,
) -> ReferenceStatistics:
    network = network or Means()
    monkeypatch.setattr(reference, "load_network", lambda path, device: (network, NETWORK))
    folder.mkdir(exist_ok=True)
    (folder / "network.json").write_text("{}")
    make_reference(
        folder / "manifest.json", section(packed), Reference(compute_batch=8, precision_recall_images=10, **how),
        index=packed / "index.json", network_path=folder / "network.json", device=torch.device("cpu"), threads=2,
        configuration=HASH,
    )  # fmt: skip
    return ReferenceStatistics.read(folder / "manifest.json")


def test_moments_are_those_of_all_features(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(packed, tmp_path, monkeypatch)
    cache = read_cache(tmp_path / "features_train.h5")
    record, moments = read_statistics(tmp_path / "manifest.json")
    assert (made.images, record.dimensions, len(cache.features)) == (50, 12, 50)
    exact = cache.features.astype(np.float64)
    assert np.allclose(moments.mean, exact.mean(0), rtol=1e-12)
    assert np.allclose(moments.covariance, np.cov(exact.T), rtol=1e-9, atol=1e-14)
    reader = ImageReader(packed / "index.json", "train", section(packed).archives)
    assert np.array_equal(cache.rows, np.arange(50))
    assert np.array_equal(cache.labels, reader.labels)


def test_thumbnails_are_those_of_the_crops(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(packed, tmp_path, monkeypatch)
    for split, name in (("train", "features_train.h5"), ("val", "features_val.h5")):
        cache = read_cache(tmp_path / name, "thumbnails")
        reader = ImageReader(packed / "index.json", split, section(packed).archives)
        crops = torch.from_numpy(centre_crops(reader, cache.rows.tolist(), 32))
        assert torch.equal(torch.from_numpy(cache.features), reference.thumbnails(crops))
        assert np.array_equal(cache.labels, reader.labels[cache.rows])
        blocks = list(reference.cache_blocks(tmp_path / name, "thumbnails", rows=7))
        assert np.array_equal(np.concatenate([block.features for block in blocks]), cache.features)


def test_a_journal_from_before_thumbnails_is_begun_anew(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make(packed, tmp_path / "whole", monkeypatch)
    work = {"configuration": HASH, "inputs": made.inputs, "split": "train"}
    with Journal(tmp_path / "killed/.features_train.journal", work) as journal:
        described = {"rows": list(range(8)), "right": 0, "seen": 8, "rejects": []}
        journal.append(described, np.zeros((8, 12), np.float32))
    make(packed, tmp_path / "killed", monkeypatch)
    for name in ("features_train.h5", "manifest.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("dies_at", [0, 1, 5, 7, 8])
def test_a_killed_job_goes_on_and_ends_in_the_same_bytes(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dies_at: int,
) -> None:
    """7 batches of training and 2 of validation images."""
    make(packed, tmp_path / "whole", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make(packed, tmp_path / "killed", monkeypatch, Means(dies_at))
    rest = Means()
    make(packed, tmp_path / "killed", monkeypatch, rest)
    assert rest.calls == 9 - dies_at
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "killed").iterdir()}
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


@pytest.mark.parametrize("dies_at", [None, 7, 9, 11])
def test_moments_of_all_validation_images(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dies_at: int | None,
) -> None:
    """All 20, where the manifold has 10; the training images' features are cached as ever. 7 + 2 + 3 batches."""
    if dies_at is not None:
        with pytest.raises(KeyboardInterrupt):
            make(packed, tmp_path / "out", monkeypatch, Means(dies_at), split="val")
    made = make(packed, tmp_path / "out", monkeypatch, rest := Means(), split="val")
    assert rest.calls == 12 - (dies_at or 0)
    assert (made.split, made.images, made.precision_recall_images) == ("val", 20, 10)
    assert len(read_cache(tmp_path / "out/features_train.h5").rows) == 50
    reader = ImageReader(packed / "index.json", "val", section(packed).archives)
    images = np.stack([centre_crop_of(reader, row, 32) for row in range(20)])
    exact = Means()(torch.from_numpy(images)).features.numpy().astype(np.float64)
    _, moments = read_statistics(tmp_path / "out/manifest.json")
    assert moments.rows == 20
    assert np.allclose(moments.mean, exact.mean(0), rtol=1e-12)
    assert np.allclose(moments.covariance, np.cov(exact.T), rtol=1e-9, atol=1e-14)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "manifest.json", "network.json", "statistics.npz", "features_train.h5", "features_val.h5",
    }  # fmt: skip


def test_the_same_statistics_are_the_same_bytes_under_any_python(tmp_path: Path) -> None:
    """Their hash is part of contracts. This one was found with Python 3.11.2 and 3.11.7, whose numpy.savez differ."""
    path = tmp_path / "statistics.npz"
    write_statistics(path, Moments(np.arange(3.0), np.eye(3), 5))
    assert sha256_file(path) == "a4920732af98d00a2b45f37f8996715357f1a3d15b96acbb1f55700b1c91e573"
    with np.load(path) as found:
        assert list(found) == ["mu", "sigma"]
        assert np.array_equal(found["mu"], np.arange(3.0))
        assert np.array_equal(found["sigma"], np.eye(3))


def test_a_split_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="said by statistics.split"):
        Reference(statistics=PublishedStatistics(**published(tmp_path / "stats.npz")), split="val")


# --- published statistics -------------------------------------------------------------------------------------------


def published(path: Path, names: tuple[str, str] = ("mu", "sigma"), dimensions: int = 12, **changed: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rows = rng.normal(0.5, 0.1, (500, dimensions))
    np.savez(path, **{names[0]: rows.mean(0), names[1]: np.cov(rows.T)} | changed)
    return {"path": str(path), "sha256": sha256_file(path)}


@pytest.mark.parametrize("names", [("mu", "sigma"), ("ref_mu", "ref_sigma")])
def test_published_statistics_take_the_place_of_our_own(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, str],
) -> None:
    """Both spellings; the number of images is what the configuration says of them; our own are compared with them."""
    given = published(tmp_path / "stats.npz", names)
    made = make(packed, tmp_path / "out", monkeypatch, statistics=given)
    _, moments = read_statistics(tmp_path / "out/manifest.json")
    with np.load(tmp_path / "stats.npz") as held:
        assert np.array_equal(moments.mean, held[names[0]])
        assert np.array_equal(moments.covariance, held[names[1]])
    assert made.images == moments.rows == 1_281_167
    assert made.imported is not None
    assert made.imported.own_images == 50
    assert made.imported.distance_to_own is not None
    assert made.imported.distance_to_own > 0
    val = make(packed, tmp_path / "val", monkeypatch, statistics={**given, "split": "val", "images": 50000})
    assert (val.split, val.images) == ("val", 50000)
    assert val.imported is not None
    assert val.imported.distance_to_own is None


@pytest.mark.parametrize(("changed", "message"), [
    ({"mu": np.full(12, np.nan)}, "not finite"),
    ({"sigma": np.eye(11)}, r"mu is \(12,\) and sigma \(11, 11\)"),
])  # fmt: skip
def test_statistics_that_are_none_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    given = published(tmp_path / "stats.npz", **changed)
    with pytest.raises(Fault, match=message):
        read_published(PublishedStatistics(**given), 12)


def test_another_file_is_refused_by_its_hash(tmp_path: Path) -> None:
    given = published(tmp_path / "stats.npz")
    with pytest.raises(Fault, match=rf"statistics.sha256: {'1' * 64}, but .*stats.npz has {given['sha256']}"):
        read_published(PublishedStatistics(**{**given, "sha256": "1" * 64}), 12)
    (tmp_path / "stats.npz").unlink()
    with pytest.raises(Fault, match="stats.npz is missing"):
        read_published(PublishedStatistics(**given), 12)


@pytest.mark.parametrize("content", [b"no npz", b""])
def test_a_file_that_is_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(Fault, match="no npz of numbers"):
        read_published(PublishedStatistics(path=str(tmp_path / "x.npz"), sha256=sha256_file(tmp_path / "x.npz")), 12)


def test_a_pickle_inside_is_not_loaded(tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sentinel",)

    given = published(tmp_path / "stats.npz", mu=np.array([Exploit()], dtype=object))
    with pytest.raises(Fault, match="no npz of numbers"):
        read_published(PublishedStatistics(**given), 12)
    assert not (tmp_path / "sentinel").exists()


def test_statistics_of_another_network_are_refused(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = published(tmp_path / "stats.npz", dimensions=5)
    network = Means()
    with pytest.raises(Fault, match="statistics of 5 features, evaluation.network has 12"):
        make(packed, tmp_path / "out", monkeypatch, network, statistics=given)
    assert network.calls == 0, "said before the expensive work"
