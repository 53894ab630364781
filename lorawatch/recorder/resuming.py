"""A run that ended goes on: the same run directory, its next attempt, from a checkpoint that was checked first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorawatch.errors import CheckpointError, LorawatchError, NoSuitableGpu, UsageError
from lorawatch.launch.placement import Placement, place
from lorawatch.recipe import identity, loading
from lorawatch.recipe.devices import parse_gpus
from lorawatch.recipe.schema import Recipe
from lorawatch.run import checkpoints
from lorawatch.run.checkpoints import Checkpoint
from lorawatch.run.directory import Gpu, RunDir, RunInfo, RunState
from lorawatch.run.liveness import deciding, refuse_living
from lorawatch.system.files import write_atomically
from lorawatch.system.home import host_name
from lorawatch.system.processes import ProcessId


@dataclass(frozen=True)
class Resumption:
    """What a run goes on with.

    Attributes:
        start: The checkpoint.
        attempt: The number of the attempt that begins.
        changed: Recipe keys that change, each with the old value and the new.
    """

    start: Checkpoint
    attempt: int
    changed: list[tuple[str, object, object]]


def prepare_resumption(
    run: RunDir,
    gpus: Sequence[Gpu],
    *,
    overrides: Iterable[str] = (),
    from_name: str | None = None,
    driver_version: str | None = None,
) -> Resumption:
    """Make a run that has ended ready for a recorder to start it again. Nothing is changed before all is checked.

    Args:
        gpus: The host's GPUs as the driver lists them.
        overrides: `a.b=c`; only what may change.
        from_name: The checkpoint to go on from; default: the newest.

    Raises:
        UsageError: The run lives, is no recipe's, has nothing left to do, or an override changes the work.
        CheckpointError: The checkpoint is absent, damaged or of other work; says what is wrong, and offers another.
        NoSuitableGpu: The devices are not those that the order of the data hangs on.
        RunElsewhere, RunBusy: Another host, or another command, decides about it.
        LorawatchError: The run directory cannot be written.
    """
    try:
        return _prepare(run, gpus, tuple(overrides), from_name, driver_version)
    except OSError as error:
        raise LorawatchError(
            f"run {run.run_id} cannot be made ready: {error.strerror or error}: {error.filename or run.root}",
            hint="free some space, or see to it that the run directory can be written",
        ) from None


def _prepare(
    run: RunDir, gpus: Sequence[Gpu], overrides: Sequence[str], from_name: str | None, driver_version: str | None
) -> Resumption:
    with deciding(run) as status:
        info, state = run.info(), run.state()
        _check_resumable(run, info)
        refuse_living(run, status, "resumed")
        before = loading.from_dict(info.recipe or {}, run.run_id)
        after, changed = _changed(run, before, overrides)
        start = _checked(run, before, info.world_size, from_name)
        _check_work_left(run, state, after, start, changed)
        placement = _placed(run, info, after, gpus, moved="launch.gpus" in {path for path, _, _ in changed})

        info.recipe = after.to_dict()
        info.sample_hz = after.measure.sample_hz
        info.host = host_name()
        info.gpus = list(gpus)
        info.driver_version = driver_version
        for gpu in info.gpus:
            gpu.used = gpu.gpu_uuid in placement.gpu_uuids
        attempt = max(state.attempt, run.last_attempt()) + 1
        _clear_requests(run)
        run.attempt_logs(attempt).mkdir(parents=True, exist_ok=True)
        write_atomically(run.recipe, after.to_yaml().encode())
        run.write_info(info)
        run.mark_open()
        run.write_state(
            RunState(
                state="queued",
                attempt=attempt,
                started_at=state.started_at,
                elapsed_s=state.elapsed_s,
                resumed_at=start.step,
                step=start.step,
                steps_total=state.steps_total,
                recorder=ProcessId.own(),
            )
        )
    return Resumption(start, attempt, changed)


def _clear_requests(run: RunDir) -> None:
    """Take away what was asked of the attempts before: a stop, pledges; whatever else lies there is none of ours."""
    for request in run.control.iterdir():
        if request.is_symlink() or not request.is_dir():
            request.unlink(missing_ok=True)


def _check_resumable(run: RunDir, info: RunInfo) -> None:
    if info.own_command or info.recipe is None:
        raise UsageError(
            f"run {run.run_id} is a command of your own: only its program knows how to go on",
            hint="start the command again with its own option for that",
        )
    if info.separate:
        raise UsageError(
            f"the ranks of run {run.run_id} train separately, which keeps no checkpoints", hint="start it again"
        )


def _changed(run: RunDir, before: Recipe, overrides: Iterable[str]) -> tuple[Recipe, list[tuple[str, object, object]]]:
    after = loading.overridden(before, overrides)
    changed = checkpoints.differences(before.to_dict(), after.to_dict())
    allowed = identity.changeable()
    refused = [f"{path} is {was!r} and would be {now!r}" for path, was, now in changed if path not in allowed]
    if refused:
        raise UsageError(
            f"run {run.run_id} cannot go on as other work: {'; '.join(refused)}",
            hint=f"what may change: {', '.join(allowed)}; for anything else start a new run",
        )
    return after, changed


def _checked(run: RunDir, recipe: Recipe, world_size: int, from_name: str | None) -> Checkpoint:
    saved = checkpoints.folders(run.checkpoints)
    if not saved:
        raise CheckpointError(
            f"run {run.run_id} has no checkpoint to go on from",
            hint="a stop saves one, and train.checkpoint_every does on the way; start the run again",
        )
    wanted = saved[0] if from_name is None else checkpoints.named(run.checkpoints, from_name)
    try:
        start = checkpoints.read(wanted)
        checkpoints.check_work(start, recipe, world_size)
    except CheckpointError as error:
        earlier, _ = checkpoints.newest_good(run.checkpoints, recipe, world_size, before=checkpoints.step_of(wanted))
        hint = "none before it is good: start the run again"
        if earlier is not None:
            hint = f"the one before it is good: lorawatch --record --resume {run.run_id} --from {earlier.name}"
        raise CheckpointError(error.message, hint=hint) from None
    return start


def _check_work_left(
    run: RunDir, state: RunState, recipe: Recipe, start: Checkpoint, changed: Sequence[tuple[str, object, object]]
) -> None:
    total = recipe.train.steps
    if total is None and not {"train.steps", "train.epochs"} & {path for path, _, _ in changed}:
        total = state.steps_total
    # One that was ended between its last checkpoint and its adapter has the adapter left to write.
    if total is not None and start.step >= total and run.adapter.exists():
        raise UsageError(
            f"run {run.run_id} has nothing left to do: {start.name} is at step {start.step} of {total}",
            hint=f"for more: --set train.steps={2 * start.step}",
        )


def _placed(run: RunDir, info: RunInfo, recipe: Recipe, gpus: Sequence[Gpu], *, moved: bool) -> Placement:
    """Where the ranks go now: as many as before, on the same kind of device."""
    request = parse_gpus(recipe.launch.gpus)
    try:
        # A sweep's point used the first few of what the recipe names.
        placement = place(request, gpus, count=None if moved else info.world_size)
    except NoSuitableGpu as error:
        raise NoSuitableGpu(
            f"run {run.run_id} had {info.world_size} ranks: {error.message}",
            hint="name as many devices with --gpus; with fewer ranks each would get other rows",
        ) from None
    was = f"{info.world_size} × {info.device}"
    now = f"{placement.world_size} × {placement.device}"
    if was != now:
        raise NoSuitableGpu(
            f"run {run.run_id} was trained on {was} and would go on on {now}",
            hint="the number of ranks and the kind of device stay: each rank would get other rows, and round otherwise",
        )
    return placement
