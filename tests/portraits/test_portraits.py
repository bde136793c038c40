from random import Random

import pytest
import torch

from dng_lightning.errors import SettingError
from scripts.captioned_images.attributes import apart, joint
from scripts.portraits import CaptionedPortraits
from scripts.portraits.attributes import EVERY, HEADWEAR, PortraitAttributes
from scripts.portraits.captions import MOST_WORDS, VOCABULARY, caption, mentioned, parse_caption

VALUES = PortraitAttributes.values
SIZES = {"train_size": 48, "val_size": 8, "test_size": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    for library in ("dicebear", "dicebear_styles", "resvg_py"):
        pytest.importorskip(library, reason=f"{library} MISSING: no portrait was drawn (extra portraits)")
    return str(tmp_path_factory.mktemp("portraits"))


def ready(root: str, **settings: object) -> CaptionedPortraits:
    data = CaptionedPortraits(root, **SIZES | settings)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


# --- captions ---


def test_captions_claim_exactly_what_they_are_given():
    used = set()
    for number, picture in enumerate(EVERY):
        draw = Random(number)
        said = picture if number % 2 else mentioned(picture, draw)
        sentence = caption(said, draw)
        words = sentence.replace(",", " ,").split()
        assert parse_caption(sentence) == said
        assert len(words) <= MOST_WORDS
        used |= set(words)
    assert used == set(VOCABULARY)


def test_the_colour_of_unmentioned_headwear_is_not_called_hair():
    picture = PortraitAttributes("tan", HEADWEAR[0], "red", "bare", "shaven", "smiling", "blue")
    said = [mentioned(picture, Random(number)) for number in range(400)]
    assert {each.colour for each in said if each.head is None} == {None}
    assert {each.colour for each in said if each.head} == {None, "red"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a person with blue hair and pink clothes", "it names the clothess blue and pink"),
        ("a person with a moustache", "portraits know no 'moustache'"),
    ],
)
def test_what_no_portrait_shows_is_one_line(text: str, complaint: str):
    with pytest.raises(SettingError, match=complaint):
        parse_caption(text)


def test_joint_labels_number_every_kind():
    kinds = torch.arange(len(EVERY))
    labels = apart(kinds, VALUES)
    assert labels[1234].tolist() == list(EVERY[1234].labels().values())
    assert joint(labels, VALUES).equal(kinds)


# --- data ---


def test_batches_of_everything(root: str):
    data = ready(root, batch_size=8)
    (batch,) = data.test_dataloader()
    images, captions, labels = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
    assert (images.shape, images.dtype) == ((8, 3, 64, 64), torch.float32)
    assert -1 <= float(images.min()) < -0.8 < float(images.max()) == 1
    assert images[:, :, 0, 0].eq(1).all()  # a white background
    assert (labels.shape, labels.dtype) == ((8, len(VALUES)), torch.int64)
    for text, row in zip(captions, labels.tolist(), strict=True):
        assert parse_caption(text).labels().items() <= dict(zip(VALUES, row, strict=True)).items()


def test_portraits_show_the_colours_of_their_attributes(root: str):
    part = ready(root).part("train")
    skin = part.images[part.labels[:, 5] != 2][:, :, 28:32, 36:40].float().flatten(1).mean(1)  # the nose's side
    rank = part.labels[part.labels[:, 5] != 2][:, 0]
    means = [float(skin[rank == value].mean()) for value in range(len(VALUES["skin"]))]
    assert means == sorted(means, reverse=True)
    ground = part.images[:, :, 63, 12].float()
    expected = torch.tensor([[127, 156, 240], [120, 217, 133], [242, 143, 200]])[part.labels[:, 6]]
    assert (ground - expected).abs().max() <= 8


def test_parts_are_drawn_once_and_depend_on_the_seed_alone(root: str, monkeypatch: pytest.MonkeyPatch):
    first = ready(root)
    monkeypatch.setattr("scripts.portraits.drawing.draw", lambda *_: pytest.fail("drawn again"))
    again = ready(root)
    for name, count in (("train", 48), ("val", 8), ("test", 8)):
        part = first.part(name)
        assert len(part) == count
        assert part.images.equal(again.part(name).images)
        assert part.labels.equal(again.part(name).labels)
    assert CaptionedPortraits(root, seed=1).portrait("train", 0)[0] != first.portrait("train", 0)[0]


def test_labels_and_filters(root: str):
    only = PortraitAttributes(beard="bearded")
    data = ready(root, label="beard", include_classes=only)
    assert (data.class_names, data.seen_classes) == (("shaven", "bearded"), [1])
    assert data.part("train").labels.eq(1).all()
    assert 10 < len(data.part("train")) < 40


def test_correlated_attributes():
    rule = {"if": {"beard": "bearded"}, "then": {"head": "short"}, "share": 0.9}
    data = CaptionedPortraits("nowhere", correlated=[rule])
    drawn = [data.portrait("train", number)[0] for number in range(2000)]
    shares = {
        beard: sum(each.head == "short" for each in drawn if each.beard == beard)
        / sum(each.beard == beard for each in drawn)
        for beard in VALUES["beard"]
    }
    assert shares["bearded"] == pytest.approx(0.9, abs=0.04)
    assert shares["shaven"] == pytest.approx(1 / 6, abs=0.04)
    with pytest.raises(SettingError, match="correlated is"):
        CaptionedPortraits("nowhere", correlated=[{"if": {}, "share": 1.0}])
