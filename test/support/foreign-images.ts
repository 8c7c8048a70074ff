/** Images of formats that QEMU only reads, and so cannot make: by their published layouts, as few bytes as it takes. */

import { deflateSync } from 'node:zlib';
import { u32, u64 } from './nbd-endpoint.ts';

const SECTOR = 512;

function littleEndian(...words: number[]): Buffer {
  const bytes = Buffer.alloc(4 * words.length);
  for (const [i, word] of words.entries()) bytes.writeUInt32LE(word >>> 0, 4 * i);
  return bytes;
}

/** UDIF, Apple's DMG: one block table, its chunks deflated; those of zeros are only named. */
export function dmgImage(disk: Buffer, chunkSize = 256 * 1024): Buffer {
  const entries: Buffer[] = [];
  const data: Buffer[] = [];
  let at = 0;
  for (let start = 0; start < disk.length; start += chunkSize) {
    const part = disk.subarray(start, start + chunkSize);
    const zero = part.every((byte) => byte === 0);
    const packed = zero ? Buffer.alloc(0) : deflateSync(part);
    const sectors = [u64(start / SECTOR), u64(part.length / SECTOR)];
    entries.push(Buffer.concat([u32(zero ? 2 : 0x80000005), u32(0), ...sectors, u64(at), u64(packed.length)]));
    data.push(packed);
    at += packed.length;
  }
  entries.push(Buffer.concat([u32(0xffffffff), u32(0), u64(disk.length / SECTOR), u64(0), u64(at), u64(0)]));
  const head = [
    Buffer.from('mish'),
    u32(1),
    u64(0),
    u64(disk.length / SECTOR),
    u64(0),
    u32(chunkSize / SECTOR),
    u32(0),
  ];
  const table = Buffer.concat([...head, Buffer.alloc(24 + 136), u32(entries.length), ...entries]);
  const plist = Buffer.from(
    `<?xml version="1.0"?><plist version="1.0"><dict><key>resource-fork</key><dict><key>blkx</key><array><dict><key>Data</key><data>${table.toString('base64')}</data></dict></array></dict></dict></plist>`,
  );
  const trailer = Buffer.alloc(SECTOR);
  trailer.write('koly');
  trailer.writeUInt32BE(4, 4);
  trailer.writeUInt32BE(SECTOR, 8);
  trailer.set(u64(at), 0x20);
  trailer.set(u64(at), 0xd8);
  trailer.set(u64(plist.length), 0xe0);
  trailer.set(u64(disk.length / SECTOR), 0x1ec);
  return Buffer.concat([...data, plist, trailer]);
}

/** cloop version 2: a table of offsets, and blocks that are all deflated. */
export function cloopImage(disk: Buffer, blockSize = 64 * 1024): Buffer {
  const head = Buffer.alloc(128);
  head.write('#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n');
  const blocks: Buffer[] = [];
  for (let at = 0; at < disk.length; at += blockSize) blocks.push(deflateSync(disk.subarray(at, at + blockSize)));
  let at = 128 + 8 + 8 * (blocks.length + 1);
  const offsets = [u64(at), ...blocks.map((block) => u64((at += block.length)))];
  return Buffer.concat([head, u32(blockSize), u32(blocks.length), ...offsets, ...blocks]);
}

/** A growing redolog of Bochs: a catalog of extents, each behind a bitmap of its sectors. */
export function bochsImage(disk: Buffer, extentSize = 64 * 1024): Buffer {
  const text = (length: number, value: string): Buffer => {
    const bytes = Buffer.alloc(length);
    bytes.write(value);
    return bytes;
  };
  const catalog: number[] = [];
  const extents: Buffer[] = [];
  for (let at = 0; at < disk.length; at += extentSize) {
    const part = disk.subarray(at, at + extentSize);
    if (part.every((byte) => byte === 0)) {
      catalog.push(0xffffffff);
      continue;
    }
    catalog.push(extents.length);
    extents.push(Buffer.concat([Buffer.alloc(SECTOR, 0xff), part]));
  }
  const names = [text(32, 'Bochs Virtual HD Image'), text(16, 'Redolog'), text(16, 'Growing')];
  const numbers = littleEndian(0x20000, SECTOR, catalog.length, extentSize / SECTOR / 8, extentSize, 0, disk.length, 0);
  const head = Buffer.concat([...names, numbers]);
  return Buffer.concat([head, Buffer.alloc(SECTOR - head.length), littleEndian(...catalog), ...extents]);
}
