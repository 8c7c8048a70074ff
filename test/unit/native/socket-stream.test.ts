import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { KiB, MiB } from '../../../formats/core/units.ts';
import { native } from '../../../src/native/binding.ts';
import { SocketStream } from '../../../src/native/socket-stream.ts';
import { requireAddon } from '../../support/addon.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const skip = requireAddon() || (native?.streamWords === undefined && 'the addon is from before there were streams');

/** The most that SO_SNDBUF may be asked for here, where that is known. */
function mostAllowed(): number {
  try {
    return Number(readFileSync('/proc/sys/net/core/wmem_max', 'latin1'));
  } catch {
    return 0;
  }
}

test('a local socket takes a long answer at once, as far as the system allows', {
  skip: skip || (mostAllowed() < 200 * KiB && 'the system does not say, or allows little'),
}, async (t) => {
  const path = join(await temporaryDirectory(t), 's');
  const server = createServer().listen(path);
  await once(server, 'listening');
  const client = connect(path).pause();
  const [accepted] = (await once(server, 'connection')) as [Socket];
  const stream = SocketStream.adopt(accepted, { data() {}, writable() {}, end() {}, error() {} });
  t.after(() => {
    stream?.close();
    client.destroy();
    server.close();
  });
  assert.ok(stream !== undefined);
  accepted.destroy();
  const answer = new Uint8Array(8 * MiB).fill(7);
  stream.add(answer, 0, answer.length);
  const taken = stream.tryWrite();
  // What is asked for, at most a megabyte, is doubled by the kernel for its own accounts: more than half of that is payload.
  assert.ok(taken > Math.min(mostAllowed(), MiB), `${taken} bytes`);
  assert.ok(taken <= 2 * MiB, `${taken} bytes: nor is it without bounds`);

  let received = 0;
  client.on('data', (chunk: Buffer) => {
    assert.ok(chunk.every((byte) => byte === 7));
    received += chunk.length;
  });
  client.resume();
  while (received < taken) await once(client, 'data');
  assert.equal(received, taken);
});
