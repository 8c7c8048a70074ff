/** Our check beside qemu-img's: the same counts for healthy and damaged images; what we repair, qemu-img finds clean. */

import assert from 'node:assert/strict';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { checkImage, type ImageCheck } from '../../formats/check.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { assertClean, check, compare, create, qemuImg, qemuIo } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const skip = requires.qemuImg();

const COUNTS: Readonly<Record<string, keyof ImageCheck>> = {
  corruptions: 'corruptions',
  leaks: 'leaks',
  'check-errors': 'checkErrors',
  'allocated-clusters': 'allocatedClusters',
  'total-clusters': 'totalClusters',
  'fragmented-clusters': 'fragmentedClusters',
  'compressed-clusters': 'compressedClusters',
  'image-end-offset': 'imageEndOffset',
};

/** Both checks say the same. */
async function assertSame(path: string, what: string): Promise<ImageCheck> {
  const theirs = await check(path);
  const ours = await checkImage(path);
  for (const [member, name] of Object.entries(COUNTS)) {
    assert.equal(ours[name], theirs.json[member] ?? 0, `${what}: ${member}\n${ours.messages.join('\n')}`);
  }
  return ours;
}

interface Shape {
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly compat: '0.10' | '1.1';
  readonly snapshots: boolean;
  readonly compressed: boolean;
}

const SHAPES: readonly Shape[] = [
  { clusterSize: 512, refcountBits: 16, compat: '0.10', snapshots: true, compressed: true },
  { clusterSize: 4096, refcountBits: 1, compat: '1.1', snapshots: false, compressed: false },
  { clusterSize: 512, refcountBits: 64, compat: '1.1', snapshots: true, compressed: false },
  { clusterSize: 65536, refcountBits: 2, compat: '1.1', snapshots: true, compressed: false },
  { clusterSize: 65536, refcountBits: 4, compat: '1.1', snapshots: true, compressed: true },
  { clusterSize: 4096, refcountBits: 8, compat: '1.1', snapshots: true, compressed: true },
  { clusterSize: 65536, refcountBits: 16, compat: '1.1', snapshots: true, compressed: true },
  { clusterSize: 65536, refcountBits: 32, compat: '1.1', snapshots: false, compressed: true },
  { clusterSize: 2097152, refcountBits: 16, compat: '1.1', snapshots: true, compressed: false },
];

async function makeImage(t: TestContext, shape: Shape): Promise<string> {
  const { clusterSize, refcountBits, compat } = shape;
  const unit = Math.min(clusterSize, 65536);
  const path = await create(t, {
    size: clusterSize * 64,
    clusterSize,
    options: compat === '0.10' ? { compat } : { compat, refcount_bits: refcountBits },
  });
  const write = (cluster: number, count: number, byte: number) =>
    `write -P ${byte} ${cluster * clusterSize} ${count * unit}`;
  await qemuIo(path, [write(0, 3, 1), write(20, 4, 2), write(10, 2, 3), write(63, 1, 4)]);
  if (shape.compressed)
    await qemuIo(
      path,
      [30, 31, 40].map((n) => `write -c -P 5 ${n * clusterSize} ${clusterSize}`),
    );
  if (shape.snapshots) {
    await qemuImg('snapshot', '-c', 'one', path);
    await qemuIo(path, [write(0, 1, 7), write(50, 2, 8)]);
    if (refcountBits > 2) await qemuImg('snapshot', '-c', 'two', path);
  }
  return path;
}

const OFFSET = 0x00fffffffffffe00n;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

/** Where entries of the active L2 tables are that map plain data. */
function dataEntries(file: Qcow2File): number[] {
  const result: number[] = [];
  for (let i = 0; i < file.l1Size; i++) {
    const table = Number(file.u64(file.l1Offset + i * 8) & OFFSET);
    for (let at = table; table !== 0 && at < table + file.clusterSize; at += 8) {
      const entry = file.u64(at);
      if ((entry & COMPRESSED) === 0n && (entry & OFFSET) !== 0n) result.push(at);
    }
  }
  return result;
}

/** Ways to damage an image. `repairable`: what guests read is all there still, and a repair makes it clean. */
const DAMAGES: Readonly<Record<string, { repairable: boolean; plant(file: Qcow2File): void }>> = {
  'refcounts that are too low': {
    repairable: true,
    plant: (file) => {
      for (const at of dataEntries(file).slice(0, 3)) file.setRefcount(cluster(file, at), 0);
    },
  },
  'refcounts that are too high': {
    repairable: true,
    plant: (file) => {
      if (file.refcountBits === 1) return;
      for (const at of dataEntries(file).slice(0, 2)) file.setRefcount(cluster(file, at), 3);
    },
  },
  'COPIED flags turned round': {
    repairable: true,
    plant: (file) => {
      for (const at of dataEntries(file)) file.setU64(at, file.u64(at) ^ COPIED);
      file.setU64(file.l1Offset, file.u64(file.l1Offset) ^ COPIED);
    },
  },
  'clusters that nothing refers to': {
    repairable: true,
    plant: (file) => {
      const bytes = new Uint8Array(file.bytes.length + 3 * file.clusterSize);
      bytes.set(file.bytes);
      const grown = new Qcow2File(bytes);
      const last = Math.floor(bytes.length / file.clusterSize);
      grown.setRefcount(last - 1, 1);
      grown.setRefcount(last - 2, 1);
      file.bytes = bytes;
    },
  },
  'two entries with one cluster': {
    repairable: false,
    plant: (file) => {
      const [first, second] = dataEntries(file) as [number, number];
      file.setU64(second, file.u64(first));
    },
  },
  'data past the end of the file': {
    repairable: false,
    plant: (file) => file.setU64(dataEntries(file)[0] as number, COPIED | BigInt(file.clusterSize * 100000)),
  },
  'reserved bits': {
    repairable: false,
    plant: (file) => {
      const at = dataEntries(file)[1] as number;
      file.setU64(at, file.u64(at) | 0x80n);
      file.setU64(file.l1Offset, file.u64(file.l1Offset) | 4n);
    },
  },
  'a compressed entry with COPIED': {
    repairable: false,
    plant: (file) => {
      const at = dataEntries(file)[0] as number;
      file.setU64(at, file.u64(at) | COMPRESSED | COPIED);
    },
  },
  'a refcount block that is gone': {
    repairable: true,
    plant: (file) => file.setU64(Number(file.u64(48)), 0n),
  },
  'a header without a refcount table': {
    repairable: true,
    plant: (file) => file.setU32(56, 0),
  },
  'a refcount table entry past the end of the file': {
    repairable: true,
    plant: (file) => file.setU64(Number(file.u64(48)), BigInt(file.clusterSize * 50000)),
  },
};

function cluster(file: Qcow2File, entry: number): number {
  return Number(file.u64(entry) & OFFSET) / file.clusterSize;
}

for (const shape of SHAPES) {
  const name = `clusters of ${shape.clusterSize}, refcounts of ${shape.refcountBits} bits, ${shape.compat}`;
  test(`healthy and damaged images count as qemu-img counts them, and repair makes them clean: ${name}`, {
    skip,
  }, async (t) => {
    const healthy = await makeImage(t, shape);
    const found = await assertSame(healthy, 'healthy');
    assert.equal(found.corruptions + found.leaks, 0);
    const before = await readFile(healthy);
    await checkImage(healthy, { repair: 'all', deep: true });
    assert.ok(before.equals(await readFile(healthy)), 'a repair of a clean image writes nothing');

    const folder = await temporaryDirectory(t);
    for (const [what, { repairable, plant }] of Object.entries(DAMAGES)) {
      const path = join(folder, 'damaged.qcow2');
      const file = new Qcow2File(new Uint8Array(before));
      plant(file);
      await writeFile(path, file.bytes);
      const damaged = await assertSame(path, what);
      if (!repairable) {
        assert.ok(damaged.corruptions > 0, `${what}: found`);
        continue;
      }
      const leaksOnly = damaged.corruptions === 0;
      if (leaksOnly && damaged.leaks > 0) {
        const second = join(folder, 'leaks.qcow2');
        await copyFile(path, second);
        const result = await checkImage(second, { repair: 'leaks' });
        assert.equal(result.leaksFixed, damaged.leaks, what);
        await assertClean(second);
      }
      const result = await checkImage(path, { repair: 'all' });
      assert.equal(result.corruptions + result.leaks, 0, `${what}\n${result.messages.join('\n')}`);
      assert.equal(result.corruptionsFixed, damaged.corruptions, what);
      await assertClean(path);
      assert.ok(await compare(healthy, path), `${what}: the content is the same after the repair`);
      if (shape.snapshots) {
        await qemuImg('snapshot', '-a', '1', path);
        await assertClean(path);
      }
    }
  });
}

test('an L1 entry that has lost its table and not its flag is an error for both, not only leaks', {
  skip,
}, async (t) => {
  const path = await makeImage(t, SHAPES[6] as Shape);
  const file = new Qcow2File(await readFile(path));
  for (const flags of [COPIED, 1n, COPIED | (1n << 60n)]) {
    file.setU64(file.l1Offset, flags);
    await writeFile(path, file.bytes);
    assert.equal((await check(path)).status, 2);
    for (const repair of [undefined, 'leaks', 'all'] as const) {
      const { corruptions, messages } = await checkImage(path, repair === undefined ? {} : { repair });
      assert.equal(corruptions, 1, messages.join('\n'));
    }
  }
});

test('bitmaps, encryption headers, external data and subclusters count as qemu-img counts them', {
  skip,
}, async (t) => {
  const bitmaps = await create(t, { size: 4 * 1024 * 1024 });
  await qemuImg('bitmap', '--add', '-g', '64k', bitmaps, 'b0');
  await qemuIo(bitmaps, ['write -P 1 0 1M']);
  await qemuImg('bitmap', '--add', bitmaps, 'b1');
  await assertSame(bitmaps, 'bitmaps');

  const folder = await temporaryDirectory(t);
  const external = join(folder, 'external.qcow2');
  await create(t, { path: external, size: 1024 * 1024, options: { data_file: join(folder, 'data.raw') } });
  await qemuIo(external, ['write -P 1 64k 256k']);
  await assertSame(external, 'external data');

  const subclusters = await create(t, { size: 1024 * 1024, options: { extended_l2: 'on' } });
  await qemuIo(subclusters, ['write -P 1 4k 300k']);
  const path = join(folder, 'subclusters.qcow2');
  for (const [word, value] of [
    [8, 0xffffffffffffffffn],
    [16 * 8 + 8, 0xffn],
    [0, 3n],
  ] as const) {
    const file = new Qcow2File(new Uint8Array(await readFile(subclusters)));
    const table = Number(file.u64(file.l1Offset) & OFFSET);
    file.setU64(table + word, word === 0 ? file.u64(table) | value : value);
    await writeFile(path, file.bytes);
    const found = await assertSame(path, `subclusters, word ${word}`);
    assert.equal(found.corruptions, 1);
  }
  const luks = join(folder, 'luks.qcow2');
  await qemuImg(
    ...['create', '-q', '--object', 'secret,id=s,data=secret', '-f', 'qcow2'],
    ...['-o', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10', luks, '1M'],
  );
  const ours = await checkImage(luks);
  const theirs = JSON.parse(
    await qemuImg(
      ...['check', '--output=json', '--object', 'secret,id=s,data=secret', '--image-opts'],
      `driver=qcow2,file.filename=${luks},encrypt.key-secret=s`,
    ),
  ) as Record<string, number>;
  assert.equal(ours.corruptions + ours.leaks, 0, ours.messages.join('\n'));
  assert.equal(ours.imageEndOffset, theirs['image-end-offset']);
});

test('a dirty image is mended and marked clean; a corrupt mark goes once nothing is wrong', { skip }, async (t) => {
  const path = await create(t, { size: 1024 * 1024, options: { lazy_refcounts: 'on' } });
  await qemuIo(path, ['write -P 1 0 512k']);
  const file = new Qcow2File(new Uint8Array(await readFile(path)));
  file.setU32(76, file.u32(76) | 3);
  for (const at of dataEntries(file)) file.setRefcount(cluster(file, at), 0);
  await writeFile(path, file.bytes);
  const result = await checkImage(path, { repair: 'all' });
  assert.equal(result.corruptions, 0);
  assert.ok(result.corruptionsFixed > 0);
  await assertClean(path);
  assert.equal(new Qcow2File(new Uint8Array(await readFile(path))).u32(76) & 3, 0);
  await qemuIo(path, ['read -P 1 0 512k', 'write -P 2 0 64k']);
});
