/** A second reader of VDI chains, written from the description of the format alone: what ours is compared with. */

/** @param files top first. @returns all bytes of the disk */
export function referenceRead(files: readonly Uint8Array[]): Uint8Array {
  const file = files[0];
  if (file === undefined) return new Uint8Array(0);
  const u32 = (at: number): number => new DataView(file.buffer, file.byteOffset).getUint32(at, true);
  const [map, data, block, extra] = [u32(0x154), u32(0x158), u32(0x178), u32(0x17c)];
  const size = u32(0x170) - (u32(0x170) % 512);
  const disk = new Uint8Array(size);
  disk.set(referenceRead(files.slice(1)).subarray(0, size));
  for (let i = 0; i < u32(0x180); i++) {
    const entry = u32(map + 4 * i);
    const end = Math.min(size, (i + 1) * block);
    if (entry === 0xffffffff) continue;
    if (entry === 0xfffffffe) disk.fill(0, i * block, end);
    else {
      const start = data + entry * (block + extra) + extra;
      disk.set(file.subarray(start, start + end - i * block), i * block);
    }
  }
  return disk;
}
