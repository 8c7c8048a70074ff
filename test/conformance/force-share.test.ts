/** Images that are read without locks while QEMU writes to them: each part that is read is one that the disk showed, never another part's bytes. */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import { KiB, MiB } from '../../formats/core/units.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import { ImageHost } from '../../formats/open.ts';
import { cli } from '../support/cli.ts';
import { startQemuNbd } from '../support/nbd.ts';
import { runOk } from '../support/process.ts';
import { create, qemuImg, qemuIo } from '../support/qemu.ts';
import { randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { type Cleanup, temporaryDirectory } from '../support/temporary.ts';

const CLUSTER = 4 * KiB;
const SIZE = 2 * MiB;

/** qemu-nbd with an image open for writing. */
async function holder(t: Cleanup, path: string): Promise<(...commands: string[]) => Promise<string>> {
  const { url } = await startQemuNbd(t, path, 'qcow2', '--discard=unmap');
  return (...commands) => runOk('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), url]);
}

async function bytesAt(image: ChainImage, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  const iov = IoVec.of(bytes);
  if (!image.tryReadv(offset, iov)) await image.readv(offset, iov);
  return bytes;
}

test('what QEMU has flushed is read by the next request of an image that was opened before, at whatever place it is', {
  skip: requires.qemuNbd(),
}, async (t) => {
  const path = await create(t, { size: SIZE, clusterSize: CLUSTER });
  await qemuIo(path, ['write -P 1 0 64k']);
  const say = await holder(t, path);
  const image = await new ImageHost().open(path, { readOnly: true, lock: 'shared' });
  t.after(() => image.close());
  const byte = async (offset: number) => (await bytesAt(image, offset, 512))[0];
  assert.deepEqual([await byte(0), await byte(MiB)], [1, 0]);
  await say('write -P 2 1M 64k', 'flush'); // a new L2 table, behind the file's old end
  assert.deepEqual([await byte(0), await byte(MiB)], [1, 2]);
  // Given up, then taken by others: the old place holds other bytes.
  await say('discard 0 64k', 'flush');
  await say('write -P 3 512k 64k', 'flush');
  assert.deepEqual([await byte(0), await byte(MiB), await byte(512 * KiB)], [0, 2, 3]);
  await say('write -P 4 0 64k', 'flush');
  assert.equal(await byte(0), 4);
});

for (const format of ['vdi', 'vmdk']) {
  test(`what QEMU has flushed into a ${format} image is read by the next request of one that was opened before`, {
    skip: requires.qemuNbd(),
  }, async (t) => {
    const path = join(await temporaryDirectory(t), `disk.${format}`);
    await qemuImg('create', '-f', format, path, '64M');
    const { url } = await startQemuNbd(t, path, format);
    const say = (...commands: string[]) =>
      runOk('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), url]);
    await say('write -P 1 0 64k', 'flush');
    const image = await new ImageHost().open(path, { readOnly: true, lock: 'shared' });
    t.after(() => image.close());
    const bytes = async () => {
      const parts = await Promise.all([0, 8, 40].map((at) => bytesAt(image, at * MiB, 512)));
      return parts.map((part) => part[0]);
    };
    assert.deepEqual(await bytes(), [1, 0, 0]);
    await say('write -P 2 8M 64k', 'write -P 3 40M 64k', 'flush'); // behind the file's old end
    assert.deepEqual(await bytes(), [1, 2, 3]);
    const past = new Uint8Array(64 * 1024 * 1024);
    await image.readv(0, IoVec.of(past));
    assert.deepEqual([past[64 * KiB - 1], past[64 * KiB], past[40 * MiB]], [1, 0, 3]);
  });
}

test('reads beside a QEMU that writes, gives up and moves clusters get one of the states of each cluster', {
  skip: requires.qemuNbd(),
}, async (t) => {
  const random = randomFor(t);
  const path = await create(t, { size: SIZE, clusterSize: CLUSTER });
  const clusters = SIZE / CLUSTER;
  const say = await holder(t, path);
  const image = await new ImageHost().open(path, { readOnly: true, lock: 'shared' });
  t.after(() => image.close());
  // Cluster n only ever holds a byte that is n modulo 250, plus one, or zeros.
  const byteOf = (cluster: number): number => 1 + (cluster % 250);
  let going = true;
  const writing = (async () => {
    for (let round = 0; going && round < 200; round++) {
      const commands: string[] = [];
      for (let i = 0; i < 20; i++) {
        const cluster = random.below(clusters);
        const at = cluster * CLUSTER;
        if (random.chance(0.5)) commands.push(`discard ${at} ${CLUSTER}`, 'flush');
        else commands.push(`write -P ${byteOf(cluster)} ${at} ${CLUSTER}`, 'flush');
      }
      await say(...commands);
    }
  })();
  let seen = 0;
  try {
    for (let i = 0; i < 400; i++) {
      const first = random.below(clusters);
      const count = Math.min(clusters - first, random.between(1, 40));
      const bytes = await bytesAt(image, first * CLUSTER, count * CLUSTER).catch((error: { code: string }) => {
        assert.equal(error.code, 'LOCKED', String(error)); // said, rather than guessed
        return undefined;
      });
      if (bytes === undefined) continue;
      for (let k = 0; k < count; k++) {
        const part = new Set(bytes.subarray(k * CLUSTER, (k + 1) * CLUSTER));
        const cluster = first + k;
        // A write that is under way may show in part.
        for (const value of part) {
          assert.ok(value === 0 || value === byteOf(cluster), `cluster ${cluster} shows ${value}`);
          if (value !== 0) seen++;
        }
      }
    }
  } finally {
    going = false;
    await writing;
  }
  assert.ok(seen > 0, 'something was written meanwhile');
});

test('a snapshot is read beside a QEMU that writes the live disk, and its end is said', {
  skip: requires.qemuNbd(),
}, async (t) => {
  const path = await create(t, { size: SIZE, clusterSize: CLUSTER });
  await qemuIo(path, ['write -P 1 0 1M']);
  await qemuImg('snapshot', '-c', 'a', path);
  {
    const say = await holder(t, path);
    const image = await new ImageHost().open(path, { snapshot: 'a', lock: 'shared' });
    await say('write -P 2 0 1M', 'flush', 'discard 0 512k', 'flush', 'write -P 3 1M 1M', 'flush');
    const bytes = await bytesAt(image, 0, MiB);
    assert.ok(bytes.every((value) => value === 1));
    await image.close();
  }
  const other = await create(t, { size: SIZE, clusterSize: CLUSTER });
  await qemuIo(other, ['write -P 1 0 1M']);
  await qemuImg('snapshot', '-c', 'a', other);
  const image = await new ImageHost().open(other, { snapshot: 'a', lock: 'shared' });
  t.after(() => image.close());
  await qemuImg('snapshot', '-d', 'a', other);
  await assert.rejects(bytesAt(image, 0, 512), { code: 'LOCKED', message: /snapshot 1 was deleted/ });
});

test('whoever writes to a backing file is said, with the file', { skip: requires.qemuNbd() }, async (t) => {
  const folder = await temporaryDirectory(t);
  const base = await create(t, { path: join(folder, 'base.qcow2'), size: SIZE });
  await qemuIo(base, ['write -P 1 0 64k']);
  const top = await create(t, { path: join(folder, 'top.qcow2'), backing: 'base.qcow2' });
  await qemuImg('snapshot', '-c', 'a', top);
  const say = await holder(t, base);
  await say('write -P 2 0 64k', 'flush');
  for (const args of [
    ['snapshot', 'tree', '-U', top],
    ['snapshot', 'diff', '-U', top, base],
    ['checksum', '-U', top],
    ['map', '-U', top],
  ]) {
    const { status, stderr } = await cli(...args);
    assert.equal(status, 0, stderr);
    assert.match(stderr, /warning: \S*base\.qcow2: qemu-nbd \(pid \d+\) writes to it: this is what the file holds now/);
    assert.equal(stderr.match(/writes to it/g)?.length, 1, `${args.join(' ')} says it once: ${stderr}`);
  }
});
