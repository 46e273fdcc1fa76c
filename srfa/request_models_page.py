"""The models of requests on held-out jobs as a section of a report."""

from __future__ import annotations

from srfa.page import Grid, Section
from srfa.request_report import RequestModelReport

LEGEND = (
    "What a request spends outside the steps, predicted for jobs that the fit has not seen. Better: a smaller median"
    " error and no larger mean error. The blackbox form has three coefficients, the constant one a model."
)


def request_models_grid(report: RequestModelReport) -> Grid:
    """Return one row a model and form."""
    heads = ("model", "predicted", "requests", "jobs", "form", "median APE %", "MAE us", "bias us")
    rows = (
        (
            row.model,
            row.target,
            str(row.n_requests),
            str(row.n_jobs),
            form.form,
            f"{form.median_ape_pct:.1f}",
            f"{form.mae_us:.0f}",
            f"{form.bias_us:+.0f}",
        )
        for row in report.rows
        for form in row.forms
    )
    return Grid(heads, tuple(rows))


def request_models_section(report: RequestModelReport) -> Section:
    """Return the verdicts and the table; where nothing could be held out, why."""
    if report.impossible:
        return Section("Models of requests", (f"Not validated: {report.impossible}.",))
    return Section("Models of requests", (LEGEND,), report.sentences, request_models_grid(report))
