import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ChainImage } from '../../formats/image/chain.ts';
import type { Image } from '../../formats/image/image.ts';
import type { Layer } from '../../formats/image/layer.ts';
import { RawLayer } from '../../formats/raw/raw.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { checkVmdk } from '../../formats/vmdk/check.ts';
import type { VmdkCreateOptions, VmdkCreateType } from '../../formats/vmdk/create.ts';
import { vmdk } from '../../formats/vmdk/driver.ts';
import { runModel } from '../support/disk-model.ts';
import { openLayer, testContext } from '../support/layers.ts';
import { powerCutRun } from '../support/power-cut.ts';
import { type Random, randomFor } from '../support/random.ts';
import { PowerLog } from '../support/recording-storage.ts';
import { type Folder, newDisk, referenceDisk, reopenAll } from '../support/vmdk-files.ts';

const SPARSE: readonly VmdkCreateType[] = ['monolithicSparse', 'twoGbMaxExtentSparse', 'vmfsSparse'];
const ALL: readonly VmdkCreateType[] = [...SPARSE, 'monolithicFlat', 'twoGbMaxExtentFlat', 'vmfs'];

/** A folder whose storages are copies: what is opened from it changes nothing here. */
function copyOf(folder: Folder): Folder {
  return new Map([...folder].map(([path, file]) => [path, new MemoryStorage({ path, bytes: file.toBytes() })]));
}

async function openChain(folder: Folder, paths: readonly string[], random: Random): Promise<Image> {
  const layers: Layer[] = [];
  for (const [i, path] of paths.entries()) {
    const files = i === 0 ? folder : copyOf(folder);
    const context = testContext({ files, cache: random.pick([0, 30000, 2 ** 20]) });
    layers.push(await openLayer(vmdk, files.get(path) as Storage, { readOnly: i > 0, context }));
  }
  return new ChainImage(layers);
}

async function assertClean(folder: Folder, path: string): Promise<void> {
  const files = copyOf(folder);
  const found = await checkVmdk(files.get(path) as Storage, { context: testContext({ files }) });
  assert.deepEqual([found.corruptions, found.checkErrors], [0, 0], JSON.stringify(found));
}

test('random chains of VMDK disks of all writable types show what a byte array shows', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 12; round++) {
    const folder: Folder = new Map();
    const paths: string[] = [];
    let model = new Uint8Array(0);
    for (let depth = random.between(1, 3); depth > 0; depth--) {
      // A child may be longer than its parent: zeros there.
      const size = model.length + random.between(1, 2000) * 512;
      const next = new Uint8Array(size);
      next.set(model);
      model = next;
      const parent = paths[0];
      const options: VmdkCreateOptions = {
        size,
        type: random.pick(parent === undefined ? ALL : SPARSE),
        grainSize: random.pick([4096, 16384, 65536]),
        ...(parent === undefined ? {} : { parent: { hint: parent.slice('/memory/'.length), cid: 1 } }),
      };
      paths.unshift(await newDisk(folder, `disk-${paths.length}.vmdk`, options));
      const path = paths[0] as string;
      const reopen = async (): Promise<Image> => {
        reopenAll(folder);
        await assertClean(folder, path);
        return openChain(folder, paths, random);
      };
      const image = await runModel(random, await openChain(folder, paths, random), model, { reopen, changes: 60 });
      await image.close();
      reopenAll(folder);
      await assertClean(folder, path);
      const read = (name: string): Uint8Array => (folder.get(`/memory/${name}`) as MemoryStorage).toBytes();
      const bytes = referenceDisk(read, path.slice('/memory/'.length));
      assert.equal(Buffer.compare(bytes, model), 0, 'the reference reader sees other bytes');
    }
  }
});

/** A descriptor of random extents, over files that exist. */
function customDisk(random: Random): { folder: Folder; files: Promise<void>; lines: string[]; sizes: number[] } {
  const folder: Folder = new Map();
  const lines: string[] = [];
  const sizes: number[] = [];
  const making: Promise<unknown>[] = [];
  for (let i = random.between(2, 6); i > 0; i--) {
    // Not always whole grains: then grains of one extent lie across the next one's border.
    const sectors = random.chance(0.5) ? 128 * random.between(1, 4) : random.between(1, 300);
    sizes.push(sectors * 512);
    const name = `part-${i}`;
    const kind = random.below(5);
    if (kind === 0) lines.push(`RW ${sectors} ZERO`);
    else if (kind === 1) {
      const offset = random.below(5);
      lines.push(`RW ${sectors} FLAT "${name}.vmdk" ${offset}`);
      const path = `/memory/${name}.vmdk`;
      folder.set(path, new MemoryStorage({ path, bytes: new Uint8Array((offset + sectors) * 512) }));
    } else {
      const type = kind === 2 ? 'vmfsSparse' : 'monolithicSparse';
      const grainSize = random.pick([4096, 65536]);
      making.push(newDisk(folder, `${name}.vmdk`, { size: sectors * 512, type, grainSize }));
      lines.push(
        `RW ${sectors} ${type === 'vmfsSparse' ? `VMFSSPARSE "${name}-delta.vmdk"` : `SPARSE "${name}.vmdk"`}`,
      );
    }
  }
  return { folder, files: Promise.all(making).then(() => undefined), lines, sizes };
}

test('a custom mix of extents shows what a byte array shows; only its zero extents refuse writes', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 12; round++) {
    const { folder, files, lines, sizes } = customDisk(random);
    await files;
    const text = `# Disk DescriptorFile\nversion=1\nCID=0000abcd\nparentCID=ffffffff\ncreateType="custom"\n${lines.join('\n')}\n`;
    folder.set('/memory/disk.vmdk', new MemoryStorage({ path: '/memory/disk.vmdk', bytes: Buffer.from(text) }));
    const model = new Uint8Array(sizes.reduce((sum, size) => sum + size, 0));
    if (lines.every((line) => line.includes('ZERO'))) continue;
    const isWritable = (offset: number, length: number): boolean => {
      let start = 0;
      return sizes.every((size, i) => {
        const overlaps = offset < start + size && start < offset + length;
        start += size;
        return !overlaps || !(lines[i] as string).includes('ZERO');
      });
    };
    const reopen = async (): Promise<Image> => {
      reopenAll(folder);
      return openChain(folder, ['/memory/disk.vmdk'], random);
    };
    const image = await runModel(random, await reopen(), model, { reopen, isWritable, changes: 60 });
    await image.close();
    reopenAll(folder);
    const read = (name: string): Uint8Array => (folder.get(`/memory/${name}`) as MemoryStorage).toBytes();
    assert.equal(Buffer.compare(referenceDisk(read, 'disk.vmdk'), model), 0, 'the reference reader sees other bytes');
  }
});

for (const type of ALL) {
  test(`after a power cut a ${type} disk opens, is not corrupt and has all that was flushed`, async (t) => {
    const random = randomFor(t);
    for (let round = 0; round < 8; round++) {
      const hasParent = SPARSE.includes(type) && random.chance(0.5);
      const folder: Folder = new Map();
      const path = await newDisk(folder, 'disk.vmdk', {
        size: random.between(8, 60) * 4096 + random.pick([0, 512]),
        type,
        grainSize: 4096,
        ...(hasParent ? { parent: { hint: 'base.vmdk', cid: 1 } } : {}),
      });
      const log = new PowerLog();
      const files = new Map([...folder].map(([name, file]) => [name, log.file(name, file.toBytes())]));
      const base = (size: number): Layer[] => (hasParent ? [stampedBase(size)] : []);
      const layer = await openLayer(vmdk, files.get(path) as Storage, { context: testContext({ files }) });
      const image = new ChainImage([layer, ...base(layer.size)]);
      await powerCutRun(random, {
        log,
        image,
        unit: 4096,
        ...(hasParent ? { initial: new Uint32Array(layer.size / 512).fill(0xabababab) } : {}),
        reopen: async (left) => {
          const after = new Map([...files].map(([name, file]) => [name, left.get(file) as MemoryStorage]));
          await assertClean(after, path);
          const again = await openLayer(vmdk, after.get(path) as Storage, { context: testContext({ files: after }) });
          return new ChainImage([again, ...base(again.size)]);
        },
      });
    }
  });
}

test('after a power cut a custom mix of extents opens, and has all that was flushed; what is read-only is as it was', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 10; round++) {
    const { folder, files: made, lines, sizes } = customDisk(random);
    await made;
    // One that is only read, full of one value, somewhere between the others.
    const at = random.below(lines.length + 1);
    const readOnly = 8 * random.between(1, 20);
    lines.splice(at, 0, `RDONLY ${readOnly} FLAT "fixed.vmdk" 0`);
    sizes.splice(at, 0, readOnly * 512);
    folder.set('/memory/fixed.vmdk', new MemoryStorage({ bytes: new Uint8Array(readOnly * 512).fill(0xab) }));
    if (lines.every((line) => line.includes('ZERO') || line.includes('RDONLY'))) continue;
    const text = `# Disk DescriptorFile\nversion=1\nCID=0000abcd\nparentCID=ffffffff\ncreateType="custom"\n${lines.join('\n')}\n`;
    folder.set('/memory/disk.vmdk', new MemoryStorage({ bytes: Buffer.from(text) }));
    const starts = sizes.map((_, i) => sizes.slice(0, i).reduce((sum, size) => sum + size / 512, 0));
    const initial = new Uint32Array(sizes.reduce((sum, size) => sum + size / 512, 0));
    initial.fill(0xabababab, starts[at], (starts[at] as number) + readOnly);
    const isWritable = (first: number, count: number): boolean =>
      lines.every((line, i) => {
        const start = starts[i] as number;
        const overlaps = first < start + (sizes[i] as number) / 512 && start < first + count;
        return !overlaps || (line.startsWith('RW') && !line.includes('ZERO'));
      });
    const log = new PowerLog();
    const files = new Map([...folder].map(([name, file]) => [name, log.file(name, file.toBytes())]));
    const open = async (from: Map<string, Storage>): Promise<ChainImage> =>
      new ChainImage([
        await openLayer(vmdk, from.get('/memory/disk.vmdk') as Storage, { context: testContext({ files: from }) }),
      ]);
    await powerCutRun(random, {
      log,
      image: await open(new Map<string, Storage>(files)),
      unit: 4096,
      initial,
      isWritable,
      reopen: async (left) => {
        const after = new Map([...files].map(([name, file]) => [name, left.get(file) as MemoryStorage]));
        await assertClean(after, '/memory/disk.vmdk');
        return open(new Map<string, Storage>(after));
      },
    });
  }
});

test('after a power cut a hosted disk whose tables come with their first grains is not corrupt either', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 6; round++) {
    const folder: Folder = new Map();
    const path = await newDisk(folder, 'disk.vmdk', { size: 60 * 4096, grainSize: 4096 });
    const bytes = (folder.get(path) as MemoryStorage).toBytes();
    const view = new DataView(bytes.buffer);
    // No table is there: both directories are empty.
    for (const field of [48, 56]) view.setUint32(512 * view.getUint32(field, true), 0, true);
    const log = new PowerLog();
    const file = log.file(path, bytes);
    await powerCutRun(random, {
      log,
      image: new ChainImage([await openLayer(vmdk, file)]),
      unit: 4096,
      reopen: async (left) => {
        const storage = left.get(file) as MemoryStorage;
        await assertClean(new Map([[path, storage]]), path);
        return new ChainImage([await openLayer(vmdk, storage)]);
      },
    });
  }
});

/** A parent full of one value. */
function stampedBase(size: number): Layer {
  return new RawLayer(new MemoryStorage({ bytes: new Uint8Array(size).fill(0xab) }), true);
}
