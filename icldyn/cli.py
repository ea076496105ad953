"""The command line: `icldyn list | run | sweep | submit | check | plot | replay | measure | verify | info`.

Configs are parsed by tyro and checked before jax is imported.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import __version__, checks
from .study import Claim, Study, study, study_names

LONGEST_WORD = 2000  # on the command line: room for a hundred numbers
LONGEST_PART = 255  # bytes of a file's name

HELP = f"""usage: icldyn VERB ...

Thousands of trained seeds beside the exact theory of in-context learning (icldyn {__version__}).

  icldyn list                     the studies: paper, what they show, their last measured gap
  icldyn run STUDY [options]      train, solve the theory, draw the figures, into a run folder
  icldyn sweep STUDY --FIELD a b  a run for every combination of values, in one table and one figure
  icldyn submit N -- run ...      a run or a sweep as N jobs on Slurm (extra "slurm")
  icldyn check STUDY [options]    train at once and print every claim with its measured number and limit
  icldyn check RUN                the claims of a run folder
  icldyn plot RUN                 draw the figures of a run folder again
  icldyn replay FILE.npz          retrain a recorded run of another codebase; its largest relative gap
  icldyn measure FOLDER           ranks and subspaces of attention heads along checkpoints of other models
  icldyn verify RUN [--repair]    checksums of all that a run folder holds; makes again what is damaged
  icldyn info                     devices, versions, memory, block size

`icldyn run STUDY --help` shows every setting of a study. --json prints for machines.
A run that was stopped, killed or found no room goes on with the same command and --resume.
Exit code: 0 well, 1 a claim fails, a file is damaged or a record is not reproduced, 2 a bad argument, 74 no room on the disk,
75 stopped by a signal.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    try:
        verb = VERBS[checks.one_of("verb", words[0], VERBS)]
        _readable(words)
        return verb(words[1:])
    except checks.BadArgument as error:
        print(error, file=sys.stderr)
        return 2
    except checks.Stopped as error:
        print(
            f"{str(error) or 'Stopped.'} All that was done is kept: go on with the same command and --resume.",
            file=sys.stderr,
        )
        return 75
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"No room left to write {error.filename or 'the run'}; all that was done is kept. Make room, then go on with "
            "--resume.",
            file=sys.stderr,
        )
        return 74
    except KeyboardInterrupt:
        print("Stopped at once; what was finished is in the run folder: go on with --resume.", file=sys.stderr)
        return 130


def _list(words: list[str]) -> int:
    as_json = _only_json("list", words)
    rows = []
    for name in study_names():
        paper = study(name)
        rows.append({"study": name, "paper": paper.paper, "shows": paper.title, "last_gap": _last_gap(name)})
    if as_json:
        print(json.dumps(rows, indent=2))
    for row in [] if as_json else rows:
        gap = "not run in ./runs" if row["last_gap"] is None else f"{row['last_gap']:.2%}"
        print(f"{row['study']}\n  {row['paper']}\n  {row['shows']}\n  largest gap of its last run: {gap}")
    return 0


def _run(words: list[str]) -> int:
    paper, name, options, config = _parse("run", words)
    share = _share(options)
    _place(options)
    from .store.run_folder import RunFolder, free_name

    if options.out is None and (options.resume or options.shard):
        raise checks.BadArgument("Argument `out` must name the run folder to go on with, or to share, but is missing.")
    out = Path(options.out) if options.out else free_name("runs", f"{name}-{options.scale}")
    say = _say(options.json)
    held = _share_of_pod() if options.distributed else share
    folder = {"study": name, "scale": options.scale, "config": dataclasses.asdict(config), "share": held}
    if options.resume or options.shard or options.distributed:
        run = RunFolder.resume(out, **folder, allow_skew=options.allow_skew)
    else:
        run = RunFolder.create(out, **folder)
    with run, _stoppable() as stop:
        say(f"{paper.title}\n{paper.paper}; scale {options.scale}; writing to {run.path}")
        experiments = _experiments(paper, config, options)
        run.train(experiments, _training(options, share, stop, name))
        _note_diverged(run)
        if options.distributed and not _ends_the_run():
            say("the first process ends the run")
            return 0
        left = run.missing(experiments)
        if left:
            say(
                f"shard {share[0]}/{share[1]} is done; {left} blocks of others are not: --resume, when they are, ends the run"
            )
            return 0
        with run.ending() as other:
            if other:
                say(f"all blocks are done; another process ends the run: {other}")
                return 0
            if not run.complete:
                _finish(paper, config, run, stop, say)
            result = run.result or {}
    figures = sorted((run.path / "figures").glob("*.png"))
    if options.json:
        told = {"run": str(run.path), "figures": [str(f) for f in figures], "claims": result["claims"]}
        print(json.dumps(told, indent=2))
    else:
        _print_claims([_claim(row) for row in result["claims"]])
        print(f"{result['wall_seconds']} s, peak memory {result['peak_memory_gb']} GB")
        print("\n".join(f"wrote {path}" for path in (run.path / "result.json", run.path / "data.zarr", *figures)))
    return 0


def _experiments(paper: Study, config: Any, options: Any) -> dict[str, Any]:
    """What a study trains, with the block that was asked for."""
    experiments = paper.experiments(config)
    if options.block is None:
        return experiments
    return {name: dataclasses.replace(e, block=options.block) for name, e in experiments.items()}


def _training(options: Any, share: tuple[int, int], stop: threading.Event, title: str, **more: Any) -> Any:
    """How to train."""
    from .engine.train import Options

    return Options(
        engine=options.engine,
        share=share,
        checkpoint_seconds=options.checkpoint_seconds,
        progress=False if options.quiet or options.json else title,
        stop=stop,
        **more,
    )


def _finish(
    paper: Study, config: Any, run: Any, stop: _Stop, say: Callable[[str], None], again: Sequence[str] = ()
) -> None:
    """Theory, claims and figures of a run whose seeds are all there; what is there already is kept, but for `again`."""
    stop.at_once = True
    _raise_if(stop)
    seeds, there = run.load("seeds"), run.saved()
    say("solving the exact equations")
    with _float64():
        solved = paper.theories(config, seeds)
    for name, trajectory in solved.items():
        if f"theory/{name}" not in there or f"theory/{name}" in again:
            run.save("theory", name, trajectory, replace=True)
    _raise_if(stop)
    theory = run.load("theory")
    with _float64():
        claims = paper.claims(config, seeds, theory)
        say("drawing the figures")
        figures = paper.drawn(config, seeds, theory)
    run.save_figures(figures)
    _raise_if(stop)
    run.finish(
        claims=[_claim_row(c) for c in claims],
        peak_memory_gb=_peak_memory(),
        seeds={name: {"seeds": t.finite().size, "diverged": t.diverged} for name, t in seeds.items()},
        diverged_by_record={n: t.diverged_by_record().tolist() for n, t in seeds.items() if t.diverged},
    )


def _check(words: list[str]) -> int:
    if words and not words[0].startswith("-") and words[0] not in study_names() and Path(words[0]).exists():
        as_json = _only_json("check", words[1:])
        _, paper, config, seeds, theory = _opened(words[0])
    else:
        paper, name, options, config = _parse("check", words)
        as_json = options.json
        _place(options)
        from .engine.ensemble import ensembles

        with _stoppable() as stop:
            seeds = ensembles(_experiments(paper, config, options), _training(options, (1, 1), stop, name))
            with _float64():
                theory = paper.theories(config, seeds)
    with _float64():
        measured = paper.claims(config, seeds, theory)
    if as_json:
        print(json.dumps([_claim_row(c) for c in measured], indent=2))
    else:
        _print_claims(measured)
    return 0 if all(c.holds for c in measured) else 1


def _plot(words: list[str]) -> int:
    if not words or words[0].startswith("-"):
        raise checks.BadArgument("Argument `run` must be a run folder, but is missing: icldyn plot RUN.")
    as_json = _only_json("plot", words[1:])
    run, paper, config, seeds, theory = _opened(words[0], write=True)
    with run, _float64():
        figures = run.save_figures(paper.drawn(config, seeds, theory))
    print(json.dumps([str(f) for f in figures]) if as_json else "\n".join(f"wrote {f}" for f in figures))
    return 0


def _info(words: list[str]) -> int:
    as_json = _only_json("info", words)
    from .engine.devices import cores, default_block
    from .store.run_folder import PACKAGES, version

    facts = {
        "versions": {name: version(name) for name in PACKAGES},
        "devices": _devices(),
        "memory_gb": _memory(),
        "cores": cores(),
        "block": {f"batch {batch}": default_block(batch) for batch in (32, 256)},
    }
    if as_json:
        print(json.dumps(facts, indent=2))
    for key, value in {} if as_json else facts.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{key:<10} {', '.join(text) if isinstance(text, list) else text}")
    return 0


def _verify(words: list[str]) -> int:
    if not words or words[0].startswith("-"):
        raise checks.BadArgument("Argument `run` must be a run folder, but is missing: icldyn verify RUN.")
    as_json, repair = _flags("verify", words[1:], "--json", "--repair")
    from .store.verify import restore_record, verify

    path = Path(words[0])
    if not (path / "run.json").exists() and not (path / "manifest").is_dir():
        raise checks.BadArgument(f"Argument `run` must be a run folder, but {words[0]!r} is none.")
    damage = verify(path)
    if not as_json:
        print("\n".join(map(str, damage)) or f"{path}: every file is as it was written")
    if damage and repair:
        if any(one.belongs == "run" for one in damage) and not restore_record(path):
            raise checks.BadArgument(
                f"Argument `run` must have a manifest that knows its run.json, but {words[0]!r} has none."
            )
        _repair(path, damage, _say(as_json))
        damage = verify(path)
        if not as_json:
            print("\n".join(f"not repaired: {one}" for one in damage) or f"{path}: repaired, and as it was written")
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in damage], indent=2))
    return 1 if damage else 0


def _repair(path: Path, damage: list[Any], say: Callable[[str], None]) -> None:
    """Make again what is damaged, and nothing else; the same settings give the same bits."""
    from .engine.train import Options
    from .store.run_folder import LAYOUT, RunFolder
    from .store.verify import discard

    record = RunFolder.open(path).record
    paper, config = _settings(record, str(path))
    with RunFolder.resume(path, record["study"], record["scale"], record["config"]) as run, _stoppable() as stop:
        discard(run, damage)
        saved = {one.belongs for one in damage if not one.cell}
        redo = [one.cell for one in damage if one.cell]
        redo += [(what.removeprefix("layout/"), LAYOUT) for what in saved if what.startswith("layout/")]
        run.train(paper.experiments(config), Options(stop=stop), redo=redo)
        if any(what.startswith("theory/") or what in ("figures", "result") for what in saved):
            _finish(paper, config, run, stop, say, again=sorted(saved))


def _sweep(words: list[str]) -> int:
    from .sweep import sweep

    return sweep(words)


def _replay(words: list[str]) -> int:
    from .replay import verb

    return verb(words)


def _measure(words: list[str]) -> int:
    from .measure import verb

    return verb(words)


def _submit(words: list[str]) -> int:
    from .launch import submit

    return submit(words)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "run": _run,
    "sweep": _sweep,
    "submit": _submit,
    "check": _check,
    "plot": _plot,
    "replay": _replay,
    "measure": _measure,
    "verify": _verify,
    "info": _info,
}


@dataclasses.dataclass(frozen=True)
class _CheckOptions:
    scale: str = "laptop"
    """Sizes to start from: smoke (seconds), laptop (minutes) or paper (an accelerator); fields given override it."""
    quiet: bool = False
    """Show no progress."""
    json: bool = False
    """Print for machines."""
    block: int | None = None
    """Seeds in one program, a multiple of 8; by default what is fast and fits in memory."""
    engine: str = "blocks"
    """"blocks" runs the same program on every device; "spmd" one program over a mesh of all devices."""
    checkpoint_seconds: float = 30.0
    """How often unfinished blocks are kept; what a kill can cost."""


@dataclasses.dataclass(frozen=True)
class _RunOptions(_CheckOptions):
    out: str | None = None
    """Run folder, new or empty; runs/STUDY-SCALE by default."""
    resume: bool = False
    """Go on with the run in `out`, or start it if there is none."""
    shard: str | None = None
    """i/n: train the i-th of n shares of the run in `out`, whatever the other processes do."""
    allow_skew: bool = False
    """Resume with another version or kind of device, which may change last digits."""
    distributed: bool = False
    """With --engine spmd: one program over the devices of all processes (jax.distributed)."""
    coordinator: str | None = None
    """HOST:PORT of the first process, where jax does not find it by itself."""
    processes: int | None = None
    """How many processes, likewise."""
    process_index: int | None = None
    """Which one this is, from 0, likewise."""


def _parse(verb: str, words: list[str]) -> tuple[Study, str, Any, Any]:
    """The study, its name, the verb's options and the study's config, checked."""
    import tyro

    if not words or words[0].startswith("-"):
        raise checks.BadArgument(
            f"Argument `study` must be one of {', '.join(study_names())}, but is missing: icldyn {verb} STUDY."
        )
    name = words[0]
    paper = study(name)
    scale = _scale(words, paper)
    default = paper.scales[scale]
    options = _RunOptions if verb == "run" else _CheckOptions
    both = dataclasses.make_dataclass(
        "Settings",
        [("options", options), ("config", type(default))],
        namespace={"__doc__": f"{paper.title}\n\n{paper.paper}"},
        frozen=True,
    )
    parsed = tyro.cli(
        both,
        prog=f"icldyn {verb} {name}",
        args=words[1:],
        default=both(options(scale=scale), default),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    checks.gather(lambda: paper.check(parsed.config), lambda: _share(parsed.options))
    return paper, name, parsed.options, parsed.config


def _options_alone(verb: str, name: str, words: list[str], scale: str) -> Any:
    """The options of a verb without the fields of the study."""
    import tyro

    return tyro.cli(
        _RunOptions,
        prog=f"icldyn {verb} {name}",
        description=f"Every field of {name} takes several values; icldyn run {name} --help lists them. Options:",
        args=words,
        default=_RunOptions(scale=scale),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _readable(words: list[str]) -> None:
    """Refuse words that would flood or confuse the terminal, and switches with a value."""
    switches = {f.name for f in dataclasses.fields(_RunOptions) if f.default is False}
    name = words[0]
    for word in words[1:]:
        flag, equals, value = word.partition("=")
        name = flag[2:] if re.fullmatch(r"--[A-Za-z][A-Za-z0-9_-]{0,40}", flag) else name
        if equals and flag[2:].replace("-", "_") in switches:
            raise checks.refuse(name, "stand alone, without a value", value)
        is_path = name in ("out", words[0])
        parts = (value if equals else word).encode(errors="replace").split(b"/") if is_path else []
        if any(len(part) > LONGEST_PART for part in parts):
            raise checks.refuse(name, f"have at most {LONGEST_PART} bytes between slashes", word)
        if len(word) > LONGEST_WORD or name != "out" and not word.isprintable():  # `out` has a sentence of its own
            raise checks.refuse(name, f"be printable and of at most {LONGEST_WORD} characters", word)


def _scale(words: list[str], paper: Study) -> str:
    """The scale to start from."""
    given = [after for word, after in zip(words, [*words[1:], ""], strict=True) if word == "--scale"]
    given += [word.partition("=")[2] for word in words if word.startswith("--scale=")]
    if len(given) > 1:
        raise checks.BadArgument(f"Argument `scale` must be given once, but is given {len(given)} times.")
    return checks.one_of("scale", given[0] if given else "laptop", paper.scales)


def _only_json(verb: str, words: list[str]) -> bool:
    """Whether --json was given, and nothing else."""
    return _flags(verb, words, "--json")[0]


def _flags(verb: str, words: list[str], *flags: str) -> list[bool]:
    """Which of the flags were given, and nothing else."""
    for word in words:
        if word not in flags:
            raise checks.BadArgument(
                f"Argument `{word}` is not known to icldyn {verb}, which takes {' and '.join(flags)} alone."
            )
    return [flag in words for flag in flags]


def _share(options: Any) -> tuple[int, int]:
    """(i, n) of --shard i/n, and the other settings of a verb that trains, checked."""
    from .store.files import run_path

    share = 1, 1

    def out() -> None:
        if getattr(options, "out", None) is not None:
            run_path("out", options.out)

    def processes() -> None:
        distributed = getattr(options, "distributed", False)
        names = ("coordinator", "processes", "process-index")
        places = {name: getattr(options, name.replace("-", "_"), None) for name in names}
        if distributed and options.engine != "spmd":
            raise checks.BadArgument(
                "Argument `distributed` must go with --engine spmd; use --shard i/n for independent processes."
            )
        if distributed:
            checks.coordinator(*places.values())
        for name, value in places.items():
            if value is not None and not distributed:
                raise checks.refuse(name, "go with --distributed", value)

    def shard() -> None:
        nonlocal share
        if getattr(options, "shard", None) is None:
            return
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", options.shard)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise checks.refuse("shard", "be i/n with 1 <= i <= n, such as 1/4", options.shard)
        if options.engine == "spmd":
            raise checks.BadArgument("Argument `shard` must go with --engine blocks; spmd deals its blocks itself.")
        share = int(found[1]), int(found[2])

    checks.gather(
        lambda: checks.one_of("engine", options.engine, ("blocks", "spmd")),
        lambda: checks.real("checkpoint-seconds", options.checkpoint_seconds, least=0),
        lambda: checks.block(options.block),
        *(out, processes, shard),
    )
    return share


def _place(options: Any) -> None:
    """Join the other processes, if there are any, before jax is used."""
    if getattr(options, "distributed", False):
        from .engine.spmd import initialise

        initialise(options.coordinator, options.processes, options.process_index)


def _share_of_pod() -> tuple[int, int]:
    """What this process of a distributed run is called among those that write."""
    import jax

    return jax.process_index() + 1, jax.process_count()


def _ends_the_run() -> bool:
    """Whether this is the first process of a distributed run, once all have written what they trained."""
    import jax
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("all is written")
    return jax.process_index() == 0


class _Stop(threading.Event):
    """Set by a signal. Training hears it at its next call; `at_once`, it ends what the main thread does, as a kill may do."""

    at_once = False


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    """An event that the first SIGTERM or SIGINT sets. The second stops at once."""
    stop = _Stop()

    def on_signal(number: int, _: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with suppress(RuntimeError):  # where it came in the middle of other words to stderr
            print(f"{signal.Signals(number).name}: keeping what is done, then stopping.", file=sys.stderr)
        if stop.at_once:
            raise checks.Stopped

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _float64() -> Any:
    """Theory is solved and compared in float64, whatever the seeds were trained in."""
    import jax

    return jax.enable_x64(True)


def _raise_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise checks.Stopped


def _note_diverged(run: Any) -> None:
    """Say what diverged."""
    for name, lost in run.diverged().items():
        print(f"{lost} seeds of {name} diverged; statistics leave them out.", file=sys.stderr)


def _settings(record: dict[str, Any], path: str) -> tuple[Study, Any]:
    """The study and config of a run."""
    paper = study(record["study"])
    kind = type(next(iter(paper.scales.values())))
    stored = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
    try:
        config = kind(**stored)
    except TypeError:
        raise checks.BadArgument(
            f"Argument `run` must hold settings of {record['study']}, but {path!r} holds others."
        ) from None
    paper.check(config)
    return paper, config


def _opened(path: str, write: bool = False) -> tuple[Any, Study, Any, dict, dict]:
    """A complete run folder with its study, config and trajectories."""
    from .store.run_folder import RunFolder

    run = RunFolder.open(path)
    paper, config = _settings(run.record, path)
    if run.result is None:
        raise checks.BadArgument(f"Argument `run` must be a complete run, but {path!r} stopped before its end.")
    seeds, theory = run.load("seeds"), run.load("theory")
    return RunFolder.open(path, write=True) if write else run, paper, config, seeds, theory


def _last_gap(name: str) -> float | None:
    """The largest gap between seeds and theory in the newest complete run of a study under ./runs."""
    newest: tuple[float, float] | None = None
    for path in Path("runs").glob("*/result.json"):
        try:
            if json.loads((path.parent / "run.json").read_text())["study"] == name:
                gap = max(c["measured"] for c in json.loads(path.read_text())["claims"] if c["gap"])
                newest = max(newest or (0.0, 0.0), (path.stat().st_mtime, gap))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None if newest is None else newest[1]


def _claim_row(claim: Claim) -> dict[str, Any]:
    limits = {"low": float(claim.low), "high": float(claim.high)}
    finite = {k: v for k, v in limits.items() if abs(v) != float("inf")}
    return {
        "claim": claim.sentence,
        "measured": float(claim.measured),
        **finite,
        "holds": claim.holds,
        "gap": bool(claim.gap),
    }


def _claim(row: dict[str, Any]) -> Claim:
    limits = {k: row[k] for k in ("low", "high") if k in row}
    return Claim(row["claim"], row["measured"], **limits, gap=row["gap"])


def _print_claims(claims: list[Claim]) -> None:
    width = min(110, max(len(c.sentence) for c in claims))
    print(f"\n{'claim':<{width}}  {'measured':>10}  {'limit':<15} holds")
    for c in claims:
        mark = "-" if c.limit == "reported" else ("yes" if c.holds else "NO")
        print(f"{c.sentence:<{width}}  {c.measured:>10.4g}  {c.limit:<15} {mark}")


def _say(quiet: bool) -> Callable[[str], None]:
    return lambda text: None if quiet else print(text, file=sys.stderr)


def _devices() -> list[str]:
    import jax

    return [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()]


def _peak_memory() -> float | None:
    """Largest resident memory of this process so far, in GB."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


def _memory() -> float | None:
    """Memory of this machine, in GB."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None
