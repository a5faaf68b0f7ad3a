"""Run one stage from its order: the one entrance of the zygote, of torchrun and of `--inline`.

python -m alignkit.run.worker runs/stages/finetune-f8d922c0.partial
"""

import os
import random
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignkit.contract.events import Event
from alignkit.contract.method import Method
from alignkit.contract.settings import Settings
from alignkit.environment import set_environment
from alignkit.errors import AlignkitError, LockedError, PluginError, StageError, one_line
from alignkit.estimate import preflight
from alignkit.plugins import Plugins, load_plugins
from alignkit.run.failures import explain, tell_failure
from alignkit.run.order import Order, read_order, typed
from alignkit.run.parent import die_with_parent
from alignkit.run.peers import be_seen, first_is_on, watched
from alignkit.run.provenance import facts_of, memory_now
from alignkit.run.stopping import NOTED, Left, Stop, noting_signals
from alignkit.run.working_stage import WorkingStage, rank_of_this_process
from alignkit.store import rundir
from alignkit.store.durable import write_json
from alignkit.store.leases import Hold
from alignkit.store.locks import hold as held_stage
from alignkit.store.results import find_finished, finish, finish_complete
from alignkit.training.prepare import prepare


def main(arguments: list[str]) -> int:
    """Run the stage whose working folder (or order) is given; returns the exit status."""
    path = Path(arguments[0]).resolve()
    if is_preflight(path):
        preflight.answer(path)
        return 0
    partial = path.parent if path.name == rundir.ORDER else path
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    order = read_order(partial)
    set_environment(order.offline)
    if order.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(order.gpus)
    with noting_signals(Stop(once=True)) as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NOTED)  # what starts this on a node may have blocked them
        return work(partial, order, stop, quiet=True)


def is_preflight(folder: Path) -> bool:
    """Return whether a folder asks for a look at a plan, which one process does, instead of a stage."""
    return (folder / preflight.ASKED).is_file()


def work(partial: Path, order: Order, stop: Stop, *, quiet: bool, heard: Callable[[Event], None] | None = None) -> int:
    """Run a stage to its end, and give the exit status; a failure is explained in `failure.json`.

    `quiet` sends what libraries print to `log.txt`. `heard` is told each event, for those in the same process.
    """
    rank = rank_of_this_process()
    with ExitStack() as resources:
        try:
            taken_over = _end_at_once if quiet else lambda: None
            hold = resources.enter_context(held_stage(partial, taken_over=taken_over)) if rank == 0 else None
        except LockedError as error:
            print(f"stage {order.stage!r}: {error}", file=sys.stderr)
            return LockedError.status
        if quiet:
            resources.enter_context(output_to(partial / rundir.LOG))
        try:
            with stop.at_once():
                _run(partial, order, stop, hold, heard)
        except Left:
            return stop.status
        except Exception as error:
            if not quiet:
                raise
            return _fail(partial, order, error)
    return 0


def _end_at_once() -> None:
    """End this process, and write nothing more: the stage's folder belongs to another machine's by now."""
    os._exit(LockedError.status)


def _fail(partial: Path, order: Order, error: Exception) -> int:
    traceback.print_exc()
    failure = explain(error, order, partial)
    tell_failure(order, partial, failure)
    return failure.status


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send whatever is written to standard output and standard error to a file, by libraries in C too."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)


def _run(partial: Path, order: Order, stop: Stop, hold: Hold | None, heard: Callable[[Event], None] | None) -> None:
    began, before, rank = datetime.now(UTC), memory_now(), rank_of_this_process()
    if rank == 0:
        be_seen(partial, order)
    if not first_is_on(partial, order) if rank else _made_already(partial, order):
        return
    _check_world(order)
    plugins = load_plugins(order.plugin_files, examined=False)
    method = _find(plugins, order.method)
    stage = WorkingStage(order, partial, stop, rank, heard, lambda: plugins)
    if hold:
        stage.lease = hold.lease
        _report_start(partial, order, stage)
        _tell_taken_over(stage, hold)
    for preparation in order.prepare:
        prepare(preparation)
    settings = method.settings.model_validate(order.settings)
    inputs = {role: typed(method.consumes[role], several) for role, several in order.inputs.items()}
    seed_everything(order.seed, models=method.handles_models)
    with stage.resources, _met(partial, order, rank, method):
        if stage.stopping:
            stage.leave()
        artifact = _result(method, settings, stage, inputs)
    stage.close()
    if rank == 0:
        _check_made(method, artifact, stage)
        stage.check_held()
        finish(partial, artifact, facts_of(order, stage, plugins, began, before))


@contextmanager
def _met(partial: Path, order: Order, rank: int, method: Method) -> Iterator[None]:
    """Have the processes that share a stage meet; a method of rows alone works without them knowing of each other."""
    if not method.handles_models:
        yield
        return
    from alignkit.training import answering, parallel, room

    machine = order.machine
    answering.arrange(machine.rollouts)
    room.arrange(room.Arrangement(machine.activation_checkpointing, machine.compile, machine.optimiser_states))
    if machine.world == 1:
        yield
        return
    with watched(partial, order, rank):
        parallel.join(rank, machine.world, sharded=machine.sharded is True)
        yield
        parallel.leave()


def _result(method: Method, settings: Settings, stage: WorkingStage, inputs: Mapping[str, Any]) -> Any:
    """Run the method. What follows the saving of its result is only shown: a failure there is told, no more."""
    try:
        return method.run(settings, stage, **inputs)
    except Exception as error:
        if stage.made is None:
            raise
        traceback.print_exc()
        problem = f"the result is saved, but what was to be measured and shown of it failed ({one_line(error)})"
        stage.warn(problem, f"{rundir.LOG} in the stage's folder tells why")
        return stage.made


def _made_already(partial: Path, order: Order) -> bool:
    """Return whether the stage is made: another run was quicker, or an earlier attempt died before the renaming."""
    runs = partial.parent.parent
    if not order.again and find_finished(runs, order.stage, order.fingerprint):
        shutil.rmtree(partial)
        return True
    return finish_complete(partial)


def _check_world(order: Order) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != order.machine.world:
        problem = f"{world} processes were started instead of {order.machine.world}"
        raise StageError(problem, remedy="look at the launcher")


def _find(plugins: Plugins, name: str) -> Method:
    """Find the method by name, as the planner did; the reason is told where that no longer works."""
    try:
        return plugins.method(name)
    except AlignkitError as error:
        raise PluginError(error.problem, f"in {sys.executable}", error.remedy) from error


def _report_start(partial: Path, order: Order, stage: WorkingStage) -> None:
    facts = {
        "attempt": order.attempt,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "step": stage.resumed_from,
        "told": stage.told_before,
    }
    write_json(partial / rundir.STARTED, facts)


def _tell_taken_over(stage: WorkingStage, hold: Hold) -> None:
    if hold.lost:
        problem = f"process {hold.lost['pid']} on {hold.lost['host']} worked on it and is not heard of any more"
        stage.warn(f"{problem}, so it is taken over", "if that process is there, look at its connection to the disk")


def seed_everything(seed: int, *, models: bool = True) -> None:
    """Seed Python's, numpy's and, where there are models or it is there anyway, torch's generators, so that equal
    stages draw equal numbers."""
    random.seed(seed)
    try:
        import numpy as np

        np.random.seed(seed)  # libraries draw from the global generator
        if models or "torch" in sys.modules:
            import torch

            torch.manual_seed(seed)
    except ImportError:
        return


def _check_made(method: Method, artifact: object, stage: WorkingStage) -> None:
    kind = method.produces.__name__
    if not isinstance(artifact, method.produces):
        problem = f"method {method.name!r} returned {type(artifact).__name__} instead of {kind}"
        raise PluginError(problem, method.module, "return what stage.save_policy, save_reward or save_rows gives")
    if artifact.path != stage.artifact or not stage.artifact.is_dir():
        problem = f"method {method.name!r} returned an artifact that this stage did not save"
        raise PluginError(problem, method.module, "return what stage.save_policy, save_reward or save_rows gives")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
