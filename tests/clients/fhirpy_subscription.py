"""Leads a Subscription through its life by PyPI fhirpy, and another one over PyPI websockets, and prints a line for each step that went as it should.

Arguments: base URL of FHIR, bearer token, endpoint of the notifications. Run by the command `corpus clients`.
"""

import json
import sys
import time

from fhirpy import SyncFHIRClient
from fhirpy.base.exceptions import OperationOutcome, ResourceNotFound
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

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


def said(text):
    entries = json.loads(text)["entry"]
    named = {one["name"]: one for one in entries[0]["resource"]["parameter"]}
    return named["type"]["valueCode"]


over_websocket = {**wanted["channel"], "type": "websocket"}
del over_websocket["endpoint"]
over_websocket["extension"] = [{"url": BACKPORT + "backport-heartbeat-period", "valueUnsignedInt": 1}]
live = client.resource("Subscription", **{**wanted, "channel": over_websocket})
live.save()
wait_until(live, "active")
given = client.execute(f"Subscription/{live['id']}/$get-ws-binding-token", method="get")
given = {one["name"]: one for one in given["parameter"]}
with connect(given["websocket-url"]["valueUrl"]) as socket:
    socket.send("bind-with-token: " + given["token"]["valueString"])
    assert said(socket.recv(timeout=10)) == "handshake"
    assert said(socket.recv(timeout=10)) == "heartbeat"
    assert said(socket.recv(timeout=10)) == "heartbeat"
    print("bound")
    live.delete()
    try:
        while True:
            socket.recv(timeout=10)
    except ConnectionClosed as closed:
        assert closed.rcvd.code == 1000, closed
        print("closed")
subscription.delete()
try:
    client.reference("Subscription", subscription["id"]).to_resource()
    raise SystemExit("it is still there")
except ResourceNotFound:
    print("deleted")
