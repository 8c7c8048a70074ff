import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { IoVec } from '../../../formats/core/iov.ts';
import { lastWriteUs, READ_CACHED, READ_MEMORY, transferNow, WRITE } from '../../../src/native/direct-io.ts';
import { EINVAL, systemError } from '../../../src/native/errno.ts';
import { addressOf, registerMemory } from '../../../src/native/memory.ts';
import { requireAddon } from '../../support/addon.ts';
import { temporaryFile } from '../../support/temporary.ts';

const skip = requireAddon();

test('segments are read and written in order, from memory of any kind', { skip }, async (t) => {
  const path = await temporaryFile(t, 'file', Buffer.from('0123456789abcdefghij'));
  const fd = openSync(path, 'r+');
  t.after(() => closeSync(fd));
  // A few bytes live inside the JavaScript heap until native code asks where they are.
  const tiny = new Uint8Array(3);
  const part = Buffer.allocUnsafe(40).subarray(10, 20);
  const registered = new Uint8Array(new ArrayBuffer(64), 32, 8);
  registerMemory(registered);
  const iov = IoVec.of(tiny, 1, 2).append(part, 2, 4).append(registered, 1, 3);
  assert.equal(transferNow(READ_MEMORY, fd, 5, iov), 9);
  assert.equal(Buffer.from(tiny.subarray(1)).toString(), '56');
  assert.equal(part.subarray(2, 6).toString(), '789a');
  assert.equal(Buffer.from(registered.subarray(1, 4)).toString(), 'bcd');

  assert.equal(transferNow(WRITE, fd, 0, iov), 9);
  assert.ok(lastWriteUs() > 0 && lastWriteUs() < 1e6);
  assert.equal(readFileSync(path, 'latin1'), '56789abcd9abcdefghij');
});

test('a failure is the negative errno', { skip }, () => {
  const result = transferNow(READ_CACHED, 54321, 0, IoVec.of(new Uint8Array(1)));
  assert.equal(systemError(result, 'preadv2').code, 'EBADF');
});

test('more segments than one call takes, and segments outside their memory, touch nothing', { skip }, () => {
  const many = new IoVec();
  for (let i = 0; i < 2000; i++) many.append(new Uint8Array(1));
  assert.equal(transferNow(WRITE, 1, 0, many), EINVAL);
  assert.throws(() => transferNow(WRITE, 1, 0, IoVec.of(new Uint8Array(10), 8, 3)), RangeError);
  assert.throws(() => transferNow(WRITE, 1, 0, IoVec.of(new Uint8Array(10), -1, 3)), RangeError);
});

test('memory that went to another thread is refused, also when it was registered', { skip }, () => {
  const memory = new Uint8Array(100);
  registerMemory(memory);
  structuredClone(memory.buffer, { transfer: [memory.buffer] });
  assert.throws(() => transferNow(READ_CACHED, 0, 0, IoVec.of(memory, 0, 100)), RangeError);
});

test('addresses count in bytes from the start of the memory', { skip }, () => {
  const memory = new Uint8Array(new ArrayBuffer(1000));
  assert.equal(addressOf(memory.subarray(17)) - addressOf(memory), 17);
  assert.ok(Number.isSafeInteger(addressOf(memory)));
});
