"""The command line: `icldyn list | run | check | plot | info`.

Configs are parsed by tyro and checked before jax is imported. Exit code 0 is success, 1 a claim that fails, 2 a bad argument.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__, checks
from .study import Claim, Study, study, study_names

HELP = f"""usage: icldyn VERB ...

Thousands of trained seeds beside the exact theory of in-context learning (icldyn {__version__}).

  icldyn list                     the studies: paper, what they show, their last measured gap
  icldyn run STUDY [options]      train, solve the theory, draw the figures, into a run folder
  icldyn check STUDY [options]    train at once and print every claim with its measured number and limit
  icldyn check RUN                the claims of a run folder
  icldyn plot RUN                 draw the figures of a run folder again
  icldyn info                     devices, versions, memory, block size

`icldyn run STUDY --help` shows every setting of a study. --json prints for machines.
Exit code: 0 well, 1 a claim fails, 2 a bad argument.
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
        return verb(words[1:])
    except checks.BadArgument as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("Stopped; what was finished is in the run folder.", file=sys.stderr)
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
    from .store.run_folder import RunFolder, free_name

    out = Path(options.out) if options.out else free_name("runs", f"{name}-{options.scale}")
    run = RunFolder.create(out, name, options.scale, dataclasses.asdict(config))
    began = time.perf_counter()
    say = _say(options.json)
    say(f"{paper.title}\n{paper.paper}; scale {options.scale}; writing to {run.path}")
    seeds, theory = _results(paper, config, options.quiet or options.json, run)
    measured = paper.claims(config, seeds, theory)
    say("drawing the figures")
    figures = run.save_figures(paper.figures(config, seeds, theory))
    run.finish(
        claims=[_claim_row(c) for c in measured],
        wall_seconds=round(time.perf_counter() - began, 1),
        peak_memory_gb=_peak_memory(),
        device=_devices(),
    )
    if options.json:
        print(
            json.dumps(
                {"run": str(run.path), "figures": [str(f) for f in figures], "claims": run.record["claims"]}, indent=2
            )
        )
    else:
        _print_claims(measured)
        print(f"{run.record['wall_seconds']} s, peak memory {run.record['peak_memory_gb']} GB")
        print("\n".join(f"wrote {path}" for path in (run.path / "run.json", run.path / "data.zarr", *figures)))
    return 0


def _check(words: list[str]) -> int:
    if words and not words[0].startswith("-") and words[0] not in study_names() and Path(words[0]).exists():
        as_json = _only_json("check", words[1:])
        _, paper, config, seeds, theory = _opened(words[0])
    else:
        paper, _, options, config = _parse("check", words)
        as_json = options.json
        seeds, theory = _results(paper, config, options.quiet or as_json)
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
    run, paper, config, seeds, theory = _opened(words[0])
    figures = run.save_figures(paper.figures(config, seeds, theory))
    print(json.dumps([str(f) for f in figures]) if as_json else "\n".join(f"wrote {f}" for f in figures))
    return 0


def _info(words: list[str]) -> int:
    as_json = _only_json("info", words)
    from .engine.ensemble import cores, default_block
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


VERBS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "run": _run,
    "check": _check,
    "plot": _plot,
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


@dataclasses.dataclass(frozen=True)
class _RunOptions(_CheckOptions):
    out: str | None = None
    """Run folder, new or empty; runs/STUDY-SCALE by default."""


def _parse(verb: str, words: list[str]) -> tuple[Study, str, Any, Any]:
    """The study, its name, the verb's options and the study's config, checked."""
    import tyro

    if not words or words[0].startswith("-"):
        raise checks.BadArgument(
            f"Argument `study` must be one of {', '.join(study_names())}, but is missing: icldyn {verb} STUDY."
        )
    name = words[0]
    paper = study(name)
    scale = _given(words, "--scale") or "laptop"
    checks.one_of("scale", scale, paper.scales)
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
    paper.check(parsed.config)
    return paper, name, parsed.options, parsed.config


def _given(words: list[str], flag: str) -> str | None:
    for k, word in enumerate(words):
        if word == flag and k + 1 < len(words):
            return words[k + 1]
        if word.startswith(flag + "="):
            return word.split("=", 1)[1]
    return None


def _only_json(verb: str, words: list[str]) -> bool:
    """Whether --json was given, and nothing else."""
    for word in words:
        if word != "--json":
            raise checks.BadArgument(f"Argument `{word}` is not known to icldyn {verb}, which takes --json alone.")
    return "--json" in words


def _results(paper: Study, config: Any, quiet: bool, run: Any = None) -> tuple[dict, dict]:
    """Train and solve; each trajectory is stored as soon as it is there."""
    seeds = {}
    for name, trajectory in paper.experiment(config, progress=not quiet):
        seeds[name] = trajectory
        if run is not None:
            run.save("seeds", name, trajectory)
    if not quiet:
        print("solving the exact equations", file=sys.stderr)
    theory = paper.theories(config, seeds)
    if run is not None:
        for name, trajectory in theory.items():
            run.save("theory", name, trajectory)
    lost = {name: t.diverged for name, t in seeds.items() if t.diverged}
    for name, count in lost.items():
        print(
            f"{count} of {seeds[name].finite().size} seeds of {name} diverged; statistics leave them out.",
            file=sys.stderr,
        )
    return seeds, theory


def _opened(path: str) -> tuple[Any, Study, Any, dict, dict]:
    """A complete run folder with its study, config and trajectories."""
    from .store.run_folder import RunFolder

    run = RunFolder.open(path)
    paper = study(run.record["study"])
    kind = type(next(iter(paper.scales.values())))
    stored = {k: tuple(v) if isinstance(v, list) else v for k, v in run.record["config"].items()}
    try:
        config = kind(**stored)
    except TypeError:
        raise checks.BadArgument(
            f"Argument `run` must hold settings of {run.record['study']}, but {path!r} holds others."
        ) from None
    paper.check(config)
    if run.record["status"] != "complete":
        raise checks.BadArgument(f"Argument `run` must be a complete run, but {path!r} stopped before its end.")
    return run, paper, config, run.load("seeds"), run.load("theory")


def _last_gap(name: str) -> float | None:
    """The largest gap between seeds and theory in the newest complete run of a study under ./runs."""
    newest: tuple[float, float] | None = None
    for path in Path("runs").glob("*/run.json"):
        try:
            record = json.loads(path.read_text())
            if record["study"] == name and record["status"] == "complete":
                gap = max(c["measured"] for c in record["claims"] if c["gap"])
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
