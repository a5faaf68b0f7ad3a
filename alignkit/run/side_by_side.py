"""Stages that run at the same time: which may, and what each of them has of the machine."""

from collections.abc import Sequence

from alignkit.errors import INTERRUPTED, TERMINATED, AlignkitError, RecipeError, StageError


def check_jobs(jobs: int, inline: bool) -> None:
    """Raise RecipeError where stages cannot run at the same time."""
    if jobs < 1:
        raise RecipeError("at least one stage runs at a time", f"jobs = {jobs}", "take a number from 1 on")
    if inline and jobs > 1:
        problem = "inline, stages run one after another in this process"
        raise RecipeError(problem, f"--inline --jobs {jobs}", "leave one of the two out")


def threads_of(jobs: int) -> int:
    """Return how many threads each of the stages that run at the same time has of this machine's cores."""
    from alignkit.doctor.examine import usable_cores

    return max(1, usable_cores() // jobs)


def error_of_all(failures: Sequence[AlignkitError]) -> AlignkitError:
    """Return one error for all stages that failed, with the first one's exit status; that some were stopped then goes
    without saying."""
    stopped = [error for error in failures if error.status in (INTERRUPTED, TERMINATED)]
    failed = [error for error in failures if error not in stopped] or stopped[:1]
    if len(failed) == 1:
        return failed[0]
    error = StageError.of([problem for one in failed for problem in one.problems])
    error.status = failed[0].status
    return error
