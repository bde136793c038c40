"""Help, version, completion, and where configurations and modules are found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from running import (
    CONFIGS,
    Dng,
    closed_pipe,
    ends_well,
    printed,
)

from dng_lightning import __version__
from dng_lightning.__main__ import main
from dng_lightning.storage import resources

# --- help ---


def test_help_and_version_import_nothing_heavy():
    code = "import sys; from dng_lightning.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    for arg, expected in (("--help", "usage: dng COMMAND"), ("--version", __version__)):
        out = subprocess.run([sys.executable, "-c", code, arg], capture_output=True, text=True, check=True).stdout
        assert expected in out
        assert not {"torch", "lightning", "matplotlib"} & set(out.splitlines()[-1].split())


def test_the_help_names_real_configs_and_commands(capsys: pytest.CaptureFixture[str]):
    main([])
    text = capsys.readouterr().out
    assert "dng predict" in text
    for word in text.split():
        if word.endswith(".yaml"):
            resources.config(word)


def test_a_command_explains_its_settings(capsys: pytest.CaptureFixture[str]):
    text = printed(capsys, "predict", "--help")
    assert "--trainer.default_root_dir" in text
    assert "--model.help" in text


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys):
    """As `head` is, at the end of a pipe; also at the end of the interpreter."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-u", "-m", "dng_lightning", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    with closed_pipe() as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        ends_well(main, ["predict", "--help"])
    assert capsys.readouterr().err == ""


# --- what is found where ---


@pytest.mark.parametrize("args", [("--config", "digits.yaml"), ("--config=digits",), ("-c", "digits"), ()])
def test_a_bare_name_is_found_from_any_folder(args: tuple[str, ...], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load(printed(capsys, "fit", *args, "--print_config"))
    assert settings["trainer"]["default_root_dir"] == "logs/digits"


def test_a_local_config_wins(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    local = CONFIGS["digits"] | {"seed_everything": 123}
    Path("digits.yaml").write_text(yaml.safe_dump(local))
    assert "seed_everything: 123" in printed(capsys, "fit", "--config", "digits.yaml", "--print_config")
    assert "seed_everything: 0" in printed(capsys, "fit", "--config", "digits", "--print_config")


def test_a_module_beside_the_command_is_found(dng: Dng, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    Path("mynets.py").write_text("from dng_lightning.networks import UNet\n\n\nclass Own(UNet):\n    pass\n")
    with pytest.raises(SystemExit) as ended:
        dng("fit", "--model.net=mynets.Own", "--print_config")
    assert ended.value.code in (None, 0)
    assert "class_path: mynets.Own" in capsys.readouterr().out


def test_shells_complete_options_and_classes(dng: Dng, tmp_path: Path, capsys):
    pytest.importorskip("shtab", reason="shtab is not installed (extra completion)")
    with pytest.raises(SystemExit) as ended:
        dng("--print_shtab", "bash")
    assert ended.value.code is None
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    for word in ("predict", "--model.checkpoint", "--model.guidance", "dng_lightning.data.ImageFolder", "--data.root"):
        assert re.search(rf"[ ('\"]{re.escape(word)}[ )'\"]", script), word
    assert "torchvision." not in script
    with pytest.raises(SystemExit) as ended:
        dng("--print_shtab", "cmd")
    assert ended.value.code == 2
    assert "dng: error: --print_shtab cmd: give bash, " in capsys.readouterr().err
