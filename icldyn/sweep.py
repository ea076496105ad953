"""`icldyn sweep STUDY --FIELD a b c`: a run for every combination of values, trained together, in one table and one figure.

Every point is a run folder of its own under `points/`. All their blocks go through one queue: where values alone differ they run
the same compiled programs, small experiments side by side in one; where shapes differ, programs of their own.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from . import checks, cli
from .study import Study, study, study_names

MOST_POINTS = 400


def sweep(words: list[str]) -> int:
    """Run the verb; returns the exit code."""
    if not words or words[0].startswith("-"):
        raise checks.BadArgument(
            f"Argument `study` must be one of {', '.join(study_names())}, but is missing: icldyn sweep STUDY --FIELD a b."
        )
    name, paper = words[0], study(words[0])
    scale = cli._scale(words, paper)
    default = paper.scales[scale]
    fields = {f.name for f in dataclasses.fields(default)}
    options_words, asked = _split(words[1:], fields)
    options = cli._options_alone("sweep", name, options_words, scale)
    values = _values(asked, default)
    swept = [field for field, held in values.items() if len(held) > 1]
    if not swept:
        raise checks.BadArgument("Give at least one field two values or more, such as --lr 0.01 0.02.")
    count = math.prod(len(held) for held in values.values())
    if count > MOST_POINTS:
        raise checks.BadArgument(f"Argument `{swept[-1]}` must leave at most {MOST_POINTS} runs, but makes {count}.")
    points = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    configs = [dataclasses.replace(default, **point) for point in points]
    checks.gather(*(lambda config=config: paper.check(config) for config in configs), lambda: cli._share(options))
    share = cli._share(options)
    if options.distributed:
        raise checks.BadArgument("Argument `distributed` must go with icldyn run; share out a sweep with --shard i/n.")
    return _run(paper, name, options, configs, [{field: point[field] for field in swept} for point in points], share)


def _run(
    paper: Study,
    name: str,
    options: Any,
    configs: Sequence[Any],
    points: Sequence[Mapping[str, Any]],
    share: tuple[int, int],
) -> int:
    from .engine.train import train
    from .plot.overlay import image_of
    from .store.files import run_path, write_atomically
    from .store.run_folder import RunFolder, _json, _read_json, free_name

    if options.out is None and (options.resume or options.shard):
        raise checks.BadArgument("Argument `out` must name the sweep to go on with, or to share, but is missing.")
    out = run_path("out", options.out) if options.out else free_name("runs", f"{name}-{options.scale}-sweep")
    record = {"study": name, "scale": options.scale, "points": [dict(p) for p in points]}
    if (out / "sweep.json").exists():
        if not (options.resume or options.shard):
            raise checks.BadArgument(
                f"Argument `out` must be a new or empty folder, but {str(out)!r} already holds a sweep."
            )
        if _read_json(out / "sweep.json") != json.loads(json.dumps(record)):
            raise checks.BadArgument(f"Argument `out` must hold this sweep, but {str(out)!r} holds another.")
    elif out.exists() and any(p.name != "points" for p in out.iterdir()):
        raise checks.BadArgument(f"Argument `out` must be a new or empty folder, but {str(out)!r} is not empty.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "sweep.json", _json(record))
    except OSError as error:
        raise checks.BadArgument(f"Argument `out` must be a folder that can be written: {error}.") from None
    say = cli._say(options.json)
    say(f"{paper.title}\n{paper.paper}; {len(points)} runs at scale {options.scale}; writing to {out}")
    with ExitStack() as stack:
        stop = stack.enter_context(cli._stoppable())
        runs = []
        for k, (config, point) in enumerate(zip(configs, points, strict=True)):
            folder = {"study": name, "scale": options.scale, "config": dataclasses.asdict(config), "share": share}
            path = out / "points" / _folder_name(k, point)
            runs.append(stack.enter_context(RunFolder.resume(path, **folder, allow_skew=options.allow_skew)))
        work, every = [], []
        keeper = stack.enter_context(runs[0].keeper(out))
        for k, (config, run) in enumerate(zip(configs, runs, strict=True)):
            experiments = cli._experiments(paper, config, options)
            every.append(experiments)
            work += zip(experiments.values(), run.sinks(experiments, keeper, prefix=f"{k:03d}."), strict=True)
        title = f"{name}, {len(runs)} runs"
        train(work, cli._training(options, share, stop, title, keeper=keeper, across_values=True))
        keeper.writer.flush()
        left = sum(run.missing(experiments) for run, experiments in zip(runs, every, strict=True))
        if left:
            say(
                f"shard {share[0]}/{share[1]} is done; {left} blocks of others are not: --resume, when they are, ends the sweep"
            )
            return 0
        for config, run in zip(configs, runs, strict=True):
            if run.result is None:
                cli._note_diverged(run)
                cli._finish(paper, config, run, stop, cli._say(True))
        rows = [_row(point, run) for point, run in zip(points, runs, strict=True)]
        write_atomically(out / "table.json", _json({"rows": rows}))
        write_atomically(out / "table.csv", _csv(rows).encode())
        say("drawing the figure grid")
        figure = _grid(paper, configs, points, runs)
        (out / "figures").mkdir(exist_ok=True)
        write_atomically(out / "figures" / "grid.png", image_of(figure))
    if options.json:
        print(json.dumps({"sweep": str(out), "rows": rows}, indent=2))
    else:
        _print_table(rows)
        print("\n".join(f"wrote {out / part}" for part in ("points", "table.csv", "table.json", "figures/grid.png")))
    return 0


def _split(words: Sequence[str], fields: set[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words of options, and the values given to each field of the study."""
    options: list[str] = []
    asked: dict[str, list[str]] = {}
    into = options
    for word in words:
        flag, equals, value = word.partition("=")
        field = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and field in fields:
            if field in asked:
                raise checks.BadArgument(f"Argument `{field}` must be given once, but is given twice.")
            into = asked.setdefault(field, [value] if equals else [])
        elif re.match(r"--[a-z]", flag):
            into = options
            options.append(word)
        else:
            into.append(word)
    for field, texts in asked.items():
        if not texts:
            raise checks.BadArgument(f"Argument `{field}` must have at least one value, but has none.")
    return options, asked


def _values(asked: Mapping[str, Sequence[str]], default: Any) -> dict[str, list[Any]]:
    """The values of each field, all that cannot be read told at once."""
    values: dict[str, list[Any]] = {}

    def read(field: str) -> None:
        held = values[field] = [_value(field, text, getattr(default, field)) for text in asked[field]]
        if len(set(held)) < len(held):
            text = checks.shown(" ".join(asked[field]))[1:-1]
            raise checks.BadArgument(f"Argument `{field}` must have different values, but is {text}.")

    checks.gather(*(lambda field=field: read(field) for field in asked))
    return values


def _value(field: str, text: str, default: Any) -> Any:
    """A value of a field from its text, of the type of its default; entries of a tuple stand between commas."""
    if isinstance(default, tuple):
        return tuple(_value(field, part, default[0]) for part in text.split(","))
    if isinstance(default, bool) or not isinstance(default, int | float):
        if isinstance(default, bool):
            return checks.one_of(field, text, ("True", "False")) == "True"
        return text
    try:
        return type(default)(text)
    except ValueError:
        kind = "an integer" if isinstance(default, int) else "a number"
        raise checks.refuse(field, f"be {kind}", text) from None


def _short(value: Any) -> str:
    return (
        ",".join(f"{v:g}" for v in value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _folder_name(k: int, point: Mapping[str, Any]) -> str:
    text = "_".join(f"{field}={_short(value)}" for field, value in point.items())
    return f"{k:03d}_" + re.sub(r"[^A-Za-z0-9_.=,-]", "-", text)[:80]


def _row(point: Mapping[str, Any], run: Any) -> dict[str, Any]:
    result = run.result
    claims = result["claims"]
    held = [c["holds"] for c in claims if "low" in c or "high" in c]
    return {
        **{field: _short(value) for field, value in point.items()},
        "largest gap": max((c["measured"] for c in claims if c["gap"]), default=None),
        "claims that hold": f"{sum(held)} of {len(held)}",
        "seeds": sum(t["seeds"] for t in result["seeds"].values()),
        "diverged": sum(t["diverged"] for t in result["seeds"].values()),
        "run": run.path.name,
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    table = [list(rows[0]), *([shown(v) for v in row.values()] for row in rows)]
    widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _grid(paper: Study, configs: Sequence[Any], points: Sequence[Mapping[str, Any]], runs: Sequence[Any]) -> Any:
    """One panel for every point; the last swept field runs along the columns."""
    import matplotlib.pyplot as plt

    from .plot.overlay import style

    last = list(points[0])[-1]
    columns = min(len(dict.fromkeys(_short(p[last]) for p in points)), 6)
    rows = -(-len(points) // columns)
    with style():
        figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.4 * rows), squeeze=False)
        for ax, config, point, run in zip(axes.flat, configs, points, runs, strict=False):
            paper.panel(ax, config, run.load("seeds"), run.load("theory"))
            ax.set_title(", ".join(f"{field} = {_short(value)}" for field, value in point.items()))
            legend = ax.get_legend()
            if legend is not None:
                legend.remove()
        for ax in list(axes.flat)[len(points) :]:
            ax.set_visible(False)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        title = legend.get_title().get_text() if legend is not None else ""
        figure.legend(handles, labels, loc="outside lower center", ncol=4, title=title, title_fontsize=7.5)
        figure.canvas.draw()
    plt.close(figure)
    return figure
