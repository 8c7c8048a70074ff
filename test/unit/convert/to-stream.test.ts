import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { GiB, KiB, MiB } from '../../../formats/core/units.ts';
import { ChainImage } from '../../../formats/image/chain.ts';
import { ABSENT, MemoryStorage } from '../../../formats/index.ts';
import { RawLayer } from '../../../formats/raw/raw.ts';
import { checksumDisk } from '../../../src/convert/checksum.ts';
import type { DiskSource } from '../../../src/convert/disk.ts';
import { StreamChecksum } from '../../../src/convert/stream-checksum.ts';
import { convertToStream } from '../../../src/convert/to-stream.ts';
import { qemu } from '../../support/qemu.ts';
import { randomFor } from '../../support/random.ts';
import { requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const disk = (bytes: Uint8Array): ChainImage =>
  new ChainImage([new RawLayer(new MemoryStorage({ bytes }), true)], { readOnly: true });

function holeOf(size: number): DiskSource {
  return {
    path: 'hole',
    size,
    async map(offset, length, out) {
      out.begin(offset);
      out.append(ABSENT, length);
      return out.count;
    },
    tryReadv: () => assert.fail('holes are not read'),
    readv: () => assert.fail('holes are not read'),
  };
}

test('an interrupt ends a stream whose reader takes nothing', async () => {
  const interrupted = new AbortController();
  let written = 0;
  const converting = convertToStream(
    () => {
      written++;
      return new Promise(() => undefined);
    },
    { sources: [disk(new Uint8Array(4 * MiB).fill(1))], signal: interrupted.signal },
  );
  while (written === 0) await nextTurn();
  interrupted.abort();
  await assert.rejects(converting, { code: 'ABORTED' });
  assert.equal(written, 1);
});

test('an interrupt ends a stream whose reader is quicker than the disk', async () => {
  const interrupted = new AbortController();
  let written = 0;
  const converting = convertToStream(
    async () => {
      written++;
      interrupted.abort();
    },
    { sources: [disk(new Uint8Array(4 * MiB).fill(1))], signal: interrupted.signal },
  );
  await assert.rejects(converting, { code: 'ABORTED' });
  assert.equal(written, 1);
});

test('a long stream that can be interrupted leaves nothing in memory for what has gone out', async () => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const heap = (): number => {
    collect();
    return process.memoryUsage().heapUsed;
  };
  const interrupted = new AbortController();
  const before = heap();
  let end = before;
  let left = 64 * 1024;
  const write = async (): Promise<void> => {
    if (--left === 0) end = heap();
  };
  await convertToStream(write, { sources: [holeOf(64 * GiB)], signal: interrupted.signal });
  assert.equal(left, 0);
  assert.ok(end - before < 6 * MiB, `${end - before} bytes more`);
});

test('a streamOptimized disk goes out in order, twice the same, and qemu-img finds the disk in it', {
  skip: requires.qemuImg(),
}, async (t) => {
  const random = randomFor(t);
  const bytes = new Uint8Array(70 * MiB);
  for (let i = 0; i < 40; i++) bytes.set(random.bytes(5000), random.below(bytes.length - 5000));
  const out: Buffer[][] = [[], []];
  const sums: (string | undefined)[] = [];
  for (const pieces of out) {
    const { checksum } = await convertToStream(async (piece) => void pieces.push(Buffer.from(piece)), {
      sources: [disk(bytes)],
      streamOptimized: {},
      checksum: true,
    });
    sums.push(checksum);
  }
  const [first, second] = out.map((pieces) => Buffer.concat(pieces)) as [Buffer, Buffer];
  assert.ok(first.equals(second));
  assert.deepEqual(sums, new Array(2).fill(createHash('sha256').update(bytes).digest('hex')));
  const folder = await temporaryDirectory(t);
  await writeFile(join(folder, 'disk.vmdk'), first);
  await writeFile(join(folder, 'disk.raw'), bytes);
  assert.equal(await qemu.compare(join(folder, 'disk.vmdk'), join(folder, 'disk.raw'), '-F', 'raw'), true);
});

test('a checksum of parts equals that of the whole, in whatever pieces they come', async (t) => {
  const random = randomFor(t);
  const bytes = new Uint8Array(40 * MiB);
  const checksum = new StreamChecksum();
  let last: Promise<void> | undefined;
  for (let at = random.below(1000); at < bytes.length; at += random.below(30 * MiB)) {
    const part = bytes.subarray(at, Math.min(bytes.length, at + 1 + random.below(64 * KiB)));
    part.set(random.bytes(part.length));
    // Not awaited one by one: they take their turns.
    last = checksum.update(at, part);
    at += part.length;
  }
  const whole = checksum.finish(bytes.length);
  await last;
  assert.equal(await whole, createHash('sha256').update(bytes).digest('hex'));
});

test('a checksum over a huge hole leaves turns to others, and can be interrupted', async () => {
  const interrupted = new AbortController();
  const summing = checksumDisk(holeOf(64 * 1024 * GiB), 'sha256', { signal: interrupted.signal });
  setTimeout(() => interrupted.abort(), 50);
  await assert.rejects(summing, { code: 'ABORTED' });
});
