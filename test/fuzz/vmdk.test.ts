import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateSync } from 'node:zlib';
import { IoVec } from '../../formats/core/iov.ts';
import { ChainImage } from '../../formats/image/chain.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { checkVmdk } from '../../formats/vmdk/check.ts';
import { vmdk } from '../../formats/vmdk/driver.ts';
import { HOSTED_HEADER } from '../../formats/vmdk/header.ts';
import { damage, exercise, survives } from '../support/hostile.ts';
import { openDisk, openLayer, testContext } from '../support/layers.ts';
import { type Random, randomFor } from '../support/random.ts';
import { type Folder, newDisk, seSparseFile, seSparseGrain } from '../support/vmdk-files.ts';

const ROUNDS = Number(process.env.LUNETTE_FLIPS ?? 10_000);

/** Files of a disk, and where in them damage does something. */
interface Victim {
  readonly main: string;
  readonly files: ReadonlyMap<string, Uint8Array>;
  readonly spots: ReadonlyMap<string, readonly { start: number; end: number }[]>;
}

/** A small disk of that type with some data. */
async function victim(type: 'monolithicSparse' | 'vmfsSparse'): Promise<Victim> {
  const folder: Folder = new Map();
  const main = await newDisk(folder, 'disk.vmdk', { size: 20 * 4096, type, grainSize: 4096 });
  const disk = await openDisk(vmdk, folder.get(main) as Storage, { context: testContext({ files: folder }) });
  for (const at of [0, 3, 4, 9]) await disk.writev(at * 4096, IoVec.of(new Uint8Array(4096).fill(at + 1)));
  await disk.close();
  const files = new Map([...folder].map(([path, file]) => [path, file.toBytes()]));
  const spots = new Map([
    [
      main,
      type === 'vmfsSparse'
        ? [{ start: 0, end: 400 }]
        : [
            { start: 0, end: 80 },
            { start: 512, end: 900 },
            { start: 21 * 512, end: 32 * 512 },
          ],
    ],
    [
      '/memory/disk-delta.vmdk',
      [
        { start: 0, end: 32 },
        { start: 2048, end: 2056 },
        { start: 2560, end: 2900 },
      ],
    ],
  ]);
  return { main, files, spots };
}

/** A stream of two grains whose directory is in front. */
function streamVictim(): Victim {
  const packed = deflateSync(new Uint8Array(65536).fill(0x5a));
  const bytes = new Uint8Array(16 * 512);
  const view = new DataView(bytes.buffer);
  HOSTED_HEADER.write(view, {
    magic: 0x564d444b,
    version: 3,
    flags: 0x30000,
    capacity: 256,
    grainSize: 128,
    numGTEsPerGT: 512,
    gdOffset: 1,
    compressAlgorithm: 1,
  });
  view.setUint32(512, 2, true);
  for (const [i, sector] of [8, 12].entries()) {
    view.setUint32(1024 + 4 * i, sector, true);
    view.setUint32(sector * 512, 128 * i, true);
    view.setUint32(sector * 512 + 8, packed.length, true);
    bytes.set(packed, sector * 512 + 12);
  }
  const spots = [
    { start: 0, end: 80 },
    { start: 512, end: 1040 },
    { start: 4096, end: 4096 + 40 },
  ];
  return {
    main: '/memory/s.vmdk',
    files: new Map([['/memory/s.vmdk', bytes]]),
    spots: new Map([['/memory/s.vmdk', spots]]),
  };
}

function seSparseVictim(): Victim {
  const bytes = seSparseFile([0n, 1n << 60n, seSparseGrain(0n), seSparseGrain(3n)]).toBytes();
  const spots = [
    { start: 0, end: 208 },
    { start: 512, end: 560 },
    { start: 1024, end: 1032 },
    { start: 64 * 512, end: 64 * 512 + 128 },
  ];
  return {
    main: '/memory/se.vmdk',
    files: new Map([['/memory/se.vmdk', bytes]]),
    spots: new Map([['/memory/se.vmdk', spots]]),
  };
}

async function attack(random: Random, { main, files, spots }: Victim): Promise<boolean> {
  const damaged = new Map([...files].map(([path, bytes]) => [path, bytes.slice()]));
  for (const [path, bytes] of damaged)
    if (path !== main || random.chance(0.7)) damage(random, bytes, spots.get(path) ?? []);
  const storages = (): Map<string, MemoryStorage> =>
    new Map([...damaged].map(([path, bytes]) => [path, new MemoryStorage({ path, bytes, maxSize: 2 ** 26 })]));
  let opened = false;
  const open = storages();
  await survives(async () => {
    const layer = await openLayer(vmdk, open.get(main) as Storage, {
      readOnly: random.chance(0.5),
      context: testContext({ files: open }),
    });
    opened = true;
    await exercise(random, new ChainImage([layer]));
  }, 'open');
  const checked = storages();
  await survives(
    () => checkVmdk(checked.get(main) as Storage, { repair: 'all', context: testContext({ files: checked }) }),
    'check',
  );
  return opened;
}

for (const [name, make] of [
  ['hosted', () => victim('monolithicSparse')],
  ['ESX', () => victim('vmfsSparse')],
  ['compressed', async () => streamVictim()],
  ['seSparse', async () => seSparseVictim()],
] as const) {
  test(`damaged ${name} VMDK files fail with an error or work, quickly`, async (t) => {
    const random = randomFor(t);
    const target = await make();
    const rounds = Math.ceil(ROUNDS / 4);
    let opened = 0;
    for (let round = 0; round < rounds; round++) if (await attack(random, target)) opened++;
    assert.ok(opened > rounds / 20, `only ${opened} of ${rounds} could be opened`);
  });
}
