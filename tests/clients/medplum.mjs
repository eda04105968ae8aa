// Sends the HL7 v2 messages of a file, one after the other, by npm @medplum/hl7, and prints MSA-1 and MSA-2 of each answer.
// Arguments: host port file [ca.pem]. With a CA file the same connection class runs over TLS. Run by the command `corpus clients`.
import { Hl7Message } from '@medplum/core';
import { Hl7Client, Hl7Connection } from '@medplum/hl7';
import { readFileSync } from 'node:fs';
import { connect } from 'node:tls';

const [host, port, file, ca] = process.argv.slice(2);
const messages = readFileSync(file, 'utf8').split(/(?=^MSH\|)/m).filter((text) => text.trim() !== '');

let client;
if (ca) {
  const socket = connect({ host, port: Number(port), ca: readFileSync(ca), servername: 'localhost' });
  await new Promise((resolve, reject) => socket.once('secureConnect', resolve).once('error', reject));
  client = new Hl7Connection(socket);
} else {
  client = new Hl7Client({ host, port: Number(port), keepAlive: true });
}
for (const text of messages) {
  const answer = await client.sendAndWait(Hl7Message.parse(text), { timeoutMs: 30000 });
  const msa = answer.getSegment('MSA');
  console.log(`${msa.getField(1)} ${msa.getField(2)}`);
}
await client.close();
process.exit(0);
