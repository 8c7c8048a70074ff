/** The power goes while an overlay is committed or rebased: its disk shows what it showed before, over whatever its header names. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB } from '../../formats/core/units.ts';
import {
  type ChainImage,
  checkImage,
  createQcow2,
  createVdi,
  createVmdk,
  ImageHost,
  IoVec,
  LunetteError,
  MemoryStorage,
  OPEN_GATE,
  type OpenImageOptions,
  type Storage,
} from '../../formats/index.ts';
import { commitImage } from '../../src/convert/commit.ts';
import { rebaseImage } from '../../src/convert/rebase.ts';
import { PowerCutStorage } from '../support/power-cut-storage.ts';
import { readAll } from '../support/qcow2-images.ts';
import { type Random, randomFor } from '../support/random.ts';

type Files = Map<string, Uint8Array>;

type Name = 'base' | 'middle' | 'top' | 'other';

/** How a test makes the files of its chain: those named, each on the one before it. */
interface Chain {
  readonly names: readonly Name[];
  readonly sizes: Readonly<Record<Name, number>>;
  readonly create: (random: Random, storage: Storage, size: number, below: ChainImage | undefined) => Promise<unknown>;
  /** For opening the top. */
  readonly open?: OpenImageOptions;
}

const QCOW2: Chain = {
  names: ['base', 'middle', 'top'],
  sizes: { base: MiB, middle: MiB + 512, top: MiB + 128 * 1024, other: 768 * 1024 },
  create: (random, storage, size, below) =>
    createQcow2(storage, {
      size,
      clusterSize: random.pick([512, 4096, 65536]),
      ...(below === undefined ? {} : { backingFile: below.path.slice(3), backingFormat: 'qcow2' }),
    }),
};

const VMDK: Chain = {
  names: ['base', 'middle', 'top'],
  // They do not grow.
  sizes: { base: MiB, middle: MiB, top: MiB - 512, other: 0 },
  create: (random, storage, size, below) =>
    createVmdk(storage, {
      size,
      grainSize: random.pick([4096, 65536]),
      ...(below === undefined
        ? {}
        : { parent: { hint: below.path.slice(3), cid: Number.parseInt(below.layers[0]?.ids?.CID as string, 16) } }),
    }),
};

const VDI: Chain = {
  names: ['base', 'top'],
  sizes: { base: MiB, middle: 0, top: MiB + 64 * 1024, other: 0 },
  create: (random, storage, size, below) =>
    createVdi(storage, {
      size,
      ...(below === undefined
        ? { blockSize: random.pick([4096, 65536]) }
        : { parent: below.layers[0]?.storage as Storage }),
    }),
  // Files in memory are not found by what is in their headers.
  open: { parent: '/d/base' },
};
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

/** The files of a chain, and of qcow2 another base, each with random writes, zeros and holes. */
async function makeFiles(random: Random, chain: Chain): Promise<Files> {
  const storages = new Map<string, MemoryStorage>();
  const host = hostOver(storages);
  const make = async (name: Name, parent?: Name): Promise<void> => {
    const path = `/d/${name}`;
    const storage = new MemoryStorage({ path });
    const below = parent === undefined ? undefined : await host.open(`/d/${parent}`, { readOnly: true });
    await chain.create(random, storage, chain.sizes[name], below);
    await below?.close();
    storages.set(path, storage);
    const image = await host.open(path, parent === undefined ? {} : chain.open);
    for (let i = 0; i < 12; i++) {
      const length = random.between(1, 100) * 512;
      const offset = random.below((image.size - length) / 512) * 512;
      if (random.chance(0.3)) await image.writeZeroes(offset, length, random.chance(0.5));
      else await image.writev(offset, IoVec.of(random.bytes(length)));
    }
    await image.close();
  };
  for (const [i, name] of chain.names.entries()) await make(name, chain.names[i - 1]);
  if (chain.sizes.other > 0) await make('other');
  return new Map([...storages].map(([path, storage]) => [path, storage.toBytes()]));
}

function storagesOf(files: Files): Map<string, MemoryStorage> {
  return new Map([...files].map(([path, bytes]) => [path, new MemoryStorage({ path, bytes })]));
}

async function contentOf(files: Files, options: OpenImageOptions = {}): Promise<Uint8Array> {
  const image = await hostOver(storagesOf(files)).open('/d/top', { ...options, readOnly: true });
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

async function assertNotCorrupt(files: Files, when: string): Promise<void> {
  const storages = storagesOf(files);
  const openStorage = async (path: string) => storages.get(path) as Storage;
  for (const path of files.keys()) {
    const { corruptions, messages } = await checkImage(path, { openStorage, gate: OPEN_GATE });
    assert.equal(corruptions, 0, `${when}: ${path}: ${messages.join('; ')}`);
  }
}

/** @returns the files when nothing was cut, and those that cuts left */
async function cutAnywhere(
  random: Random,
  act: (host: ImageHost) => Promise<void>,
  chain = QCOW2,
): Promise<{ before: Uint8Array; after: Files; cuts: Files[] }> {
  const files = await makeFiles(random, chain);
  const before = await contentOf(files, chain.open);
  const clock = { now: 0 };
  const storages = new Map(
    [...files].map(([path, bytes]) => [path, new PowerCutStorage(random, bytes, { path, clock })]),
  );
  await act(hostOver(storages));
  const end = clock.now;
  const after: Files = new Map([...storages].map(([path, storage]) => [path, storage.toBytes()]));
  const now = await contentOf(after, chain.open);
  assert.equal(firstDifference(now, before), undefined, 'it shows something else at the end');
  await assertNotCorrupt(after, 'at the end');
  const cuts: Files[] = [];
  for (let i = 0; i < CUTS; i++) {
    const at = i === 0 ? end : random.below(end + 1);
    const keep = random.pick([0, 0.5, 0.9, 1]);
    const left: Files = new Map([...storages].map(([path, storage]) => [path, storage.cut(random, at, keep)]));
    const shown = firstDifference(await contentOf(left, { ...chain.open, ignoreCid: true }), before);
    assert.equal(shown, undefined, `cut at step ${at} of ${end}, ${keep} kept: it shows something else`);
    await assertNotCorrupt(left, `cut at step ${at} of ${end}`);
    cuts.push(left);
  }
  return { before, after, cuts };
}

/** A commit that was cut is run again: then the top opens, and shows what it showed. */
async function commitAgain(files: Files, before: Uint8Array, chain: Chain, base?: string): Promise<boolean> {
  const matched = await contentOf(files, chain.open).then(
    () => true,
    (error: unknown) => {
      if (error instanceof LunetteError && error.code === 'PARENT_MISMATCH') return false;
      throw error;
    },
  );
  const storages = storagesOf(files);
  await commitImage(hostOver(storages), '/d/top', { base, parent: chain.open?.parent, ignoreCid: !matched });
  const after: Files = new Map([...storages].map(([path, storage]) => [path, storage.toBytes()]));
  assert.equal(
    firstDifference(await contentOf(after, chain.open), before),
    undefined,
    'run again it shows something else',
  );
  return matched;
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

for (const [what, chain, base] of [
  ['a VMDK delta', VMDK, undefined],
  ['a VMDK delta, past what stands between,', VMDK, '/d/base'],
  ['a VDI child', VDI, undefined],
] as const) {
  test(`a commit of ${what} that a power cut ended changes nothing that it shows, and can be run again`, async (t) => {
    const random = randomFor(t);
    for (let round = 0; round < 3; round++) {
      const parent = chain.open?.parent;
      const act = (host: ImageHost) => commitImage(host, '/d/top', { base, parent });
      const { before, cuts } = await cutAnywhere(random, act, chain);
      for (const files of cuts) await commitAgain(files, before, chain, base);
    }
  });
}

test('a commit of a VMDK delta that its base has no room for can be run again, with no word about ids', async (t) => {
  const random = randomFor(t);
  for (const base of [undefined, '/d/base']) {
    const files = await makeFiles(random, VMDK);
    const before = await contentOf(files);
    const clock = { now: 0 };
    const storages = new Map(
      [...files].map(([path, bytes]) => [path, new PowerCutStorage(random, bytes, { path, clock })]),
    );
    const full = storages.get(base ?? '/d/middle') as PowerCutStorage;
    full.maxSize = full.size;
    await assert.rejects(commitImage(hostOver(storages), '/d/top', { base }), { code: 'NO_SPACE' });
    const left: Files = new Map([...storages].map(([path, storage]) => [path, storage.toBytes()]));
    assert.notDeepEqual(left.get(full.path), files.get(full.path), 'nothing was begun');
    assert.equal(firstDifference(await contentOf(left), before), undefined, 'it shows something else');
    assert.equal(await commitAgain(left, before, VMDK, base), true);
  }
});

test('an overlay that is being rebased shows the same at any power cut', async (t) => {
  const random = randomFor(t);
  for (const base of ['other', 'base', '']) {
    await cutAnywhere(random, (host) => rebaseImage(host, '/d/top', { base }));
  }
});
