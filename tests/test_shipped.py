"""Paths win over names, names are found in a wheel and in a checkout, and a miss says what there is."""

import csv
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import EVERY, OVERLAYS

from dng_lightning import guidance, posterior, sampling
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.evaluator import KEY
from dng_lightning.evaluation.posterior_metrics import KEY as POSTERIOR_KEY
from dng_lightning.modules.checkpoint_settings import load_settings
from dng_lightning.modules.image_sampler import Draw
from dng_lightning.storage import resources

OTHER_FORMAT = "in-words/model_index.json"  # diffusers'
OTHER_CONFIG = {
    "captioned-digits-digit": "captioned_digits_classifier",
    "portraits-attributes": "portraits_classifier",
}  # the rest have that of their own name


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    return path


@pytest.fixture(params=["wheel", "checkout"])
def root(request, tmp_path, monkeypatch):
    """The folder that holds `configs` and `checkpoints`; the working directory is another one, and empty."""
    package = tmp_path / "install" / "dng_lightning"
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setattr(resources, "PACKAGE", package)
    root = package if request.param == "wheel" else package.parent
    for name in ("train/mnist.yaml", "train/cifar10.yaml", "text_to_image/prompts/feast.yaml", "README.md"):
        write(root / "configs" / name)
    for name in ("mnist/model.ckpt", "a-classifier/model.ckpt", "half-copied/config.yaml", "README.md", OTHER_FORMAT):
        write(root / "checkpoints" / name)
    return root


@pytest.mark.parametrize("name", ["mnist", "mnist.yaml", Path("mnist"), "train/mnist", "train/mnist.yaml"])
def test_a_bare_config_name_is_found_with_and_without_its_folder_and_suffix(root, name):
    assert resources.config(name) == root / "configs" / "train" / "mnist.yaml"


def test_a_config_in_the_working_directory_is_found_where_none_ships(root):
    """As those of the examples in a checkout, with the wheel installed."""
    write(Path("configs/study/people.yaml"))
    write(Path("configs/study/mnist.yaml"))
    assert resources.config("people.yaml") == Path("configs/study/people.yaml")
    assert resources.config("mnist") == root / "configs" / "train" / "mnist.yaml"


@pytest.mark.parametrize("name", ["prompts/feast", "prompts/feast.yaml", Path("prompts/feast")])
def test_a_config_in_a_folder_is_found_with_its_folder(root, name):
    assert resources.config(name) == root / "configs" / "text_to_image" / "prompts" / "feast.yaml"
    write(Path("prompts/feast.yaml"))
    if str(name).endswith(".yaml"):
        assert resources.config(name).resolve() == Path.cwd() / name


@pytest.mark.parametrize("name", ["mnist", Path("mnist")])
def test_a_bare_checkpoint_name_is_found(root, name):
    assert resources.checkpoint(name) == root / "checkpoints" / "mnist" / "model.ckpt"


def test_names_are_sorted_and_hold_only_what_can_be_used(root):
    assert resources.configs() == ["cifar10", "feast", "mnist"]
    assert resources.checkpoints() == ["a-classifier", "in-words", "mnist"]


def test_a_shipped_folder_in_diffusers_format_is_found(root):
    assert resources.checkpoint("in-words") == root / "checkpoints" / OTHER_FORMAT
    assert resources.name_of("in-words") == "in-words"
    local = write(Path("checkpoints", OTHER_FORMAT))
    assert resources.checkpoint("in-words") == local


def test_a_local_config_wins_over_the_shipped_one(root):
    write(Path("mnist.yaml"))
    assert resources.config("mnist.yaml").resolve() == Path.cwd() / "mnist.yaml"


@pytest.mark.parametrize("local", ["mnist/model.ckpt", "mnist"])
def test_a_local_checkpoint_wins_over_the_shipped_one(root, local):
    write(Path(local))
    assert resources.checkpoint("mnist").resolve() == Path.cwd() / local


def test_a_local_folder_without_a_model_does_not_hide_the_shipped_checkpoint(root):
    Path("mnist").mkdir()
    assert resources.checkpoint("mnist") == root / "checkpoints" / "mnist" / "model.ckpt"


@pytest.mark.parametrize("name", ["runs/7", "runs/7/", "runs/7/model.ckpt"])
def test_a_checkpoint_is_given_as_its_folder_or_as_its_file(root, name):
    write(Path("runs/7/model.ckpt"))
    assert resources.checkpoint(name).resolve() == Path.cwd() / "runs/7/model.ckpt"
    assert resources.checkpoint(Path(name).absolute()) == Path.cwd() / "runs/7/model.ckpt"
    assert resources.name_of(name) == "7"


def test_a_checkpoint_is_called_by_its_folder_or_by_its_file(root):
    write(Path("runs/7/last.ckpt"))
    assert resources.name_of("runs/7/last.ckpt") == "last"
    assert resources.name_of("mnist") == "mnist"


@pytest.mark.parametrize(
    "name", ["mnsit", "", ".", "..", "elsewhere/mnist", "../mnist", "prompts/../mnist", "/mnist", "prompts", "nist"]
)
@pytest.mark.parametrize("find", [resources.config, resources.checkpoint])
def test_a_miss_is_one_line_that_says_what_and_where_and_the_nearest_names(root, find, name):
    with pytest.raises(SettingError) as miss:
        find(name)
    line = str(miss.value)
    assert repr(name) in line
    assert str(Path(name).absolute()) in line
    assert str(root / f"{find.__name__}s") in line
    assert "\n" not in line
    if "st" in name:
        assert line.partition("The nearest: ")[2].startswith("mnist")


def test_of_many_names_the_nearest_three_are_listed():
    with pytest.raises(SettingError, match="The nearest: ") as miss:
        resources.config("mnist_tradeof")
    nearest = str(miss.value).partition("The nearest: ")[2].split(", ")
    assert nearest[0] == "mnist_tradeoff"
    assert len(nearest) == 3


def test_a_miss_where_nothing_ships_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "dng_lightning")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="nor among the 0 in"):
        resources.config("mnist")


def test_what_really_ships_is_found_by_every_name_that_is_listed():
    assert len(set(resources.configs())) == len(resources.configs())
    assert [resources.config(name).stem for name in resources.configs()] == resources.configs()
    assert [resources.checkpoint(name).parent.name for name in resources.checkpoints()] == resources.checkpoints()


CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


def differences(said: object, made: object, place: str = "") -> list[str]:
    """Where a filled-in configuration does not do what a written one says; class paths may be short ones."""
    if isinstance(said, dict) and isinstance(made, dict):
        return [line for key in said for line in differences(said[key], made.get(key), f"{place}.{key}")]
    if isinstance(said, list) and isinstance(made, list) and len(said) == len(made):
        pairs = enumerate(zip(said, made, strict=True))
        return [line for i, pair in pairs for line in differences(*pair, f"{place}.{i}")]
    short = place.endswith(".class_path") and str(made).endswith(f".{said}")
    return [] if said == made or short else [f"{place[1:]}: {said!r}, made with {made!r}"]


def merged(base: Any, top: Any) -> Any:
    """The settings of an overlay on those of its base."""
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    return base | {name: merged(base.get(name), value) for name, value in top.items()}


@pytest.mark.parametrize("name", sorted(path.parent.name for path in CHECKPOINTS.glob("*/metrics.json")))
def test_the_committed_configuration_is_the_one_that_made_the_checkpoint(name):
    config = OTHER_CONFIG.get(name, name).replace("-", "_")
    said = reduce(merged, (EVERY[part] for part in OVERLAYS.get(config, [config])))
    assert differences(said, yaml.safe_load((CHECKPOINTS / name / "config.yaml").read_text())) == []


def test_a_checkpoint_that_another_configuration_made_is_noticed():
    said = {"model": {"class_path": "UNet", "init_args": {"channels": [8]}}, "callbacks": [{"class_path": "EMA"}]}
    net = {"class_path": "a.UNet", "init_args": {"channels": [8], "blocks": 1}}
    made = {"model": net, "callbacks": [{"class_path": "b.EMA"}]}
    assert differences(said, made) == []
    net["init_args"] = {"channels": [16]}
    assert differences(said, made | {"callbacks": None}) == [
        "model.init_args.channels.0: 8, made with 16",
        "callbacks: [{'class_path': 'EMA'}], made with None",
    ]


STUDIES = {
    "mnist_tradeoff": "mnist/results",
    "mnist_all_digits": "mnist/all_digits",
    "mnist_two_digits": "mnist/two_digits",
    "mnist_pair": "mnist/pair",
    "mnist_steps": "mnist/steps",
    "mnist_sensitivity": "mnist/sensitivity",
    "mnist_methods": "mnist/methods",
    "mnist_methods_search": "mnist/methods_search",
    "mnist_search": "mnist/search",
    "mnist_scale": "mnist/scale",
    "mnist_class_conditional": "mnist/class_conditional",
    "cifar10_tradeoff": "cifar10-small/results",
    "cifar10_search": "cifar10-small/search",
    "cifar10_classes": "cifar10-small/classes",
    "cifar10_vehicles": "cifar10-small/vehicles",
    "captioned_digits_related": "captioned-digits/related",
    "captioned_digits_unrelated": "captioned-digits/unrelated",
    "captioned_digits_several": "captioned-digits/several",
    "captioned_digits_contradictory": "captioned-digits/contradictory",
    "captioned_digits_search": "captioned-digits/search",
    "portraits_related": "portraits/related",
    "portraits_mask": "portraits/mask",
    "portraits_beard": "portraits/beard",
    "portraits_several": "portraits/several",
    "portraits_headwear": "portraits/headwear",
    "portraits_steps": "portraits/steps_8",
    "portraits_unrelated": "portraits/unrelated",
    "portraits_contradictory": "portraits/contradictory",
    "portraits_beard_correlated": "portraits-correlated/results",
}
# what their overlays go on top of
BELOW = {"cifar10": "cifar10_tradeoff", "captioned": "captioned_digits_related", "portraits": "portraits_related"}


def model_of(config: str) -> dict[str, Any]:
    """The settings of a study's model, with those that its overlay leaves as they are."""
    below = BELOW.get(config.split("_")[0], config)
    parts = [yaml.safe_load(resources.config(name).read_text())["model"]["init_args"] for name in (below, config)]
    return parts[0] | parts[1]


def built(node: Any) -> Any:
    """The guidance, posterior or setting that a configuration says."""
    if isinstance(node, dict) and "class_path" in node:
        name = node["class_path"]
        kind = next(getattr(part, name) for part in (guidance, posterior, sampling) if hasattr(part, name))
        return kind(**{setting: built(value) for setting, value in node.get("init_args", {}).items()})
    return node


def table(name: str) -> list[dict[str, str]]:
    with (CHECKPOINTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("config", STUDIES)
def test_a_finished_study_that_is_started_again_redoes_nothing(config: str):
    model, rows = model_of(config), table(STUDIES[config])
    folder = CHECKPOINTS / (model.get("negative_checkpoints") or [model["checkpoint"]])[0]
    in_words = "reader" in model
    features = f"{model['reader']['init_args']['classifiers']}-reader" if in_words else model["classifier"]
    groups = {(row.get("removed"), row["seeds"], row["steps"]) for row in rows}
    columns = ("method", "guidance", "features", "removed", "seeds", "steps")
    found = {tuple(row.get(name) for name in columns) for row in rows}
    for settings, group in product(model["guidances"], groups):
        method = load_settings(built(settings), folder)
        needs = method.needs()
        networks = {
            "checkpoint": model.get("noise_conditional_classifier") if needs.classifier else None,
            "observer": model.get("observer") if needs.observer is not None and not in_words else None,
            "probe": model.get("probe") if needs.probe else None,
        }
        run = Draw.of(method, **{part: name for part, name in networks.items() if name}).run
        assert (run.method, run.settings, features, *group) in found


@pytest.mark.parametrize("name", sorted(str(path.relative_to(CHECKPOINTS))[:-4] for path in CHECKPOINTS.rglob("*.csv")))
def test_the_rows_of_a_shipped_table_are_told_apart(name: str):
    rows = table(name)
    key = [*(POSTERIOR_KEY if "tracker" in rows[0] else KEY), *(["removed"] if "removed" in rows[0] else [])]
    assert len({tuple(row[column] for column in key) for row in rows}) == len(rows)


def test_overlays_have_the_posteriors_that_they_speak_of():
    methods = {
        name: yaml.safe_load(resources.config(name).read_text())["model"]["init_args"]["guidance"]["init_args"]
        for name in ("dynamic_geo_guide", "captioned_digits_predict", "stable_diffusion")
    }
    assert methods["dynamic_geo_guide"]["posterior"] == {"class_path": "CalibratedPosterior"}
    over, under = (
        methods[name]["guidance"]["init_args"]["posterior"]["init_args"]
        for name in ("captioned_digits_predict", "stable_diffusion")
    )
    assert over.keys() >= under.keys()  # else it would take what the authors set for Stable Diffusion
