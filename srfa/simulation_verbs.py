"""What the command line says of deployments that nobody measured: ``srfa simulate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srfa import present
from srfa.coefficients import read_coefficients
from srfa.engine_options import with_engine
from srfa.errors import NothingMeasuredError, UsageError
from srfa.estimator_names import ESTIMATOR_NAMES
from srfa.fallback_file import FALLBACKS_FILE, read_fallbacks
from srfa.files import require_apart, require_writable, require_writable_folder, writing
from srfa.options import Calibrations, Common, calibrated, with_common
from srfa.provenance import calibration_differences
from srfa.simulated import REHEARSAL
from srfa.simulation_questions import Asked, Given, asked, parse_rates, parse_sweep

if TYPE_CHECKING:
    from srfa.catalog import Catalog
    from srfa.coefficients import Coefficients
    from srfa.simulate.noise import Noise
    from srfa.what_if import Question
    from srfa.what_if_report import Objective, WhatIf

# As in srfa.cli, what loads cvxpy, scipy or matplotlib is imported when the verb runs.

_NEEDS_NO_FIT = "roofline"


@dataclass(frozen=True, slots=True)
class _Load:
    """How much is asked for: requests at their own times, or an open loop at rates given or found."""

    rates: tuple[float, ...]
    objectives: tuple[Objective, ...]
    at_rates: bool


@with_common
@with_engine
def simulate(  # noqa: PLR0913 - one parameter an option
    *,
    out: Annotated[Path, typer.Option(help="Where the results are written (JSON).")],
    coefficients: Annotated[
        Path | None, typer.Option(help="coefficients.json of a fit; only the mode roofline needs none.")
    ] = None,
    job: Annotated[Path | None, typer.Option(help="A job: JSON of 'srfa expand --json', or a matrix.")] = None,
    job_id: Annotated[str, typer.Option(help="Which job, where the file holds several.")] = "",
    requests: Annotated[
        Path | None, typer.Option(help="Requests: CSV, JSON lines or Parquet with arrival_s, prompt_tokens, ...")
    ] = None,
    workload: Annotated[
        str, typer.Option(metavar="FILE|WORDS", help="Words of vllm bench serve, or a YAML file of them.")
    ] = "",
    model: Annotated[str, typer.Option(help="The model, by its Hugging Face id.")] = "",
    gpu: Annotated[str, typer.Option(help="The GPU, by its name in hardware/.")] = "",
    latency_mode: Annotated[
        str, typer.Option(help=f"What tells a step's time: {', '.join(ESTIMATOR_NAMES)}; default: the fit's.")
    ] = "",
    rates: Annotated[str, typer.Option(help="Requests a second with commas between; or 'auto'.")] = "",
    slo: Annotated[str, typer.Option(help="Limits, for example p99_ttft_ms=500,p90_tpot_ms=50.")] = "",
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE,..", help="A knob, model or gpu; repeatable.")
    ] = None,
    best_parallelism: Annotated[
        bool, typer.Option("--best-parallelism", help="Try every tensor (and expert) parallel size of a node.")
    ] = False,
    num_prompts: Annotated[int | None, typer.Option(min=1, help="Requests of each run, instead of the job's.")] = None,
    engine_version: Annotated[
        str, typer.Option(help="The vLLM whose steps are asked about, default: the job's, or 0.32.0.")
    ] = "",
    plot: Annotated[Path | None, typer.Option(help="Also draw it (.png, .svg or .pdf).")] = None,
    trace_out: Annotated[
        Path | None, typer.Option(help="Rehearse the job: write its traces as a measured job's, for 'srfa ingest'.")
    ] = None,
    step_noise: Annotated[
        float, typer.Option(min=0.0, help="With --trace-out: noise on each step (standard deviation of its log).")
    ] = 0.0,
    slow_steps: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="With --trace-out: share of steps that take three times as long.")
    ] = 0.0,
    calibrate: Calibrations = None,
    engine: dict[str, object],
    common: Common,
) -> None:
    """Simulate serving on a model, GPU, knobs and workload, measured or not.

    With neither --rates nor --slo the requests go at their own times, and one run is shown. With one of them latency is
    shown against the rate of an open loop; rates are found by themselves where only --slo, or --rates auto, is given.
    Engine arguments are options by vLLM's names, such as --tensor-parallel-size 4.

    Example: srfa simulate --coefficients c.json --job job.json --out results.json

    Example: srfa simulate --coefficients c.json --model Qwen/Qwen3-8B --gpu h100-sxm-80gb --max-model-len 8192
    --workload random_input_len=1024,random_output_len=256,num_prompts=1000 --slo p99_ttft_ms=500,p90_tpot_ms=50
    --sweep max_num_seqs=64,128,256 --jobs 4 --out results.json --plot results.png
    """
    from srfa.capacity_figure import draw_what_if  # noqa: PLC0415 - see above
    from srfa.leaderboard_figure import check_picture  # noqa: PLC0415 - see above
    from srfa.what_if_report import write_what_if  # noqa: PLC0415 - see above

    if (step_noise or slow_steps) and not trace_out:
        raise UsageError("--step-noise and --slow-steps are of rehearsed traces; name their folder with --trace-out")
    if plot:
        check_picture(plot)
    for path in filter(None, (out, plot)):
        require_writable(path)
        require_apart(path, [one for one in (coefficients, job, requests) if one])
    catalog = calibrated(common, calibrate)
    fitted = _fitted(coefficients, latency_mode, calibrate)
    given = Given(job, job_id, requests, workload, model, gpu, engine, num_prompts, common.seed, engine_version)
    wanted, load = asked(given, catalog), _load(rates, slo)
    questions = _questions(wanted, catalog, fitted, latency_mode, sweep or [], best_parallelism=best_parallelism)
    if coefficients:
        _warn_of_fallbacks(coefficients.parent, questions)
    if trace_out:
        _rehearsed(wanted, catalog, fitted, latency_mode, trace_out, step_noise=step_noise, slow_steps=slow_steps)
    answer = _answer(questions, load, n_jobs=common.jobs)
    write_what_if(answer, out)
    if common.as_json:
        present.show_json(answer)
    else:
        show_what_if(answer)
    present.say(f"wrote {out}")
    if plot:
        draw_what_if(answer, plot)
        present.say(f"wrote {plot}")
    if not answer.curves:
        raise NothingMeasuredError("nothing was simulated:\n" + "\n".join(f"  {one.reason}" for one in answer.refused))


def show_what_if(answer: WhatIf) -> None:
    """Show every run, the rates that deployments keep, and what a reader should know of the figures."""
    from srfa.what_if_table import CURVE_HEADS, POINT_HEADS, curve_rows, point_rows, remarks  # noqa: PLC0415 - see above

    for curve in answer.curves:
        title = f"{curve.deployment.name}: {curve.num_gpu_blocks} KV blocks"
        present.show_table(POINT_HEADS, point_rows(curve), title)
    if rows := curve_rows(answer):
        limits = ", ".join(f"{one.name} <= {one.limit_ms:g}" for one in answer.objectives)
        present.show_table(CURVE_HEADS, rows, f"objectives: {limits}" if limits else "")
    for remark in remarks(answer):
        present.say(remark)


def _fitted(path: Path | None, latency_mode: str, calibrate: Sequence[Path] | None) -> Coefficients | None:
    if latency_mode and latency_mode not in ESTIMATOR_NAMES:
        raise UsageError(f"--latency-mode {latency_mode!r}: expected one of {', '.join(ESTIMATOR_NAMES)}")
    if path is None:
        if latency_mode != _NEEDS_NO_FIT:
            raise UsageError(f"name --coefficients of a fit, or take --latency-mode {_NEEDS_NO_FIT}, which needs none")
        return None
    found = read_coefficients(path)
    for difference in calibration_differences(found.provenance, calibrate or ()):
        present.say(f"warning: {path}: {difference}")
    return found


def _warn_of_fallbacks(release: Path, questions: Sequence[Question]) -> None:
    """Say where the release of the fit holds a black box that does better on a configuration that is asked about."""
    from srfa.estimators.blackbox import configuration_name  # noqa: PLC0415 - see above
    from srfa.simulate.capacity import configuration_for  # noqa: PLC0415 - see above

    places = {configuration_name(configuration_for(one.model, one.gpu, one.deployment.engine)) for one in questions}
    for one in read_fallbacks(release):
        if one.configuration in places:
            present.say(f"warning: {release / FALLBACKS_FILE}: {one.sentence}; its coefficients are not used here")


def _questions(
    wanted: Asked,
    catalog: Catalog,
    fitted: Coefficients | None,
    latency_mode: str,
    sweep: Sequence[str],
    *,
    best_parallelism: bool,
) -> list[Question]:
    from srfa.what_if import Demand, Question  # noqa: PLC0415 - see above
    from srfa.what_if_report import Deployment  # noqa: PLC0415 - see above
    from srfa.what_if_sweep import parallelisms, swept  # noqa: PLC0415 - see above

    demand = Demand(workload=wanted.workload, requests=wanted.requests, seed=wanted.seed)
    start = Deployment(model=wanted.model, gpu=wanted.gpu, engine=wanted.engine)
    version = f"vllm {wanted.engine_version}"
    questions = [
        Question(one, demand, catalog, fitted, latency_mode or None, version)
        for one in swept(start, parse_sweep(sweep))
    ]
    if best_parallelism:
        questions = [
            Question(one, demand, catalog, fitted, latency_mode or None, version)
            for question in questions
            for one in parallelisms(question)
        ]
    if not questions:
        raise UsageError("--best-parallelism: the model starts on no number of this node's GPUs; take larger ones")
    return questions


def _load(rates: str, slo: str) -> _Load:
    from srfa.what_if_report import parse_objectives  # noqa: PLC0415 - see above

    chosen, objectives = () if rates in ("", "auto") else parse_rates(rates), parse_objectives(slo)
    return _Load(chosen, objectives, at_rates=bool(rates or objectives))


def _answer(questions: Sequence[Question], load: _Load, *, n_jobs: int) -> WhatIf:
    from srfa.what_if import as_given, capacity_curve  # noqa: PLC0415 - see above
    from srfa.what_if_report import WhatIf, best_of  # noqa: PLC0415 - see above
    from srfa.what_if_sweep import answered  # noqa: PLC0415 - see above

    first, objectives = questions[0], load.objectives
    searched = partial(capacity_curve, rates=load.rates, objectives=objectives)
    ask = searched if load.at_rates else partial(as_given)
    with present.progress("simulate") as advance:
        curves, refused = answered(questions, ask, n_jobs=n_jobs, progress=advance)
    return WhatIf(
        estimator=first.estimator or (first.coefficients.estimator if first.coefficients else ""),
        coefficients_sha256=first.fitted.learned_sha256 if first.fitted else "",
        seed=first.demand.seed,
        workload=first.demand.workload,
        objectives=objectives,
        curves=curves,
        refused=refused,
        best=best_of(curves),
    )


def _rehearsed(
    wanted: Asked,
    catalog: Catalog,
    fitted: Coefficients | None,
    latency_mode: str,
    folder: Path,
    *,
    step_noise: float,
    slow_steps: float,
) -> None:
    """Write the files of a rehearsed job below ``folder``, the manifest last."""
    from srfa.rehearsal import simulate_job  # noqa: PLC0415 - see above
    from srfa.simulate.noise import Noise  # noqa: PLC0415 - see above

    require_writable_folder(folder)
    job = wanted.job
    noise: Noise | None = None
    if step_noise or slow_steps:
        noise = Noise(log_sd=step_noise, slow_share=slow_steps, seed=wanted.seed)
    files = simulate_job(job, catalog, coefficients=fitted, estimator=latency_mode or None, noise=noise)
    place = folder / f"run_id={REHEARSAL}" / f"job_id={job.job_id}"
    for name, content in files.items():
        with writing(place / name) as temporary:
            temporary.write_bytes(content)
    present.say(f"wrote {place}")
