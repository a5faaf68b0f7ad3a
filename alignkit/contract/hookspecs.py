"""The hooks: how a package offers methods, rewards and judges, and how it observes a run.

A package names its module under the entry-point group `alignkit` and marks its functions with `hookimpl`.
"""

from collections.abc import Iterable

import pluggy

from alignkit.contract.events import Event
from alignkit.contract.judges import JudgeFunction, JudgeScheme
from alignkit.contract.method import Method
from alignkit.contract.reward_function import RewardFunction
from alignkit.contract.tracker import TrackerFunction

GROUP = "alignkit"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def alignkit_methods() -> Iterable[Method]:  # type: ignore[empty-body]  # a hook has no body
    """Offer methods. Called once whenever packages are loaded, also by `alignkit plan`: it must not import torch.

    @hookimpl
    def alignkit_methods():
        return [simpo]
    """


@hookspec
def alignkit_rewards() -> Iterable[RewardFunction]:  # type: ignore[empty-body]  # a hook has no body
    """Offer reward functions, for `{ reward = "function:NAME" }`. Called like `alignkit_methods`.

    @hookimpl
    def alignkit_rewards():
        return [gsm8k]
    """


@hookspec
def alignkit_judges() -> Iterable[JudgeFunction | JudgeScheme]:  # type: ignore[empty-body]  # a hook has no body
    """Offer rules, for `{ judge = "rule:NAME" }`, and schemes, for `{ judge = "SCHEME:..." }`. Called like
    `alignkit_methods`.

    @hookimpl
    def alignkit_judges():
        return [shorter]
    """


@hookspec
def alignkit_trackers() -> Iterable[TrackerFunction]:  # type: ignore[empty-body]  # a hook has no body
    """Offer trackers, for `trackers = ["NAME"]`. Called like `alignkit_methods`.

    @hookimpl
    def alignkit_trackers():
        return [tensorboard]
    """


@hookspec
def alignkit_event(event: Event) -> None:
    """Observe a run. Called in the runner's process for each event, in the order in which a stage told them.

    An observer cannot change or stop a run: one that fails is logged and left out from then on.

        @hookimpl
        def alignkit_event(event):
            if isinstance(event, Metrics):
                dashboard.add(event.step, event.values)
    """
