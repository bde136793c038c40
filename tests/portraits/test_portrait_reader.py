import json
from pathlib import Path

import pytest
import torch
from running import Dng

from dng_lightning.errors import SettingError
from dng_lightning.networks import ImageClassifier
from scripts.portraits import CaptionedPortraits, PortraitReader, SharedClassifierModule
from scripts.portraits.attributes import PortraitAttributes

VALUES = PortraitAttributes.values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, dng: Dng) -> Path:
    """A tiny classifier that two batches have trained."""
    pytest.importorskip("dicebear", reason="dicebear MISSING: no classifier of portraits was tried (extra portraits)")
    place = tmp_path_factory.mktemp("judges")
    sizes = [f"--data.{part}_size=8" for part in ("train", "val", "test")]
    settings = ["--data.batch_size=4", "--model.net.channels=[4]", "--model.net.features=4", "--trainer.max_steps=2"]
    where = [f"--data.root={place}", f"--trainer.default_root_dir={place / 'attributes'}"]
    dng("fit", "--config=portraits_classifier.yaml", *sizes, *settings, *where)
    return place / "attributes"


def test_a_head_for_each_attribute(folder: Path):
    classifier = SharedClassifierModule.load(str(folder))
    probabilities = classifier.probabilities(torch.rand(3, 3, 64, 64))
    assert [p.shape for p in probabilities] == [(3, len(values)) for values in VALUES.values()]
    assert all(torch.allclose(p.sum(1), torch.ones(3)) for p in probabilities)
    assert classifier.read(torch.rand(3, 3, 64, 64)).shape == (3, len(VALUES))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {f"val/accuracy_{name}" for name in VALUES} <= set(metrics)


def test_the_network_has_an_output_for_every_value():
    network = ImageClassifier(3, 25, [4], 4)
    data = CaptionedPortraits("nowhere", label="each")
    assert len(data.class_names) == network.num_classes == sum(map(len, VALUES.values()))
    assert data.class_names[:5] == ("skin light", "skin tan", "skin brown", "skin dark", "head short")


def test_a_reader_sorts_portraits_by_what_is_avoided(folder: Path):
    reader = PortraitReader(str(folder))
    label_space, judge = reader.understand(["a person"], ["a person with sunglasses", "a beard"])
    assert reader.image_shape == (3, 64, 64)
    assert label_space.names[label_space.forbidden[0]] == "bare bearded"
    assert len(label_space.forbidden) == 4  # sunglasses with and without a beard, a beard with other eyes
    assert judge is not None
    labels = judge.label(torch.rand(5, 3, 64, 64))
    assert judge.probabilities(torch.rand(5, 3, 64, 64)).shape == (5, 2)
    measures = label_space.measures(labels.attributes)
    assert tuple(measures) == label_space.columns
    assert sum(measures[f"skin_{value}"] for value in VALUES["skin"]) == pytest.approx(1)
    with pytest.raises(SettingError, match="names nothing that an image can be without"):
        reader.understand(["a person"], ["a portrait"])


def test_a_reader_observes_what_its_judge_sees(folder: Path):
    reader, avoided, images = PortraitReader(str(folder)), ["red hair", "a beard"], torch.rand(5, 3, 64, 64)
    reader.check(avoided, (3, 64, 64))
    _, judge = reader.understand(["a person"], avoided)
    assert judge is not None
    assert torch.equal(reader.probabilities(images, avoided), judge.probabilities(images))
    with pytest.raises(SettingError, match="names nothing that an image can show"):
        reader.check(["a portrait"], (3, 64, 64))
    with pytest.raises(SettingError, match=r"observes images of \(3, 64, 64\), not \(3, 32, 32\)"):
        reader.check(avoided, (3, 32, 32))
