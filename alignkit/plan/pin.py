"""Find out, once, which commit each source of the hub stands at, and write it down beside the recipe."""

from pathlib import Path

from alignkit.environment import set_environment
from alignkit.plan.plan import Plan
from alignkit.sources import hub
from alignkit.sources.lock_file import lock_path, read_lock, write_lock


def pin(plan: Plan, runs: Path, offline: bool) -> None:
    """Find out the commits of the hub sources that are needed and have none yet, and write them into the lock file."""
    path = lock_path(plan.recipe.path, runs)
    unknown = [source for source in plan.used_sources() if source.fingerprint is None]
    if unknown:
        set_environment(offline)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lock(path, read_lock(path) | {source.address: hub.newest(source, offline) for source in unknown})
