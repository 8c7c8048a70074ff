/**
 * Mutated streams against the server side of NBD: whatever comes, receive() does not throw, memory stays bounded, the connection either
 * goes on or is closed, and the disk is whole for the next client.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  clientFlags,
  extendedRequest,
  go,
  MemoryEndpoint,
  option,
  pattern,
  patternDisk,
  type RequestFields,
  request,
  text,
  u32,
} from '../support/nbd-endpoint.ts';
import { type Random, randomFor } from '../support/random.ts';

const STREAMS = 20_000;
const SIZE = 256 * 1024;
const LIMITS = {
  totalMemory: 4 << 20,
  connectionMemory: 2 << 20,
  outputLimit: 512 << 10,
  maxPayload: 1 << 20,
  maxRequests: 8,
};
const BOUND = 8 << 20;
const NUMBERS = [0, 1, 2, 4, 27, 28, 32, 255, 4096, 65535, 65536, 0x7fffffff, 0x80000000, 0xffffffff];

/** A client's stream that is right, before it is damaged. */
function stream(random: Random): Buffer {
  const extended = random.chance(0.3);
  const parts: Buffer[] = [clientFlags];
  if (random.chance(0.3)) parts.push(option(3));
  if (extended) parts.push(option(11));
  else if (random.chance(0.7)) parts.push(option(8));
  if (random.chance(0.7)) parts.push(option(10, text('disk'), u32(2), text('base:allocation'), text('qemu:')));
  parts.push(random.chance(0.9) ? go() : option(1, Buffer.from('disk')));
  const make = extended ? extendedRequest : request;
  for (let i = random.below(8); i > 0; i--) {
    const type = random.below(9);
    const fields: RequestFields = {
      type,
      flags: random.chance(0.7) ? 0 : random.below(64),
      cookie: random.below(100),
      offset: random.below(SIZE),
      ...(type === 1
        ? { payload: random.bytes(random.below(3000)) }
        : { length: random.below(random.chance(0.2) ? SIZE : 9000) }),
    };
    parts.push(make(fields));
  }
  return Buffer.concat(parts);
}

function damage(bytes: Buffer, random: Random): Buffer {
  for (let i = random.below(4); i > 0; i--) {
    const at = random.below(bytes.length);
    if (random.chance(0.5)) bytes[at] = random.below(256);
    else if (at + 4 <= bytes.length) bytes.writeUInt32BE(random.pick(NUMBERS), at);
  }
  return random.chance(0.2) ? bytes.subarray(0, random.below(bytes.length)) : bytes;
}

test(`${STREAMS} damaged streams neither throw nor cost more than the limits`, async (t) => {
  const random = randomFor(t);
  const image = patternDisk(SIZE);
  const exports = [{ name: 'disk', description: '', image, readOnly: false }];
  let talked = 0;
  for (let i = 0; i < STREAMS; i++) {
    const wire = new MemoryEndpoint(exports, { limits: LIMITS });
    const bytes = damage(stream(random), random);
    wire.stuck = random.chance(0.1);
    for (let at = 0; at < bytes.length && wire.closed === undefined && !wire.paused; ) {
      const step = random.chance(0.5) ? bytes.length : 1 + random.below(60);
      wire.endpoint.receive(bytes.subarray(at, at + step));
      at += step;
      assert.ok(wire.host.pool.used <= BOUND, `${wire.host.pool.used} bytes are out`);
    }
    if (wire.endpoint.transmission !== undefined) talked++;
    wire.unstick();
    wire.endpoint.close('the test is over');
    await wire.endpoint.ended();
    assert.doesNotMatch(wire.reason, /internal error/);
    if (i % 100 === 0) await wire.settle();
  }
  assert.ok(talked > STREAMS / 4, `${talked} got as far as transmission`);

  const wire = new MemoryEndpoint(exports);
  wire.endpoint.receive(Buffer.concat([clientFlags, go(), request({ type: 1, payload: pattern(1, 100) })]));
  await wire.settle();
  wire.endpoint.receive(request({ type: 0, length: 100 }));
  assert.ok((await wire.settle()).subarray(16).equals(pattern(1, 100)));
});
