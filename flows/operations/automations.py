"""What Prefect's server tells the operator by itself, through a webhook.

These automations watch all runs, and so belong to no deployment. They are looked up by name:
applied twice, they are there once.
"""

from datetime import timedelta
from uuid import UUID

from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import ResourceSpecification
from prefect.events.actions import SendNotification
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
OVERDUE = timedelta(minutes=30)
"""After which a run that waits is told of: behind a training, some waiting is usual."""
RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
DEPLOYED = ResourceSpecification(
    {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.hqinet"}
)
"""Runs of our deployments; whoever runs a command sees what becomes of it."""
TOLD_OF = ("Failed", "Crashed", "TimedOut", "Refused", "Quarantined")
"""States of a run that an operator is told of."""
MESSAGE = """\
{{ flow.name }}, run {{ flow_run.name }}: {{ flow_run.state.name }}
{{ flow_run.state.message }}
{{ flow_run|ui_url }}"""
# An absence has no event, and so no flow run to speak of: its labels say which run it is.
LATE = "{{ labels['prefect.resource.id'] }} should have begun half an hour ago: `hqinet status`."

UNSENT = """\
Series {{ event.payload.series }} is not sent to {{ event.payload.destination }} any more.
`outbox/{{ event.payload.destination }}/given-up` in the home says why, of which others, too, and
where they lie: mend it, then `hqinet send FOLDER --to {{ event.payload.destination }}` for each."""


class AutomationError(FlowError):
    """An automation that would match more than it says; one line that names it."""


def events_of(*states: str) -> set[str]:
    """The events of a flow run that comes into these states."""
    return {f"prefect.flow-run.{state}" for state in states}


def notifications(webhook: UUID) -> list[AutomationCore]:
    """What an operator is told of: bad ends, runs that wait, idle pools, series not sent."""
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
        # No wildcard, and none of those that are told of: Prefect writes to its database for each
        # event that a trigger counts, and with SQLite an event must not be acted on, too.
        expect=events_of("Pending", "Running", "Cancelled"),
        posture=Posture.Proactive,
        within=OVERDUE,
    )
    idle = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": "prefect.work-pool.*"}),
        expect={"prefect.work-pool.not-ready"},
        posture=Posture.Reactive,
        threshold=1,
    )

    unsent = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": "hqinet.outbox.*"}),
        expect={"hqinet.sending.given_up"},
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
        told("tell of what is not sent", "HQINet: a series is not sent", unsent, UNSENT),
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
    automations = [] if block is None else notifications(block)
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
