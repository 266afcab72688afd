"""Writes the tables of options in README.md and docs/guide/options.md: python -m tests.option_tables."""

from dataclasses import Field

from tests.conftest import ROOT
from utils.config import AnalyzeConfig, TrainConfig
from utils.config.options import Config, allowed_text, choices, members, options_of, shown_default

README, GUIDE = ROOT / "README.md", ROOT / "docs" / "guide" / "options.md"
BEGIN, END = "<!-- written by python -m tests.option_tables -->\n", "<!-- end of what it writes -->\n"


def readme(text: str) -> str:
    """The README with its table as it should be: a row per group of training options, one row for analysis."""
    groups = grouped(TrainConfig) | {"analysis (`analyze.py RUN`)": list(options_of(AnalyzeConfig).values())}
    rows = ["| group | options |", "| --- | --- |"]
    for group, options in groups.items():
        names = [f"`{option.name}`{_choices(option)}" for option in options if not option.metadata["positional"]]
        rows.append(f"| {group} | {', '.join(names)} |")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return before + BEGIN + "\n".join(rows) + "\n" + END + after


def guide() -> str:
    """docs/guide/options.md: a table per group, of what each option does and accepts, and its default."""
    lines = [
        "# Options",
        "",
        "Written by `python -m tests.option_tables`. An empty default: unset, null in YAML.",
        "",
    ]
    for kind in (TrainConfig, AnalyzeConfig):
        lines += [f"## {kind.script}", ""]
        for group, options in grouped(kind).items():
            lines += [f"### {group}", "", "| option | what it does | accepts | default |", "| --- | --- | --- | --- |"]
            for option in options:
                name = option.name.upper() if option.metadata["positional"] else option.name
                cells = (f"`{name}`", option.metadata["help"], allowed_text(option), shown_default(option))
                lines.append(f"| {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def grouped(kind: type[Config]) -> dict[str, list[Field]]:
    """The options of a script by their group."""
    groups: dict[str, list[Field]] = {}
    for option in options_of(kind).values():
        groups.setdefault(option.metadata["group"], []).append(option)
    return groups


def _choices(option: Field) -> str:
    names = choices(option)
    return f" ({', '.join(['a number'] * (float in members(option.type)) + names)})" if names else ""


if __name__ == "__main__":
    README.write_text(readme(README.read_text()))
    GUIDE.write_text(guide())
