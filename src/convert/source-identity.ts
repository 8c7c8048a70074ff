import { type BigIntStats, fstatSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import type { ChainImage, Layer, Storage } from '../../formats/index.ts';
import type { DiskSource } from './disk.ts';

/**
 * What says that a disk is what it was when it was looked at before, without reading it: sizes, times and inodes of all its files, or what a
 * server says of them.
 *
 * @returns undefined where nothing does: devices, exports of NBD servers
 */
export async function identityOf(source: DiskSource): Promise<string | undefined> {
  const { layers } = source as Partial<ChainImage>;
  if (layers === undefined) return undefined;
  const parts: (string | undefined)[] = [];
  for (const layer of layers) parts.push(...(await filesOf(layer)));
  return parts.includes(undefined) ? undefined : parts.join(' ');
}

async function filesOf(layer: Layer): Promise<(string | undefined)[]> {
  const { storage } = layer;
  const { children = [], specific } = await layer.describe();
  const files = children.map(({ path }) => path);
  // VMDK: a disk in several files names them here, as QEMU does.
  const { extents } = (specific ?? {}) as { extents?: readonly { filename?: unknown }[] };
  for (const { filename } of extents ?? []) if (typeof filename === 'string' && filename !== '') files.push(filename);
  return [storageIdentity(storage), ...(await Promise.all(files.map((file) => fileIdentity(storage.resolve(file)))))];
}

function storageIdentity(storage: Storage): string | undefined {
  if (storage.version !== undefined) return storage.version;
  return storage.fd === null ? undefined : textOf(fstatSync(storage.fd, { bigint: true }));
}

function fileIdentity(path: string): Promise<string | undefined> {
  return stat(path, { bigint: true }).then(textOf, () => undefined);
}

/** Not the device: its number may be another one after the next start of the machine. */
function textOf(found: BigIntStats): string | undefined {
  return found.isFile() ? `${found.ino}:${found.size}:${found.mtimeNs}:${found.ctimeNs}` : undefined;
}
