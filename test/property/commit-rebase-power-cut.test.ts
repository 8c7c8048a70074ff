/** The power goes while an overlay is committed or rebased: its disk shows what it showed before, over whatever its header names. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB } from '../../formats/core/units.ts';
import { ImageHost, IoVec, MemoryStorage, OPEN_GATE, type Storage } from '../../formats/index.ts';
import { checkQcow2 } from '../../formats/qcow2/check.ts';
import { createQcow2 } from '../../formats/qcow2/create.ts';
import { commitImage } from '../../src/convert/commit.ts';
import { rebaseImage } from '../../src/convert/rebase.ts';
import { PowerCutStorage } from '../support/power-cut-storage.ts';
import { readAll } from '../support/qcow2-images.ts';
import { type Random, randomFor } from '../support/random.ts';

type Files = Map<string, Uint8Array>;

const SIZES = { base: MiB, middle: MiB + 512, top: MiB + 128 * 1024, other: 768 * 1024 };
const CUTS = Number(process.env.LUNETTE_CUTS ?? 25);

function hostOver(storages: ReadonlyMap<string, MemoryStorage | PowerCutStorage>): ImageHost {
  return new ImageHost({
    gate: OPEN_GATE,
    openStorage: async (path, { readOnly }) => {
      const storage = storages.get(path);
      if (storage === undefined) throw new Error(`no file ${path}`);
      const own: Record<PropertyKey, unknown> = { readOnly, id: path, path, close: async () => undefined };
      return new Proxy(storage as Storage, {
        get(target, key) {
          if (key in own) return own[key];
          const value = Reflect.get(target, key, target) as unknown;
          return typeof value === 'function' ? value.bind(target) : value;
        },
        // The host puts a close of its own there: each open has one.
        set(_target, key, value) {
          own[key] = value;
          return true;
        },
      });
    },
  });
}

/** top over middle over base, and another base, each with random writes, zeros and holes. */
async function makeFiles(random: Random): Promise<Files> {
  const storages = new Map<string, MemoryStorage>();
  const names = ['/d/base', '/d/middle', '/d/top', '/d/other'] as const;
  for (const path of names) {
    const name = path.slice(3) as keyof typeof SIZES;
    const storage = new MemoryStorage({ path });
    const backing = name === 'middle' ? 'base' : name === 'top' ? 'middle' : undefined;
    const clusterSize = random.pick([512, 4096, 65536]);
    await createQcow2(storage, {
      size: SIZES[name],
      clusterSize,
      ...(backing === undefined ? {} : { backingFile: backing, backingFormat: 'qcow2' }),
    });
    storages.set(path, storage);
    const image = await hostOver(storages).open(path);
    for (let i = 0; i < 12; i++) {
      const length = random.between(1, 100) * 512;
      const offset = random.below((image.size - length) / 512) * 512;
      if (random.chance(0.3)) await image.writeZeroes(offset, length, random.chance(0.5));
      else await image.writev(offset, IoVec.of(random.bytes(length)));
    }
    await image.close();
  }
  return new Map([...storages].map(([path, storage]) => [path, storage.toBytes()]));
}

async function contentOf(files: Files): Promise<Uint8Array> {
  const storages = new Map([...files].map(([path, bytes]) => [path, new MemoryStorage({ path, bytes })]));
  const image = await hostOver(storages).open('/d/top', { readOnly: true });
  try {
    return await readAll(image);
  } finally {
    await image.close();
  }
}

/** Offset of the first byte that differs. */
function firstDifference(a: Uint8Array, b: Uint8Array): number | undefined {
  if (Buffer.compare(a, b) === 0) return undefined;
  return a.findIndex((byte, i) => byte !== b[i]);
}

async function cutAnywhere(random: Random, act: (host: ImageHost) => Promise<void>): Promise<Files> {
  const files = await makeFiles(random);
  const before = await contentOf(files);
  const clock = { now: 0 };
  const storages = new Map(
    [...files].map(([path, bytes]) => [path, new PowerCutStorage(random, bytes, { path, clock })]),
  );
  await act(hostOver(storages));
  const end = clock.now;
  const after: Files = new Map([...storages].map(([path, storage]) => [path, storage.toBytes()]));
  const now = await contentOf(after);
  assert.equal(firstDifference(now, before), undefined, 'it shows something else at the end');
  for (const [path, bytes] of after) {
    const { corruptions, leaks, messages } = await checkQcow2(new MemoryStorage({ path, bytes }));
    assert.deepEqual([corruptions, leaks], [0, 0], `${path}: ${messages.join('; ')}`);
  }
  for (let i = 0; i < CUTS; i++) {
    const at = i === 0 ? end : random.below(end + 1);
    const keep = random.pick([0, 0.5, 0.9, 1]);
    const left: Files = new Map([...storages].map(([path, storage]) => [path, storage.cut(random, at, keep)]));
    const shown = firstDifference(await contentOf(left), before);
    assert.equal(shown, undefined, `cut at step ${at} of ${end}, ${keep} kept: it shows something else`);
    for (const [path, bytes] of left) {
      const { corruptions, messages } = await checkQcow2(new MemoryStorage({ path, bytes }));
      assert.equal(corruptions, 0, `cut at step ${at} of ${end}: ${path}: ${messages.join('; ')}`);
    }
  }
  return after;
}

test('an overlay that is being committed shows the same at any power cut', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 3; round++) {
    await cutAnywhere(random, (host) => commitImage(host, '/d/top'));
  }
});

test('an overlay that is being committed past what stands between shows the same at any power cut', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 2; round++) {
    await cutAnywhere(random, (host) => commitImage(host, '/d/top', { base: '/d/base' }));
  }
});

test('an overlay that is being rebased shows the same at any power cut', async (t) => {
  const random = randomFor(t);
  for (const base of ['other', 'base', '']) {
    await cutAnywhere(random, (host) => rebaseImage(host, '/d/top', { base }));
  }
});
