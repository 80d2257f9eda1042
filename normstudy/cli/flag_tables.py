"""Generate the flag tables of docs/flags.md from the parsers of the commands.

    python -m normstudy.cli.flag_tables             update the page
    python -m normstudy.cli.flag_tables --check     exit with code 1 if the page is out of date

Run it in the repository's folder. The commands are looked up by name, so nothing in this package imports them.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Container, Sequence
from pathlib import Path

PAGE = Path("docs/flags.md")
PARSER_MODULES = {  # {command: the module whose build_parser() makes its parser}
    "main.py": "config",
    "run_hessian.py": "run_hessian",
    "run_class_similarity.py": "run_class_similarity",
    "run_measures.py": "run_measures",
    "run_landscape.py": "run_landscape",
    "run_sweep.py": "normstudy.sweeps",
    "run_report.py": "run_report",
}
SWEEP = "run_sweep.py"  # also takes every flag of main.py, which its section leaves out
MARKERS = "<!-- flags of {}: generated, do not edit -->", "<!-- end of flags -->"


def parser_of(command: str) -> argparse.ArgumentParser:
    """Build the parser of a command of PARSER_MODULES."""
    parser: argparse.ArgumentParser = importlib.import_module(PARSER_MODULES[command]).build_parser()
    return parser


def flag_tables(parser: argparse.ArgumentParser, skipped: Container[str] = ()) -> str:
    """Return one Markdown table per argument group of a parser, without the flags whose `dest` is in `skipped`.

    The title of a group is above its table, unless it is one of argparse's own groups.
    """
    parts = []
    for group in parser._action_groups:
        rows = [_row(action) for action in group._group_actions if action.dest not in skipped]
        rows = [row for row in rows if row]
        if rows:
            title = str(group.title)
            heading = "" if title in ("positional arguments", "options") else f"{title[:1].upper()}{title[1:]}:\n\n"
            parts.append(heading + "\n".join(["| flag | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _row(action: argparse.Action) -> str:
    """Return a flag's row, or that of an argument without a flag, such as RUN; an empty text for --help."""
    if action.dest == "help":
        return ""
    text = str(action.help).replace("%%", "%")
    if not action.option_strings:
        return f"| `{action.metavar} …` | | {text} |"
    found = re.fullmatch(r"(?P<meaning>.*?)(?: \(default: (?P<default>.*)\))?", text, re.DOTALL)
    assert found is not None  # the pattern matches any text
    meaning, default = found["meaning"], found["default"] or ""
    if " " not in default and default:
        default = f"`{default}`"
    names = ", ".join(f"`{name}`" for name in sorted(action.option_strings, key=len, reverse=True))
    return f"| {names} | {default} | {meaning} |".replace("|  |", "| |")


def updated(page: str) -> str:
    """Return the page with new tables between its markers. Raises ValueError for an unknown command."""
    main_flags = {action.dest for action in parser_of("main.py")._actions}

    def tables(found: re.Match[str]) -> str:
        command = found["command"]
        if command not in PARSER_MODULES:
            raise ValueError(f"{command} has no parser here; add it to PARSER_MODULES in {Path(__file__).name}")
        skipped = main_flags if command == SWEEP else ()
        start, end = MARKERS
        return f"{start.format(command)}\n{flag_tables(parser_of(command), skipped)}\n{end}"

    start, end = (re.escape(marker) for marker in MARKERS)
    pattern = start.replace(re.escape("{}"), r"(?P<command>\S+)") + f".*?{end}"
    return re.sub(pattern, tables, page, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Update docs/flags.md, or with --check only compare it; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m normstudy.cli.flag_tables", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="only report whether the page is up to date")
    args = parser.parse_args(argv)
    if not PAGE.exists():
        parser.error(f"{PAGE} does not exist here; run this in the repository's folder")
    page = PAGE.read_text(encoding="utf-8")
    if page == updated(page):
        print(f"{PAGE} is up to date")
        return 0
    if args.check:
        print(f"{PAGE} is out of date: run python -m normstudy.cli.flag_tables", file=sys.stderr)
        return 1
    PAGE.write_text(updated(page), encoding="utf-8")
    print(f"updated {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
