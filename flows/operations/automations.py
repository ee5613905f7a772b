"""What Prefect's server does by itself: dead runs are ended and started again, the operator told.

These watch all runs, and so belong to no deployment. They are looked up by name: applied twice,
they are there once.
"""

from datetime import timedelta
from typing import Any

from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events import ResourceSpecification
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import (
    Automation,
    AutomationCore,
    EventTrigger,
    Posture,
)

from flows.errors import FlowError
from flows.settings import ServicesSettings

PREFIX = "hqinet: "
"""Of the names of all automations that are made here."""
WEBHOOK = "hqinet-operator"
"""Name of the block that holds the webhook's URL."""
RESTARTS = 2
"""How often a run that crashed is started again."""
UNBEGUN = timedelta(minutes=5)
"""After which a run that a worker took and did not begin is given to another."""
OVERDUE = timedelta(minutes=30)
"""After which a run that waits is told of: behind a training, some waiting is usual."""
RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
DEPLOYED = ResourceSpecification(
    {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.hqinet"}
)
"""Runs of our deployments; what a command runs has no tag, and no worker to start it again."""
TOLD_OF = ("Failed", "Crashed", "TimedOut", "Refused", "Quarantined")
"""States of a run that an operator is told of."""
ENDS = (*TOLD_OF, "Completed", "Cancelled", "Cancelling", "AwaitingRetry", "Paused", "Suspended")
"""States after which nothing is waited for. No wildcard: Prefect writes to its database for each
event that a trigger might want, and plans runs by the hundred."""
MESSAGE = """\
{{ flow.name }}, run {{ flow_run.name }}: {{ flow_run.state.name }}
{{ flow_run.state.message }}
{{ flow_run|ui_url }}"""


# An absence has no event, and so no flow run to speak of: its labels say which run it is.
LATE = "{{ labels['prefect.resource.id'] }} should have begun half an hour ago: `hqinet status`."


class AutomationError(FlowError):
    """An automation that would match more than it says; one line that names it."""


def events_of(*states: str) -> set[str]:
    """The events of a flow run that comes into these states."""
    return {f"prefect.flow-run.{state}" for state in states}


def wanted(settings: ServicesSettings, webhook: Any = None) -> list[AutomationCore]:  # noqa: ANN401 - a block's id
    """All automations; those that tell the operator only where there is a webhook to tell."""
    made = [lost(timedelta(seconds=settings.lost_after)), unbegun(), again()]
    if webhook is not None:
        made += notifications(webhook)
    return made


def lost(within: timedelta) -> AutomationCore:
    """A run whose heartbeat stops has crashed: its machine is gone, and it must not hold a slot."""
    return AutomationCore(
        name=f"{PREFIX}a run without heartbeat has crashed",
        description="Its machine or process is gone; its place in the queue is free again.",
        trigger=EventTrigger(
            match=RUNS,
            for_each={"prefect.resource.id"},
            after=events_of("heartbeat"),
            expect=events_of("heartbeat", *ENDS),
            posture=Posture.Proactive,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message="Its heartbeat stopped: the machine or process that ran it is gone.",
            )
        ],
    )


def unbegun() -> AutomationCore:
    """A run that was taken and never begun has no heartbeat that could stop."""
    return AutomationCore(
        name=f"{PREFIX}a run that was not begun is given to another worker",
        description="Its worker ended between taking it and starting it.",
        trigger=EventTrigger(
            match=RUNS,
            match_related=DEPLOYED,
            for_each={"prefect.resource.id"},
            after=events_of("Pending"),
            expect=events_of("Running", *ENDS),
            posture=Posture.Proactive,
            within=UNBEGUN,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED,
                name="AwaitingRetry",
                message="The worker that took it did not begin it.",
            )
        ],
    )


def again() -> AutomationCore:
    """A crashed run is started again: a training goes on from its checkpoint, the rest anew."""
    counts = [str(number) for number in range(1, RESTARTS + 1)]
    return AutomationCore(
        name=f"{PREFIX}a crashed run is started again",
        description=f"At most {RESTARTS} times. A training goes on from its checkpoint.",
        trigger=EventTrigger(
            match=ResourceSpecification(RUNS.root | {"prefect.run-count": counts}),
            match_related=DEPLOYED,
            expect=events_of("Crashed"),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED,
                name="AwaitingRetry",
                message="It crashed, and is started again.",
            )
        ],
    )


def notifications(webhook: Any) -> list[AutomationCore]:  # noqa: ANN401 - as above
    """What an operator is told of: bad ends, runs that wait, pools without a worker."""
    ended = EventTrigger(
        match=RUNS,
        match_related=DEPLOYED,
        expect=events_of(*TOLD_OF),
        posture=Posture.Reactive,
        threshold=1,
    )
    late = EventTrigger(
        match=RUNS,
        match_related=DEPLOYED,
        for_each={"prefect.resource.id"},
        after=events_of("Late"),
        expect=events_of("Pending", "Running", *ENDS),
        posture=Posture.Proactive,
        within=OVERDUE,
    )
    idle = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": "prefect.work-pool.*"}),
        expect={"prefect.work-pool.not-ready"},
        posture=Posture.Reactive,
        threshold=1,
    )

    def told(name: str, subject: str, trigger: EventTrigger, body: str) -> AutomationCore:
        action = SendNotification(block_document_id=webhook, subject=subject, body=body)
        return AutomationCore(
            name=f"{PREFIX}{name}", description=subject, trigger=trigger, actions=[action]
        )

    return [
        told("tell of bad ends", "HQINet: a run ended badly", ended, MESSAGE),
        told("tell of late runs", "HQINet: a run waits", late, LATE),
        told(
            "tell of dead work pools",
            "HQINet: a work pool has no worker",
            idle,
            "{{ work_pool.name }} has no worker: `hqinet status`, then `hqinet up`.",
        ),
    ]


def apply(settings: ServicesSettings) -> list[str]:
    """Make the server's automations what they should be; returns their names.

    Raises AutomationError if one of them, or of any deployment, would match every event.
    """
    block = None
    if settings.webhook:
        body = {"subject": "{{subject}}", "body": "{{body}}"}
        block = CustomWebhookNotificationBlock(
            name=WEBHOOK, url=settings.webhook, method="POST", json_data=body
        ).save(WEBHOOK, overwrite=True)
    automations = wanted(settings, block)
    with get_client(sync_client=True) as client:
        there = [row for row in client.read_automations() if row.name.startswith(PREFIX)]
        for automation in automations:
            _put(client, automation, [row for row in there if row.name == automation.name])
        names = {automation.name for automation in automations}
        for row in there:
            if row.name not in names:
                client.delete_automation(row.id)
        require_narrow(client.read_automations())
    return sorted(names)


def _put(client: SyncPrefectClient, automation: AutomationCore, there: list[Automation]) -> None:
    for extra in there[1:]:
        client.delete_automation(extra.id)
    if there:
        client.update_automation(there[0].id, automation)
    else:
        client.create_automation(automation)


def require_narrow(automations: list[Automation]) -> None:
    """Raise AutomationError for one that expects no event by name, and so is met by all.

    `expects:` for `expect:` is taken without a word, and leaves it empty.
    """
    for automation in automations:
        expected = getattr(automation.trigger, "expect", None)
        if expected is not None and not expected:
            raise AutomationError(
                f"automation {automation.name!r} expects no event by name and is met by all of "
                "them: give it `expect`"
            )
