/** Our client against servers that we did not write. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { ExtentBuffer, IoVec, ZERO } from '../../../formats/index.ts';
import { NbdImage } from '../../../src/nbd/client.ts';
import { runLunette } from '../../support/lunette-export.ts';
import { startNbdkit, startQemuNbd } from '../../support/nbd.ts';
import { qemu } from '../../support/qemu.ts';
import { randomFor } from '../../support/random.ts';
import { requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const MiB = 1024 * 1024;
const needs = requires.nbdkit() || requires.qemuNbd();

test('qemu-nbd: writes of any alignment, zeroes, map and flush; info tells its size', { skip: needs }, async (t) => {
  const random = randomFor(t);
  const disk = await qemu.create(t, { size: 8 * MiB });
  const server = await startQemuNbd(t, disk, 'qcow2', '--discard=unmap');
  const image = await NbdImage.open(server.url);
  t.after(() => image.close().catch(() => undefined));
  const model = Buffer.alloc(8 * MiB);
  await Promise.all(
    Array.from({ length: 60 }, () => {
      const bytes = random.bytes(1 + random.below(100_000));
      const offset = random.below(8 * MiB - bytes.length);
      model.set(bytes, offset);
      return image.writev(offset, IoVec.of(bytes));
    }),
  );
  await image.writeZeroes(4 * MiB, MiB, true);
  model.fill(0, 4 * MiB, 5 * MiB);
  await image.flush();
  const found = Buffer.alloc(8 * MiB);
  await image.readv(0, IoVec.of(found));
  assert.ok(found.equals(model));
  const extents = new ExtentBuffer();
  await image.map(4 * MiB, MiB, extents);
  assert.equal(extents.kinds[0], ZERO);
  await image.close();

  const info = await runLunette(['info', '--json', server.url]);
  assert.equal(info.status, 0, info.stderr);
  assert.equal((JSON.parse(info.stdout) as Record<string, unknown>)['virtual-size'], 8 * MiB);
  const missing = await runLunette(['info', server.url.replace('disk', 'other')]);
  assert.equal(missing.status, 1);
  assert.match(missing.stderr, /no export "other".*\(NOT_FOUND\)/);
});

test('nbdkit: a minimum block size is kept to, and errors are told apart', {
  skip: needs,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const file = join(folder, 'disk.raw');
  const bytes = randomFor(t).bytes(2 * MiB);
  await writeFile(file, bytes);
  const blocks = await startNbdkit(
    t,
    '--filter=blocksize-policy',
    'file',
    file,
    'blocksize-minimum=4096',
    'blocksize-preferred=4096',
    'blocksize-maximum=65536',
    'blocksize-error-policy=error',
  );
  const image = await NbdImage.open(blocks.url);
  const part = Buffer.alloc(300_001);
  await image.readv(12_345, IoVec.of(part));
  assert.ok(part.equals(Buffer.from(bytes.subarray(12_345, 312_346))));
  await image.writev(4099, IoVec.of(Buffer.alloc(5000, 0xee)));
  await image.close();
  bytes.fill(0xee, 4099, 9099);
  assert.ok((await readFile(file)).equals(bytes));

  const full = await startNbdkit(t, 'full', '1M');
  const small = await NbdImage.open(full.url);
  await assert.rejects(small.writev(0, IoVec.of(Buffer.alloc(10))), { code: 'NO_SPACE' });
  await small.close();
});
