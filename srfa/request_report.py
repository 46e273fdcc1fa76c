"""Whether the models of requests beat a black box on held-out jobs, as a document that travels in a report.

Each model is fitted to the jobs of all folds but one and predicts that one, beside two yardsticks that learn from the
same jobs: the black box of three coefficients (:func:`srfa.fit.outside.blackbox_alphas`) and a single constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field, FiniteFloat

from srfa.coefficients import CoefficientBlock, FitConfig
from srfa.errors import FitError
from srfa.features import Block
from srfa.fit.outside import REQUEST_MODELS, blackbox_alphas, fit_handover, fit_requests, predicted_us, queue_features
from srfa.fit.search import grouped_folds
from srfa.metrics import PERCENT
from srfa.ragged import FloatArray
from srfa.requests import RequestObservations
from srfa.specs import Spec

MOST_FOLDS: Final = 20
"""With more jobs several are held out together."""
MARGIN: Final = 0.02
"""A form is better where its median error is smaller by this share, and its mean error no more than this larger."""
_CLOCK_US = 1.0
"""Shorter times count as this where an error is divided by them: they are the resolution of the clock."""

Form = Literal["srfa", "blackbox", "constant"]
Verdict = Literal["better", "no better than the blackbox form", "no better than a constant"]
_Count = Annotated[int, Field(ge=0)]
_AtLeastNothing = Annotated[FiniteFloat, Field(ge=0)]


class FormErrors(Spec):
    """One form's errors on held-out requests.

    Parameters
    ----------
    median_ape_pct
        Median of ``|predicted - measured| / measured``, percent; a stall of the host that no model explains is one
        request of many.
    mae_us, bias_us
        Mean of absolute and of signed errors, microseconds; a negative bias is too fast.
    """

    form: Form
    median_ape_pct: _AtLeastNothing
    mae_us: _AtLeastNothing
    bias_us: FiniteFloat


class RequestModelRow(Spec):
    """One model on held-out jobs.

    Parameters
    ----------
    target
        What was predicted, in words.
    forms
        The released form first.
    """

    model: str
    target: str
    n_requests: _Count
    n_jobs: _Count
    verdict: Verdict
    forms: tuple[FormErrors, ...]

    @property
    def sentence(self) -> str:
        """The verdict with its figures, for a report.

        >>> parts = {"mae_us": 1.0, "bias_us": 0.0}
        >>> medians = (("srfa", 31.0), ("blackbox", 45.0))
        >>> forms = tuple(FormErrors(form=form, median_ape_pct=median, **parts) for form, median in medians)
        >>> given = {"model": "post", "target": "first token", "n_requests": 9, "n_jobs": 3, "verdict": "better"}
        >>> RequestModelRow(forms=forms, **given).sentence
        'post (first token): 31.0 % against 45.0 % (blackbox): better'
        """
        own, *others = self.forms
        against = ", ".join(f"{other.median_ape_pct:.1f} % ({other.form})" for other in others)
        return f"{self.model} ({self.target}): {own.median_ape_pct:.1f} % against {against}: {self.verdict}"


class RequestModelReport(Spec):
    """The models of requests on held-out jobs; ``impossible`` says why there are no rows."""

    schema_version: Literal[1] = 1
    n_folds: _Count = 0
    rows: tuple[RequestModelRow, ...] = ()
    impossible: str = ""

    @property
    def sentences(self) -> tuple[str, ...]:
        """One verdict a model."""
        return tuple(row.sentence for row in self.rows)


@dataclass(frozen=True, slots=True)
class _Learned:
    """What the jobs of a fold teach: the released blocks, the black box, and one constant a model."""

    blocks: dict[str, CoefficientBlock]
    blackbox_us: tuple[float, float, float]
    mean_wait_us: float
    constant_us: dict[str, float]
    config: FitConfig

    @classmethod
    def of(cls, requests: RequestObservations, config: FitConfig) -> _Learned:
        return cls(
            blocks=fit_requests(requests, config),
            blackbox_us=blackbox_alphas(requests),
            mean_wait_us=float(np.mean(requests.queue_wait_us)),
            constant_us=_constants(requests, config.convex_max_rows),
            config=config,
        )


@dataclass(frozen=True, slots=True)
class _Question:
    """What a model is asked: its measured times, and each form's answer."""

    target: str
    measured: Callable[[RequestObservations], FloatArray]
    answers: Callable[[_Learned, RequestObservations], dict[Form, FloatArray]]


def request_models_report(requests: RequestObservations, config: FitConfig) -> RequestModelReport:
    """Validate ``alpha``, ``queue_wait``, ``alpha_token`` and ``post`` on held-out jobs.

    Each job is a fold; with more than :data:`MOST_FOLDS` jobs, folds hold several, never a part of one.
    """
    jobs, index = np.unique(np.array(requests.job_id), return_inverse=True)
    if len(jobs) < 2:
        return RequestModelReport(impossible=f"requests of {len(jobs)} job(s): holding a job out needs two")
    folds = list(grouped_folds(index.astype(np.int64), MOST_FOLDS))
    answers: dict[str, dict[Form, FloatArray]] = {
        name: {form: np.full(requests.n_requests, np.nan) for form in ("srfa", "blackbox", "constant")}
        for name in REQUEST_MODELS
    }
    try:
        for train, test in folds:
            learned, unseen = _Learned.of(requests.take(train), config), requests.take(test)
            for name in REQUEST_MODELS:
                for form, times in _QUESTIONS[name].answers(learned, unseen).items():
                    answers[name][form][test] = times
    except FitError as error:
        return RequestModelReport(n_folds=len(folds), impossible=str(error))
    rows = tuple(_rows(requests, answers))
    return RequestModelReport(n_folds=len(folds), rows=rows)


def _rows(requests: RequestObservations, answers: dict[str, dict[Form, FloatArray]]) -> Iterator[RequestModelRow]:
    jobs = np.array(requests.job_id)
    for name, by_form in answers.items():
        measured = _QUESTIONS[name].measured(requests)
        known = np.isfinite(measured) & np.isfinite(np.stack(list(by_form.values()))).all(axis=0)
        forms = tuple(_errors(form, times[known], measured[known]) for form, times in by_form.items())
        yield RequestModelRow(
            model=name,
            target=_QUESTIONS[name].target,
            n_requests=int(known.sum()),
            n_jobs=len(np.unique(jobs[known])),
            verdict=_verdict(*forms),
            forms=forms,
        )


def _errors(form: Form, predicted: FloatArray, measured: FloatArray) -> FormErrors:
    wrong = predicted - measured
    ape = np.abs(wrong) / np.maximum(np.abs(measured), _CLOCK_US)
    return FormErrors(
        form=form,
        median_ape_pct=_rounded(PERCENT * np.median(ape)),
        mae_us=_rounded(np.abs(wrong).mean()),
        bias_us=_rounded(wrong.mean()),
    )


def _verdict(own: FormErrors, blackbox: FormErrors, constant: FormErrors) -> Verdict:
    if not _beats(own, blackbox):
        return "no better than the blackbox form"
    return "better" if _beats(own, constant) else "no better than a constant"


def _beats(own: FormErrors, other: FormErrors) -> bool:
    closer = own.median_ape_pct <= (1.0 - MARGIN) * other.median_ape_pct
    return closer and own.mae_us <= (1.0 + MARGIN) * other.mae_us


def _rounded(value: float | np.floating) -> float:
    return float(f"{value:.10g}")


def _constants(requests: RequestObservations, max_rows: int) -> dict[str, float]:
    """Return the median of each model's target; of the hand-over, which is only bounded, its counterpart."""
    ones = Block.of({("intercept", "us"): 1.0}, requests.n_requests)
    return {
        "alpha": fit_handover(ones, requests, max_rows=max_rows).values[0],
        **{name: float(np.nanmedian(_QUESTIONS[name].measured(requests))) for name in REQUEST_MODELS[1:]},
    }


def _queued_after_us(requests: RequestObservations, handover_us: FloatArray) -> FloatArray:
    """Arrival to queued of a given hand-over, by the steps of each request's own job."""
    jobs, queued_us = np.array(requests.job_id), handover_us.copy()
    for job_id in set(requests.job_id) & set(requests.clocks):
        rows = np.flatnonzero(jobs == job_id)
        queued_us[rows] = requests.clocks[job_id].queued_after_us(requests.arrived_ns[rows], handover_us[rows])
    return queued_us


def _alpha(learned: _Learned, requests: RequestObservations) -> dict[Form, FloatArray]:
    handover_us = predicted_us(learned.blocks, "alpha", requests.n_requests, prompt_tokens=requests.prompt_tokens)
    ones = np.ones(requests.n_requests)
    return {
        "srfa": _queued_after_us(requests, handover_us),
        "blackbox": learned.blackbox_us[0] * ones,
        "constant": _queued_after_us(requests, learned.constant_us["alpha"] * ones),
    }


def _queue_wait(learned: _Learned, requests: RequestObservations) -> dict[Form, FloatArray]:
    """A black box knows one constant a request for its queue: the mean, where the other yardstick is the median."""
    own = queue_features(requests, learned.config).values @ np.array(learned.blocks["queue_wait"].values)
    ones = np.ones(requests.n_requests)
    constant = learned.constant_us["queue_wait"] * ones
    return {"srfa": own, "blackbox": learned.mean_wait_us * ones, "constant": constant}


def _outside(name: str, tokens: Callable[[RequestObservations], FloatArray]) -> Callable[..., dict[Form, FloatArray]]:
    def answers(learned: _Learned, requests: RequestObservations) -> dict[Form, FloatArray]:
        n, ones = tokens(requests), np.ones(requests.n_requests)
        rate = predicted_us(learned.blocks, "alpha_token", len(n), output_tokens=n)
        own = predicted_us(learned.blocks, "post", len(n)) + rate
        _, post_us, token_us = learned.blackbox_us
        return {"srfa": own, "blackbox": post_us + token_us * n, "constant": learned.constant_us[name] * ones}

    return answers


_QUESTIONS: Final[dict[str, _Question]] = {
    "alpha": _Question(
        "arrival to queued, the steps of the job given", lambda requests: requests.arrival_to_queued_us, _alpha
    ),
    "queue_wait": _Question("queued to first scheduled", lambda requests: requests.queue_wait_us, _queue_wait),
    "alpha_token": _Question(
        "the client's end-to-end time beyond the engine's",
        lambda requests: requests.outside_us,
        _outside("alpha_token", lambda requests: requests.output_tokens),
    ),
    "post": _Question(
        "the client's time to first token beyond the engine's",
        lambda requests: requests.first_outside_us,
        _outside("post", lambda requests: np.ones(requests.n_requests)),
    ),
}
