import { readdir, stat } from 'node:fs/promises';
import path from 'node:path';
import { codeOf, ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import type { Layer } from '../image/layer.ts';
import type { ParentSearch } from '../image/parent.ts';
import type { Storage } from '../storage/storage.ts';
import { readHeader } from './create.ts';
import { uuidText } from './uuid.ts';
import { findDisk, MAX_VBOX_SIZE, parseVbox } from './vbox.ts';

/** Where VirtualBox keeps differencing images and their bases, seen from either. */
const NEIGHBOURS = ['.', '..', 'Snapshots', '../Snapshots'];
/** Files that are looked at in one folder. */
const MAX_FILES = 4096;

/**
 * Finds the parent of a differencing image: in the registry of a machine's .vbox file beside it or one folder up, else by the ids of the
 * *.vdi files in the folders where VirtualBox keeps them.
 *
 * @throws {ImageError} NOT_FOUND, DENIED for a parent that is found where the image may not name files
 */
export async function findVdiParent(child: Layer, search: ParentSearch): Promise<string> {
  const uuid = child.parent?.expected?.uuidCreate ?? '';
  const from = child.storage.path;
  const folder = path.dirname(path.resolve(from));
  const denied = new Set<string>();
  const registered = await fromRegistry(uuid, from, folder, search, denied);
  if (registered !== undefined) {
    search.admit(registered, from);
    return registered;
  }
  for (const neighbour of NEIGHBOURS) {
    for (const file of await filesOf(path.join(folder, neighbour), '.vdi')) {
      if (await hasId(file, uuid, from, search, denied)) {
        search.admit(file, from);
        return file;
      }
    }
  }
  const help =
    denied.size === 0
      ? 'Say where it is: --parent FILE'
      : `Not looked at, because the image may not name files there: ${[...denied].join(', ')}. Say --parent FILE, or --allow such a folder`;
  throw new ImageError('NOT_FOUND', `its parent, the image with id ${uuid}, is not near it`, { path: from, help });
}

async function fromRegistry(
  uuid: string,
  from: string,
  folder: string,
  search: ParentSearch,
  denied: Set<string>,
): Promise<string | undefined> {
  for (const place of [folder, path.dirname(folder)]) {
    for (const file of await filesOf(place, '.vbox')) {
      const storage = await peek(file, from, search, denied);
      if (storage === undefined) continue;
      try {
        if (storage.size > MAX_VBOX_SIZE) continue;
        const bytes = new Uint8Array(storage.size);
        await storage.readv(0, IoVec.of(bytes));
        const disk = findDisk((await parseVbox(new TextDecoder().decode(bytes), file)).disks, uuid);
        if (disk !== undefined && disk.location !== '') return path.resolve(place, disk.location.replaceAll('\\', '/'));
      } catch (error) {
        // A settings file that cannot be read is one fewer place to look.
        if (!(error instanceof ImageError)) throw error;
      } finally {
        await storage.close();
      }
    }
  }
  return undefined;
}

async function hasId(
  file: string,
  uuid: string,
  from: string,
  search: ParentSearch,
  denied: Set<string>,
): Promise<boolean> {
  const storage = await peek(file, from, search, denied);
  if (storage === undefined) return false;
  try {
    return uuidText((await readHeader(storage)).uuidCreate) === uuid;
  } catch (error) {
    if (error instanceof ImageError) return false;
    throw error;
  } finally {
    await storage.close();
  }
}

async function peek(
  file: string,
  from: string,
  search: ParentSearch,
  denied: Set<string>,
): Promise<Storage | undefined> {
  try {
    return await search.peek(file, from);
  } catch (error) {
    const code = codeOf(error);
    if (code === 'DENIED') denied.add(path.dirname(file));
    else if (code !== 'NOT_FOUND' && code !== 'ACCESS') throw error;
    return undefined;
  }
}

/** Plain files with that ending: opening anything else (a FIFO) could wait for ever. */
async function filesOf(folder: string, ending: string): Promise<string[]> {
  const names = await readdir(folder).catch(() => []);
  const found: string[] = [];
  for (const name of names.sort()) {
    if (found.length === MAX_FILES) break;
    if (!name.toLowerCase().endsWith(ending)) continue;
    const file = path.join(folder, name);
    if ((await stat(file).catch(() => undefined))?.isFile() === true) found.push(file);
  }
  return found;
}
