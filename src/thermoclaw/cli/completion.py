"""`thermoclaw completion`: scripts for shells, made from the parser itself. Completing starts no Python."""

from __future__ import annotations

import argparse
import re
from typing import Any

from thermoclaw.cli.exits import OK
from thermoclaw.cli.parser import commands_of, options_of, positionals_of

SHELLS = {
    "bash": "echo 'eval \"$(thermoclaw completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(thermoclaw completion zsh)\"' >> ~/.zshrc  (after compinit)",
    "fish": "thermoclaw completion fish > ~/.config/fish/completions/thermoclaw.fish",
}


def add_to(commands: Any) -> None:
    """Add the command to a parser's commands."""
    completion = commands.add_parser(
        "completion",
        help="a script that completes commands, options and paths in your shell",
        description="Prints a script for your shell. To install it: " + "; ".join(SHELLS.values()),
    )
    completion.add_argument("shell", choices=sorted(SHELLS), help="which shell")
    completion.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from thermoclaw.cli import parser

    scripts = {"bash": bash, "zsh": zsh, "fish": fish}
    print(scripts[arguments.shell](parser()), end="")
    return OK


def _words(parser: argparse.ArgumentParser) -> str:
    return " ".join([*options_of(parser), "--help"] if "--help" not in options_of(parser) else options_of(parser))


def _choices(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Options whose values are known, and those values."""
    return {
        name: " ".join(map(str, action.choices))
        for name, action in options_of(parser).items()
        if action.choices is not None
    }


def _fixed(parser: argparse.ArgumentParser) -> str:
    """Values of a positional argument that are known."""
    return " ".join(str(choice) for action in positionals_of(parser) for choice in action.choices or ())


def bash(parser: argparse.ArgumentParser) -> str:
    """For bash 3.2 and later; where a path may stand, the shell's own completion of files takes over."""
    cases = []
    for name, command in commands_of(parser).items():
        values = "".join(f' {option}) words="{known}" ;;' for option, known in _choices(command).items())
        known = f' [ -z "$words" ] && words="{_fixed(command)}"' if _fixed(command) else ""
        cases.append(f'        {name}) options="{_words(command)}"; case "$before" in{values} esac;{known} ;;')
    return f"""# bash completion for thermoclaw
_thermoclaw() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" options="" words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(commands_of(parser))} {_words(parser)}" -- "$current"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{chr(10).join(cases)}
    esac
    case "$current" in
        -*) COMPREPLY=($(compgen -W "$options" -- "$current")) ;;
        *) [ -n "$words" ] && COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
    esac
}}
complete -o default -F _thermoclaw thermoclaw
"""


def zsh(parser: argparse.ArgumentParser) -> str:
    """For zsh with its completion system on."""
    cases = []
    for name, command in commands_of(parser).items():
        values = "".join(f" {option}) words=({known}) ;;" for option, known in _choices(command).items())
        known = f" (( $#words )) || words=({_fixed(command)})" if _fixed(command) else ""
        cases.append(f'        {name}) options=({_words(command)}); case "$before" in{values} esac;{known} ;;')
    heads = " ".join(f"'{name}:{_quoted(text)}'" for name, text in _helps(parser).items())
    return f"""#compdef thermoclaw
_thermoclaw() {{
    local before="${{words[CURRENT-1]}}" command="${{words[2]}}"
    local -a options heads
    if (( CURRENT == 2 )); then
        heads=({heads})
        _describe command heads
        return
    fi
    local -a words
    case "$command" in
{chr(10).join(cases)}
    esac
    if [[ "$PREFIX" == -* ]]; then
        compadd -- $options
    elif (( $#words )); then
        compadd -- $words
    else
        _files
    fi
}}
if (( $+functions[compdef] )); then
    compdef _thermoclaw thermoclaw
fi
"""


def fish(parser: argparse.ArgumentParser) -> str:
    """For fish 3 and later."""
    lines = ["# fish completion for thermoclaw"]
    texts = _helps(parser)
    for name, command in commands_of(parser).items():
        lines.append(f"complete -c thermoclaw -f -n __fish_use_subcommand -a {name} -d '{_quoted(texts[name])}'")
        here = f"complete -c thermoclaw -n '__fish_seen_subcommand_from {name}'"
        for option, action in options_of(command).items():
            needs = " -r" if action.nargs != 0 else ""
            known = f" -f -a '{_choices(command)[option]}'" if option in _choices(command) else ""
            lines.append(f"{here} -l {option[2:]}{needs}{known} -d '{_quoted(action.help or '')}'")
        if _fixed(command):
            lines.append(f"{here} -f -a '{_fixed(command)}'")
    return "\n".join(lines) + "\n"


def _helps(parser: argparse.ArgumentParser) -> dict[str, str]:
    """What each command is for."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {choice.dest: str(choice.help or "") for choice in action._choices_actions}
    return {}


def _quoted(text: str) -> str:
    """Fit to stand between single quotes, in any of the shells."""
    return re.sub(r"[^\w .,;()*/-]", "", text.replace("%(default)s", "").replace("'", ""))
