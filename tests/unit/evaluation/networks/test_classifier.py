"""The small feature network: it learns, it is repeatable, it is called like Inception."""

from __future__ import annotations

import pytest
import torch

from drifting_core.config import Classifier
from drifting_core.evaluation.networks import classifier
from drifting_core.faults import Fault

CPU = torch.device("cpu")
HOW = Classifier(width=4, steps=40, batch=16, learning_rate=1e-2)


@pytest.fixture(scope="module")
def data():
    torch.set_num_threads(1)
    seeded = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    noise = torch.randint(0, 100, (64, 3, 16, 16), generator=seeded)
    return (noise + 120 * labels[:, None, None, None]).to(torch.uint8), labels


@pytest.fixture(scope="module")
def network(data):
    return classifier.train_classifier(HOW, *data, 2, CPU)


def test_it_learns_what_is_easy(network, data):
    assert classifier.accuracy(network, *data, CPU, 10) > 0.9


def test_training_repeats_bit_for_bit(network, data):
    again = classifier.train_classifier(HOW, *data, 2, CPU)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_output_has_features_and_both_logits(network, data):
    output = network(data[0][:5])
    assert output.features.shape == (5, network.dimensions)
    torch.testing.assert_close(output.logits - output.logits_unbiased, network.head.bias.expand(5, -1))
    alone = torch.cat([network(image[None]).features for image in data[0][:5]])
    torch.testing.assert_close(alone, output.features)


def test_what_is_not_uint8_rgb_is_refused(network):
    with pytest.raises(ValueError, match="uint8"):
        network(torch.zeros(1, 3, 16, 16))


def test_saved_and_loaded_it_is_the_same(network, data, tmp_path):
    classifier.save_classifier(network, tmp_path / "model.safetensors")
    loaded = classifier.load_classifier(tmp_path / "model.safetensors", {"width": 4, "classes": 2})
    assert torch.equal(loaded(data[0]).logits, network(data[0]).logits)
    assert not loaded.training


def test_an_epoch_is_a_permutation():
    rows = torch.cat([classifier.batch_rows(0, step, 16, 64) for step in range(4)])
    assert rows.sort().values.tolist() == list(range(64))
    assert not torch.equal(rows[:16], classifier.batch_rows(0, 4, 16, 64))


def test_augmentation_mirrors_some_images_and_changes_no_other(data):
    made = classifier.augment(data[0], 5)
    assert torch.equal(made, classifier.augment(data[0], 5))
    mirrored = (made == data[0].flip(3)).flatten(1).all(1)
    assert ((made == data[0]).flatten(1).all(1) ^ mirrored).all()
    assert 10 < int(mirrored.sum()) < 54


def test_fewer_images_than_a_batch_are_refused(data):
    with pytest.raises(Fault, match="classifier.batch is 16"):
        classifier.train_classifier(HOW, data[0][:8], data[1][:8], 2, CPU)
