"""Leads a Subscription through its life by PyPI fhirpy, and prints a line for each step that went as it should.

Arguments: base URL of FHIR, bearer token, endpoint of the notifications. Run by the command `corpus clients`.
"""

import sys
import time

from fhirpy import SyncFHIRClient
from fhirpy.base.exceptions import OperationOutcome, ResourceNotFound

BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"


def wait_until(subscription, status):
    for _ in range(200):
        subscription.refresh()
        if subscription["status"] == status:
            return
        time.sleep(0.05)
    raise SystemExit(f"it does not become {status}: {subscription['status']}")


base, token, endpoint = sys.argv[1:]
client = SyncFHIRClient(base, authorization=f"Bearer {token}")
wanted = {
    "status": "requested",
    "reason": "to pay",
    "criteria": "urn:pons:topic:encounter-end",
    "channel": {
        "type": "rest-hook",
        "endpoint": endpoint,
        "payload": "application/fhir+json",
        "_payload": {"extension": [{"url": BACKPORT + "backport-payload-content", "valueCode": "id-only"}]},
    },
}
subscription = client.resource("Subscription", **wanted)
subscription.save()
assert subscription["status"] == "requested", subscription
print("created")
wait_until(subscription, "active")
print("active")
found = client.resources("Subscription").search(status="active").fetch_all()
assert [one["id"] for one in found] == [subscription["id"]], found
print("found")
status = client.execute(f"Subscription/{subscription['id']}/$status", method="get")
assert status["type"] == "searchset" and status["entry"][0]["resource"]["resourceType"] == "Parameters", status
print("status")
events = client.execute(f"Subscription/{subscription['id']}/$events", method="get")
assert events["type"] == "history", events
print("events")
subscription["reason"] = "to pay in time"
subscription.save()
wait_until(subscription, "active")
assert subscription["reason"] == "to pay in time" and int(subscription["meta"]["versionId"]) > 2, subscription
print("updated")
try:
    client.resource("Subscription", **{**wanted, "criteria": "urn:pons:topic:none"}).save()
    raise SystemExit("a topic that there is not was taken")
except OperationOutcome as refused:
    assert "Subscription.criteria" in str(refused), refused
print("refused")
subscription.delete()
try:
    client.reference("Subscription", subscription["id"]).to_resource()
    raise SystemExit("it is still there")
except ResourceNotFound:
    print("deleted")
