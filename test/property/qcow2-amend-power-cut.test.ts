import assert from 'node:assert/strict';
import { test } from 'node:test';
import { codeOf } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import { createSnapshot } from '../../formats/image/snapshots.ts';
import { type AmendQcow2Options, amendQcow2 } from '../../formats/qcow2/amend.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { PowerCutStorage } from '../support/power-cut-storage.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { createImage, openImage, openLayer, readAll } from '../support/qcow2-images.ts';
import { type Random, randomFor } from '../support/random.ts';

/** Cuts in one run of this test; LUNETTE_CUTS asks for more. */
const CUTS = Number(process.env.LUNETTE_CUTS ?? 1000);
const CUTS_PER_WORKLOAD = 20;

interface Subject {
  readonly what: string;
  readonly bytes: Uint8Array;
  readonly parent: Uint8Array | undefined;
  readonly shown: Uint8Array;
  readonly snapshot: Uint8Array | undefined;
}

async function open(subject: Pick<Subject, 'parent'>, storage: PowerCutStorage | MemoryStorage, snapshot?: string) {
  const parents =
    subject.parent === undefined
      ? []
      : [await openLayer(new MemoryStorage({ bytes: subject.parent }), { readOnly: true })];
  return openImage(storage, { parents, ...(snapshot === undefined ? {} : { snapshot, readOnly: true }) });
}

async function prepare(random: Random): Promise<Subject> {
  const clusterSize = random.pick([512, 1024, 4096]);
  const version = random.pick([2, 3, 3] as const);
  const refcountBits = version === 2 ? 16 : random.pick([2, 16, 16, 64]);
  const lazyRefcounts = version === 3 && random.chance(0.3);
  const size = random.pick([64, 300]) * clusterSize;
  let parent: Uint8Array | undefined;
  if (random.chance(0.5)) {
    const below = await createImage({ size, clusterSize });
    const image = await openImage(below);
    await image.writev(0, IoVec.of(random.bytes(size)));
    await image.close();
    parent = below.toBytes();
  }
  const backing = parent === undefined ? {} : { backingFile: 'parent.qcow2', backingFormat: 'qcow2' };
  const storage = await createImage({ size, clusterSize, version, refcountBits, lazyRefcounts, ...backing });
  const image = await open({ parent }, storage);
  const scatter = async () => {
    for (let i = random.between(1, 8); i > 0; i--) {
      const offset = random.below(size);
      const length = 1 + random.below(Math.min(size - offset, 20 * clusterSize));
      if (random.chance(0.4)) await image.writeZeroes(offset, length, random.chance(0.5));
      else await image.writev(offset, IoVec.of(random.bytes(length)));
    }
  };
  await scatter();
  let snapshot: Uint8Array | undefined;
  if (random.chance(0.5)) {
    await createSnapshot(image, 'before');
    snapshot = await readAll(image);
    await scatter();
    // Shares tables with the first, as far as they were not written in between.
    if (refcountBits > 2 && random.chance(0.5)) await createSnapshot(image, 'between');
  }
  const shown = await readAll(image);
  await image.close();
  const what = `version ${version}, clusters of ${clusterSize}, ${refcountBits} refcount bits${lazyRefcounts ? ', lazy' : ''}${parent === undefined ? '' : ', with a parent'}${snapshot === undefined ? '' : ', with a snapshot'}`;
  return { what, bytes: storage.toBytes(), parent, shown, snapshot };
}

async function assertSame(subject: Subject, bytes: Uint8Array, context: string): Promise<void> {
  const file = new Qcow2File(bytes);
  if (!file.dirty) assert.deepEqual(file.inspect().corruptions, [], context);
  const storage = new MemoryStorage({ bytes });
  const image = await open(subject, storage);
  assert.ok(Buffer.compare(await readAll(image), subject.shown) === 0, `${context}: the disk has changed`);
  await image.writev(0, IoVec.of(subject.shown.slice(0, 1)));
  await image.close();
  const again = new Qcow2File(storage.toBytes());
  assert.deepEqual(again.inspect().corruptions, [], `${context}, written again`);
  if (subject.snapshot === undefined) return;
  const view = await open(subject, storage, 'before');
  assert.ok(Buffer.compare(await readAll(view), subject.snapshot) === 0, `${context}: the snapshot has changed`);
  await view.close();
}

test(`${CUTS} power cuts while options are amended leave an image of before, after or between, whole`, async (t) => {
  const random = randomFor(t);
  let amended = 0;
  for (let cuts = 0; cuts < CUTS; ) {
    const subject = await prepare(random);
    const version = random.pick([2, 3, undefined] as const);
    const options: AmendQcow2Options = {
      version,
      refcountBits: version === 2 ? 16 : random.pick([undefined, 1, 8, 16, 32, 64]),
      lazyRefcounts: version === 2 ? undefined : random.pick([undefined, true, false]),
    };
    const what = `${subject.what}, amended to ${JSON.stringify(options)}`;
    const storage = new PowerCutStorage(random, subject.bytes);
    const image = await open(subject, storage);
    const done = await amendQcow2(image, options).then(
      () => true,
      (error: unknown) => {
        // Version 2 with other widths; snapshots that one bit cannot count.
        if (!['INVALID', 'TOO_LARGE'].includes(codeOf(error))) throw error;
        return false;
      },
    );
    await image.close();
    await assertSame(subject, storage.toBytes(), what);
    const file = new Qcow2File(storage.toBytes());
    assert.deepEqual(file.inspect(), { corruptions: [], leaks: [], missingCopied: [] }, what);
    if (done) {
      amended++;
      assert.equal(file.version, version ?? new Qcow2File(subject.bytes).version, what);
      assert.equal(file.refcountBits, options.refcountBits ?? new Qcow2File(subject.bytes).refcountBits, what);
    }
    for (let i = 0; i < CUTS_PER_WORKLOAD; i++, cuts++) {
      const at = random.between(0, storage.now);
      const bytes = storage.cut(random, at, random.pick([0, 0.1, 0.5, 0.9, 1]));
      await assertSame(subject, bytes, `${what}, cut at step ${at} of ${storage.now}`);
    }
  }
  assert.ok(amended > 0);
});
