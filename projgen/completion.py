"""Shell completion: short scripts that ask the program itself, which reads its own parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

COMMAND = "__complete"

SCRIPTS: Mapping[str, str] = MappingProxyType(
    {
        "bash": """\
# eval "$(projgen completion bash)"
_projgen() {
    local IFS=$'\\n'
    COMPREPLY=($(projgen __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _projgen projgen
""",
        "zsh": """\
# eval "$(projgen completion zsh)"
_projgen() {
    local -a found=(${(f)"$(projgen __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    compadd -a found || _files
}
compdef _projgen projgen
""",
        "fish": """\
# projgen completion fish | source
function __projgen
    projgen __complete (commandline -opc)[2..] (commandline -ct) 2>/dev/null
    or __fish_complete_path (commandline -ct)
end
complete -c projgen -f -a '(__projgen)'
""",
    }
)


def complete(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """What the last of `words` (perhaps empty) may become; nothing where a file may stand."""
    *before, last = words or [""]
    pending: argparse.Action | None = None  # the option whose value comes next
    positionals = _positionals(parser)
    for word in before:
        if word.startswith("-") and word != "-":
            option = parser._option_string_actions.get(word)
            pending = option if option is not None and option.nargs != 0 else None
        elif pending is not None:
            pending = pending if pending.nargs == "+" else None
        elif positionals:
            action = positionals.pop(0)
            if isinstance(action, argparse._SubParsersAction):
                if word not in action.choices:
                    return []
                parser = action.choices[word]
                positionals = _positionals(parser)
    if last.startswith("-"):
        options = (name for name in parser._option_string_actions if name.startswith("--"))
        return _matching(options if last != "-" else parser._option_string_actions, last)
    action_now = pending or (positionals[0] if positionals else None)
    return _matching(action_now.choices or () if action_now else (), last)


def commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The parsers of its commands."""
    return next(
        action.choices
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not action.option_strings]


def _matching(candidates: Iterable[object], start: str) -> list[str]:
    return sorted(str(one) for one in candidates if str(one).startswith(start))
