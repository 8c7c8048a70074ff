import { open, readdir, realpath, stat } from 'node:fs/promises';
import path from 'node:path';
import { looksLikeDescriptor, MAX_DESCRIPTOR, VmdkDescriptor } from './descriptor.ts';
import { HOSTED_HEADER, MAGIC_HOSTED, SECTOR } from './header.ts';

/** Files that are looked at in one folder. */
const MAX_FILES = 4096;
/** Descriptors are at the start of their files, and short. */
const HEAD = 64 * 1024;

/**
 * The disk beside this one that stands on it, if there is one: writing to its parent would make it wrong. Looks at the *.vmdk files of
 * the same folder, which is where VMware makes them.
 *
 * @returns the path of the child's descriptor
 */
export async function findChild(image: string): Promise<string | undefined> {
  const own = await realpath(image).catch(() => path.resolve(image));
  const folder = path.dirname(own);
  const names = await readdir(folder).catch(() => []);
  let looked = 0;
  for (const name of names.sort()) {
    const file = path.join(folder, name);
    if (!name.toLowerCase().endsWith('.vmdk') || file === own) continue;
    if (++looked > MAX_FILES) break;
    const hint = (await descriptorOf(file))?.get('parentFileNameHint');
    if (hint === undefined) continue;
    // A hint that leads nowhere means the file of that name beside it, as when it is opened.
    const place = await realpath(path.resolve(folder, hint)).catch(() => undefined);
    if ((place ?? path.join(folder, hint.split(/[\\/]/).at(-1) ?? '')) === own) return file;
  }
  return undefined;
}

/** The descriptor of a file; undefined when it has none that can be read. */
async function descriptorOf(file: string): Promise<VmdkDescriptor | undefined> {
  // Opening anything but a file could wait for ever.
  if ((await stat(file).catch(() => undefined))?.isFile() !== true) return undefined;
  const handle = await open(file, 'r').catch(() => undefined);
  if (handle === undefined) return undefined;
  try {
    const head = Buffer.alloc(HEAD);
    const { bytesRead } = await handle.read(head, 0, HEAD, 0);
    let text = head.subarray(0, bytesRead);
    if (bytesRead >= SECTOR && text.readUInt32LE(0) === MAGIC_HOSTED) {
      const header = HOSTED_HEADER.read(new DataView(text.buffer, text.byteOffset, text.length));
      const [start, length] = [header.descriptorOffset * SECTOR, header.descriptorSize * SECTOR];
      if (start === 0 || length === 0 || length > MAX_DESCRIPTOR || !Number.isSafeInteger(start)) return undefined;
      text = Buffer.alloc(length);
      await handle.read(text, 0, length, start);
    }
    return looksLikeDescriptor(text) ? new VmdkDescriptor(text, file) : undefined;
  } catch {
    return undefined; // Damaged: nobody can stand on anything by it.
  } finally {
    await handle.close();
  }
}
