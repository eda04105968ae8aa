// Leads a Subscription through its life by npm fhir-kit-client, and prints a line for each step that went as it should.
// Arguments: base URL of FHIR, bearer token, endpoint of the notifications. Run by the command `corpus clients`.
import assert from 'node:assert';
import { Client } from 'fhir-kit-client';

const BACKPORT = 'http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/';
const [baseUrl, bearerToken, endpoint] = process.argv.slice(2);
const client = new Client({ baseUrl, bearerToken });
const resourceType = 'Subscription';

async function refused(promise, status) {
  const error = await promise.then(() => null, (error) => error);
  assert.equal(error?.response?.status, status);
  return error.response.data;
}

async function until(id, status) {
  for (let n = 0; n < 200; n += 1) {
    const read = await client.read({ resourceType, id });
    if (read.status === status) return read;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return assert.fail(`it does not become ${status}`);
}

const statement = await client.capabilityStatement();
const declared = statement.rest[0].resource.find((one) => one.type === resourceType);
const topics = declared.extension.map((one) => one.valueCanonical);
assert(topics.includes('urn:pons:topic:encounter-end'));
console.log('declared');
const body = {
  resourceType,
  status: 'requested',
  reason: 'to pay',
  criteria: 'urn:pons:topic:encounter-end',
  channel: {
    type: 'rest-hook',
    endpoint,
    payload: 'application/fhir+json',
    _payload: { extension: [{ url: `${BACKPORT}backport-payload-content`, valueCode: 'full-resource' }] },
  },
};
const made = await client.create({ resourceType, body });
assert.equal(made.status, 'requested');
console.log('created');
const { id } = made;
const read = await until(id, 'active');
console.log('active');
const found = await client.search({ resourceType, searchParams: { status: 'active' } });
assert(found.entry.some((entry) => entry.resource.id === id));
console.log('found');
const status = await client.operation({ name: 'status', resourceType, id, method: 'get' });
assert.equal(status.entry[0].resource.resourceType, 'Parameters');
console.log('status');
const events = await client.operation({ name: 'events', resourceType, id, method: 'get' });
assert.equal(events.type, 'history');
console.log('events');
const updated = await client.update({ resourceType, id, body: { ...read, status: 'off' } });
assert.equal(updated.status, 'off');
console.log('updated');
const outcome = await refused(client.create({ resourceType, body: { ...body, criteria: 'Patient?name=x' } }), 422);
assert.deepEqual(outcome.issue[0].expression, ['Subscription.criteria']);
console.log('refused');
await client.delete({ resourceType, id });
await refused(client.read({ resourceType, id }), 404);
console.log('deleted');
