import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseTcmuEvent } from '../../../src/netlink/tcmu-events.ts';
import { randomFor } from '../../support/random.ts';

/** A generic message in the machine's byte order (little endian wherever this runs in practice). */
function message(command: number, attributes: readonly (readonly [number, Buffer])[]): Buffer {
  const parts = attributes.map(([type, value]) => {
    const header = Buffer.alloc(4);
    header.writeUInt16LE(4 + value.length, 0);
    header.writeUInt16LE(type, 2);
    return Buffer.concat([header, value, Buffer.alloc((4 - (value.length % 4)) % 4)]);
  });
  return Buffer.concat([Buffer.from([command, 2, 0, 0]), ...parts]);
}
const u32 = (value: number): Buffer => Buffer.from(Uint32Array.of(value).buffer);
const u64 = (value: bigint): Buffer => Buffer.from(BigUint64Array.of(value).buffer);
const text = (value: string): Buffer => Buffer.from(`${value}\0`);
const device = [
  [1, text('tcm-user/1/d/qcow2//a')],
  [2, u32(3)],
  [8, u32(17)],
] as const;
const base = { deviceId: 17, minor: 3, name: 'tcm-user/1/d/qcow2//a' };

test('an added and a removed device are told by name, minor and id', () => {
  assert.deepEqual(parseTcmuEvent(message(1, device)), { kind: 'added', ...base });
  assert.deepEqual(parseTcmuEvent(message(2, device)), { kind: 'removed', ...base });
});

test('a change is the one attribute that comes with it', () => {
  const changed = (type: number, value: Buffer) => parseTcmuEvent(message(3, [...device, [type, value]]));
  assert.deepEqual(changed(4, text('qcow2//b')), { kind: 'reconfigured', ...base, change: { config: 'qcow2//b' } });
  assert.deepEqual(changed(5, u64(2n ** 40n)), { kind: 'reconfigured', ...base, change: { size: 2 ** 40 } });
  assert.deepEqual(changed(6, Buffer.from([0])), { kind: 'reconfigured', ...base, change: { writeCache: false } });
  assert.deepEqual(changed(5, u64(2n ** 60n)), { kind: 'reconfigured', ...base, change: undefined });
  assert.deepEqual(changed(77, u32(1)), { kind: 'reconfigured', ...base, change: undefined });
});

test('what names no device is no event', () => {
  assert.equal(parseTcmuEvent(message(1, [[1, text('x')]])), undefined);
  assert.equal(parseTcmuEvent(message(9, device)), undefined);
  assert.equal(parseTcmuEvent(Buffer.from([1])), undefined);
});

test('any bytes are an event or none', (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 5000; round++) {
    const bytes = Buffer.from(message(1 + (random.next() % 3), device));
    for (let flips = random.next() % 5; flips > 0; flips--) bytes[random.next() % bytes.length] = random.next();
    parseTcmuEvent(bytes.subarray(0, random.next() % (bytes.length + 1)));
  }
});
