"""Any command line, however odd, trains or is refused with one line that says what is wrong."""

import dataclasses
import itertools
import shutil

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import config
import main
import run_class_similarity
import run_hessian
import run_landscape
import run_measures
from config import Config, parse_args
from normstudy.cli import RunError, UsageError
from normstudy.storage import files, run_directory

MEASURING = {
    "hessian": run_hessian.build_parser,
    "class_similarity": run_class_similarity.build_parser,
    "measures": run_measures.build_parser,
    "landscape": run_landscape.build_parser,
}
pytestmark = pytest.mark.usefixtures("narrow")

WORDS = (
    "|0|-1|1|2|nan|inf|-inf|1e400|1e-400|0x10|١|1_000|101010101010101010101|3.5|None|True|false|yes|null|[]|{}|--|-|="
    "|a=b| |\t|\n|é|💥|$(date)|%s|../.."
)
ODD = st.sampled_from(WORDS.split("|"))
ANYTHING = ODD | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
NUMBERS = st.integers(-2, 40).map(str) | st.floats().map(str)
FIELDS = {option.name: option for option in dataclasses.fields(Config)}
# The values of flags of runs that really train: small if they determine the work, of any size otherwise.
SMALL = st.integers(-1, 12).map(str)
SIZED = {
    "epochs": st.integers(0, 2).map(str),
    "train_samples": SMALL,
    "test_samples": SMALL,
    "image_size": st.sampled_from([1, 2, 3, 7, 8, 12, 16]).map(str),
    "patch_size": st.sampled_from([1, 2, 4, 8, 16]).map(str),
    "dataset": st.sampled_from(["ImageFolder", "imagefolder", "image folder", "CIFAR-10"]),
    "c_dir": st.sampled_from(["", "nowhere", "/dev/null"]),
    "cfg": st.sampled_from(["cfg_10", "CFG_10", "cfg_11"]),
    "device": st.sampled_from(["cpu", "auto", "cpu", "cuda:7"]),
    "p_grouping": st.sampled_from([1, 0.5, 0.25, 1e-7, 2, 4, 8, 3, 1.5]).map(str),
    "download": st.just("False"),
}
QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def values(option):
    """Return a strategy for texts of one flag: right, wrong and odd ones."""
    meta = option.metadata
    if meta["choices"]:
        right = st.sampled_from(meta["choices"])
        return right | right.map(str.upper) | ANYTHING
    if meta["type"].__name__ == "boolean":
        return st.sampled_from(["True", "False", "true", "FALSE"]) | ANYTHING
    if meta["type"] is str:
        return ANYTHING
    return NUMBERS | st.integers(-(10**40), 10**40).map(str) | ANYTHING


def command_lines(of_one, but=()):
    """Return a strategy for lists of arguments with each flag at most once; of_one(option) gives a flag's texts."""

    def flag(name):
        text = of_one(FIELDS[name])
        joined = text.map(lambda value: [f"--{name}={value}"])
        return joined | text.map(lambda value: [f"--{name}", value]) if FIELDS[name].type == "str" else joined

    names = st.lists(st.sampled_from(sorted(FIELDS.keys() - set(but))), unique=True, max_size=7)
    return names.flatmap(lambda chosen: st.tuples(*map(flag, chosen))).map(lambda parts: list(itertools.chain(*parts)))


def refused(parse, argv, capsys):
    """Return whether argparse refused a command line; it must do so with exit code 2 and one line."""
    capsys.readouterr()
    try:
        parse(argv)
    except SystemExit as stop:
        said = capsys.readouterr()
        assert stop.code == 2  # noqa: PT017
        assert len(said.err.splitlines()) == 1, said.err
        assert "error:" in said.err
        return True
    return False


@settings(QUICK, max_examples=600)
@given(argv=command_lines(values))
def test_any_command_line_is_parsed_or_refused_in_one_line(argv, capsys):
    event("refused" if refused(parse_args, argv, capsys) else "parsed")


@settings(QUICK, max_examples=200)
@given(argv=st.lists(ANYTHING | ANYTHING.map(lambda text: f"--{text}"), max_size=4), data=st.data())
def test_any_words_are_parsed_or_refused_in_one_line(argv, data, capsys):
    parser = data.draw(st.sampled_from([config.build_parser, *MEASURING.values()]))()
    refused(parser.parse_args, argv, capsys)


@pytest.mark.parametrize("parser", MEASURING.values(), ids=MEASURING)
@settings(QUICK, max_examples=200)
@given(data=st.data())
def test_any_flags_of_a_measurement_are_parsed_or_refused_in_one_line(parser, data, capsys):
    actions = [action for action in parser()._actions if action.option_strings and action.dest != "help"]
    chosen = data.draw(st.lists(st.sampled_from(actions), max_size=5))
    argv = [f"{action.option_strings[0]}={data.draw(NUMBERS | ANYTHING)}" for action in chosen]
    refused(parser().parse_args, argv, capsys)


def sized(option):
    """Like values(), but the run stays small, and most values are right, so that many runs start."""
    meta = option.metadata
    if option.name in SIZED:
        return SIZED[option.name]
    if meta["choices"]:
        return st.sampled_from(meta["choices"])
    if meta["type"].__name__ == "boolean":
        return st.sampled_from(["True", "False"])
    if option.name in ("batch_size", "probe_every", "seed"):
        return st.integers(1, 12).map(str) | st.sampled_from([str(2**31), str(2**32 - 1), str(2**63), str(10**30)])
    return st.floats(0, 1).map(str) | st.floats(0, allow_infinity=False).map(str) | st.integers(1, 64).map(str)


@settings(QUICK, max_examples=50)
@given(argv=command_lines(sized, but=("results_dir", "data_dir", "cache_dir")))
def test_any_run_trains_or_is_refused_in_one_line(argv, small, tmp_path, capsys):
    """Every flag is tried; other flags after them keep the run small. A run that trains ends with complete files."""
    config.VGG_LAYERS["cfg_10"] = (32, (32, 2))  # widths that are divisible into EvoNormSO's 32 groups
    bounds = {"dataset": small[0], "epochs": "--epochs=1", "results_dir": f"--results_dir={tmp_path / 'results'}"}
    given_names = {word.partition("=")[0].lstrip("-") for word in argv}
    argv = [flag for name, flag in bounds.items() if name not in given_names] + argv
    argv += [small[-1]] + ([] if "image_size" in given_names else ["--image_size=8"])
    if "vit" in " ".join(argv) and "patch_size" not in given_names:
        argv.append("--patch_size=4")
    if refused(parse_args, argv, capsys):
        event("refused by the parser")
        return
    try:
        run = run_directory.RunDirectory(main.main(argv))
    except (UsageError, RunError) as error:
        assert len(str(error).splitlines()) == 1, error  # noqa: PT017
        event(type(error).__name__)
        return
    event(files.read_json(run.summary)["status"])
    assert run.curves.exists()
    shutil.rmtree(tmp_path / "results")
