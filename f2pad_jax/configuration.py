"""Options from a file: `--config FILE.toml` for every command, and the file that repeats a run."""

from __future__ import annotations

import argparse
import re
import tomllib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tomli_w

from f2pad_jax.errors import InputError, InputWarning
from f2pad_jax.output import write_bytes

SETTINGS = "settings.toml"
OPTION = "--config"
COMMAND = "command"  # the key that names the command
LOST = re.compile("[\ud800-\udfff]")  # what stands in a name for bytes that are no UTF-8; TOML cannot hold it
OURS = frozenset({"run", "config", COMMAND})  # of the parsed arguments, what is no option


def parse(top: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command, some of them from the file that `--config` names.

    The file has a key for each option, without dashes in front, and for each argument; what the command line gives
    counts instead, also in place of options that exclude it. Where that names no command, the file does.

    Args:
      top: the parser of all commands.
      argv: arguments without the program's name.

    Raises:
      InputError: the file cannot be read, is of another command, or has a key or value that the command does not know,
        or options that exclude each other.
    """
    finder = argparse.ArgumentParser(prog=top.prog, add_help=False, allow_abbrev=False)
    finder.error = top.error
    finder.add_argument(OPTION, type=Path)
    found, rest = finder.parse_known_args(argv)
    if found.config is None:
        return top.parse_args(argv)
    values = _read(found.config)
    own = values.pop(COMMAND, None)
    if not rest or rest[0].startswith("-"):
        if not isinstance(own, str):
            raise InputError("names no command", where=found.config, hint='name one, or write command = "segment"')
        if own not in _choices(top):
            raise InputError(f"there is no command {own!r}", where=found.config, hint=_choose(_choices(top)))
        rest = [own, *rest]
    elif own not in (None, rest[0]):
        raise InputError(f"is of the command {own}, not {rest[0]}", where=found.config, hint="name another file")
    command = _command(top, rest)
    if _choices(command):
        return top.parse_args(rest)  # says which command is missing or unknown
    lists = _apply(command, values, {word.partition("=")[0] for word in rest}, found.config)
    arguments = top.parse_args(rest)
    for name, given in lists.items():  # argparse adds to the list of the file what the command line gives
        if len(value := getattr(arguments, name)) > len(given):
            setattr(arguments, name, value[len(given) :])
    return arguments


def write_settings(folder: Path, arguments: argparse.Namespace) -> None:
    """Writes `settings.toml`, which repeats the command from the same current folder.

    Raises:
      InputError: the file cannot be written.

    Warns:
      InputWarning: a name is no UTF-8, which TOML cannot hold; the file says so as well.
    """
    values = {name: _plain(value) for name, value in vars(arguments).items() if name not in OURS and value is not None}
    values = {name.replace("_", "-"): value for name, value in values.items() if value != []}
    text, lost = LOST.subn("\N{REPLACEMENT CHARACTER}", tomli_w.dumps({COMMAND: arguments.run, **values}))
    told = "# A name here is no UTF-8 and cannot be written: this file does not repeat the run.\n" if lost else ""
    write_bytes(folder / SETTINGS, f"{told}{text}".encode())
    if lost:
        what = "does not repeat the run: a name is no UTF-8 and cannot be written"
        warnings.warn(InputWarning(what, where=folder / SETTINGS, hint="rename the picture or folder"), stacklevel=2)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, hint="name a TOML file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no TOML ({error})", where=path, hint="write lines such as size = 224") from error


def _command(top: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the command that words name, or the innermost that they do."""
    for word in words:
        choices = _choices(top)
        if word not in choices:
            break
        top = choices[word]
    return top


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands that a parser leads to."""
    return next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})


def _choose(names: Iterable[str]) -> str:
    return f"choose of {', '.join(names)}"


def _apply(
    command: argparse.ArgumentParser, values: dict[str, Any], given: set[str], path: Path
) -> dict[str, list[Any]]:
    """Makes values the defaults of a command's options but those that a given one excludes; those that are lists."""
    actions = {
        action.dest.replace("_", "-"): action
        for action in command._actions
        if action.dest not in ("help", *OURS) and not isinstance(action, argparse._SubParsersAction)
    }
    for name, value in values.items():
        if name not in actions:
            raise InputError(f"{command.prog.split(' ', 1)[-1]} has no {name!r}", where=path, hint=_choose(actions))
        values[name] = _value(actions[name], value, name, path)
    for group in command._mutually_exclusive_groups:
        members = [name for name, action in actions.items() if action in group._group_actions]
        own = [name for name in members if values.get(name)]
        if len(own) > 1:
            raise InputError(f"has {' and '.join(own)}", where=path, hint="leave one of them out")
        if any(given.intersection(actions[name].option_strings) for name in members):
            values = {name: value for name, value in values.items() if name not in members}
    lists = {}
    for name, value in values.items():
        action = actions[name]
        action.default = value
        action.required = False
        if isinstance(action, argparse._AppendAction):
            lists[action.dest] = action.default
        elif not action.option_strings:
            action.nargs = "*" if action.nargs in ("*", "+") else "?"
    return lists


def _value(action: argparse.Action, value: Any, name: str, path: Path) -> Any:
    """A value of the file as the command line would have it."""

    def fail(why: object) -> NoReturn:
        raise InputError(f"{name} is {value!r} ({why})", where=path, hint="see --help of the command")

    def one(item: Any) -> Any:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            fail("neither text nor a number")
        if "\0" in str(item):
            fail("no text of a command holds a NUL")
        try:
            return action.type(str(item)) if callable(action.type) else str(item)
        except argparse.ArgumentTypeError as error:
            fail(error)
        except ValueError:
            fail(f"not a {getattr(action.type, '__name__', 'value')}")

    if action.nargs == 0:
        return value if isinstance(value, bool) else fail("neither true nor false")
    if isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+"):
        return [one(item) for item in value] if isinstance(value, list) else fail("no list")
    return one(value)
