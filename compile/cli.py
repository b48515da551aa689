"""``outpost-compile``: reads the command line, builds the adapters, imports only the verb that runs."""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from compile.errors import BadFigures, BadRecipe, CompileError, Refused
from compile.recipe.data import DataSource
from models.errors import ModelsError

if TYPE_CHECKING:
    from compile.line import Line

T = TypeVar("T")

_WRONG_USE, _FAILED, _REFUSED = 2, 1, 3
_CACHE = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".cache/outpost"),
    show_default=True,
    help="Where results of steps are kept.",
)
_CONVERTERS = click.option(
    "--converters",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).resolve().parent.parent / ".cache" / "llama.cpp-0.3.36",
    help="Folder of llama.cpp's converters; scripts/fetch_converters fills the default.",
)
_THREADS = click.option(
    "--threads", type=click.IntRange(1, 256), default=None, help="Default: the processors of this machine."
)
_JOBS = click.option(
    "--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Steps that run side by side."
)
_FIGURES = click.option(
    "--figures",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="What devices measured (outpost-hub release figures --json): corrects the forecasts.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
_RECIPE = click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group()
def main() -> None:
    """Turns a base model and a data set into the smallest release that keeps its promise, or refuses."""


@main.command()
@_RECIPE
@_CACHE
@_CONVERTERS
@_THREADS
@_JOBS
@_FIGURES
@_JSON
def plan(
    recipe: Path,
    cache: Path,
    converters: Path,
    threads: int | None,
    jobs: int,
    figures: Path | None,
    as_json: bool,
) -> None:
    """Check RECIPE and say what would run, what is cached, and what it would take."""
    from compile.plan import describe, make_plan
    from compile.steps import Cache

    made = _guard(
        lambda: make_plan(_line(recipe, converters, threads, figures), Cache(cache), cache, jobs), as_json
    )
    _print(made.as_json() if as_json else describe(made), as_json)
    if made.refusals:
        sys.exit(_REFUSED)


@main.command()
@_RECIPE
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for releases and report.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where steps run: processes of this machine, or tasks of Ray ($RAY_ADDRESS or a local cluster).",
)
@_CACHE
@_CONVERTERS
@_THREADS
@_JOBS
@_FIGURES
@_JSON
def run(
    recipe: Path,
    out: Path,
    executor: str,
    cache: Path,
    converters: Path,
    threads: int | None,
    jobs: int,
    figures: Path | None,
    as_json: bool,
) -> None:
    """Build RECIPE; exit 3, with numbers, when no variant is within its budgets."""
    from compile.executor import LocalProcesses, RayTasks, StepCommand
    from compile.plan import make_plan
    from compile.progress import Progress
    from compile.run import run as run_line
    from compile.steps import Cache, in_order

    def work() -> str:
        line = _line(recipe, converters, threads, figures)
        refusals = make_plan(line, Cache(cache), cache, jobs).refusals
        if refusals:
            raise Refused("; ".join(refusals))
        command = StepCommand(recipe, cache, converters, threads or _processors())
        where = (
            RayTasks(os.environ.get("RAY_ADDRESS"), command.threads)
            if executor == "ray"
            else LocalProcesses(jobs)
        )
        progress = Progress(sys.stderr, len(in_order(line.steps)))
        said = f"outpost-compile run {recipe} --out {out} --threads {command.threads}"
        return run_line(line, command, where, progress, out, said)

    refusal = _guard(work, as_json)
    report = (out / "report.json").read_text(encoding="utf-8")
    click.echo(report if as_json else _summary(json.loads(report), out))
    if refusal:
        click.echo(f"outpost-compile: {refusal}", err=True)
        sys.exit(_REFUSED)


@main.command()
@_RECIPE
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the prepared splits and the data card.",
)
@_JSON
def data(recipe: Path, out: Path, as_json: bool) -> None:
    """Prepare RECIPE's rows and say what they are: counts, lengths, duplicates, personal data, advice."""
    from compile.data.show import describe, show
    from compile.progress import Progress
    from compile.recipe.load import load_recipe

    progress = Progress(sys.stderr, 1)

    def work() -> dict[str, Any]:
        source = getattr(load_recipe(recipe), "data", None)
        if not isinstance(source, DataSource):
            raise BadRecipe(f"{recipe}: has no data section with rows")
        progress.start("data", "data", 4)
        card = show(source, recipe.resolve().parent, out, partial(progress.report, "data"))
        progress.finish("data")
        return card

    card = _guard(work, as_json)
    _print(card if as_json else describe(card, out), as_json)


@main.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@_JSON
def inspect(path: Path, as_json: bool) -> None:
    """Say what PATH is: a release, a model file or a folder of them. Weights are never loaded."""
    from compile.inspect import describe, inspect_path

    found = _guard(lambda: inspect_path(path), as_json)
    _print(found if as_json else describe(found), as_json)


@main.command()
@click.argument("release", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=None,
    help="Release of the base, for an adapter. Default: looked for beside RELEASE.",
)
@_THREADS
@_JSON
def verify(release: Path, base: Path | None, threads: int | None, as_json: bool) -> None:
    """Hash every file of RELEASE again and replay its probes."""
    from compile.verify import verify_folder

    result = _guard(lambda: verify_folder(release, base, threads or _processors()), as_json)
    count = len(result["probes"])
    holding = "1 probe holds" if count == 1 else f"{count} probes hold"
    lines = [f"{result['release']}: {holding}, every file is as its manifest says"]
    if result["unasked"]:
        lines.append(f"{result['unasked']} probes are left to the device: no engine here reads this format")
    _print(result if as_json else "\n".join(lines), as_json)


def _line(recipe: Path, converters: Path, threads: int | None, figures: Path | None) -> "Line":
    from compile.devices import read_figures
    from compile.line import Workshop
    from compile.lines.make import make_line
    from models.forecast import UNCORRECTED

    corrections = read_figures(figures) if figures is not None else UNCORRECTED
    workshop = Workshop(
        converters.resolve(), threads or _processors(), time.monotonic, corrections=corrections
    )
    return make_line(recipe, workshop)


def _guard(work: Callable[[], T], as_json: bool) -> T:
    """Run ``work``; an error that was raised on purpose becomes one message and its exit code."""
    try:
        return work()
    except (BadRecipe, BadFigures) as error:
        _fail(error, _WRONG_USE, as_json)
    except Refused as error:
        _fail(error, _REFUSED, as_json)
    except (CompileError, ModelsError) as error:
        _fail(error, _FAILED, as_json)
    except OSError as error:  # what is on disk is whole: writes end in a rename
        _fail(error, _FAILED, as_json)
    except ModuleNotFoundError as error:
        _fail(f"{error.name} is missing: pip install 'outpost[compile]'", _FAILED, as_json)


def _fail(error: object, code: int, as_json: bool) -> NoReturn:
    click.echo(f"outpost-compile: {error}", err=True)
    if as_json:
        click.echo(json.dumps({"error": str(error), "exit": code}, ensure_ascii=False))
    sys.exit(code)


def _print(value: Any, as_json: bool) -> None:
    click.echo(json.dumps(value, ensure_ascii=False) if as_json else value)


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _summary(report: dict[str, Any], out: Path) -> str:
    from compile.units import size

    headline, lines = report["headline"], []
    for one in report["variants"]:
        quality = one["quality"].get(headline)
        score = f"{headline.replace('_', ' ')} {quality['value']:.4g}" if quality else ""
        verdict = "reference" if one["is_reference"] else ("pass" if one["pass"] else "REFUSED")
        lines.append(
            f"{one['name']:>16}  {size(one['bytes']):>8}  {score:<28} "
            f"{one['speed']['median']:8.1f} {one['speed']['unit']}  {verdict}"
        )
    for name, metrics in report["baselines"].items():
        if headline in metrics:
            lines.append(f"{name}: {headline.replace('_', ' ')} {metrics[headline]['value']:.4g}")
    lines += [f"released: {out / folder}" for folder in report["releases"].values()]
    lines.append(f"chosen: {report['chosen'] or 'nothing'}; {out / 'report.html'}")
    return "\n".join(lines)
