"""Engine groups on Ray: a placement group a server, a fresh process a group, and an outcome whatever happens.

A node offers ``gpu_type:<name>`` of ``hardware/`` as often as it has GPUs of that type; a machine offers each CPU
profile once. Everything here blocks and is safe to call from several threads at a time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import ray
from pydantic import Field, PositiveFloat, PositiveInt
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from srfa.errors import EngineError
from srfa.specs import BenchmarkJob, EngineGroup, GpuSpec, JobOutcome, Spec
from tasks.group import GroupRequest, failed_outcome, failure_reason, run_group

_LOCAL: Final = "127.0.0.1"
_POLL_S: Final = 1.0
_OBJECT_STORE_BYTES: Final = 128 * 1024 * 1024
_MANY: Final = 64
"""More than the GPUs of any machine: where all are of one type, Ray's own count of them is the limit."""
_ONE_CPU: Final[Mapping[str, float]] = {"CPU": 1.0}
"""What a simulated engine takes, whatever it simulates."""
_RAY_ENVIRONMENT: Final[Mapping[str, str]] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray gives its workers the lowest priority; an engine below one would be measured with it.
    "RAY_worker_niceness": "0",
}


_FRONT_END_CPUS: Final = 1


class ClusterSettings(Spec):
    """Where groups run and how long they may wait and take.

    Parameters
    ----------
    address
        Of a running Ray cluster; None starts one on this machine, on loopback only.
    num_cpus
        CPUs the local Ray offers; None for all of this machine, and at least what one server on one core needs.
    local_gpu_type
        What the GPUs of this machine are called in ``hardware/``, for the local Ray.
    placement_timeout_s
        How long a group waits while no node could ever hold it: time for an autoscaler to bring one.
    queue_timeout_s
        How long a group waits for a node that is busy.
    group_timeout_s
        How long a group may run.
    """

    address: str | None = None
    num_cpus: PositiveInt | None = None
    local_gpu_type: str | None = None
    placement_timeout_s: float = Field(default=600.0, ge=0)
    queue_timeout_s: PositiveFloat = 7 * 86_400.0
    group_timeout_s: PositiveFloat = 86_400.0


def resource_name(gpu: str) -> str:
    """Return the custom Ray resource of a GPU type or CPU profile.

    >>> resource_name("h100-sxm-80gb")
    'gpu_type:h100-sxm-80gb'
    """
    return f"gpu_type:{gpu}"


def bundle(gpu: GpuSpec, job: BenchmarkJob) -> dict[str, float]:
    """Return what one server occupies on one node: a single bundle, because a Ray task lives in one.

    On a CPU its own front end and its clients need a core beside those it computes on: servers side by side without
    one take it from each other, and repeats of a job then differ by a third.
    """
    count = float(job.engine.gpu_count)
    if gpu.datasheet.kind == "cpu":
        return {"CPU": count * (gpu.datasheet.omp_threads or 1) + _FRONT_END_CPUS, resource_name(gpu.name): 1.0}
    return {"GPU": count, "CPU": count, resource_name(gpu.name): count}


def first_core(gpu: GpuSpec, gpus: Iterable[GpuSpec]) -> int:
    """Return a CPU profile's place among those of a campaign: profiles that run side by side take different cores."""
    profiles = sorted({other.name for other in gpus if other.datasheet.kind == "cpu"})
    return profiles.index(gpu.name) if gpu.name in profiles else 0


@contextmanager
def connected(settings: ClusterSettings, gpus: Iterable[GpuSpec] = ()) -> Iterator[None]:
    """Be connected to Ray inside the block; one that this process already is connected to is used and left alone.

    Parameters
    ----------
    gpus
        The GPUs of the campaign; a local Ray offers its CPU profiles.
    """
    if ray.is_initialized():
        yield
        return
    _initialise(settings, gpus)
    try:
        yield
    finally:
        ray.shutdown()


def _initialise(settings: ClusterSettings, gpus: Iterable[GpuSpec]) -> None:
    os.environ.update({name: os.environ.get(name, value) for name, value in _RAY_ENVIRONMENT.items()})
    common: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if settings.address is not None:
        ray.init(address=settings.address, **common)
        return
    ray.init(
        address="local",
        num_cpus=settings.num_cpus or max(len(os.sched_getaffinity(0)), 1 + _FRONT_END_CPUS),
        resources=_local_resources(settings, gpus),
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address=_LOCAL,
        **common,
    )


def _local_resources(settings: ClusterSettings, gpus: Iterable[GpuSpec]) -> dict[str, float]:
    profiles = {resource_name(gpu.name): 1.0 for gpu in gpus if gpu.datasheet.kind == "cpu"}
    if settings.local_gpu_type is None:
        return profiles
    return profiles | {resource_name(settings.local_gpu_type): float(_MANY)}


def run_group_on_ray(group: EngineGroup, request: GroupRequest, settings: ClusterSettings) -> tuple[JobOutcome, ...]:
    """Run :func:`tasks.group.run_group` on a node that has the group's GPUs, in a process of its own, and wait.

    A rehearsed group runs on any CPU.

    Returns
    -------
    tuple of JobOutcome
        One a job, in the group's order. What happens to the cluster is an outcome too: ``unschedulable`` where no node
        holds the group within ``placement_timeout_s``, ``worker_lost`` where its process or node dies, ``timeout``
        after ``group_timeout_s``.

    Notes
    -----
    Whatever ends the wait early (a cancelled task, an interrupt) ends the worker, whose engine then ends with it.
    """
    wanted = dict(_ONE_CPU) if request.rehearsal else bundle(request.gpu, group.first)
    try:
        with _placed(wanted) as place:
            _wait_until_placed(place, wanted, settings)
            answer = _run_in(place, wanted, group, request, settings)
    except EngineError as error:
        return failed_group(group, request.run_id, error)
    except RayError as error:
        return failed_group(group, request.run_id, _lost(error))
    return tuple(JobOutcome.model_validate(outcome) for outcome in json.loads(answer))


@ray.remote(max_calls=1, max_retries=0)  # type: ignore[untyped-decorator]
def _run_group(group: str, request: str) -> str:
    """Run on the node, in a process that ends afterwards; texts in and out, so that nothing else has to be pickled."""
    outcomes = run_group(EngineGroup.model_validate_json(group), GroupRequest.model_validate_json(request))
    return json.dumps([outcome.model_dump(mode="json") for outcome in outcomes])


@contextmanager
def _placed(wanted: Mapping[str, float]) -> Iterator[PlacementGroup]:
    # Without a name: names are unique in a cluster, and two runs may measure the same group.
    place = placement_group([dict(wanted)], strategy="STRICT_PACK")
    try:
        yield place
    finally:
        with suppress(RayError):  # the cluster may be gone, and the place with it
            remove_placement_group(place)


def _wait_until_placed(place: PlacementGroup, wanted: Mapping[str, float], settings: ClusterSettings) -> None:
    """Wait in the queue of a busy node for long, for a node that does not exist only ``placement_timeout_s``."""
    begin = last_feasible = time.monotonic()
    while not place.wait(_POLL_S):
        now = time.monotonic()
        if _feasible(wanted):
            last_feasible = now
        if now - last_feasible > settings.placement_timeout_s:
            raise EngineError("unschedulable", _nowhere(wanted, settings))
        if now - begin > settings.queue_timeout_s:
            limit = f"queue_timeout_s={settings.queue_timeout_s:g}"
            raise EngineError(
                "unschedulable", f"no node had {_listed(wanted)} free within {limit}; add nodes or wait longer"
            )


def _feasible(wanted: Mapping[str, float]) -> bool:
    """Return whether a node could hold the bundle if it did nothing else."""
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return any(all(offered.get(name, 0.0) >= amount for name, amount in wanted.items()) for offered in nodes)


def _nowhere(wanted: Mapping[str, float], settings: ClusterSettings) -> str:
    offered = sorted(name for name in ray.cluster_resources() if name.startswith("gpu_type:"))
    limit = f"placement_timeout_s={settings.placement_timeout_s:g}"
    remedy = "start a node that offers it, or take this GPU out of the matrix"
    return (
        f"no node holds {_listed(wanted)} within {limit}; the cluster offers {', '.join(offered) or 'none'}; {remedy}"
    )


def _listed(wanted: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())


def _run_in(
    place: PlacementGroup,
    wanted: Mapping[str, float],
    group: EngineGroup,
    request: GroupRequest,
    settings: ClusterSettings,
) -> str:
    """Return the worker's answer; whatever ends the wait otherwise ends the worker."""
    reference = _run_group.options(
        num_cpus=wanted["CPU"],
        num_gpus=wanted.get("GPU", 0.0),
        resources={name: amount for name, amount in wanted.items() if name not in {"CPU", "GPU"}},
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=place, placement_group_bundle_index=0),
    ).remote(group.model_dump_json(), request.model_dump_json())
    try:
        return _answer(reference, settings.group_timeout_s)
    except EngineError:
        ray.cancel(reference, force=True)
        # Its engine is ending: keep the GPUs until it surely has.
        time.sleep(request.settings.stop_grace_s)
        raise
    except BaseException:  # a cancelled flow, an interrupt: nobody waits for the worker any more
        ray.cancel(reference, force=True)
        raise


def _answer(reference: Any, limit_s: float) -> str:
    """Wait in short slices, so that a cancelled thread notices."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            answer: str = ray.get(reference, timeout=_POLL_S)
        except GetTimeoutError as error:
            if time.monotonic() > deadline:
                text = f"the group has not ended within group_timeout_s={limit_s:g}; raise it, or split the group"
                raise EngineError("timeout", text) from error
        except RayError as error:
            raise _lost(error) from error
        else:
            return answer


def _lost(error: RayError) -> EngineError:
    remedy = "run the campaign again: what was measured is kept"
    return EngineError("worker_lost", f"the group's process on Ray was lost ({error}); {remedy}")


def failed_group(group: EngineGroup, run_id: str, error: EngineError) -> tuple[JobOutcome, ...]:
    """Return the outcomes of a group of which nothing is known but its failure."""
    return tuple(failed_outcome(job, run_id, failure_reason(error), str(error)) for job in group.jobs)
