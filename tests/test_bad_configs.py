"""Bad settings by command line, file and Python, and hostile names: one sentence each and nothing on the disk."""

import dataclasses
import functools
import inspect
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from decimal import Decimal
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import icldyn as ic
from icldyn import checks, cli, sweep
from icldyn.engine.blocks import cells_of
from icldyn.store import run_folder
from icldyn.study import study

STUDY = "mainali2025"
PAPER = study(STUDY)
CONFIG = type(PAPER.scales["smoke"])
FIELDS = tuple(f.name for f in dataclasses.fields(CONFIG))
SIZES = ("seeds", "other_seeds", "reference_seeds", "batch")
TUPLES = ("N", "s", "unbalanced", "lrs")
FOLDERS = itertools.count()
FORBIDDEN = re.compile(r"jax|XLA|Traceback|Tracer|  File |Error:")
SENTENCE = re.compile(r"Argument `[\w-]+(\[[^`]*\])?` must .*[^ ]\.")


def examples(count):
    """`count` examples, the same in every run."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=20_000,  # wall time, against hangs
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


class Accepted(Exception):
    """A bad command got past the checks."""


@pytest.fixture(scope="module", autouse=True)
def nothing_is_trained_and_nothing_written(tmp_path_factory):
    """An empty folder to work in, still empty at the end; what passes all checks of the command line stops there."""
    here, empty = Path.cwd(), tmp_path_factory.mktemp("empty")
    cli.main(["check", STUDY, "--lr", "-1"])  # imports tyro
    os.chdir(empty)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(cli, "_place", side_effect=Accepted))
        stack.enter_context(mock.patch.object(sweep, "_run", side_effect=Accepted))
        cached = functools.cache(inspect.findsource)  # tyro reads the docstrings of fields from the source, every time
        stack.enter_context(mock.patch.object(inspect, "findsource", cached))
        yield
    os.chdir(here)
    assert list(empty.iterdir()) == []


def named(message):
    """All arguments that a message names."""
    return {name.replace("-", "_") for name in re.findall(r"`(?:--)?([\w-]+)(?:\[[^`]*\])?`", message)}


def blamed(message):
    """The arguments that its sentences begin with."""
    return {named(line.partition(" must ")[0]).pop() for line in message.splitlines()}


def assert_clear(message):
    for line in message.splitlines():
        assert SENTENCE.fullmatch(line), line
        assert len(line) < 500 and line.isprintable()
    assert message and not FORBIDDEN.search(message), message


@contextmanager
def new_folder():
    """A folder that is gone afterwards; no random letters, which might spell a forbidden word."""
    folder = Path(tempfile.gettempdir()).resolve() / f"icldyn-{os.getpid()}-{next(FOLDERS)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def told(words):
    """Exit code of a command and all that it printed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = cli.main(words)
        except SystemExit as stop:  # tyro
            code = stop.code
    return code, out.getvalue() + err.getvalue()


# ------------------------------------------------------------------ good settings


def numbers(low, high):
    return st.floats(low, high, exclude_min=True, exclude_max=True)


@st.composite
def good(draw):
    """A config that can run, of any size."""
    s = sorted(draw(st.lists(numbers(1e-3, 1e3), min_size=1, max_size=6)), reverse=True)
    N = sorted(draw(st.sets(st.integers(len(s) + 1, 10**9), min_size=1, max_size=5)))
    end = min(n / ((n + 1) * s[0] + sum(s)) for n in N) ** 0.5
    times = draw(st.lists(numbers(1, 1e4), min_size=2, max_size=2))
    lrs = [min(times) / k for k in draw(st.lists(st.integers(1, 10**5), min_size=3, max_size=6, unique=True))]
    assume(len(set(lrs)) == len(lrs))
    return CONFIG(
        seeds=draw(st.integers(2, 10**8)),
        other_seeds=draw(st.integers(8, 10**8)),
        N=tuple(N),
        s=tuple(s),
        lr=lrs[0],
        batch=draw(st.integers(1, 2**20)),
        start=draw(numbers(1e-9, 0.999)) * end,
        unbalanced=tuple(draw(st.lists(numbers(1e-6, 1e6), min_size=1, max_size=4))),
        radius=draw(numbers(1e-6, 100)),
        spread=draw(numbers(1e-12, 100)),
        t_end=times[0],
        t_end_unaligned=times[1],
        lrs=tuple(lrs[1:]),
        reference_seeds=draw(st.integers(2, 10**8)),
    )


def as_words(config, joined=False):
    """The config on the command line, as one would type it."""
    words = []
    for name, value in dataclasses.asdict(config).items():
        texts = [repr(v) for v in value] if isinstance(value, tuple) else [repr(value)]
        flag = "--" + name.replace("_", "-")
        words += [f"{flag}={texts[0]}"] if joined and not isinstance(value, tuple) else [flag, *texts]
    return words


@examples(300)
@given(good())
def test_what_can_run_is_accepted_and_comes_back_from_run_json(config):
    PAPER.check(config)
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert cli._settings({"study": STUDY, "config": stored}, "run") == (PAPER, config)


@examples(60)
@given(good(), st.booleans())
def test_what_can_run_comes_back_from_the_command_line(config, joined):
    assert cli._parse("check", [STUDY, *as_words(config, joined)])[3] == config


@pytest.mark.parametrize("scale", PAPER.scales)
def test_every_scale_is_accepted(scale):
    PAPER.check(PAPER.scales[scale])
    with pytest.raises(Accepted):
        cli.main(["run", STUDY, "--scale", scale, "--out", "runs/of-today/a_b-c.1=2,3", "--block", "64"])


# ------------------------------------------------------------------ bad settings

HUGE = st.sampled_from([10, 12, 30, 400, 5000]).map(
    lambda digits: 10**digits
)  # Python writes no more than 4,300 digits
LONG = st.sampled_from([2001, 10**5, 10**6]).map(lambda length: "x" * length)
TEXT = st.one_of(
    st.text(max_size=20), LONG, st.sampled_from(["0.01", "8", "nan", "1e5", "None", "", "\x1b[2J", "a\nb", "\udcff"])
)
ODD = st.one_of(  # nothing that any field takes
    st.none(),
    st.booleans(),
    TEXT,
    st.binary(max_size=9),
    st.complex_numbers(),
    st.sampled_from(
        [np.bool(True), Decimal("0.1"), {"lr": 0.1}, {1, 2}, [[0.1]], ((8, 20),), range, object(), np.eye(2)]
    ),
    st.lists(st.lists(st.integers())),
)
NOT_POSITIVE = st.one_of(
    st.floats(max_value=0), st.sampled_from([float("nan"), float("inf"), -float("inf"), 0, -1, 10**400, -(10**400)])
)
NO_INTEGER = st.one_of(ODD, st.floats(), st.sampled_from([3.0, np.float64(8), [8], (8,)]))
NO_NUMBER = st.one_of(ODD, st.sampled_from([[0.1], (0.1,), np.array([0.1])]))
NO_TUPLE = st.one_of(
    st.sampled_from([None, True, "8 20", b"8", {8: 20}, {8, 20}, np.array([0.5, 0.25]), iter([8, 20])]),
    st.integers(),
    st.floats(),
)


def too_small_or_large(least, most=10**8):
    return st.one_of(st.integers(max_value=least - 1), st.integers(min_value=most + 1), HUGE)


def too_far(low, high):
    return st.one_of(NOT_POSITIVE, st.floats(0, low, exclude_min=True), st.floats(high, exclude_min=True), HUGE)


BAD_ENTRY = {
    "N": st.one_of(NO_INTEGER, too_small_or_large(1, 10**9)),
    "s": st.one_of(NO_NUMBER, NOT_POSITIVE, HUGE, numbers(1e7, 1e300), numbers(0, 1e-7)),
    "unbalanced": st.one_of(NO_NUMBER, too_far(1e-7, 1e7)),
    "lrs": st.one_of(NO_NUMBER, NOT_POSITIVE),
}
GOOD_ENTRIES = {"N": (8, 20, 40), "s": (1.0, 0.5, 0.25), "unbalanced": (0.1, 0.5), "lrs": (0.04, 0.02)}
BAD_WHOLE = {
    "N": [(), (20, 8), (8, 8), (8, 20, 20), tuple(range(8, 200))],
    "s": [(), (0.5, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0,) * 101],
    "unbalanced": [(), (0.5,) * 101],
    "lrs": [(), (0.1,), (0.1, 0.1), (0.2, 0.1, 0.2), tuple(1 / k for k in range(1, 103))],
}


@st.composite
def bad_entry(draw, field):
    """A tuple with a bad entry somewhere."""
    held = list(GOOD_ENTRIES[field])
    held[draw(st.integers(0, len(held) - 1))] = draw(BAD_ENTRY[field])
    return draw(st.sampled_from([tuple, list]))(held)


BAD = {
    "seeds": st.one_of(NO_INTEGER, too_small_or_large(2)),
    "other_seeds": st.one_of(NO_INTEGER, too_small_or_large(8)),
    "reference_seeds": st.one_of(NO_INTEGER, too_small_or_large(2)),
    "batch": st.one_of(NO_INTEGER, too_small_or_large(1, 2**20)),
    "lr": st.one_of(NO_NUMBER, NOT_POSITIVE),
    "start": st.one_of(NO_NUMBER, NOT_POSITIVE, st.floats(0, 1e-16)),
    "radius": st.one_of(NO_NUMBER, too_far(1e-6, 100)),
    "spread": st.one_of(NO_NUMBER, too_far(1e-16, 100)),
    "t_end": st.one_of(NO_NUMBER, too_far(1e-6, 1e9)),
    "t_end_unaligned": st.one_of(NO_NUMBER, too_far(1e-6, 1e9)),
    **{f: st.one_of(NO_TUPLE, bad_entry(f), bad_entry(f), st.sampled_from(BAD_WHOLE[f])) for f in TUPLES},
}
PARTNERS = {"N": {"s", "start"}, "s": {"N", "start"}, "start": {"N", "s"}}
PARTNERS |= dict.fromkeys(("lr", "lrs"), {"t_end", "t_end_unaligned"})
PARTNERS |= dict.fromkeys(("t_end", "t_end_unaligned"), {"lr", "lrs", "t_end", "t_end_unaligned"})


@st.composite
def at_odds(draw, config):
    """One field, fine by itself, at odds with another."""
    D, slowest, fastest = len(config.s), min(config.lr, *config.lrs), max(config.lr, *config.lrs)
    ends = [config.t_end, config.t_end_unaligned]
    choices = [
        ("N", (D, D + 1)),
        ("N", (1, 10**9)),
        ("start", 2 * config.s[0] ** -0.5),
        ("start", 1e300),
        ("lr", 2 * min(ends)),
        ("lr", 1e300),
        ("lr", min(ends) / 2**41),
        ("lr", 5e-324),
        ("lrs", (config.lr, 2 * min(ends))),
        ("lrs", (config.lr, 1e-300)),
        ("t_end", slowest / 2),
        ("t_end_unaligned", fastest / 3),
    ]
    choices += [("s", tuple(1 + 1 / k for k in range(1, config.N[0] + 1)))] if config.N[0] <= 100 else []
    choices += [("s", (1e6, *config.s[1:]))] if config.start > 2e-3 else []
    return draw(st.sampled_from(choices))


@st.composite
def faulty(draw, bad, most=4):
    """(config, fields that are wrong with it): some by themselves, perhaps one at odds with another."""
    config = draw(good())
    changes = {f: draw(bad[f]) for f in draw(st.sets(st.sampled_from(FIELDS), min_size=1, max_size=most))}
    if draw(st.integers(0, 3)) == 0:
        name, value = draw(at_odds(config))
        changes = {f: v for f, v in changes.items() if f != name and f not in PARTNERS[name]} | {name: value}
    return dataclasses.replace(config, **changes), set(changes)


@examples(400)
@given(faulty(BAD))
def test_a_bad_config_in_python_is_refused_with_every_wrong_field_named_and_no_other_blamed(drawn):
    config, wrong = drawn
    with pytest.raises(ic.BadArgument) as caught:
        PAPER.check(config)
    message = str(caught.value)
    assert_clear(message)
    assert wrong <= named(message)
    assert blamed(message) <= wrong.union(*(PARTNERS.get(f, set()) for f in wrong))
    with pytest.raises(ic.BadArgument):
        PAPER.experiments(config)


# of values as JSON gives them back: no tuples, bytes or objects, and integers of 4,300 digits at most
IN_JSON = st.one_of(
    st.sampled_from([None, True, False, "", "0.01", "8", "a\x00b", {}, {"lr": 0.1}, [], [[8]], [None]]),
    st.sampled_from([float("nan"), float("inf"), 0, -1, -0.5, 10**12, 10**400, 1e300, 5e-324]),
)


@examples(100)
@given(st.dictionaries(st.sampled_from(FIELDS), IN_JSON, min_size=1, max_size=3), st.integers(0, 20))
def test_a_bad_config_in_a_file_is_refused_with_every_wrong_field_named(changes, other):
    assume(
        not any(name in ("lr", "start", "lrs") and value in (1e300, 5e-324, 10**12) for name, value in changes.items())
    )
    record = {"study": STUDY, "scale": "smoke", "config": {**dataclasses.asdict(PAPER.scales["smoke"]), **changes}}
    wrong = set(changes)
    if other == 0:
        record["config"]["heads"] = 3
        wrong = {"run"}
    record |= {"format_version": run_folder.FORMAT_VERSION, "versions": {}}
    with new_folder() as folder:
        (folder / "run.json").write_bytes(run_folder._json(record))
        for words in (["check", str(folder)], ["plot", str(folder)]):
            code, text = told(words)
            assert code == 2 and wrong <= named(text), text
            assert_clear(text.rstrip())
        assert [p.name for p in folder.iterdir()] == ["run.json"]


# ------------------------------------------------------------------ the command line


def readable(kind, text):
    try:
        kind(text)
    except ValueError:
        return False
    return True


def no(kind):
    """Words that are no number of a kind."""
    odd = st.sampled_from(["", "fast", "1.5.2", "0x10", "1,5", "None", "True", "[0.1]", "(8, 20)", "\x1b[2J", "１.x"])
    text = st.text(min_size=1, max_size=20).filter(lambda t: not t.startswith("-"))
    return st.one_of(odd, text, LONG, st.just("1.5") if kind is int else odd).filter(lambda t: not readable(kind, t))


NOT_POSITIVE_WORDS = st.sampled_from(
    ["0", "-1", "-0.5", "nan", "inf", "-inf", "1e999", "-1e5", "-0", "infinity", "0.0"]
)
BAD_WORDS = {  # what reads as a number and is none that will do
    **{f: st.sampled_from(["0", "1", "-1", "-8", str(10**9), str(10**30), "9" * 900]) for f in SIZES},
    "batch": st.sampled_from(["0", "-1", "1048577", str(10**12), str(10**30), "9" * 900]),
    **dict.fromkeys(("lr", "start"), NOT_POSITIVE_WORDS),
    **dict.fromkeys(("radius", "spread"), st.one_of(NOT_POSITIVE_WORDS, st.sampled_from(["1e3", "1e-30"]))),
    **dict.fromkeys(("t_end", "t_end_unaligned"), st.one_of(NOT_POSITIVE_WORDS, st.sampled_from(["1e10", "1e-9"]))),
    "N": st.sampled_from(["", "0 8", "-8 20", "20 8", "8 8", "8 " + "9" * 900, str(10**10)]),
    "s": st.sampled_from(["", "0", "0.5 1", "1 0", "1 -1", "1 nan", "inf 1", "1e30 1", "1 1e-30", "1 " * 101]),
    "unbalanced": st.sampled_from(["", "0", "-1 0.5", "nan", "0.5 inf", "1e30", "1e-30", "0.5 " * 101]),
    "lrs": st.sampled_from(["", "0.1", "0.1 0.1", "0.1 0", "-0.1 0.1", "nan 0.1", "0.1 inf"]),
}
TOGETHER = [  # words that read well, and what is wrong with them
    (["--block", "0"], {"block"}),
    (["--block=-8"], {"block"}),
    (["--block", "12"], {"block"}),
    (["--block", str(8 * 10**12)], {"block"}),
    (["--engine", "smpd"], {"engine"}),
    (["--engine="], {"engine"}),
    (["--engine", "Blocks"], {"engine"}),
    (["--checkpoint-seconds", "-1"], {"checkpoint_seconds"}),
    (["--checkpoint-seconds", "nan"], {"checkpoint_seconds"}),
    (["--checkpoint-seconds", "1e999"], {"checkpoint_seconds"}),
]
TOGETHER_IN_RUN = TOGETHER + [
    *(
        (["--out", out], {"out"})
        for out in ("", "..", "../x", "/", ".", "a/../b", "a\x00b", "x" * 200, " ", "a ", "\x1b[2J")
    ),
    *(
        (["--shard", s], {"shard"})
        for s in ("0/1", "3/2", "", "1", "1/", "a/b", "-1/2", "1/2/3", "1/99999999", "1.0/2", "１/２")
    ),
    (["--engine", "spmd", "--shard", "1/2"], {"shard"}),
    (["--distributed"], {"distributed"}),
    (["--processes", "0"], {"processes"}),
    (["--processes", "2"], {"processes"}),
    (["--process-index", "-1"], {"process_index"}),
    (["--coordinator", "here"], {"coordinator"}),
    *(
        (["--engine", "spmd", "--distributed", "--coordinator", a, "--processes", n, "--process-index", i], wrong)
        for a, n, i, wrong in (
            ("here", "2", "0", {"coordinator"}),
            ("", "2", "0", {"coordinator"}),
            ("10.0.0.1:70000", "2", "0", {"coordinator"}),
            ("10.0.0.1:x", "0", "0", {"coordinator", "processes"}),
            ("a b:80", "2", "2", {"coordinator", "process_index"}),
            ("10.0.0.1:80", "-1", "0", {"processes"}),
            ("10.0.0.1:80", "2", "-1", {"process_index"}),
            ("10.0.0.1:80", str(10**12), "0", {"processes"}),
        )
    ),
    (["--engine", "spmd", "--distributed", "--processes", "2"], {"coordinator"}),
]
ALONE = [  # what stops the reading of all others
    (["--scale", "huge"], {"scale"}),
    (["--scale="], {"scale"}),
    (["--scale"], {"scale"}),
    (["--scale", "x" * 900], {"scale"}),
    (["--scale", "smoke", "--scale", "paper"], {"scale"}),
    (["--json=yes"], {"json"}),
    (["--quiet=0"], {"quiet"}),
    (["--lrr", "0.1"], {"lrr"}),
    (["--seed", "3"], {"seed"}),
    (["--LR", "3"], {"LR"}),
    (["--block", "eight"], {"block"}),
    (["--block", "1.5"], {"block"}),
    (["--checkpoint-seconds", "soon"], {"checkpoint_seconds"}),
    (["--engine"], {"engine"}),
    (["--lr"], {"lr"}),
    (["--engine", "\x1b[2J"], {"engine"}),
    (["--engine", "x" * 10**5], {"engine"}),
    (["--out", "x" * 5000], {"out"}),
    (["--out=a/" + "x" * 300 + "/b"], {"out"}),
]


@st.composite
def bad_words(draw):
    """(words, fields and options of which every one must be named, or one at least)."""
    verb = draw(st.sampled_from(["run", "check"]))
    kind = draw(st.integers(0, 3))
    if kind == 0:
        words, wrong = draw(st.sampled_from(ALONE))
        return [verb, STUDY, *words], wrong
    if kind == 1:
        field = draw(st.sampled_from(FIELDS))
        number = int if field in (*SIZES, "N") else float
        flag, text = "--" + field.replace("_", "-"), draw(no(number))
        good_ones = [str(v) for v in GOOD_ENTRIES.get(field, ())]
        words = (
            [flag, *good_ones, text] if field in TUPLES else draw(st.sampled_from([[flag, text], [f"{flag}={text}"]]))
        )
        return [verb, STUDY, *words], {field}
    words, wrong = [], set()
    for field in draw(st.sets(st.sampled_from(FIELDS), min_size=1, max_size=3)):
        text, flag = draw(BAD_WORDS[field]), "--" + draw(st.sampled_from([field, field.replace("_", "-")]))
        words += [f"{flag}={text}"] if field not in TUPLES and draw(st.booleans()) else [flag, *text.split()]
        wrong.add(field)
    if kind == 2:
        if draw(st.booleans()):
            words, wrong = [], set()
        option, more = draw(st.sampled_from(TOGETHER_IN_RUN if verb == "run" else TOGETHER))
        words, wrong = [*words, *option], wrong | more
    return [verb, STUDY, *words], wrong


def assert_refused(words, wrong):
    code, text = told(words)
    assert code == 2, (code, text)
    plain = re.sub(r"--([a-zA-Z][\w-]*)", lambda found: "`" + found[1] + "`", text)  # tyro writes flags
    assert wrong <= named(plain), (wrong, text)
    assert not FORBIDDEN.search(text) and len(text) < 8000 and "\x1b" not in text, text
    assert list(Path().iterdir()) == []


@examples(250)
@given(bad_words())
def test_a_bad_command_exits_with_2_and_names_every_wrong_field_and_option(drawn):
    assert_refused(*drawn)


@st.composite
def bad_sweeps(draw):
    """(words, what must be named) of a sweep."""
    kind = draw(st.integers(0, 5))
    field = draw(st.sampled_from(FIELDS))
    flag, comma = "--" + field.replace("_", "-"), field in TUPLES
    if kind == 0:
        words, wrong = draw(st.sampled_from(ALONE + TOGETHER_IN_RUN).filter(lambda drawn: "--lr" not in drawn[0]))
        return ["--lr", "0.01", "0.02", *words], wrong
    if kind == 1:
        text = draw(no(int if field in (*SIZES, "N") else float).filter(lambda t: not comma or "," not in t))
        return [flag, "1000,2000" if comma else "12", text], {field}
    if kind == 2:
        one, same = draw(st.sampled_from([("0.01", "0.01"), ("0.01", "1e-2"), ("0.010", ".01")]))
        return draw(
            st.sampled_from([["--lr", one, same], ["--lr", one, "--lr", same], ["--lr"], [f"--lr={one}", same]])
        ), {"lr"}
    if kind == 3:
        many = [str(0.001 * k) for k in range(1, draw(st.integers(402, 1000)))]
        cubes = [f"--{f}" if w is None else w for f in ("radius", "spread", "start") for w in (None, *many[:500])]
        return draw(st.sampled_from([(["--lr", *many], {"lr"}), (cubes, {"start"})]))
    if kind == 4:
        words, wrong = draw(
            st.sampled_from(
                [(["--lr", "0.1", "0.2", "--distributed", "--engine", "spmd"], "distributed"), (["0.1"], "lr")]
            )
        )
        return (words, {wrong}) if wrong == "distributed" else (["--lr", "0.1", "0.2", "--lr", *words], {wrong})
    words, wrong = [], set()
    for field in draw(st.sets(st.sampled_from(FIELDS), min_size=1, max_size=3)):
        text = draw(BAD_WORDS[field]).strip().replace(" ", ",")
        assume(text not in ("", "-0"))
        words += ["--" + field, text]
        wrong.add(field)
    if "radius" not in wrong:
        words += ["--radius", "0.5", "0.6"]
    elif len(wrong) > 0:
        words += ["--seeds", "64", "32"] if "seeds" not in wrong else ["-7"]
    return words, wrong


@examples(200)
@given(bad_sweeps())
def test_a_bad_sweep_exits_with_2_and_names_every_wrong_field_and_option(drawn):
    words, wrong = drawn
    assert_refused(["sweep", STUDY, *words], wrong)


def test_bad_commands_are_refused_before_jax_is_imported():
    commands = []

    @examples(120)
    @given(bad_words(), bad_sweeps())
    def collect(one, other):
        commands.extend([one[0], ["sweep", STUDY, *other[0]]])

    collect()
    code = """
import json, sys
from icldyn.cli import main
for words in json.load(sys.stdin):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2, words
    assert not {"jax", "zarr", "matplotlib"} & set(sys.modules), words
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(commands), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and len(commands) >= 200, done.stderr[-2000:]
    assert list(Path().iterdir()) == []


# ------------------------------------------------------------------ experiments in Python

TASK, MODEL = ic.linear_regression(20, [1.0, 0.7, 0.5, 0.35]), ic.linear_attention(4)
OBJECTIVE, INIT = ic.statistics(TASK, MODEL, 8), ic.gaussian(MODEL)
NO_SEEDS = st.sampled_from(
    [[], [-1], [0.5], [True], ["1"], [[1]], [[1], [1, 2]], [2**32], [10**30], [None], range(0), {1: 2}]
)
TOO_HIGH = st.sampled_from([31, 300, 400, 5000]).map(lambda digits: 10**digits)
NO_RATES = [
    [],
    [[]],
    [0.1, -0.1],
    [0.1, "0.2"],
    [[0.1], [0.2, 0.3]],
    {"lr": 0.1},
    [None],
    [10**400],
    np.zeros(2),
    1e-200,
]
NO_NAME = ["", "../evil", "/evil", "a/b", "a\nb", "\x00", "x" * 101, "t", "seed", "lr", "zarr.json", ".", "..", None, 3]
BAD_SETTINGS = {
    "seeds": st.one_of(NO_INTEGER.filter(lambda v: not isinstance(v, list | tuple)), too_small_or_large(1), NO_SEEDS),
    "lr": st.one_of(ODD, NOT_POSITIVE, TOO_HIGH, st.sampled_from(NO_RATES)),
    "init_scale": st.one_of(
        ODD, st.floats(max_value=0, exclude_max=True), TOO_HIGH, st.sampled_from([*NO_RATES[:-2], [-1.0]])
    ),
    "steps": st.one_of(NO_INTEGER.filter(lambda v: v is not None), too_small_or_large(1, 2**31 - 2)),
    "t_end": st.one_of(NO_NUMBER.filter(lambda v: v is not None), NOT_POSITIVE),
    "records": st.one_of(NO_INTEGER, too_small_or_large(2, 2**20)),
    "spacing": st.one_of(ODD, st.sampled_from(["Linear", "logarithmic", ["log"]])),
    "dtype": st.one_of(ODD, st.sampled_from(["float16", "float", np.float32, "bfloat16", float])),
    "block": st.one_of(
        NO_INTEGER.filter(lambda v: v is not None),
        too_small_or_large(8, 2**20),
        st.integers(8, 2**20).filter(lambda n: n % 8),
    ),
    "optimiser": st.one_of(ODD.filter(lambda v: v is not range), st.sampled_from([optax.adam(0.1), "adam", 3])),
    "measures": st.one_of(
        ODD.filter(lambda v: v is not None and v is not range and not isinstance(v, dict)),
        st.sampled_from([{"a": 3}, {"a": None}, [len], len]),
        st.sampled_from(NO_NAME).map(lambda name: {name: len}),
    ),
    "dims": st.sampled_from(
        [3, "mode", [("mode",)], {"a": "mode"}, {"a": 3}, {"a": ("time",)}, {"a": (3,)}, {"a": None}]
    ),
    "objective": st.one_of(ODD, st.sampled_from([len, TASK, MODEL])),
    "init": st.one_of(ODD.filter(lambda v: v is not range), st.sampled_from([TASK, 3])),
}


@st.composite
def bad_settings(draw):
    """(settings of `ensemble`, what is wrong with them)."""
    length = draw(st.sampled_from(["steps", "t_end"]))
    fields = sorted(set(BAD_SETTINGS) - ({"steps", "t_end"} - {length}))
    changes = {f: draw(BAD_SETTINGS[f]) for f in draw(st.sets(st.sampled_from(fields), min_size=1, max_size=3))}
    return {"seeds": 4, "lr": 0.1, length: 3} | changes, set(changes)


@examples(300)
@given(bad_settings())
def test_a_bad_experiment_is_refused_with_every_wrong_argument_named_and_no_other_blamed(drawn):
    asked, wrong = drawn
    with pytest.raises(ic.BadArgument) as caught:
        ic.ensemble(**{"objective": OBJECTIVE, "init": INIT} | asked)
    assert_clear(str(caught.value))
    assert wrong <= named(str(caught.value)) and blamed(str(caught.value)) <= wrong


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ({"steps": 3, "t_end": 3.0}, {"steps", "t_end"}),
        ({}, {"steps", "t_end"}),
        *(({"t_end": t}, {"lr", "t_end"}) for t in (0.01, 1e-300, 2.2e8, 10**10, 1e308)),
        *(({"t_end": 1.0, "lr": lr}, {"lr", "t_end"}) for lr in (3.0, [0.1, 1e20], 1e-12, 1e-30)),
        ({"t_end": 1e9, "lr": 1e-9}, {"lr", "t_end"}),
        ({"steps": 3, "engine": "smpd"}, {"engine"}),
        ({"steps": 3, "engine": None}, {"engine"}),
    ],
)
def test_settings_of_an_experiment_that_are_at_odds_are_named(asked, wrong):
    with pytest.raises(ic.BadArgument) as caught:
        ic.ensemble(OBJECTIVE, INIT, **{"seeds": 4, "lr": 0.1} | asked)
    assert wrong <= named(str(caught.value)) and not FORBIDDEN.search(str(caught.value))


@examples(100)
@given(
    st.one_of(st.integers(1, 1000), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5)),
    st.one_of(numbers(1e-6, 10), st.lists(numbers(1e-6, 10), min_size=1, max_size=3), st.just(np.float32(0.1))),
    st.integers(1, 2**31 - 2),
    st.integers(2, 100),
    st.integers(1, 2**17).map(lambda k: 8 * k),
    st.sampled_from([np.int64, int]),
)
def test_an_experiment_that_can_run_is_accepted(seeds, lr, steps, records, block, kind):
    asked = {
        "steps": kind(steps),
        "records": kind(records),
        "block": block,
        "measures": {"a_b": len},
        "dims": {"a_b": ["x"]},
    }
    experiment = ic.Experiment(OBJECTIVE, INIT, seeds=seeds, lr=lr, **asked)
    assert len(experiment.seed_ids) == (seeds if isinstance(seeds, int) else len(seeds))
    assert experiment.num_steps == [steps] * len(experiment.lrs)


# ------------------------------------------------------------------ hostile names

PARTS = st.one_of(
    st.sampled_from(
        ["..", ".", "", "~", "a", "a-b_c.1=2,3", "afile", "adir", "empty", "link", "link_to_file", "dangling", "loop"]
    ),
    st.sampled_from(
        ["run.json", "CON", "NUL", "-rf", "--help", " ", "a ", " a", "a.", "a\t", "x" * 101, "x" * 256, "é" * 200]
    ),
    st.sampled_from(
        ["é", "日本", "\u202egnp.exe", "a\u200bb", "\x00", "a\nb", "\x1b[2J", "\udcff", "．．", "‥", "\ufeffa", "Ａ"]
    ),
    st.sampled_from(
        ["C:\\x", "..\\..\\x", "%2e%2e", "..%2fx", "$HOME", "`id`", "*", "a;b", "a:b", "a|b", "<script>", "=cmd", "a'b"]
    ),
    st.text(max_size=12),
)
STARTS = st.sampled_from(
    ["", "", "", "./", "../", "ROOT/", "ROOT/../", "/proc/", "/dev/null/", "empty/../../", "adir/", "link/"]
)


@st.composite
def hostile_path(draw):
    """A path; ROOT stands for the folder above the one to work in."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.sampled_from(["x/" * 3000 + "x", "x/" * 1000 + "y" * 300, "a/" + "x" * 300 + "/b", "a/b/c/d/e"]))
    path = draw(STARTS) + "/".join(draw(st.lists(PARTS, min_size=1, max_size=4)))
    return "ROOT" + path if path.startswith("/") and not path.startswith(("/proc/", "/dev/")) else path


@contextmanager
def world():
    """A folder to work in, with files and links out of it, and around it what must not change."""
    before = Path.cwd()
    with new_folder() as root:
        for folder in ("outside", "work/adir", "work/empty"):
            (root / folder).mkdir(parents=True)
        for file in ("outside/secret", "work/afile", "work/adir/inner", "beside"):
            (root / file).write_text("kept")
        for link, to in (
            ("link", "../outside"),
            ("link_to_file", "../outside/secret"),
            ("dangling", "../new"),
            ("loop", "loop"),
        ):
            (root / "work" / link).symlink_to(to)
        os.chdir(root / "work")
        try:
            yield root
        finally:
            os.chdir(before)


def everything(root):
    """All that is there, links not followed."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder) / name
            about = path.lstat()
            found[path] = about.st_mode, not path.is_dir() and (about.st_size, about.st_mtime_ns)
    return found


def assert_only_below(target, root, before):
    """Nothing changed but the folder `target` and the folders above it, and nothing of it is a way out."""
    now = everything(root)
    assert all(now.get(path) == was for path, was in before.items())
    below = Path(os.path.realpath(target))
    for path in set(now) - set(before):
        assert path == below or below in path.parents or path in below.parents, (path, below)
        assert not path.is_symlink()
    return set(now) - set(before)


SWEEP = sweep._run


@pytest.fixture(scope="module")
def training_stops_at_once():
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(cli, "_place"))
        stack.enter_context(mock.patch.object(cli, "_experiments", return_value={}))
        stack.enter_context(mock.patch.object(sweep, "_run", SWEEP))
        stack.enter_context(mock.patch("icldyn.engine.train.train", side_effect=checks.Stopped))
        stack.enter_context(mock.patch.object(ic.RunFolder, "train", side_effect=checks.Stopped))
        stack.enter_context(mock.patch.object(run_folder, "_commit", return_value=None))  # git is slow
        stack.enter_context(mock.patch.object(run_folder, "version", return_value="0"))
        yield


@examples(220)
@given(hostile_path(), st.sampled_from(["run", "resume", "sweep"]))
def test_a_hostile_out_is_refused_in_one_sentence_or_all_stays_under_it(training_stops_at_once, path, verb):
    words = {
        "run": ["run", STUDY],
        "resume": ["run", STUDY, "--resume"],
        "sweep": ["sweep", STUDY, "--lr", "0.1", "0.2"],
    }[verb]
    with world() as root:
        path, before = path.replace("ROOT", str(root)), everything(root)
        code, text = told([*words, "--scale", "smoke", f"--out={path}"])
        new = assert_only_below(root / "work" / path if "\0" not in path else root, root, before)
        assert code in (2, 75), (code, text)
        if code == 2:
            assert not new and "`out`" in text
            assert_clear(text.rstrip())
        else:
            assert any(p.name in ("run.json", "sweep.json") for p in new)


def fits(path):
    """Whether the file system could hold it."""
    return len(path) < 2000 and all(len(part.encode(errors="replace")) < 256 for part in path.split("/"))


@examples(120)
@given(hostile_path().filter(fits), st.booleans())
def test_a_hostile_run_folder_in_python_is_refused_in_one_sentence_or_all_stays_under_it(
    training_stops_at_once, path, resume
):
    with world() as root:
        path, before = path.replace("ROOT", str(root)), everything(root)
        try:
            with (ic.RunFolder.resume if resume else ic.RunFolder.create)(path):
                assert "run.json" in os.listdir(path)
        except ic.BadArgument as error:
            assert_clear(str(error))
            assert not assert_only_below(root, root, before)
        else:
            assert_only_below(root / "work" / path, root, before)


@examples(80)
@given(hostile_path(), st.sampled_from(["check", "plot", "verify"]))
def test_a_hostile_run_to_read_is_refused_in_one_sentence_and_nothing_is_written(training_stops_at_once, path, verb):
    assume(path and not path.startswith("-"))
    with world() as root:
        path, before = path.replace("ROOT", str(root)), everything(root)
        code, text = told([verb, path])
        assert code == 2 and everything(root) == before
        assert_clear(text.rstrip())


CURVE = ic.Trajectory({"a": np.zeros(2)}, {"a": ("time",)}, {"t": (("time",), np.arange(2.0))})


def begin(run, name):
    """The part of training that makes room on the disk."""
    experiment = ic.Experiment(OBJECTIVE, INIT, seeds=4, lr=0.1, steps=3, records=2, block=8)
    layout = experiment.layout({"loss": jax.ShapeDtypeStruct((), np.float32)})
    with run.keeper() as keeper:
        (sink,) = run.sinks({name: experiment}, keeper)
        sink.begin(experiment, layout, cells_of(0, experiment))


@pytest.fixture(scope="module")
def mine():
    """(root, run): a run in `root`/work/mine, open for writing."""
    with world() as root, ic.RunFolder.create("mine", say=str) as run:
        run.save("theory", "first", CURVE)
        run.save_figures({"first": Figure((1, 1))})
        begin(run, "first")
        run.path = root / "work/mine"
        yield root, run


@examples(150)
@given(st.one_of(PARTS, PARTS, hostile_path()), st.sampled_from(["save", "train", "figure"]))
def test_a_hostile_name_in_a_run_is_refused_in_one_sentence_or_stays_in_its_own_folder(mine, name, how):
    root, run = mine
    name = name.replace("ROOT", str(root))
    before = everything(root)
    try:
        if how == "train":
            begin(run, name)
        elif how == "figure":
            run.save_figures({name: Figure((1, 1))})
        else:
            run.save("theory", name, CURVE, replace=True)
    except ic.BadArgument as error:
        assert_clear(str(error))
        assert everything(root) == before
    else:
        own = {"train": f"data.zarr/seeds/{name}", "figure": f"figures/{name}.png"}.get(how, f"data.zarr/theory/{name}")
        now = everything(root)
        for path in {path for path in {*now, *before} if now.get(path) != before.get(path)}:
            inner = path.relative_to(run.path).as_posix()
            assert inner == own or inner.startswith((own + "/", "manifest/")), inner
    assert run.load("theory").keys() >= {"first"}


@pytest.mark.parametrize(
    ("how", "value"),
    [
        ("create", None),
        ("create", 3),
        ("create", "a/" + "x" * 300 + "/run"),
        ("resume", b"run"),
        ("resume", "x/" * 3000 + "run"),
        ("save", None),
        ("save", ("run",)),
        ("save", "zarr.json"),
        ("begin", "zarr.json"),
    ],
)
def test_what_is_no_path_or_name_is_refused_in_one_sentence(training_stops_at_once, how, value):
    with world() as root, ic.RunFolder.create("mine", say=str) as run:
        run.save("theory", "first", CURVE)
        begin(run, "first")
        before = everything(root)
        with pytest.raises(ic.BadArgument) as caught:
            if how in ("create", "resume"):
                getattr(ic.RunFolder, how)(value)
            elif how == "save":
                run.save("theory", value, CURVE)
            else:
                begin(run, value)
        assert_clear(str(caught.value))
        assert everything(root) == before
