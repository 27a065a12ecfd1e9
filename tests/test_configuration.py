from __future__ import annotations

import argparse
import os
import tomllib
from pathlib import Path

import pytest

from f2pad_jax.cli import main, parser
from f2pad_jax.configuration import SETTINGS, parse, write_settings
from f2pad_jax.errors import InputError, InputWarning

COMMANDS = [
    "demo --detector padim --detector cflow --images 3 --out d",
    "synthesize textures --out made --kind grey --structural --white-level 4095",
    "fit part --detector padim --extractor resnet18 --out m --option rank=4 --false-alarms 0.05 --layout btad --paper",
    "train-mae part --out f --epochs 2",
    "tune m part --out t --oracle --weights w.npz",
    "segment m a.png b.png --out r --threshold 0.25 --grow",
    "evaluate m part --out e",
    "export m --out x.stablehlo",
    "experiment table1 --out x --category brick --untuned --jobs 2",
    "weights import resnet18 file.pth",
]


def _same(one: argparse.Namespace, other: argparse.Namespace) -> bool:
    return vars(one) == vars(other)


@pytest.mark.parametrize("line", COMMANDS)
def test_written_settings_repeat_a_command(tmp_path: Path, line: str) -> None:
    words = line.split()
    arguments = parse(parser(), words)
    if words[0] == "weights":  # writes no results, but takes a file
        (tmp_path / SETTINGS).write_text('name = "resnet18"\nfile = "file.pth"\n', "utf-8")
        assert _same(parse(parser(), ["weights", "import", "--config", str(tmp_path / SETTINGS)]), arguments)
        return
    write_settings(tmp_path, arguments)
    file = str(tmp_path / SETTINGS)
    for again in (["--config", file], [words[0], "--config", file], [f"--config={file}", words[0]]):
        assert _same(parse(parser(), again), arguments)


def test_the_command_line_counts_instead(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('model = "m"\npictures = ["a.png", "b.png"]\nout = "r"\nthreshold = 2\n', "utf-8")
    found = parse(parser(), ["segment", "--config", str(file), "n", "c.png", "--threshold", "3"])
    assert (found.model, found.pictures, found.out, found.threshold) == (Path("n"), [Path("c.png")], Path("r"), 3.0)
    file.write_text('detector = ["padim"]\n', "utf-8")
    assert parse(parser(), ["demo", "--config", str(file), "--detector", "cflow"]).detector == ["cflow"]
    assert parse(parser(), ["demo", "--config", str(file)]).detector == ["padim"]


def test_of_options_that_exclude_each_other_the_command_lines_counts(tmp_path: Path) -> None:
    file = tmp_path / "exp.toml"
    file.write_text('name = "table1"\nout = "x"\noracle = true\nuntuned = false\n', "utf-8")
    line = ["experiment", "--config", str(file)]
    for words, wanted in (([], (True, False)), (["--untuned"], (False, True)), (["--oracle"], (True, False))):
        found = parse(parser(), [*line, *words])
        assert (found.oracle, found.untuned) == wanted


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["demo", "--conf", "own.toml"], "unrecognized arguments: --conf own.toml"),
        (["segmnt", "--config", "own.toml"], "invalid choice: 'segmnt'"),
        (["weights", "--config", "own.toml"], "required: ACTION"),
    ],
)
def test_what_names_no_command_or_option_is_said(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text("images = 3\n", "utf-8")
    with pytest.raises(SystemExit) as caught:
        parse(parser(), words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


FAULTS = {
    "no TOML": ("evaluate", "model =", "is no TOML (Invalid value"),
    "another command": ("evaluate", 'command = "fit"', "is of the command fit, not evaluate; name another file"),
    "unknown command": ("", 'command = "segmnt"\nmodel = "m"', "no command 'segmnt'; choose of demo, synthesize"),
    "both of two": ("experiment", "oracle = true\nuntuned = true", "has oracle and untuned; leave one of them out"),
    "a NUL": ("evaluate", 'out = "a\\u0000b"', "out is 'a\\x00b' (no text of a command holds a NUL)"),
    "no command": ("", 'model = "m"', "names no command; name one, or write command"),
    "another option": ("evaluate", "sice = 3", "evaluate has no 'sice'; choose of model, dataset, out, oracle"),
    "no whole number": ("train-mae", 'epochs = "few"', "epochs is 'few' (not a whole number)"),
    "too small": ("train-mae", "epochs = 0", "epochs is 0 (0 is less than 1)"),
    "no switch": ("evaluate", 'oracle = "yes"', "oracle is 'yes' (neither true nor false)"),
    "no list": ("segment", 'pictures = "a.png"', "pictures is 'a.png' (no list)"),
    "a list": ("segment", "threshold = [1]", "threshold is [1] (neither text nor a number)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    command, text, message = FAULTS[name]
    file = tmp_path / "own.toml"
    file.write_text(text, "utf-8")
    assert main([*command.split(), "--config", str(file)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"f2pad: error: {file}: ")
    assert message in line


def test_what_is_still_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError, match="none.toml: cannot be read"):
        parse(parser(), ["evaluate", "--config", str(tmp_path / "none.toml")])
    (tmp_path / "own.toml").write_text('model = "m"\n', "utf-8")
    with pytest.raises(SystemExit):
        parse(parser(), ["evaluate", "--config", str(tmp_path / "own.toml")])
    assert "the following arguments are required: DATASET, --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(parser(), ["evaluate", "--config"])
    assert "expected one argument" in capsys.readouterr().err


def test_odd_names_are_written(tmp_path: Path) -> None:
    names = ['a "b".png', "日本\n.png", "c\\d.png"]
    arguments = parse(parser(), ["segment", "m", *names, "--out", "r"])
    write_settings(tmp_path, arguments)
    text = (tmp_path / SETTINGS).read_text("utf-8")
    assert tomllib.loads(text)["pictures"] == names
    assert not text.startswith("#")


def test_a_name_that_toml_cannot_hold_is_told(tmp_path: Path) -> None:
    arguments = parse(parser(), ["segment", "m", os.fsdecode(b"caf\xe9.png"), "--out", "r"])
    with pytest.warns(InputWarning, match="settings.toml: does not repeat the run: a name is no UTF-8"):
        write_settings(tmp_path, arguments)
    text = (tmp_path / SETTINGS).read_text("utf-8")
    assert text.startswith("# A name here is no UTF-8 and cannot be written: this file does not repeat the run.\n")
    assert tomllib.loads(text)["pictures"] == ["caf\N{REPLACEMENT CHARACTER}.png"]
